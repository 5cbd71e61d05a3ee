"""The stages of a job, as functions with plain inputs that write into one folder; `run_unit` hands them a run
folder's parts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ensdistill.cache import TargetCache, cache_targets
from ensdistill.cache.floors import TEMPERATURE
from ensdistill.common.files import write_arrays
from ensdistill.common.progress import UnitProgress
from ensdistill.data import BadRows, Rows, Split
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.transfer import Transfer
from ensdistill.job.check import copies_of
from ensdistill.job.config import CacheConfig, DistillConfig, TeachersConfig
from ensdistill.job.direct import train_baselines
from ensdistill.job.estimators import distill_estimator, train_estimator_baselines
from ensdistill.job.generations import in_turn, taught_by
from ensdistill.job.hinted import hinted_student, hinting_member, module_of, with_teacher
from ensdistill.job.method_config import loss_of, loss_of_member
from ensdistill.job.predictions import INTERVAL, HeldOut
from ensdistill.job.prepared import prepare_student
from ensdistill.job.run_folder import RunFolder, finish, keep
from ensdistill.job.searching import search
from ensdistill.job.shrinking import shrink_member
from ensdistill.job.stored import labelled_targets, of_transfer, warn_of_look_ups
from ensdistill.job.student_config import StudentConfig
from ensdistill.job.student_files import describe_students
from ensdistill.job.student_rows import student_rows
from ensdistill.job.unit import Unit
from ensdistill.report.metrics import nll
from ensdistill.student.live import Figures
from ensdistill.student.online import OnlineTeachers
from ensdistill.teachers import Ensemble, train_ensemble
from ensdistill.teachers.fitting.calibration import probabilities
from ensdistill.teachers.fitting.multilabel import fitted_rows
from ensdistill.teachers.labelled_targets import LabelledTargets
from ensdistill.teachers.stack import Status
from ensdistill.teachers.stack.objectives import units_of


def run_unit(run: RunFolder, unit: Unit, progress: UnitProgress | None = None) -> None:
    """Do the unit's work, from where a killed process left it, and record that it is finished."""
    report = progress or (lambda name, done, total, figures="": None)
    if unit.trial:
        run, unit = run.trial, replace(unit, trial=False)
    folder, inputs, start = run.of(unit), run.digest(unit), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").unlink(missing_ok=True)
    stages = {"teachers": _teachers, "cache": _cache, "search": search, "shrink": _shrink}
    work = (stages | {"direct": _direct, "distill": _distill})[unit.stage]
    more = work(run, unit, folder, report)
    describe_students(run, unit)
    finish(folder, inputs, time.perf_counter() - start, **more)


def _teachers(run: RunFolder, unit: Unit, folder: Path, report: UnitProgress) -> dict[str, Any]:
    return teachers(run.teachers, run.config.split(unit.seed), unit.seed, folder, report)


def _cache(run: RunFolder, unit: Unit, folder: Path, report: UnitProgress) -> dict[str, Any]:
    config, before = run.config, unit.needs()[0]
    ensemble = Ensemble.load(run.of(before) / "ensemble", run.trusted)
    transfer = config.cache.transfer.build(config.split(unit.seed), unit.seed, ensemble)
    copies_of(config, unit.seed, transfer.rows)
    ensemble = of_transfer(ensemble, config.split(unit.seed), config.cache)
    warn_of_look_ups(ensemble, config.cache)
    targets, best = (
        labelled_targets(ensemble, config.cache, run.held_out(unit.seed), member)
        for member in (None, run.record(before)["best_member"])
    )
    temperature = config.distill.max_temperature
    return cache(config.cache, targets, best, transfer, temperature, unit.seed, folder, report)


def _shrink(run: RunFolder, unit: Unit, folder: Path, report: UnitProgress) -> dict[str, Any]:
    settings, teachers = run.config.distill.students[unit.student].shrink, unit.needs()[0]
    assert settings is not None
    ensemble, record = Ensemble.load(run.of(teachers) / "ensemble", run.trusted), run.record(teachers)
    losses = record.get("held_out_nll") or record.get("held_out_rmse") or {}
    return shrink_member(settings, ensemble, losses, run.config.split(unit.seed), folder)


def _direct(run: RunFolder, unit: Unit, folder: Path, report: UnitProgress) -> dict[str, Any]:
    student = run.student(unit.student, unit.seed)
    train = train_baselines if student.estimator is None else train_estimator_baselines
    return train(student, run.config.distill, run.config.split(unit.seed), unit.seed, folder, report)


