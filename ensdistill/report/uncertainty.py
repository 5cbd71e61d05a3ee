"""How much of the ensemble's uncertainty a student kept: whether the two are uncertain about the same rows,
and the error of the most certain rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.report.ranks import rank_correlation
from ensdistill.report.results import RunResults, StudentResults
from ensdistill.report.row_scores import ROW_SCORES

SHARES = tuple(i / 20 for i in range(1, 21))  # of the rows, the most certain first
CERTAIN = 0.8  # the share of a table's column
KINDS = ("ensemble", "direct", "student")


def judge_uncertainty(student: StudentResults, results: RunResults) -> dict[str, Any] | None:
    """The entry ``uncertainty`` of a student's block (``docs/report.md`` has its schema).

    None where the ensemble or the student has no uncertainty, as a forecast without a variance.
    """
    scores, task = ROW_SCORES[results.task], results.task
    models = {
        "ensemble": results.ensemble,
        "direct": student.models["direct"],
        "student": student.models["student"],
    }
    predictions = {kind: model.predictions(task) for kind, model in models.items()}
    there = [kind for kind in KINDS if scores.uncertain(predictions[kind])]
    if not {"ensemble", "student"} <= set(there):
        return None
    members = [member.predictions(task) for member in results.members]
    found: dict[str, Any] = {kind: {"mean": [], "curve": [], "rank": []} for kind in there}
    with_spread: list[list[float]] = []
    for s, labels in enumerate(results.labels):
        weights = results.weights_of(s)
        of = {kind: scores.uncertainty(predictions[kind][s], labels) for kind in there}
        for kind in there:
            error = scores.error(predictions[kind][s], labels)
            found[kind]["mean"].append(float(np.average(of[kind], weights=weights)))
            found[kind]["curve"].append(scores.finish(selective(of[kind], error, weights)))
            found[kind]["rank"].append(rank_correlation(of[kind], of["ensemble"]))
        if len(members) > 1:
            shares = np.array([member.weights[s] for member in results.members])
            spread = scores.spread([one[s] for one in members], shares / shares.sum(), labels)
            with_spread.append([rank_correlation(of[kind], spread) for kind in there])
    block: dict[str, Any] = {
        kind: {
            "mean": float(np.mean(one["mean"])),
            "rank_with_ensemble": float(np.mean(one["rank"])),
            "error": float(np.mean([curve[-1] for curve in one["curve"]])),
            "error_certain": float(np.mean([curve[SHARES.index(CERTAIN)] for curve in one["curve"]])),
            "curve": [float(value) for value in np.mean(one["curve"], axis=0)],
        }
        for kind, one in found.items()
    }
    for kind, rank in zip(there, np.mean(with_spread, axis=0) if with_spread else (), strict=False):
        block[kind]["rank_with_spread"] = float(rank)
    return block


def selective(uncertainty: np.ndarray, error: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """The mean error of the most certain rows, for each of `SHARES` of them.

    Among rows of equal uncertainty all have their mean error, so that the order of rows does not count.

    Parameters
    ----------
    uncertainty, error : ndarray [N]
    weights : ndarray [N] or None

    Examples
    --------
    >>> selective(np.arange(20.0), np.arange(20) >= 15, None)[[9, 19]].tolist()
    [0.0, 0.25]
    """
    weights = np.ones(len(error)) if weights is None else weights
    _, group = np.unique(uncertainty, return_inverse=True)
    size = np.bincount(group, weights)
    total = np.bincount(group, weights * error)
    # Rows of a group are predicted together: within it the sum of errors grows evenly.
    rows, errors = (np.concatenate([[0.0], np.cumsum(values)]) for values in (size, total))
    covered = np.array(SHARES) * rows[-1]
    found: np.ndarray = np.interp(covered, rows, errors) / covered
    return found
