"""Figures of an exported file, on labelled rows. This module loads no torch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.student.export.running import OnnxStudent

BATCHES = (1, 256)


def figures(
    source: Path | str | bytes,
    samples: Any,
    labels: Sequence[Any],
    files: Mapping[str, bytes] | None = None,
    *,
    calls: int = 100,
) -> dict[str, Any]:
    """Accuracy, NLL, bytes and latency of a student's ONNX file; of a regression RMSE in place of the
    accuracy.

    Parameters
    ----------
    source, files
        See :class:`ensdistill.student.export.OnnxStudent`.
    samples : frame, array, list of texts or images, or mapping
    labels : sequence
        Labels as the data have them; of other tasks in the form of :mod:`ensdistill.data.tasks`.
    calls : int
        Timed calls of onnxruntime for each size of a batch, after ten that are not timed.

    Returns
    -------
    dict
        ``accuracy`` (share), ``nll`` (nats), ``rows``, ``bytes``, and ``latency``: for batches of 1 and of
        256 rows ``{"p50": ms, "p95": ms}`` of onnxruntime's own call, in one thread. Fewer rows are repeated.
        Of several labels the accuracy is the share of known labels that are right, the NLL the sum of a row's
        labels. Of a regression ``rmse`` in the data's units, and ``nll`` where there are variances.

    Raises
    ------
    ValueError
        There are no rows, labels of another number, or a label that is none of the student's.
    """
    student = OnnxStudent(source, files, threads=1)
    found, probabilities = student.run(samples)
    if len(labels) != len(found) or not len(found):
        raise ValueError(f"labels: expected one for each of the {len(found)} rows; got {len(labels)}")
    tensors = student.tensors(student.alike(samples))
    measured = {
        "rows": len(found),
        "bytes": student.bytes,
        "latency": {size: _latency(student, tensors, size, calls) for size in BATCHES},
    }
    if student.task == "multilabel":
        return {**_of_labels(found, probabilities, np.asarray(labels)), **measured}
    if student.task == "regression":
        return {**_of_numbers(found, probabilities, np.asarray(labels, np.float64)), **measured}
    places = {str(label): place for place, label in enumerate(student.about["labels"])}
    unknown = [label for label in labels if _name(label) not in places]
    if unknown:
        raise ValueError(f"labels: expected {student.about['labels']}; got {np.asarray(unknown[0]).item()!r}")
    truth = np.array([places[_name(label)] for label in labels])
    chosen = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return {
        "accuracy": float(np.mean([_name(a) == _name(b) for a, b in zip(found, labels, strict=True)])),
        "nll": float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean()),
        **measured,
    }


def _of_labels(found: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    if labels.shape != found.shape:
        raise ValueError(f"labels: expected {list(found.shape)}; got {list(labels.shape)}")
    known, p = labels >= 0, probabilities.astype(np.float64)
    chosen = np.maximum(np.where(labels == 1, p, 1 - p), np.finfo(np.float32).tiny)
    rows = max(int(known.any(1).sum()), 1)
    return {
        "accuracy": float((found == labels)[known].mean()) if known.any() else math.nan,
        "nll": float(-np.log(chosen)[known].sum() / rows),
    }


def _of_numbers(mean: np.ndarray, variance: np.ndarray | None, labels: np.ndarray) -> dict[str, float]:
    if labels.shape != mean.shape:
        raise ValueError(f"labels: expected {list(mean.shape)}; got {list(labels.shape)}")
    known = ~np.isnan(labels).any(1)
    errors = (labels - mean)[known]
    measured = {"rmse": float(np.sqrt(np.square(errors).mean()))}
    if variance is not None:
        own = variance[known]
        each = np.log(2 * np.pi * own) + np.square(errors) / own
        measured["nll"] = float(0.5 * each.sum(1).mean())
    return measured


def _name(label: Any) -> str:
    return str(label.item() if isinstance(label, np.generic) else label)


def _latency(student: OnnxStudent, tensors: dict[str, np.ndarray], size: int, calls: int) -> dict[str, float]:
    rows = len(next(iter(tensors.values())))
    batch = {
        name: np.ascontiguousarray(np.concatenate([x] * math.ceil(size / rows))[:size])
        for name, x in tensors.items()
    }
    times = []
    for call in range(calls + 10):
        begun = time.perf_counter()
        student.call(batch)
        if call >= 10:
            times.append(1e3 * (time.perf_counter() - begun))
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}
