"""How much of the ensemble's gain each student kept, against the strongest direct model and against other
tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.report.bootstrap import Statistic, interval, ratio_interval, resampled, weighted_means
from ensdistill.report.measures import MEASURES, METRICS, Metric
from ensdistill.report.multilabel_metrics import LabelProbabilities
from ensdistill.report.regression_metrics import Forecasts
from ensdistill.report.results import DIRECT, SCALED

STUDENT = SCALED["student"]
BEYOND = 4.0  # standard errors by which the ensemble has to lead for a metric to count
# That a student may be elsewhere: shares, nats (BCE is the mean over labels), deviations of the labels.
WORSE = {"accuracy": 0.005, "nll": 0.01, "map": 0.005, "bce": 0.001, "rmse": 0.005}
ACCURACY, NLL = "accuracy (mAP, RMSE)", "NLL (BCE)"
QUALITY, LIKELIHOOD = 0, 1  # places of a task's two metrics: accuracy, mAP or RMSE; NLL or BCE


def metrics_of(one: Mapping[str, Any]) -> list[str]:
    """The metrics of a judged student's task, in the order of the two places."""
    return [metric.name for metric in MEASURES[one.get("task", "classification")].deciding]


def as_prediction(task: Task, values: np.ndarray) -> Any:
    """Another tool's test predictions in the form that the task's metrics take.

    Parameters
    ----------
    values : ndarray [N, C], or [N, 2 D]
        Probabilities; of a regression means, and then variances.
    """
    if task == "classification":
        return values
    return LabelProbabilities(values) if task == "multilabel" else Forecasts(*np.split(values, 2, axis=1))


def judge_student(
    models: Mapping[str, Sequence[Any]],
    labels: Sequence[np.ndarray],
    peers: Sequence[str] = (),
    task: Task = "classification",
) -> dict[str, Any]:
    """Judge the temperature-scaled student of one case and size.

    Parameters
    ----------
    models : dict of str to list
        Test predictions by kind, one for each seed, in the form that the task's metrics take; other tools'
        models by their names.
    labels : list of ndarray
        In the task's form, one array for each seed.
    peers : sequence of str
        The names of other tools' models.
    task : {"classification", "multilabel", "regression"}

    Returns
    -------
    dict
        The ``task``, and for each metric: means of all models; ``lead`` of the ensemble over the strongest
        direct model with its standard error; whether it ``counts``; the ``kept`` share with its 95 %
        interval; and the student's difference ``over`` the best alternative, positive where the student is
        better. A model without a variance has no NLL of numbers.
    """
    found: dict[str, Any] = {"task": task}
    for metric in MEASURES[task].deciding:
        names = [name for name, seeds in models.items() if metric.defined(seeds)]
        statistics = [
            _statistic(metric, [models[name][seed] for name in names], labels[seed])
            for seed in range(len(labels))
        ]
        sizes = [len(part) for part in labels]
        on_all = [one(np.ones((1, n)))[0] for one, n in zip(statistics, sizes, strict=True)]
        means = dict(zip(names, np.mean(on_all, axis=0), strict=True))
        draws = dict(zip(names, resampled(statistics, sizes).T, strict=True))
        strongest = max(filter(means.__contains__, DIRECT), key=lambda name: means[name])
        lead = means["ensemble"] - means[strongest]
        error = float(np.std(draws["ensemble"] - draws[strongest], ddof=1))
        gained = means[STUDENT] - means[strongest]
        leads = draws["ensemble"] - draws[strongest], draws[STUDENT] - draws[strongest]
        best = max((strongest, *filter(means.__contains__, peers)), key=lambda name: means[name])
        over = means[STUDENT] - means[best]
        low, high = interval(draws[STUDENT] - draws[best])
        found[metric.name] = {
            "means": {name: metric.sign * float(value) for name, value in means.items()},
            "strongest_direct": strongest,
            "lead": float(lead),
            "standard_error": error,
            "counts": bool(lead >= BEYOND * error),
            "kept": float(gained / lead) if lead > 0 else None,
            "kept_interval": ratio_interval(leads[1], leads[0]) if lead > 0 else None,
            "best_alternative": best,
            "over": float(over),
            "over_interval": [low, high],
            "worse": bool(over < -WORSE[metric.name]),
            "worse_beyond_interval": bool(high < 0),
        }
    return found


