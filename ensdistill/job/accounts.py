"""A run's time, its bytes on disk, and the forecast before its students were trained, for the report."""

from __future__ import annotations

import math
from typing import Any

from ensdistill.job.preflight import run_preflight
from ensdistill.job.run_folder import RunFolder
from ensdistill.student.preflight import Lead


def seconds_of(run: RunFolder) -> dict[str, float]:
    """Seconds of work in each stage, over all seeds and students."""
    stages: dict[str, float] = {}
    for unit in run.units("report"):
        stages[unit.name] = stages.get(unit.name, 0.0) + run.record(unit)["seconds"]
    return {stage: round(seconds, 2) for stage, seconds in stages.items()}


def stored_bytes(run: RunFolder) -> dict[str, int]:
    """Bytes of the files of each stage, over all seeds and students."""
    stages: dict[str, int] = {}
    for unit in run.units("report"):
        files = (path for path in run.of(unit).rglob("*") if path.is_file())
        stages[unit.name] = stages.get(unit.name, 0) + sum(path.stat().st_size for path in files)
    return stages


def forecast_of(run: RunFolder) -> dict[str, Any]:
    """The preflight's forecast as `RunResults` takes it.

    A run that can't have one, as of members without held-out predictions, gives the reason under ``none``.
    """
    try:
        found = run_preflight(run)
    except ValueError as error:
        return {"none": str(error)}
    leads = {metric: lead for metric, lead in found.over_best_member.items() if math.isfinite(lead.low)}
    return {
        "over_best_member": {metric: _lead(lead) for metric, lead in leads.items()},
        "expected": {
            name: {"share": float(one.share), "error": float(one.error)}
            for name, one in found.expected.items()
        },
        "source": found.source,
    }


def _lead(lead: Lead) -> dict[str, float]:
    return {"mean": float(lead.mean), "low": float(lead.low), "high": float(lead.high)}
