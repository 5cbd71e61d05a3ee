"""The time of one row: p50 of a student's whole prediction, preprocessing included, in one thread."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ensdistill.data.samples import form
from ensdistill.teachers.members import Member
from ensdistill.teachers.members.moments import predictions_of
from ensdistill.teachers.members.preprocessed import rows_for

CALLS = 100


@dataclass(frozen=True)
class Latency:
    """Seconds for one row, and the runtime that took them: ``onnxruntime`` or ``torch``, or the library of a
    student that is no network."""

    seconds: float
    runtime: str


def latency_of(member: Member, samples: Any, classes: tuple[str, ...]) -> Latency:
    """Measure a student's p50 of 100 calls with one row, after ten.

    onnxruntime runs the exported graph where it is installed and the graph can be made; else the student
    itself is called.
    """
    if find_spec("onnxruntime") is not None and find_spec("onnxscript") is not None:
        try:
            return Latency(_of_graph(member, samples, classes), "onnxruntime")
        except (ValueError, ImportError):
            pass  # a part of the student that ONNX can't express
    return Latency(_of_member(member, samples), _library(member))


def _of_graph(member: Member, samples: Any, classes: tuple[str, ...]) -> float:
    from ensdistill.student.export import to_onnx
    from ensdistill.student.export.measuring import figures
    from ensdistill.student.serving import Student

    student = Student(member, classes, tuple(range(len(classes))), form(samples))
    exported = to_onnx(student, samples)
    blob, count = exported.model.SerializeToString(), _count(samples)
    labels: Any = [0] * count if student.task == "classification" else np.zeros((count, len(classes)))
    found = figures(blob, samples, labels, exported.files, calls=CALLS)
    return float(found["latency"][1]["p50"]) / 1000


def _of_member(member: Member, samples: Any) -> float:
    from threadpoolctl import threadpool_limits

    from ensdistill.data import batches as b

    one = rows_for(member, b.take(samples, np.zeros(1, np.int64)))
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            for call in range(CALLS + 10):
                begun = time.perf_counter()
                predictions_of(member, one)
                if call >= 10:
                    times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return float(np.median(times))


def _library(member: Any) -> str:
    own = getattr(member, "member", member)
    model = getattr(own, "model", getattr(own, "estimator", None))
    return "torch" if model is None else type(model).__module__.partition(".")[0]


def _count(samples: Any) -> int:
    from ensdistill.data import batches as b

    return b.count(samples)
