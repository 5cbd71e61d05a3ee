"""A job's run folder: where each unit of work lies, its inputs, and the one record that it is finished.

A run folder holds, for each seed::

    teachers.yaml             the plan of ``teachers: auto``
    seed-0/teachers/          the ensemble, and its members' held-out predictions
    seed-0/cache/             the transfer set, and the targets; the best member's own where the targets are a
                              mixture only
    seed-0/shrink/<student>/  a student that is made from a member: its first weights and its preprocess
    seed-0/direct/<student>/  the baselines on hard labels
    seed-0/distill/<student>/ the student, and the same distilled from the best member
    report.json report.html figures/

Beside each trained student, ``training/`` holds its ``log.jsonl`` and the files of trackers; until it is
finished its checkpoints and best weights, too.

A folder is finished when its ``stage.json`` holds the digest of everything that it was made from: content,
never dates. Settings that only watch a training are no part of it, nor are the files in ``training/``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import load_file
from torch import nn

import ensdistill
from ensdistill.cache.codecs import class_paths
from ensdistill.cache.floors import TEMPERATURE
from ensdistill.common.checkpoint import CheckpointMismatch
from ensdistill.common.describe import describe
from ensdistill.common.files import read_json, write_arrays, write_json
from ensdistill.common.fingerprint import digest
from ensdistill.common.optimization import Optimization
from ensdistill.common.random import derive_seed
from ensdistill.common.source import source_digest
from ensdistill.data import Rows, Split
from ensdistill.data.copies import stratified_folds
from ensdistill.data.preprocess import as_preprocess, trusted_by
from ensdistill.job.config import Config, TeachersConfig
from ensdistill.job.exports import exports_of
from ensdistill.job.method_config import digest_of_loss
from ensdistill.job.planned import plan_of, write_plan
from ensdistill.job.search_config import found_student
from ensdistill.job.shrinking import shrunk_student
from ensdistill.job.student_config import WATCHING, StudentConfig
from ensdistill.job.unit import Unit
from ensdistill.student.automatic import with_numbers
from ensdistill.student.trainer import Trained
from ensdistill.teachers.auto import Plan
from ensdistill.teachers.existing import content_of
from ensdistill.teachers.stack.fitting import versions

T = TypeVar("T")
TRAINING = "training"
PLAN = "teachers.yaml"


class RunFolder:
    """The folder of a job's results.

    Parameters
    ----------
    config : Config

    Attributes
    ----------
    path : Path
        ``config.folder / config.name``.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.path = config, config.run_folder
        self._digests: dict[Unit, str] = {}
        self._plan: Plan | None = None
        self._files: list[str] | None = None
        self._transfers: dict[int, Rows] = {}

    @property
    def plan(self) -> Plan | None:
        """The members of ``teachers: auto``, by the plan in the folder where there is one for this config;
        None for settings that name members."""
        if self._plan is None and self.config.teachers.is_auto:
            self._plan = plan_of(self.config.teachers, self.config.split(0), self.path / PLAN)
        return self._plan

    @cached_property
    def teachers(self) -> TeachersConfig:
        """The teachers' settings, with planned members in place of "auto"."""
        return self.config.teachers if self.plan is None else self.config.teachers.planned(self.plan)

    def keep_plan(self) -> None:
        """Write the plan, if there is one, by which a resumed run goes on."""
        if self.plan is not None:
            write_plan(self.plan, self.config.teachers, self.path / PLAN)
        if self.config.searched and self.config.refit:
            self.trial.keep_plan()

    def units(self, last: str) -> list[Unit]:
        """The units up to the stage ``last`` (``teachers``, ``cache``, ``preflight``, ``distill`` or
        ``report``), longest work first; a preflight needs the baselines, and no student."""
        seeds, students = range(self.config.seeds), list(self.config.distill.students)
        teachers = [Unit("teachers", seed) for seed in seeds]
        if last == "teachers":
            return teachers
        caches = [Unit("cache", seed) for seed in seeds]
        if last == "cache":
            return teachers + caches
        searches = [Unit("search", seed, student) for seed in seeds for student in self.config.searched]
        tried = [seed for seed in seeds if searches and self.searching(seed) is not self]
        trials = [Unit(stage, seed, trial=True) for stage in ("teachers", "cache") for seed in tried]
        if last == "search":
            return [*trials, *(one for one in teachers + caches if one.seed not in tried), *searches]
        made = [Unit("shrink", seed, student) for seed in seeds for student in self.config.shrunk]
        both = [
            Unit(stage, seed, student)
            for stage in (("direct",) if last == "preflight" else ("distill", "direct"))
            for seed in seeds
            for student in students
            if last != "preflight" or student not in self.config.searched
        ]
        if last == "preflight":
            return teachers + caches + made + both
        return trials + teachers + caches + made + searches + both

    def searching(self, seed: int) -> RunFolder:
        """The run in whose teachers and cache a seed's students are searched for: its trial, or itself where
        no labelled rows judge them, or without ``refit``."""
        apart = self.config.refit and self.config.validation(seed) is not None
        return self.trial if apart else self

    @cached_property
    def trial(self) -> RunFolder:
        """The run of the job's trial, within this one's folder."""
        return RunFolder(self.config.trial())

    def needs(self, unit: Unit) -> list[Unit]:
        """The units whose results a unit reads, the one that makes its student among them."""
        if unit.stage == "search" and self.searching(unit.seed) is not self:
            return [Unit("cache", unit.seed, trial=True)]
        return [*unit.needs(), *self.makers(unit)]

    def makers(self, unit: Unit) -> list[Unit]:
        """The unit that finds or makes the student of another; none for a student with a model."""
        if unit.stage not in ("distill", "direct"):
            return []
        stages = {"search": self.config.searched, "shrink": self.config.shrunk}
        return [Unit(stage, unit.seed, unit.student) for stage, own in stages.items() if unit.student in own]

    def student(self, name: str, seed: int) -> StudentConfig:
        """The settings of a student; of a searched one those that the search of the seed has found, and of a
        shrunk one its model, weights and preprocess.

        Raises
        ------
        ValueError
            The search, or the shrinking, is not finished.
        """
        student = self.config.distill.students[name]
        if student.shrink is not None:
            made = Unit("shrink", seed, name)
            return shrunk_student(student, self.record(made), self.of(made), self._trusted_members)
        if not student.searched:
            return student
        record = self.record(Unit("search", seed, name))
        found = found_student(record["section"])
        if "model" in found:  # an estimator is fitted without them
            found |= {setting: getattr(student, setting) for setting in WATCHING}
        return StudentConfig(**found)

    def of(self, unit: Unit) -> Path:
        """The unit's folder."""
        if unit.trial:
            return self.trial.of(replace(unit, trial=False))
        return self.path / f"seed-{unit.seed}" / unit.stage / unit.student

    def record(self, unit: Unit) -> dict[str, Any]:
        """The record of a finished unit.

        Raises
        ------
        ValueError
            The unit is not finished.
        """
        record = read_json(self.of(unit) / "stage.json")
        if not isinstance(record, dict):
            raise ValueError(f"{self.of(unit)}: expected a finished stage; run the stages before the report")
        return record

    def held_out(self, seed: int) -> Path:
        """The file of the members' held-out logits and the labels of the seed's labelled rows."""
        return self.of(Unit("teachers", seed)) / "held_out.safetensors"

    def transfer(self, seed: int) -> Rows:
        """The transfer set that the seed's cache was made from.

        Arrays are read from its file. Others are built again, and the cache's hashes of them are compared
        when they are used.
        """
        if seed not in self._transfers:
            file = self.of(Unit("cache", seed)) / "transfer.safetensors"
            rows = Rows(**load_file(file)) if file.is_file() else self._built(seed)
            self._transfers = {seed: rows}  # of one seed at a time: they may be large
        return self._transfers[seed]

    def _built(self, seed: int) -> Rows:
        return self.config.cache.transfer.build(self.config.split(seed), seed).rows

    def digest(self, unit: Unit) -> str:
        """Digest of everything that the unit's result depends on, the units before it included."""
        if unit.trial:
            return self.trial.digest(replace(unit, trial=False))
        if not all(map(self.is_finished, self.makers(unit))):
            return "the student is found or made first"
        if unit not in self._digests:
            self._digests[unit] = self._digest(unit)
        return self._digests[unit]

    def _digest(self, unit: Unit) -> str:
        config = self.config
        split, common = (
            config.split(unit.seed),
            [ensdistill.__version__, unit.stage, unit.seed, config.threads],
        )
        if unit.stage == "teachers":
            folds = _folds(split, config.teachers.folds, "folds", unit.seed)
            made_by = [describe(self.teachers), self._contents()]
            return digest([*common, *made_by, split.labelled, list(split.classes), folds])
        if unit.stage == "cache":
            # A cache is made for temperatures up to that of the students, but not for less than the default.
            most = config.distill.max_temperature
            higher = [most] if most > TEMPERATURE else []
            # Synthetic rows that equal a test row are replaced.
            unseen = [split.test.inputs] if config.cache.transfer.synthetic else []
            made_from = [self.digest(unit.needs()[0]), describe(config.cache), split.pool, *unseen]
            return digest([*common, *made_from, *higher])
        distill = config.distill
        if unit.stage == "search":
            goal = distill.students[unit.student].search_settings(config.search_minutes, config.trials)
            rows = config.validation(unit.seed)
            source = self.digest(self.needs(unit)[0])
            made = [describe(goal), len(config.searched), source, rows, unit.student]
            return digest([*common, *made])
        if unit.stage == "shrink":
            settings = distill.students[unit.student].shrink
            return digest([*common, describe(settings), self.digest(unit.needs()[0]), unit.student])
        student = self.student(unit.student, unit.seed)
        if unit.stage == "direct":
            folds = _folds(split, distill.folds, "direct folds", unit.seed)
            choices = [describe(distill.augment), folds, distill.label_smoothing, distill.mixed_precision]
            own = [
                *_described(student, student.baseline),
                *preprocess_setting(student, split),
                choices,
                split.labelled,
                list(split.classes),
                *student.trained_by,
            ]
        else:
            choices = [*digest_of_loss(student, distill), distill.mixed_precision]
            own = [
                *_described(student, student.optimization),
                *preprocess_setting(student, split),
                choices,
                self.digest(unit.needs()[0]),
                *student.chosen_by,
                *student.trained_by,
            ]
        # The test inputs are watched for the learning curves.
        return digest([*common, *own, unit.student, split.test.inputs])

    def _contents(self) -> list[str]:
        """Digests of the files of members that exist already, read once."""
        if self._files is None:
            self._files = []
            for i, recipe in enumerate(self.teachers.recipes):
                try:
                    self._files += [content_of(file) for file in recipe.files()]
                except ValueError as error:
                    raise ValueError(f"teachers.members.{i}.init_args.{error}") from error
        return self._files

    def report_digest(self) -> str:
        """Digest of everything that the report shows, and of the code that judges and shows it."""
        config, package = self.config, Path(__file__).parents[1]
        code = [
            *sorted(p for p in (package / "report").iterdir() if p.is_file()),
            *(
                package / "job" / f"{name}.py"
                for name in ("accounts", "contributions", "evaluate", "predictions", "scaling", "spreads")
            ),
            *(
                package / name
                for name in ("job/preflight.py", "student/preflight.py", "student/retention.py")
            ),
            *(package / "teachers" / "fitting" / name for name in ("calibration.py", "scaling.py")),
            package / "data" / "copies.py",
        ]
        splits = [config.split(seed) for seed in range(config.seeds)]
        judged = [[split.test, list(split.classes), len(split.pool), split.left_out] for split in splits]
        shown = [
            config.name,
            type(config.data).__name__,
            {name: s.description for name, s in config.distill.students.items()},
            config.show_rows,
            *([] if config.ood is None else [config.ood.split(s).test for s in range(config.seeds)]),
        ]
        made = [self.digest(unit) for unit in self.units("report")]
        exports = exports_of(self.path)  # their figures are shown, too
        parts = [[p.read_bytes() for p in code], judged, shown, made, *([exports] if exports else [])]
        return digest([ensdistill.__version__, "report", *parts])

    def is_finished(self, unit: Unit) -> bool:
        """Whether the unit's result is whole and was made from the present config."""
        return is_done(self.of(unit), self.digest(unit))

    @property
    def trusted(self) -> tuple[str, ...]:
        """The class paths that loading saved members and caches may import: those that the config itself
        names."""
        students = list(self._known_students())
        parts = [describe(part) for s in students for part in (s.model, s.estimator, s.preprocess)]
        own = [path for part in parts for path in _class_paths(part)]
        own += [path for s in students for path in trusted_by(s.preprocess)]
        return tuple({*own, *self._trusted_members, *class_paths(self.config.cache.any_codec)})

    @property
    def _trusted_members(self) -> list[str]:
        return [path for spec in self.teachers.recipes for path in spec.trusted]

    def _known_students(self) -> Iterator[StudentConfig]:
        """The students' settings, without those that are yet to be found or made."""
        for name, student in self.config.distill.students.items():
            if not self.makers(Unit("direct", 0, name)):
                yield student
                continue
            for seed in range(self.config.seeds):
                if all(map(self.is_finished, self.makers(Unit("direct", seed, name)))):
                    yield self.student(name, seed)