def _distill(run: RunFolder, unit: Unit, folder: Path, report: UnitProgress) -> dict[str, Any]:
    config, source = run.config, run.of(Unit("cache", unit.seed))
    student = run.student(unit.student, unit.seed)
    best = run.record(Unit("teachers", unit.seed))["best_member"]
    rows, targets = student_rows(run, unit.seed, student.rows, folder / "targets")
    # A mixture holds no member, so the best member then has a cache of its own.
    own = (
        None
        if config.cache.mixture_at is None
        else TargetCache.open(source / "best_member", trusted=run.trusted)
    )
    kinds: dict[str, tuple[TargetCache, str | None]] = {
        "student": (targets, None),
        "distilled_from_best_member": (targets, best) if own is None else (own, None),
    }
    split = config.split(unit.seed)
    train: Callable[..., None] = distill_estimator
    if student.estimator is None:
        teacher = hinting_member(run, unit)
        student = hinted_student(student, teacher)
        train = partial(distill, trusted=run.trusted, teacher=module_of(teacher))
    changes = config.cache.changes(split, unit.seed)
    train(student, config.distill, changes, kinds, rows, split, unit.seed, folder, run.digest(unit), report)
    shutil.rmtree(folder / "targets", ignore_errors=True)
    return {"best_member": best}


class _MemberProgress:
    """From the status of single members, folds' ones among them, to the progress of each recipe, in
    thousandths of a member."""

    def __init__(self, settings: TeachersConfig, report: UnitProgress) -> None:
        folds = ["", *(f", fold {i + 1}" for i in range(settings.folds))]
        self.keys = {
            recipe.name: [name + fold for name in recipe.names() for fold in folds]
            for recipe in settings.recipes
        }
        self.recipe = {key: name for name, keys in self.keys.items() for key in keys}
        self.done: dict[str, float] = {}
        self.report = report

    def __call__(self, status: Status) -> None:
        self._tell({key: status.step / status.steps for key in status.names})

    def finished(self, keys: Sequence[str]) -> None:
        self._tell(dict.fromkeys(keys, 1.0))

    def tuning(self, name: str, done: int, total: int) -> None:
        """Of the search for a recipe's settings, in trainings."""
        self.report(f"{name}, settings", done, total)

    def _tell(self, done: dict[str, float]) -> None:
        self.done |= done
        for name in dict.fromkeys(self.recipe[key] for key in done):
            keys = self.keys[name]
            self.report(name, round(1000 * sum(self.done.get(key, 0.0) for key in keys)), 1000 * len(keys))


def teachers(
    settings: TeachersConfig, split: Split, seed: int, folder: Path, report: UnitProgress
) -> dict[str, Any]:
    """Train, calibrate and weigh the ensemble; return each member's held-out NLL and the name of the best
    member."""
    ensemble, held_out = train_ensemble(
        settings.recipes,
        split.labelled,
        split.classes,
        folds=settings.folds,
        seed=seed,
        combiner=settings.combiner,
        prior_rows=settings.prior_rows,
        select=settings.select,
        folder=folder / "training",
        progress=_MemberProgress(settings, report),
    )
    if split.task == "regression":
        _fit_interval(ensemble, HeldOut(held_out, split.labelled.labels))
    for left in folder.glob(".ensemble.*"):  # the unfinished folder of a save that was killed
        shutil.rmtree(left)
    ensemble.save(folder / "ensemble")
    known = HeldOut(held_out, split.labelled.labels)
    write_arrays(folder / "held_out.safetensors", known.arrays())
    losses = held_out_losses(ensemble, held_out, split.labelled.labels)
    loss = "held_out_rmse" if split.task == "regression" else "held_out_nll"
    return {
        loss: dict(zip(ensemble.names, losses, strict=True)),
        "best_member": best_member(ensemble, losses),
    }


def _fit_interval(ensemble: Any, held_out: HeldOut) -> None:
    """Fit the intervals of an ensemble of regressors to its held-out predictions, where there are enough."""
    if not held_out.judged.all():
        return
    chosen = ensemble.weighted()
    own = held_out.of_members(ensemble.weights > 0)
    with suppress(ValueError):  # too few rows for the level, or a variance of 0
        ensemble.interval = chosen.fit_interval(own, held_out.labels, INTERVAL).interval


