"""Where the student and the ensemble differ: decisions that they share or not, and the test rows that are
furthest apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.data.tasks import UNKNOWN
from ensdistill.report.multilabel_metrics import LabelProbabilities
from ensdistill.report.regression_metrics import Forecasts, deviations
from ensdistill.report.results import RunResults, StudentResults
from ensdistill.report.row_scores import ROW_SCORES, label_divergence
from ensdistill.report.samples import shown_sample

SHOWN_ROWS = 8
PAIRS = 30  # of classes, the most frequent
MATRIX = 12  # classes, up to which the whole table is given
NAMED = 6  # labels of a row, or numbers of a prediction, in words
APART = 3  # labels of a row on which two predictions are furthest apart, in words


def judge_agreement(student: StudentResults, results: RunResults) -> dict[str, Any]:
    """The entry ``agreement`` of a student's block (``docs/report.md`` has its schema)."""
    names = output_names(results)
    ensembles = results.ensemble.predictions(results.task)
    students = student.models["student"].predictions(results.task)
    if results.task == "regression":
        return _of_numbers(names, ensembles, students, results)
    if results.task == "multilabel":
        return _of_labels(names, ensembles, students)
    tops = [(e.argmax(1), s.argmax(1)) for e, s in zip(ensembles, students, strict=True)]
    count = len(names)
    matrix, right = np.zeros((count, count), int), np.zeros((2, count, count), int)
    for (e, s), labels in zip(tops, results.labels, strict=True):
        np.add.at(matrix, (e, s), 1)
        for of, top in zip(right, (e, s), strict=True):
            np.add.at(of, (e, s), top == labels)
    apart = ~np.eye(count, dtype=bool)
    order = np.argsort(-(matrix * apart), axis=None, kind="stable")[:PAIRS]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(order, matrix.shape), strict=True) if i != j]
    both_right = int(right[0][~apart].sum())
    per_seed = [float((e == s).mean()) for e, s in tops]
    found: dict[str, Any] = {
        "mean": float(np.mean(per_seed)),
        "per_seed": per_seed,
        "both_right": both_right,
        "ensemble_alone_right": int(right[0].sum()) - both_right,
        "student_alone_right": int(right[1].sum()) - both_right,
        "both_wrong": int(matrix.sum() - right[0].sum() - right[1].sum()) + both_right,
        "pairs": [
            {
                "ensemble": names[i],
                "student": names[j],
                "rows": int(matrix[i, j]),
                "ensemble_right": int(right[0, i, j]),
                "student_right": int(right[1, i, j]),
            }
            for i, j in pairs
            if matrix[i, j]
        ],
    }
    if count <= MATRIX:
        found["matrix"] = matrix.tolist()
    return found


def _of_labels(names: list[str], ensembles: list[Any], students: list[Any]) -> dict[str, Any]:
    each = [(e.predicted, s.predicted) for e, s in zip(ensembles, students, strict=True)]
    both, one, other = (
        sum(np.sum(find(e, s), axis=0) for e, s in each)
        for find in (lambda e, s: e & s, lambda e, s: e & ~s, lambda e, s: ~e & s)
    )
    per_seed = [float((e == s).mean()) for e, s in each]
    labels = [
        {"name": name, "both": int(both[i]), "ensemble_alone": int(one[i]), "student_alone": int(other[i])}
        for i, name in enumerate(names)
    ]
    return {"mean": float(np.mean(per_seed)), "per_seed": per_seed, "labels": labels}


def _of_numbers(
    names: list[str], ensembles: list[Any], students: list[Any], results: RunResults
) -> dict[str, Any]:
    apart = [s.mean - e.mean for e, s in zip(ensembles, students, strict=True)]
    units = [deviations(labels) for labels in results.labels]
    per_seed = [float(np.sqrt(np.square(one / unit).mean())) for one, unit in zip(apart, units, strict=True)]
    numbers = [
        {
            "name": name,
            "difference": float(np.mean([np.sqrt(np.square(one[:, d]).mean()) for one in apart])),
            "offset": float(np.mean([one[:, d].mean() for one in apart])),
            "deviation": float(np.mean([unit[d] for unit in units])),
        }
        for d, name in enumerate(names)
    ]
    return {"mean": float(np.mean(per_seed)), "per_seed": per_seed, "numbers": numbers}