def _described(student: StudentConfig, optimization: Optimization) -> list[Any]:
    """The student's model and its optimisation; of an estimator its parameters and the libraries'
    versions."""
    if student.estimator is not None:
        return [describe(student.estimator), versions(student.estimator)]
    code = [source_digest(with_numbers)] if optimization.automatic else []
    return [describe(student.network), describe(optimization), *code]


def _folds(split: Split, folds: int, stream: str, seed: int) -> list[np.ndarray] | int:
    """The rows that each fold holds out, so that another rule of folds makes a stage stale; their number if
    there are none."""
    try:
        rows = split.labelled
        parts = stratified_folds(rows.inputs, rows.labels, folds, derive_seed(stream, seed), rows.groups)
    except ValueError:  # the job's check refuses them with their setting's name
        return folds
    return [held for _, held in parts]


def preprocess_setting(student: StudentConfig, split: Split) -> list[Any]:
    """The setting, where it has an effect: numbers stay as they are unless it names a preprocess."""
    numbers = isinstance(split.labelled.inputs, np.ndarray) and student.preprocess in ("auto", None)
    if isinstance(student.preprocess, str) and student.preprocess != "auto":
        # A path: the code of its function, or the tokenizer in its files, may change.
        return [student.preprocess, as_preprocess(student.preprocess).fingerprint()]
    return [] if numbers else [describe(student.preprocess)]