def _statistic(metric: Metric, predictions: Sequence[Any], labels: np.ndarray) -> Statistic:
    """A metric of several models for sets of row weights: [R, M], larger ones better."""
    if metric.resampler is not None:
        each = [metric.resampler(one, labels) for one in predictions]
        return lambda weights: metric.sign * np.stack([values(weights) for values in each], axis=1)
    assert metric.rows is not None
    means = weighted_means(np.stack([metric.rows(one, labels) for one in predictions], axis=1))
    finish = metric.finish or (lambda values: values)
    return lambda weights: metric.sign * finish(means(weights))


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
        _kept(judged, f"with a pool, the size chosen by keep: 95 % of {NLL}", LIKELIHOOD, "keep", True, 0.95),
        _kept(
            judged, f"with a pool, the size chosen by keep: 95 % of {ACCURACY}", QUALITY, "keep", True, 0.95
        ),
        _kept(judged, f"without a pool, a member's size: 95 % of {NLL}", LIKELIHOOD, "member", False, 0.95),
        _kept(judged, f"without a pool, a tenth of it: 85 % of {NLL}", LIKELIHOOD, "tenth", False, 0.85),
        _never_worse(judged),
        _close(judged),
        _beats(judged, peers, LIKELIHOOD),
        _beats(judged, peers, QUALITY),
    ]


def _kept(
    judged: Sequence[Mapping[str, Any]], text: str, place: int, size: str, pool: bool, goal: float
) -> Goal:
    figures = {
        _case(one): one[metrics_of(one)[place]]
        for one in judged
        if one["size"] == size and one["with_pool"] == pool
    }
    shares = {name: found["kept"] for name, found in figures.items() if found["counts"]}
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
    worse = [one for one in chosen if any(one[metric]["worse_beyond_interval"] for metric in metrics_of(one))]
    silent = [_case(one) for one in worse if not one["warned"]]
    found = f"worse in {len(worse)} of {len(chosen)} cases, {len(worse) - len(silent)} of them with a warning"
    return Goal(text, not silent if chosen else None, found + _listed(silent))


def _close(judged: Sequence[Mapping[str, Any]]) -> Goal:
    text = "where the ensemble leads by less than 4 standard errors: at most .5 points and .01 nats (BCE .001) worse"
    uncounted = [
        (one, metric) for one in _chosen(judged) for metric in metrics_of(one) if not one[metric]["counts"]
    ]
    worse = [f"{_case(one)} {metric}" for one, metric in uncounted if one[metric]["worse"]]
    found = f"{len(uncounted) - len(worse)} of {len(uncounted)} figures"
    return Goal(text, not worse if uncounted else None, found + _listed(worse))


def _beats(judged: Sequence[Mapping[str, Any]], peers: Sequence[str], place: int) -> Goal:
    """In the cases that have another tool's model."""
    text = f"{(ACCURACY, NLL)[place]} better than every other tool's in 80 % of the cases"
    chosen, lost = 0, []
    for one in _chosen(judged):
        name = metrics_of(one)[place]
        means, sign = one[name]["means"], METRICS[name].sign
        theirs = [sign * means[peer] for peer in peers if peer in means]
        chosen += bool(theirs)
        if theirs and sign * means[STUDENT] <= max(theirs):
            lost.append(_case(one))
    found = f"{chosen - len(lost)} of {chosen} cases"
    return Goal(text, len(lost) <= 0.2 * chosen if chosen else None, found + _listed(lost))


def _chosen(judged: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The students whose size was searched for."""
    return [one for one in judged if one["size"] == "keep"]


def _case(one: Mapping[str, Any]) -> str:
    return f"{one['set']}, {one['regime']}"


def _listed(cases: Sequence[str]) -> str:
    return f"; not {'; '.join(cases)}" if cases else ""
