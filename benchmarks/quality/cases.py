"""One case from its data to its judgement, which is kept in the run's folder: a killed benchmark goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import jobs, judgement
from benchmarks.quality.jobs import Case
from benchmarks.quality.serving import latencies
from ensdistill.common.files import read_json, write_json
from ensdistill.common.fingerprint import digest
from ensdistill.job.preflight import run_preflight
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.unit import Unit
from ensdistill.report.results import RunResults
from ensdistill.student.preflight import Preflight

FILE = "judged.json"
Others = Mapping[str, list[np.ndarray]]  # other tools' test predictions, by name, for each seed; see peers.py


def judged(case: Case, others: Others, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """The judgement of each of the case's students, beside the other tools' models.

    It is made anew where a model, a tool's model or the code of the judgement has changed.
    """
    run = jobs.train(case, note)
    code = [Path(module.__file__ or "").read_bytes() for module in (jobs, judgement)]
    made_from = digest([run.report_digest(), dict(others), Path(__file__).read_bytes(), *code])
    known = read_json(run.path / FILE)
    if isinstance(known, dict) and known["made_from"] == made_from:
        students: list[dict[str, Any]] = known["students"]
        return students
    results, forecast, times = jobs.results(run), run_preflight(run), latencies(run)
    students = [_student(case, run, results, forecast, times, size, others) for size in case.sizes]
    write_json(run.path / FILE, {"made_from": made_from, "students": students})
    return students


def _student(
    case: Case,
    run: RunFolder,
    results: RunResults,
    forecast: Preflight,
    times: Mapping[str, Mapping[str, Any]],
    size: str,
    others: Others,
) -> dict[str, Any]:
    model = next(one for one in results.students if one.name == size).models["student"]
    cost, whole = (
        {"parameters": one.parameters, "bytes": one.bytes, "latency": dict(times[name])}
        for one, name in ((model, size), (results.ensemble, "ensemble"))
    )
    peers = {
        name: [judgement.as_prediction(results.task, one) for one in found] for name, found in others.items()
    }
    models = jobs.predictions(results, size) | peers
    direct = forecast.over_direct.get(size)
    return {
        "set": case.name,
        "regime": case.regime,
        "size": size,
        "with_pool": case.rows.pool > 0,
        "cost": cost,
        "ensemble_cost": whole,
        "times_smaller": whole["bytes"] / max(cost["bytes"], 1),
        "times_faster": whole["latency"]["ms"] / cost["latency"]["ms"],
        "chosen": [run.student(size, seed).description for seed in range(case.seeds)],
        "search_kept": [_found(run, seed, size) for seed in range(case.seeds)],
        # Whether the preflight advises against a student of this size.
        "warned": not forecast.over_best_member.certain or (direct is not None and not direct.certain),
        "expected": asdict(forecast.expected[size]) if size in forecast.expected else None,
        "features": asdict(forecast.features[size]) if size in forecast.features else None,
        "advice": list(forecast.advice),
        "dataset": dict(results.dataset),
        "timings_s": dict(results.timings),
    } | judgement.judge_student(models, results.labels, list(others), results.task)


def _found(run: RunFolder, seed: int, size: str) -> bool | None:
    """Whether the search found a student that keeps enough; None where there was no search."""
    return run.record(Unit("search", seed, size))["kept"] if size in run.config.searched else None
