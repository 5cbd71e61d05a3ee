"""Every model of a finished run on the test rows, by the same evaluator; and the cost to serve each."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensdistill.common.describe import module_recipe
from ensdistill.common.files import read_json
from ensdistill.common.progress import UnitProgress
from ensdistill.data import batches as b
from ensdistill.data.tasks import task_of_labels
from ensdistill.job.accounts import forecast_of, seconds_of, stored_bytes
from ensdistill.job.check import copies_of
from ensdistill.job.contributions import Shares, shares_of
from ensdistill.job.exports import exports_of
from ensdistill.job.generations import places
from ensdistill.job.predictions import (
    HeldOut,
    Mixed,
    Prediction,
    direct_scaling,
    fields_of,
    of_ensemble,
    others_of,
    served,
)
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.scaling import CalibrationRows, calibration_rows
from ensdistill.job.spreads import Spreads
from ensdistill.job.thresholds import Thresholds
from ensdistill.job.unit import Unit
from ensdistill.loss import ops
from ensdistill.report.footnotes import NETWORKS, SCALING
from ensdistill.report.measures import MEASURES
from ensdistill.report.results import (
    BATCHES,
    PERCENTILES,
    SCALED,
    CurvePoint,
    MemberResult,
    ModelResult,
    Predicted,
    RunResults,
    StudentResults,
)
from ensdistill.student.automatic import Automatic
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import ArrayMember, Member, Moments, inner, load_member
from ensdistill.teachers.predict import outputs_of, rows_for

NOT_MEASURED = {batch: dict.fromkeys(PERCENTILES) for batch in BATCHES}
BATCH_SIZES = (1, 256)
LATENCY_SECONDS = 0.3  # of measuring for each model and batch size
LATENCY_CALLS = 20  # that are counted at least
TRAINED_KINDS = {
    "direct": "direct",
    "direct_label_smoothing": "direct",
    "distilled_from_best_member": "distill",
    "student": "distill",
}


def evaluate(run: RunFolder, progress: UnitProgress | None = None, *, timed: bool = True) -> RunResults:
    """Load every model of the run, seed by seed, and predict the test rows; without ``timed`` no latency is
    measured."""
    report = progress or (lambda what, done, total, figures="": None)
    config, trusted = run.config, run.trusted
    splits = [config.split(seed) for seed in range(config.seeds)]
    task = splits[0].task
    mixed: list[Mixed] = []
    ensembles: list[Any] = []
    shares: list[Shares] = []
    best: list[str] = []
    held_out: list[dict[str, float | None]] = []
    for seed, split in enumerate(splits):
        unit = Unit("teachers", seed)
        ensemble = Ensemble.load(run.of(unit) / "ensemble", trusted)
        asked, known = ensemble.for_uids(split.test.uids), HeldOut.read(run.held_out(seed))
        mixed.append(of_ensemble(asked, split.test.inputs, known))
        ensembles.append(ensemble)
        shares.append(shares_of(mixed[-1], ensemble.weights, task, split.test.labels, split.test.weights))
        best.append(run.record(unit)["best_member"])
        record = run.record(unit)
        held_out.append(record.get("held_out_nll") or record.get("held_out_rmse") or {})
        report("teachers on the test rows", seed + 1, config.seeds)

    first, sample = ensembles[0], splits[0].test.inputs[: max(BATCH_SIZES)]
    member_results = []
    for k, member in enumerate(first.members):
        measured = timed and not _is_stored(member)
        cost = _cost(member, served(member) if measured else None, rows_for(member, sample))
        weighed = [float(e.weights[k]) for e in ensembles]
        temperatures = [] if task == "regression" else [float(e.temperatures[k]) for e in ensembles]
        own = [loss for found in held_out if (loss := found.get(member.name)) is not None]
        member_results.append(
            MemberResult(
                member.name,
                weighed,
                temperatures,
                **fields_of([one.members[k] for one in mixed]),
                others=others_of(mixed, k),
                shapley=_shares_of_member(shares, k),
                held_out=own if len(own) == config.seeds else [],
                **cost,
            )
        )
        report("members' latency", k + 1, len(first.members))
    positions = [e.names.index(name) for e, name in zip(ensembles, best, strict=True)]
    chosen = [one.members[k] for one, k in zip(mixed, positions, strict=True)]
    best_cost = member_results[positions[0]]
    best_result = ModelResult(
        "best_member",
        **fields_of(chosen),
        parameters=best_cost.parameters,
        bytes=best_cost.bytes,
        latency_ms=best_cost.latency_ms,
        note=_names(best),
    )
    stored = any(map(_is_stored, first.members))
    asked = first if stored else first.weighted()  # members without weight cost nothing
    ensemble_result = ModelResult(
        "ensemble",
        **fields_of([one.mixture for one in mixed]),
        **_cost(asked, _mixture_of(asked) if timed and not stored else None, sample),
    )
    weights = [split.test.weights for split in splits]
    copies = [copies_of(config, s, run.transfer(s)) for s in range(config.seeds)]
    calibration = [calibration_rows(run, seed, ensemble) for seed, ensemble in enumerate(ensembles)]
    spreads = Spreads(run)
    students = [
        replace(_student(run, name, trusted, calibration, report, timed), spreads=spreads.of_student(name))
        for name in config.distill.students
    ]
    return RunResults(
        name=config.name,
        dataset={
            "name": type(config.data).__name__,
            "labelled": len(splits[0].labelled),
            "pool": len(splits[0].pool),
            "transfer": len(run.transfer(0)),
            "asked": len(run.transfer(0)) * config.cache.views,
            "test": len(splits[0].test),
            "classes": len(splits[0].classes),
        },
        seeds=list(range(config.seeds)),
        labels=[split.test.labels for split in splits],
        ensemble=ensemble_result,
        best_member=best_result,
        members=member_results,
        students=students,
        environment=environment(),
        timings=seconds_of(run),
        copies=copies,
        exports=exports_of(run.path),
        weights=[] if any(w is None for w in weights) else [w for w in weights if w is not None],
        baselines=_searched(run),
        searches=_searches(run),
        auto=_auto(run),
        task=task,
        outputs=list(splits[0].classes),
        inputs=[split.test.inputs for split in splits] if config.show_rows else [],
        uids=[split.test.uids for split in splits],
        storage=stored_bytes(run),
        forecast=forecast_of(run),
        spreads=spreads.of_ensembles(ensembles),
        strange=spreads.about,
    )


def _shares_of_member(shares: Sequence[Shares], k: int) -> dict[str, list[tuple[float, float]]]:
    """The Shapley values and errors of a member in all seeds, by metric."""
    return {
        metric: [(float(value), float(error)) for value, error in (one[metric][k] for one in shares)]
        for metric in shares[0]
        if all(metric in one for one in shares)
    }


def _mixture_of(ensemble: Any) -> Callable[[Any], Any]:
    """The method by which an ensemble predicts."""
    method: Callable[[Any], Any] = (
        ensemble.predict if ensemble.task == "regression" else ensemble.predict_proba
    )
    return method


def _auto(run: RunFolder) -> dict[str, Any]:
    """The budget and the members left out of a planned ensemble."""
    if run.plan is None:
        return {}
    about = run.plan.plain()
    return {"minutes": about["minutes"], "seconds": run.plan.seconds, "left_out": about["left_out"]}


def _searches(run: RunFolder) -> dict[str, list[Any]]:
    """The result of each seed's search, by student."""
    return {
        name: [
            read_json(run.of(Unit("search", seed, name)) / "result.json") for seed in range(run.config.seeds)
        ]
        for name in run.config.searched
    }


