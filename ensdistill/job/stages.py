"""The main job's stages on disk. Each reads only what the stages before it wrote, and is skipped when its inputs have not changed.

A run folder holds, for each seed::

    seed-0/teachers/          the ensemble, and its members' held-out predictions
    seed-0/cache/             the transfer set, and the targets; the best member's own where the targets are a mixture only
    seed-0/direct/<student>/  the baselines on hard labels
    seed-0/distill/<student>/ the student, and the same distilled from the best member
    report.json report.html figures/

A stage is finished when its ``stage.json`` names the digest of everything that it was made from: content, never dates.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ensdistill
from ensdistill.common.describe import describe
from ensdistill.common.files import read_json, write_arrays
from ensdistill.common.fingerprint import digest
from ensdistill.common.random import derive_seed
from ensdistill.data import BadRows, Rows
from ensdistill.data.copies import Copies, count_copies, stratified_folds
from ensdistill.job.config import Config
from ensdistill.job.run_folder import Progress, finish, is_done, keep
from ensdistill.loss.settings import digest_parts


@dataclass(frozen=True)
class Unit:
    """One piece of work: a stage of a seed, for ``direct`` and ``distill`` of one student."""

    stage: str
    seed: int
    student: str = ""

    def __str__(self) -> str:
        return f"seed {self.seed} · {self.stage}{' ' + self.student if self.student else ''}"

    def folder(self, config: Config) -> Path:
        return config.run_folder / f"seed-{self.seed}" / self.stage / self.student

    def needs(self) -> list[Unit]:
        if self.stage == "cache":
            return [Unit("teachers", self.seed)]
        return [Unit("cache", self.seed)] if self.stage == "distill" else []


def units(config: Config, last: str) -> list[Unit]:
    """What has to be there for the stage ``last`` (``teachers``, ``cache``, ``distill`` or ``report``), longest work first."""
    seeds, students = range(config.seeds), list(config.distill.students)
    teachers = [Unit("teachers", seed) for seed in seeds]
    if last == "teachers":
        return teachers
    caches = [Unit("cache", seed) for seed in seeds]
    if last == "cache":
        return teachers + caches
    both = [Unit(stage, seed, student) for stage in ("distill", "direct") for seed in seeds for student in students]
    return teachers + caches + both


def fingerprint(config: Config, unit: Unit) -> str:
    """Digest of everything the unit's result depends on, the units before it included."""
    from ensdistill.cache.floors import TEMPERATURE

    split, common = config.split(unit.seed), [ensdistill.__version__, unit.stage, unit.seed, config.threads]
    if unit.stage == "teachers":
        return digest([*common, describe(config.teachers), split.labelled, list(split.classes)])
    if unit.stage == "cache":
        # A cache is made for temperatures up to that of the students, but not for less than the default.
        higher = [config.distill.loss.temperature] if config.distill.loss.temperature > TEMPERATURE else []
        return digest([*common, fingerprint(config, unit.needs()[0]), describe(config.cache), split.pool, *higher])
    distill, student = config.distill, config.distill.students[unit.student]
    if unit.stage == "direct":
        choices = [describe(distill.augment), distill.folds, distill.label_smoothing, distill.mixed_precision]
        own = [describe(student.model), describe(student.baseline), choices, split.labelled, list(split.classes)]
    else:
        choices = [*digest_parts(distill.loss), distill.mixed_precision]
        own = [describe(student.model), describe(student.optimization), choices, fingerprint(config, unit.needs()[0])]
    # The test inputs are watched for the learning curves.
    return digest([*common, *own, unit.student, split.test.inputs])


def report_fingerprint(config: Config) -> str:
    """Digest of everything the report shows, and of the code that judges and shows it."""
    package = Path(__file__).parents[1]
    code = [
        *sorted(p for p in (package / "report").iterdir() if p.is_file()),
        package / "job" / "evaluate.py",
        package / "job" / "scaling.py",
        package / "teachers" / "fitting" / "calibration.py",
        package / "data" / "copies.py",
    ]
    splits = [config.split(seed) for seed in range(config.seeds)]
    judged = [[split.test, list(split.classes), len(split.pool), split.left_out] for split in splits]
    shown = [config.name, type(config.data).__name__, {name: s.description for name, s in config.distill.students.items()}]
    made = [fingerprint(config, unit) for unit in units(config, "report")]
    return digest([ensdistill.__version__, "report", [p.read_bytes() for p in code], judged, shown, made])


def is_finished(config: Config, unit: Unit) -> bool:
    """Whether the unit's result is there and was made from what the config says now."""
    return is_done(unit.folder(config), fingerprint(config, unit))