def furthest_rows(student: StudentResults, results: RunResults) -> list[dict[str, Any]]:
    """The test rows on which the student is furthest from the ensemble, over all seeds, the furthest first.

    Rows that stand in the test sets of several seeds are given once, for the seed with the largest distance.
    """
    names, scores = output_names(results), ROW_SCORES[results.task]
    ensembles = results.ensemble.predictions(results.task)
    students = student.models["student"].predictions(results.task)
    found = []
    for s, labels in enumerate(results.labels):
        distance = scores.distance(ensembles[s], students[s], labels)
        furthest = np.argsort(-distance, kind="stable")[: SHOWN_ROWS * len(results.seeds)]
        found += [(float(distance[row]), s, int(row)) for row in furthest]
    chosen: list[dict[str, Any]] = []
    known = set()
    for apart, s, row in sorted(found, key=lambda one: (-one[0], one[1], one[2])):
        uid = int(results.uids[s][row]) if len(results.uids) else None
        if len(chosen) == SHOWN_ROWS or (uid is not None and uid in known):
            continue
        known.add(uid)
        chosen.append(
            {
                "seed": results.seeds[s],
                "row": row,
                "uid": uid,
                "distance": apart,
                "label": _label(results.labels[s][row], names),
                **_both(ensembles[s], students[s], row, names),
                "sample": shown_sample(results.inputs[s], row) if len(results.inputs) else None,
            }
        )
    return chosen


def output_names(results: RunResults) -> list[str]:
    """The names of the classes, labels or numbers; their positions where they have none."""
    return [str(name) for name in results.outputs or range(results.dataset["classes"])]


def _label(label: Any, names: list[str]) -> str:
    if np.ndim(label) == 0:
        return names[int(label)]
    if label.dtype == np.float64:
        return _numbers(label, names)
    unknown = int((label == UNKNOWN).sum())
    shown = _list([names[i] for i in np.nonzero(label == 1)[0]])
    return f"{shown} ({unknown} unknown)" if unknown else shown


def _both(ensemble: Any, student: Any, row: int, names: list[str]) -> dict[str, str]:
    """The two predictions of a row in words; of several labels those on which they are furthest apart."""
    if isinstance(ensemble, LabelProbabilities):
        both = {"ensemble": ensemble.values[row], "student": student.values[row]}
        furthest = np.argsort(-label_divergence(both["ensemble"], both["student"]), kind="stable")[:APART]
        return {of: ", ".join(f"{names[i]} ({100 * p[i]:.0f} %)" for i in furthest) for of, p in both.items()}
    return {"ensemble": _predicted(ensemble, row, names), "student": _predicted(student, row, names)}


def _predicted(prediction: Any, row: int, names: list[str]) -> str:
    """A prediction in words: the likeliest class, or the means."""
    if isinstance(prediction, Forecasts):
        variance = prediction.variance
        return _numbers(prediction.mean[row], names, None if variance is None else np.sqrt(variance[row]))
    top = int(prediction[row].argmax())
    return f"{names[top]} ({100 * prediction[row, top]:.0f} %)"


def _list(items: list[str]) -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more if items else "none"


def _numbers(values: np.ndarray, names: list[str], spread: np.ndarray | None = None) -> str:
    shown = [
        (f"{name} " if len(names) > 1 else "")
        + f"{values[i]:.4g}"
        + ("" if spread is None else f" (sd {spread[i]:.3g})")
        for i, name in enumerate(names)
    ]
    return _list(shown)