def _searched(run: RunFolder) -> str:
    """How *direct* was chosen, where some student is an estimator; empty where all are networks."""
    students = list(run.config.distill.students)
    estimators = [name for name in students if run.student(name, 0).estimator is not None]
    networks = f"{NETWORKS} " if len(estimators) < len(students) else ""
    if not estimators:
        return ""
    return (
        f"Direct of {', '.join(estimators)}: the same estimator on labels with its library's own loss, with "
        "fewer rounds or more regularisation by NLL on held-out folds of the labelled rows. "
        f"{networks}{SCALING}"
    )


def _student(
    run: RunFolder,
    name: str,
    trusted: tuple[str, ...],
    calibration: list[CalibrationRows | None],
    report: UnitProgress,
    timed: bool,
) -> StudentResults:
    config, task = run.config, run.config.split(0).task
    student = run.student(name, 0)
    found: dict[str, list[Prediction]] = {}
    notes = []
    cost: dict[str, Any] = {}
    trained = {
        kind: stage
        for kind, stage in TRAINED_KINDS.items()
        if not (task == "regression" and kind == "direct_label_smoothing")
    }
    for seed in range(config.seeds):
        test = config.split(seed).test.inputs
        some = test[: max(BATCH_SIZES)]
        direct = run.record(Unit("direct", seed, name))
        notes.append(direct["recipe"])
        thresholds = Thresholds.of(run, seed, name, calibration[seed])
        for kind, stage in trained.items():
            member = load_member(run.of(Unit(stage, seed, name)) / kind, trusted)
            outputs = outputs_of(member, test)
            # Direct has held-out folds of the labelled rows; the distilled have none (see `scaling`).
            scaling = direct_scaling(direct, kind)
            if scaling is None and (rows := calibration[seed]) is not None:
                scaling = rows.scaling(member)
            for own, by in ((kind, None), (SCALED[kind], scaling)):
                made = thresholds.given(kind, member, Prediction.of(task, outputs, by), by)
                found.setdefault(own, []).append(made)
            # One architecture, one cost: its four trainings are served alike.
            if kind == "student" and not cost:
                cost = _cost(member, served(member) if timed else None, rows_for(member, some))
        report(f"student {name} on the test rows", seed + 1, config.seeds)
    models = {kind: ModelResult(kind, **fields_of(values), **cost) for kind, values in found.items()}
    models["direct"] = replace(models["direct"], note=_names(notes))
    if any(numbers := [_notes(run, seed, name) for seed in range(config.seeds)]):
        models["student"] = replace(models["student"], note=_names(numbers))
    labels = config.split(0).test.labels
    if student.estimator is not None:
        ways = [_way(run, seed, name) for seed in range(config.seeds)]
        models["student"] = replace(models["student"], note=_names(ways))
        kind = type(student.estimator).__name__
        return StudentResults(name, student.description or kind, models, {})
    curves = {
        kind: curve_of(run.of(Unit(stage, 0, name)) / kind, labels, trusted)
        for kind, stage in trained.items()
    }
    recipe = module_recipe(student.network) or {}
    about = student.description or recipe.get("class_path", name)
    return StudentResults(name, about, models, curves, _generations(run, name, trusted, models["student"]))