def run_unit(config: Config, unit: Unit, progress: Progress | None = None) -> None:
    """Do the unit's work, going on where a killed process left it."""
    report = progress or (lambda what, done, total: None)
    folder, inputs, start = unit.folder(config), fingerprint(config, unit), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").unlink(missing_ok=True)
    stage = {"teachers": _teachers, "cache": _cache, "direct": _direct, "distill": _distill}[unit.stage]
    more = stage(config, unit, folder, report)
    finish(folder, inputs, time.perf_counter() - start, **more)


def check_job(config: Config) -> None:
    """Refuse, before hours of work, what cannot end well: too many folds, and models, codecs and augmentations that do not fit the data.

    Every student and every torch member is built and asked for two rows; every estimator is fitted to a few, saved and loaded.
    """
    from ensdistill.cache.codecs import codec_of
    from ensdistill.student.trainer import build_student
    from ensdistill.teachers.recipes import TorchMembers

    for seed in range(config.seeds):
        _check_folds(config, seed)
        copies_of(config, seed)
    split = config.split(0)
    models = [(f"teachers.members.{i} ({m.name}): ", m.model) for i, m in enumerate(config.teachers.members) if isinstance(m, TorchMembers)]
    models += [(f"distill.students.{name}.", student.model) for name, student in config.distill.students.items()]
    for name, model in models:
        try:
            build_student(model, split.labelled, len(split.classes))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}{error}") from error
    if not all(is_finished(config, Unit("teachers", seed)) for seed in range(config.seeds)):
        for i, spec in enumerate(config.teachers.members):
            if callable(check := getattr(spec, "check", None)):
                try:
                    check(split.labelled, split.classes)
                except (ValueError, TypeError) as error:
                    raise ValueError(f"teachers.members.{i}.init_args.{error}") from error
    try:
        codec_of(config.cache.codec).fields(1, len(split.classes))
    except ValueError as error:
        raise ValueError(f"cache.{error}") from error
    if config.cache.augment is not None:
        from ensdistill.data.versions import view_inputs

        try:
            view_inputs(config.cache.augment, split.labelled.inputs[:2], split.labelled.uids[:2], 0, 0)
        except (ValueError, TypeError) as error:
            raise ValueError(f"cache.augment: {error}") from error


def _check_folds(config: Config, seed: int) -> None:
    split = config.split(seed)
    counts = np.bincount(split.labelled.labels, minlength=len(split.classes))
    rare = int(counts.argmin())
    rows = f"{counts[rare]} of the labelled rows of seed {seed} are of class {split.classes[rare]!r}"
    if counts[rare] < 2:
        raise ValueError(f"data: {rows}; expected at least 2 of each class, one to learn from and one to be held out")
    for name, folds in (("teachers.folds", config.teachers.folds), ("distill.folds", config.distill.folds)):
        if folds > counts[rare]:
            raise ValueError(f"{name}: expected at most {counts[rare]}, because {rows}; got {folds}")
    for stage, folds, stream in (("teachers", config.teachers.folds, "folds"), ("distill", config.distill.folds, "direct folds")):
        try:
            stratified_folds(split.labelled.inputs, split.labelled.labels, folds, derive_seed(stream, seed))
        except ValueError as error:
            raise ValueError(f"{stage}.{error} (seed {seed})") from error


def copies_of(config: Config, seed: int, transfer: Rows | None = None) -> Copies:
    """Count the equal inputs in the parts of a seed, the synthetic rows of the transfer set among them where it is there.

    Raises
    ------
    ValueError
        More test rows than ``config.max_test_copies`` allows equal a row that is trained on.
    """
    split, pool = config.split(seed), config.cache.transfer.pool
    made_from = len(split.labelled) + (len(split.pool) if pool else 0)
    copies = count_copies(split, None if transfer is None else transfer.inputs[made_from:], pool=pool)
    copies.refuse(config.max_test_copies, f"data: seed {seed}")
    return copies


def trusted_classes(config: Config) -> tuple[str, ...]:
    """What loading the saved members may build: the classes that the config itself names."""
    students = [describe(s.model) for s in config.distill.students.values()]
    own = [path for s in students for path in _class_paths(s)]
    return tuple({*own, *(path for spec in config.teachers.members for path in spec.trusted)})


def _class_paths(described: Any) -> list[str]:
    if isinstance(described, dict):
        found = [described["class_path"]] if isinstance(described.get("class_path"), str) else []
        return found + [path for value in described.values() for path in _class_paths(value)]
    return [path for value in described for path in _class_paths(value)] if isinstance(described, list) else []


