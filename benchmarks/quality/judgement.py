"""How much of the ensemble's gain each student kept, against the strongest direct model and against other
tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensdistill.report.bootstrap import interval, ratio_interval, resampled_means
from ensdistill.report.metrics import correct_rows, nll_rows
from ensdistill.report.results import DIRECT, SCALED

STUDENT = SCALED["student"]
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


def goals(judged: Sequence[dict[str, Any]], regime: str, size: str) -> dict[str, Any]:
    """The mean share kept, over the cases of a regime in which a metric counts."""
    wanted = [one for one in judged if one["regime"] == regime and one["size"] == size]
    result: dict[str, Any] = {"cases": len(wanted)}
    for metric in METRICS:
        kept = [one[metric]["kept"] for one in wanted if one[metric]["counts"]]
        result[metric] = {"counting": len(kept), "mean": float(np.mean(kept)) if kept else None,
                          "least": min(kept, default=None)}  # fmt: skip
    return result