def student_models(
    run: RunFolder, name: str, places: Sequence[Path], *, timed: bool = True
) -> dict[str, ModelResult]:
    """Other members in the place of a student, one of each seed, with and without temperature scaling; they
    are judged as the student ``name`` of the run."""
    config, found, cost = run.config, dict[str, list[Prediction]](), dict[str, Any]()
    task = config.split(0).task
    for seed, place in enumerate(places):
        ensemble = Ensemble.load(run.of(Unit("teachers", seed)) / "ensemble", run.trusted)
        rows, test = calibration_rows(run, seed, ensemble), config.split(seed).test.inputs
        member = load_member(place, run.trusted)
        outputs = outputs_of(member, test)
        scaling = None if rows is None else rows.scaling(member)
        thresholds = Thresholds.of(run, seed, name, rows)
        for kind, by in (("student", None), (SCALED["student"], scaling)):
            made = thresholds.given("student", member, Prediction.of(task, outputs, by), by)
            found.setdefault(kind, []).append(made)
        if not cost:
            sample = rows_for(member, test[: max(BATCH_SIZES)])
            cost = _cost(member, served(member) if timed else None, sample)
    return {kind: ModelResult(kind, **fields_of(values), **cost) for kind, values in found.items()}


def _generations(run: RunFolder, name: str, trusted: Sequence[str], last: ModelResult) -> list[Predicted]:
    """The predictions of all generations of a student, of which ``last`` is the last; none of a single
    one."""
    config, count = run.config, run.config.distill.students[name].generations
    found = []
    for generation in range(count - 1):
        of_seeds = []
        for seed in range(config.seeds):
            place = places(run.of(Unit("distill", seed, name)), "student", count)[generation]
            outputs = outputs_of(load_member(place, tuple(trusted)), config.split(seed).test.inputs)
            of_seeds.append(Prediction.of(config.split(seed).task, outputs))
        found.append(Predicted(**fields_of(of_seeds)))
    if not found:
        return []
    return [*found, Predicted(last.probabilities, (), last.forecasts)]


