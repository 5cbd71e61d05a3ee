"""The time to serve one row: the student's, and that of all members one after the other."""

from __future__ import annotations

from typing import Any

from ensdistill.job.run_folder import RunFolder
from ensdistill.job.unit import Unit
from ensdistill.student.search.latency import latency_of
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import Member, load_member


def latencies(run: RunFolder) -> dict[str, Any]:
    """Milliseconds for one row, p50, in one thread, of the first seed's models.

    onnxruntime runs every model that ONNX expresses, preprocessing included; others are called as they are.

    Returns
    -------
    dict
        By student, and of the ``ensemble``: ``ms``, and ``runtime``, the runtimes' names.
    """
    split = run.config.split(0)
    samples, classes = split.test.inputs[:8], split.classes

    def timed(members: list[Member]) -> dict[str, Any]:
        found = [latency_of(member, samples, classes) for member in members]
        return {"ms": 1000 * sum(one.seconds for one in found),
                "runtime": ", ".join(dict.fromkeys(one.runtime for one in found))}  # fmt: skip

    ensemble = Ensemble.load(run.of(Unit("teachers", 0)) / "ensemble", run.trusted)
    students = {
        name: timed([load_member(run.of(Unit("distill", 0, name)) / "student", run.trusted)])
        for name in run.config.distill.students
    }
    return {"ensemble": timed(list(ensemble.weighted().members))} | students
