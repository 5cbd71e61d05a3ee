"""How much of the ensemble's gain each student kept, against the strongest direct model and against other
tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.report.bootstrap import interval, ratio_interval, resampled_means
from ensdistill.report.metrics import correct_rows, nll_rows
from ensdistill.report.results import DIRECT, SCALED

STUDENT = SCALED["student"]
LABELS = {"accuracy": "accuracy", "nll": "NLL"}
METRICS = {"accuracy": (correct_rows, 1.0), "nll": (nll_rows, -1.0)}
BEYOND = 4.0  # standard errors by which the ensemble has to lead for a metric to count
WORSE = {"accuracy": 0.005, "nll": 0.01}  # that a student may be elsewhere


def judge_student(
    models: Mapping[str, Sequence[np.ndarray]], labels: Sequence[np.ndarray], peers: Sequence[str] = ()
) -> dict[str, Any]:
    """Judge the temperature-scaled student of one case and size.

    Parameters
    ----------
    models : dict of str to list of ndarray [N_s, C]
        Test probabilities by kind, one array for each seed; other tools' models by their names.
    labels : list of ndarray [N_s], int64
    peers : sequence of str
        The names of other tools' models.

    Returns
    -------
    dict
        For each metric: means of all models; ``lead`` of the ensemble over the strongest direct model with
        its standard error; whether it ``counts``; the ``kept`` share with its 95 % interval; and the
        student's difference ``over`` the best alternative, positive where the student is better.
    """
    names = list(models)
    found: dict[str, Any] = {}
    for metric, (rows, sign) in METRICS.items():
        values = [
            np.stack([sign * rows(models[name][seed], labels[seed]) for name in names], axis=1)
            for seed in range(len(labels))
        ]
        means = dict(zip(names, np.mean([v.mean(0) for v in values], axis=0), strict=True))
        draws = dict(zip(names, resampled_means(values).T, strict=True))
        strongest = max(DIRECT, key=lambda name: means[name])
        lead = means["ensemble"] - means[strongest]
        error = float(np.std(draws["ensemble"] - draws[strongest], ddof=1))
        gained = means[STUDENT] - means[strongest]
        leads = draws["ensemble"] - draws[strongest], draws[STUDENT] - draws[strongest]
        best = max((strongest, *peers), key=lambda name: means[name])
        over = means[STUDENT] - means[best]
        low, high = interval(draws[STUDENT] - draws[best])
        found[metric] = {
            "means": {name: sign * float(value) for name, value in means.items()},
            "strongest_direct": strongest,
            "lead": float(lead),
            "standard_error": error,
            "counts": bool(lead >= BEYOND * error),
            "kept": float(gained / lead) if lead > 0 else None,
            "kept_interval": ratio_interval(leads[1], leads[0]) if lead > 0 else None,
            "best_alternative": best,
            "over": float(over),
            "over_interval": [low, high],
            "worse": bool(over < -WORSE[metric]),
            "worse_beyond_interval": bool(high < 0),
        }
    return found


@dataclass(frozen=True)
class Goal:
    """A goal of the benchmark, and its result.

    Parameters
    ----------
    text : str
    met : bool or None
        None where no case can show it.
    found : str
        The result of the cases, in words.
    """

    text: str
    met: bool | None
    found: str


def goals(judged: Sequence[Mapping[str, Any]], peers: Sequence[str]) -> list[Goal]:
    """Judge all goals by the judged students of all cases."""
    return [
        _kept(judged, "with a pool, the size chosen by keep: 95 % of NLL", "nll", "keep", True, 0.95),
        _kept(
            judged, "with a pool, the size chosen by keep: 95 % of accuracy", "accuracy", "keep", True, 0.95
        ),
        _kept(judged, "without a pool, a member's size: 95 % of NLL", "nll", "member", False, 0.95),
        _kept(judged, "without a pool, a tenth of it: 85 % of NLL", "nll", "tenth", False, 0.85),
        _never_worse(judged),
        _close(judged),
        _beats(judged, peers, "nll"),
        _beats(judged, peers, "accuracy"),
    ]


def _kept(
    judged: Sequence[Mapping[str, Any]], text: str, metric: str, size: str, pool: bool, goal: float
) -> Goal:
    shares = {
        _case(one): one[metric]["kept"]
        for one in judged
        if one["size"] == size and one["with_pool"] == pool and one[metric]["counts"]
    }
    if not shares:
        return Goal(text, None, "it counts in no case")
    reached = [name for name, share in shares.items() if share >= goal]
    least = min(shares, key=lambda name: shares[name])
    mean = float(np.mean(list(shares.values())))
    found = f"{len(reached)} of {len(shares)} cases; mean {mean:.0%}, least {shares[least]:.0%} ({least})"
    return Goal(text, len(reached) == len(shares), found)


def _never_worse(judged: Sequence[Mapping[str, Any]]) -> Goal:
    text = "the chosen student is nowhere worse than the best alternative beyond its interval, or preflight warns"
    chosen = _chosen(judged)
    worse = [one for one in chosen if any(one[metric]["worse_beyond_interval"] for metric in METRICS)]
    silent = [_case(one) for one in worse if not one["warned"]]
    found = f"worse in {len(worse)} of {len(chosen)} cases, {len(worse) - len(silent)} of them with a warning"
    return Goal(text, not silent if chosen else None, found + _listed(silent))


def _close(judged: Sequence[Mapping[str, Any]]) -> Goal:
    text = "where the ensemble leads by less than 4 standard errors: at most .5 points and .01 nats worse"
    uncounted = [(one, metric) for one in _chosen(judged) for metric in METRICS if not one[metric]["counts"]]
    worse = [f"{_case(one)} {metric}" for one, metric in uncounted if one[metric]["worse"]]
    found = f"{len(uncounted) - len(worse)} of {len(uncounted)} figures"
    return Goal(text, not worse if uncounted else None, found + _listed(worse))


def _beats(judged: Sequence[Mapping[str, Any]], peers: Sequence[str], metric: str) -> Goal:
    text = f"{LABELS[metric]} better than every other tool's in 80 % of the cases"
    chosen, sign, lost = _chosen(judged), METRICS[metric][1], []
    for one in chosen:
        means = one[metric]["means"]
        if any(sign * means[STUDENT] <= sign * means[peer] for peer in peers if peer in means):
            lost.append(_case(one))
    found = f"{len(chosen) - len(lost)} of {len(chosen)} cases"
    return Goal(text, len(lost) <= 0.2 * len(chosen) if chosen and peers else None, found + _listed(lost))


def _chosen(judged: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The students whose size was searched for."""
    return [one for one in judged if one["size"] == "keep"]


def _case(one: Mapping[str, Any]) -> str:
    return f"{one['set']}, {one['regime']}"


def _listed(cases: Sequence[str]) -> str:
    return f"; not {'; '.join(cases)}" if cases else ""