def _class_paths(described: Any) -> list[str]:
    if isinstance(described, dict):
        found = [described["class_path"]] if isinstance(described.get("class_path"), str) else []
        return found + [path for value in described.values() for path in _class_paths(value)]
    return (
        [path for value in described for path in _class_paths(value)] if isinstance(described, list) else []
    )


def is_done(folder: Path, digest_of_inputs: str) -> bool:
    """Whether the folder's record has this digest, and all its files are there with the sizes that they
    had."""
    record = read_json(folder / "stage.json")
    if not isinstance(record, dict) or record.get("fingerprint") != digest_of_inputs:
        return False
    sizes: dict[str, int] = record["files"]
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items()
    )


def finish(folder: Path, digest_of_inputs: str, seconds: float, only: str = "**/*", **more: Any) -> None:
    """Record that the folder's files were made from these inputs. The last thing a stage writes."""
    names = sorted(
        p
        for p in folder.glob(only)
        if p.is_file()
        and p.name not in ("stage.json", ".lock")
        and not p.name.endswith(".part")
        and TRAINING not in p.relative_to(folder).parts
    )
    files = {str(p.relative_to(folder)): p.stat().st_size for p in names}
    write_json(
        folder / "stage.json",
        {"fingerprint": digest_of_inputs, "seconds": round(seconds, 3), "files": files, **more},
    )