def held_out_losses(ensemble: Any, held_out: Any, labels: np.ndarray) -> list[float | None]:
    """The loss of each member on held-out predictions; None for members without them (NaN).

    It is the NLL of a calibrated member's logits [K, N, C], of several labels their mean binary cross
    entropy; of Moments [K, N, D] the RMSE in units of the numbers' deviations.
    """
    if ensemble.task == "regression":
        errors = (held_out.mean - labels) / units_of(labels)[1]
        return [None if np.isnan(e).any() else float(np.sqrt(np.square(e).mean())) for e in errors]
    found: list[float | None] = []
    for z in ensemble.apply_temperatures(held_out):
        rows = fitted_rows(ensemble.task, (z * ensemble.temperature)[None], labels)
        known = not np.isnan(z).any()
        found.append(nll(probabilities(rows.logits[0]), rows.labels) if known else None)
    return found


def best_member(ensemble: Ensemble, losses: list[float | None]) -> str:
    """The name of the member of least held-out NLL among those with weight, never chosen by the test rows;
    where no member has one, of the largest weight."""
    known = [k for k, loss in enumerate(losses) if loss is not None and ensemble.weights[k] > 0]
    best = min(known, key=lambda k: losses[k] or 0.0) if known else int(np.argmax(ensemble.weights))
    return ensemble.names[best]


def cache(
    settings: CacheConfig,
    ensemble: Ensemble | LabelledTargets,
    best: Ensemble | LabelledTargets,
    transfer: Transfer,
    temperature: float,
    seed: int,
    folder: Path,
    report: UnitProgress,
) -> dict[str, Any]:
    """Store the ensemble's targets for the transfer set; return the rows' origins and the statistics of the
    cost.

    A mixture holds no member's logits. So where only the mixture is kept, ``best``, the best member alone,
    gets a second cache.
    """
    caches = [(folder / "targets", ensemble, "targets")]
    if settings.mixture_at is not None:
        caches.append((folder / "best_member", best, f"targets of {best.names[0]}"))
    else:
        shutil.rmtree(folder / "best_member", ignore_errors=True)
    statistics, remade = [], settings.augment is None and settings.views > 1
    for path, source, name in caches:
        # overwrite replaces the cache of another config, and resumes a cache of the same inputs.
        try:
            made = cache_targets(
                source,
                transfer.rows,
                path,
                codec=settings.codec,
                mixture_at=settings.mixture_at,
                views=settings.views,
                augment=transfer.rounds if remade else settings.augment,
                max_kl=settings.max_kl,
                max_error=settings.max_error,
                max_temperature=max(TEMPERATURE, temperature),
                seed=seed,
                overwrite=True,
                progress=partial(report, name),
            )
        except BadRows as error:
            uid = int(error.rows[0])
            raise ValueError(f"{error}; uid {uid} of the transfer set is {transfer.source(uid)}") from error
        statistics.append(made.manifest["statistics"])
    rows = transfer.rows
    if isinstance(rows.inputs, np.ndarray):  # others are built again
        parts = {"inputs": rows.inputs, "uids": rows.uids, "labels": rows.labels}
        parts |= {} if rows.weights is None else {"weights": rows.weights}
        write_arrays(folder / "transfer.safetensors", parts)
    return {"origin": transfer.origin, "statistics": statistics[0]}


def distill(
    student: StudentConfig,
    settings: DistillConfig,
    changes: Augmentation | None,
    kinds: dict[str, tuple[TargetCache, str | None]],
    rows: Rows,
    split: Split,
    seed: int,
    folder: Path,
    inputs: str,
    report: UnitProgress,
    trusted: Sequence[str] = (),
    teacher: nn.Module | None = None,
) -> None:
    """Train the student once for each of ``kinds``, {name of the folder: (cache, member or None for the
    mixture)}, and its further generations from that. ``teacher`` is the network whose layers hints are of."""
    prepared = prepare_student(student, split, seed)
    turns = [(kind, *turn) for kind in kinds for turn in in_turn(folder, kind, student.generations, seed)]
    for kind, number, own_seed, place, before in turns:
        targets, member = kinds[kind]
        source: TargetCache | OnlineTeachers = targets
        if before is not None:
            source, member = taught_by(before, trusted, changes, seed), None
        name = kind.replace("_", " ") + f", generation {number}" * (student.generations > 1)
        trainer = student.trainer(
            student.optimization,
            with_teacher((loss_of if member is None else loss_of_member)(student, settings), teacher),
            mixed_precision=settings.mixed_precision,
            ema=student.ema,
            **student.watched(figures := Figures()),
        )
        train = partial(
            trainer.distill,
            prepared.factory,
            rows,
            source,
            seed=own_seed,
            member=member,
            augment=changes if before is None else None,
            preprocess=prepared.preprocess,
            watch=split.test.inputs,
            weights=student.weights,
            validation=None if student.validation is None else student.validation.build(),
            progress=figures.beside(report, name),
        )
        keep(prepared.factory, place, split, student.kept(train), inputs)