def _notes(run: RunFolder, seed: int, name: str) -> str:
    """Return the numbers found for settings that are ``auto``, and the method's note. The text may be
    empty."""
    record = read_json(run.of(Unit("distill", seed, name)) / "student" / "stage.json")
    if not isinstance(record, dict):
        return ""
    found = record.get("automatic")
    numbers = [] if found is None else [f"auto: {Automatic.of_record(found)}"]
    return "; ".join([*numbers, *record.get("notes", [])])


def _way(run: RunFolder, seed: int, name: str) -> str:
    """The way in which an estimator learned the ensemble's probabilities."""
    record = read_json(run.of(Unit("distill", seed, name)) / "student" / "stage.json")
    return str(record["way"]) if isinstance(record, dict) else ""


def curve_of(folder: Path, labels: np.ndarray, trusted: Sequence[str]) -> list[CurvePoint]:
    """The steps and losses of a training, with the metric of the test rows that the report watches."""
    from safetensors.numpy import load_file

    curve, task = load_file(folder / "curve.safetensors"), task_of_labels(labels) or "classification"
    measures = MEASURES[task]
    metric = measures.by_name[measures.watched]
    units: Any = inner(load_member(folder, trusted)) if task == "regression" else None
    points: list[CurvePoint] = []
    for step, loss, outputs in zip(curve["steps"], curve["losses"], curve["watched"], strict=True):
        if units is not None:  # the network's outputs are in standardised units
            location, scale = units.module.location.numpy(), units.module.scale.numpy()
            outputs = Moments(location + scale * outputs[:, : len(scale)].astype(np.float64), None)
        prediction = Prediction.of(task, outputs).values
        points.append((int(step), float(loss), metric.of(prediction, labels, None)))
    return points


def _cost(model: Member | Ensemble, predict: Callable[[Any], Any] | None, sample: Any) -> dict[str, Any]:
    """The cost to serve a model; without ``predict`` the latency is None, because it can't be measured."""
    measured = NOT_MEASURED if predict is None else latency(predict, sample)
    return {"parameters": model.parameters, "bytes": model.bytes, "latency_ms": measured}


def _is_stored(member: Member) -> bool:
    """Whether a member has stored predictions, so that the time of its look-up is not that of the model
    behind it."""
    return isinstance(member, ArrayMember)


def latency(predict: Callable[[Any], Any], sample: Any) -> dict[str, dict[str, float]]:
    """Milliseconds for a whole batch of 1 and of 256 rows: p50 and p95, after a warm-up.

    Parameters
    ----------
    predict : callable
        From a batch in memory to an array in memory.
    sample : batch of M samples
        Repeated where it has fewer rows than the batch.
    """
    result = {}
    for size in BATCH_SIZES:
        batch = b.take(sample, np.arange(size) % b.count(sample))
        times: list[float] = []
        until = time.perf_counter() + LATENCY_SECONDS
        # The first calls load code and fill caches; a few are counted, however slow.
        for call in range(100_000):
            start = time.perf_counter()
            predict(batch)
            if call >= 3:
                times.append(1e3 * (time.perf_counter() - start))
            if len(times) >= LATENCY_CALLS and time.perf_counter() > until:
                break
        p50, p95 = np.percentile(times, [50, 95])
        result[f"batch_{size}"] = {"p50": float(p50), "p95": float(p95)}
    return result


def environment() -> dict[str, Any]:
    """The machine and the versions, for the report."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    except OSError:
        pass  # only Linux has it there
    info = ops.build_info()
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "instruction_set": info["cpu"]["instruction_set"],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _names(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else ", ".join(f"{v} (seed {i})" for i, v in enumerate(values))