def resumed_or_anew(train: Callable[..., T], checkpoint: Path) -> T:
    """Train on from a checkpoint, or from the start where it is of other settings: the stage's digest has
    found these out of date already."""
    try:
        return train(checkpoint=checkpoint)
    except CheckpointMismatch:
        checkpoint.unlink()
        return train(checkpoint=checkpoint)


def keep(
    factory: Callable[[], nn.Module],
    folder: Path,
    split: Split,
    train: Callable[..., Trained],
    inputs: str,
) -> None:
    """Train one model (``train(folder=...)``) and keep it, unless it is kept already.

    The log and the checkpoints of a training for other ``inputs`` are set aside, and come back where the new
    one is refused before its first step.
    """
    if is_done(folder, inputs):
        return
    start, place = time.perf_counter(), folder / TRAINING
    before = place.with_name(f"{TRAINING}.before")
    if read_json(place / "inputs.json") != inputs:
        shutil.rmtree(before, ignore_errors=True)
        if place.exists():
            place.rename(before)
        place.mkdir(parents=True)
        write_json(place / "inputs.json", inputs)
    try:
        try:
            trained = train(folder=place)
        except CheckpointMismatch:
            shutil.rmtree(place)
            trained = train(folder=place)
    except Exception:
        if before.exists() and not (place / "log.jsonl").exists():
            shutil.rmtree(place)
            before.rename(place)
        raise
    shutil.rmtree(before, ignore_errors=True)
    trained.member(classes=split.classes, factory=factory).save(folder)
    write_arrays(
        folder / "curve.safetensors",
        {"steps": trained.steps, "losses": trained.losses, "watched": trained.watched},
    )
    if trained.evaluations:
        write_json(folder / "evaluations.json", trained.record())
    for file in place.glob("*.safetensors"):  # the checkpoints, and the best weights, which the student has
        file.unlink()
    found: dict[str, Any] = {}
    if trained.automatic is not None:
        found["automatic"] = trained.automatic.record()
    if trained.notes:
        found["notes"] = list(trained.notes)
    finish(folder, inputs, time.perf_counter() - start, **found)