def _teachers(config: Config, unit: Unit, folder: Path, report: Progress) -> dict[str, Any]:
    from ensdistill.report.metrics import nll
    from ensdistill.teachers import train_ensemble
    from ensdistill.teachers.fitting.calibration import probabilities

    split, settings = config.split(unit.seed), config.teachers
    ensemble, held_out = train_ensemble(
        settings.members,
        split.labelled,
        split.classes,
        folds=settings.folds,
        seed=unit.seed,
        combiner=settings.combiner,
        prior_rows=settings.prior_rows,
        folder=folder / "training",
        progress=report,
    )
    ensemble.save(folder / "ensemble")
    write_arrays(folder / "held_out.safetensors", {"logits": held_out, "labels": split.labelled.labels})
    calibrated = ensemble.apply_temperatures(held_out)
    losses = [nll(probabilities(z * ensemble.temperature), split.labelled.labels) for z in calibrated]
    # By held-out NLL: the test rows have no say in who is the best.
    return {"held_out_nll": dict(zip(ensemble.names, losses, strict=True)), "best_member": ensemble.names[int(np.argmin(losses))]}


def _cache(config: Config, unit: Unit, folder: Path, report: Progress) -> dict[str, Any]:
    from ensdistill.cache import cache_targets
    from ensdistill.cache.floors import TEMPERATURE
    from ensdistill.teachers import Ensemble

    settings, teachers = config.cache, Unit("teachers", unit.seed).folder(config)
    ensemble = Ensemble.load(teachers / "ensemble", trusted_classes(config))
    transfer = settings.transfer.build(config.split(unit.seed), unit.seed)
    copies_of(config, unit.seed, transfer.rows)
    caches = [(folder / "targets", ensemble, "targets")]
    if settings.mixture_at is not None:
        # No member can be had from a mixture, and the student is compared with one that was distilled from the best.
        best = read_json(teachers / "stage.json")["best_member"]
        caches.append((folder / "best_member", ensemble.only(best), f"targets of {best}"))
    else:
        shutil.rmtree(folder / "best_member", ignore_errors=True)
    statistics = []
    for path, asked, what in caches:
        # overwrite: what another config left here is replaced; a cache of the same things is resumed.
        try:
            cache = cache_targets(
                asked,
                transfer.rows,
                path,
                codec=settings.codec,
                mixture_at=settings.mixture_at,
                views=settings.views,
                augment=settings.augment,
                max_kl=settings.max_kl,
                max_temperature=max(TEMPERATURE, config.distill.loss.temperature),
                seed=unit.seed,
                overwrite=True,
                progress=partial(report, what),
            )
        except BadRows as error:
            uid = int(error.rows[0])
            raise ValueError(f"{error}; uid {uid} of the transfer set is {transfer.source(uid)}") from error
        statistics.append(cache.manifest["statistics"])
    rows = transfer.rows
    write_arrays(folder / "transfer.safetensors", {"inputs": rows.inputs, "uids": rows.uids, "labels": rows.labels})
    return {"origin": transfer.origin, "statistics": statistics[0]}


def load_transfer(folder: Path) -> Rows:
    """The transfer set that a cache stage wrote."""
    from safetensors.numpy import load_file

    return Rows(**load_file(folder / "transfer.safetensors"))


def _direct(config: Config, unit: Unit, folder: Path, report: Progress) -> dict[str, Any]:
    from ensdistill.job.direct import train_baselines

    student = config.distill.students[unit.student]
    return train_baselines(student, config.distill, config.split(unit.seed), unit.seed, folder, report)


def _distill(config: Config, unit: Unit, folder: Path, report: Progress) -> dict[str, Any]:
    from ensdistill.cache import TargetCache
    from ensdistill.student.trainer import StudentTrainer

    student, settings, split = config.distill.students[unit.student], config.distill, config.split(unit.seed)
    source = Unit("cache", unit.seed).folder(config)
    cache, rows = TargetCache.open(source / "targets"), load_transfer(source)
    of_best = cache if config.cache.mixture_at is None else TargetCache.open(source / "best_member")
    best = read_json(Unit("teachers", unit.seed).folder(config) / "stage.json")["best_member"]
    trainer = StudentTrainer(student.optimization, settings.loss, mixed_precision=settings.mixed_precision)
    for kind, targets, member in (("student", cache, None), ("distilled_from_best_member", of_best, best if of_best is cache else None)):
        train = partial(
            trainer.distill,
            student.model,
            rows,
            targets,
            seed=unit.seed,
            member=member,
            augment=config.cache.augment,
            watch=split.test.inputs,
            progress=partial(report, kind.replace("_", " ")),
        )
        keep(student.model, folder / kind, split, train, fingerprint(config, unit))
    return {"best_member": best}
