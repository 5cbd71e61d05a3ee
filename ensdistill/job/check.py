"""Checks of a whole job before hours of work: folds, models, codecs, augmentations, and copies among the test
rows."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ensdistill.cache.codecs import codec_of
from ensdistill.common.errors import WrongArgument, message
from ensdistill.common.optimizers import build_optimizer
from ensdistill.common.random import derive_seed
from ensdistill.data import Rows, Split
from ensdistill.data.copies import Copies, count_copies, stratified_folds
from ensdistill.data.preprocess import Preprocess
from ensdistill.data.samples import subset
from ensdistill.data.transfer.base import needs_ensemble
from ensdistill.data.versions import view_inputs
from ensdistill.job.config import Config
from ensdistill.job.estimators import fitted_preprocess
from ensdistill.job.hinted import check_hints
from ensdistill.job.method_config import with_heads
from ensdistill.job.prepared import prepare, prepare_student
from ensdistill.job.rows_check import check_rows
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.searching import check_search
from ensdistill.job.shrinking import check_shrink
from ensdistill.job.spreads import check_ood
from ensdistill.job.stored import check_stored
from ensdistill.job.student_config import StudentConfig
from ensdistill.job.task_check import check_task
from ensdistill.job.unit import Unit
from ensdistill.student.accumulation import check_divides
from ensdistill.student.module_patterns import chosen
from ensdistill.student.preconditions import build_student
from ensdistill.student.trees.direct import Direct
from ensdistill.teachers.existing import ExistingMembers
from ensdistill.teachers.members import Member, load_member
from ensdistill.teachers.members.moments import predictions_of
from ensdistill.teachers.prepared import Prepared, prepare_recipes
from ensdistill.teachers.recipes import SklearnMembers, TorchMembers
from ensdistill.teachers.stack.fitting import few_rows

OF_DATA = {"data", "ood"}  # data sets, whose files and settings raise errors of both kinds


def check_job(run: RunFolder) -> None:
    """Refuse, before hours of work, too many folds, and models, codecs and augmentations that do not fit the
    data.

    Every student and every torch member is built and run on two rows; every estimator is fitted to a few,
    saved and loaded. A preprocess is fitted for every seed and tried on the pool and the test rows.

    Raises
    ------
    WrongArgument
        (a ValueError) A setting has to change; the message begins with its name.
    ValueError
        The data are at fault; the message begins with ``data``.
    """
    try:
        _check_job(run)
    except (ValueError, TypeError) as error:
        if not isinstance(error, WrongArgument) and names_setting(str(error)):
            raise WrongArgument(message(error)) from error
        raise


def names_setting(text: str) -> bool:
    """Whether an error's text begins with the name of a setting: one of all but the data, whose own error
    tells by its kind whether they or their settings are wrong.

    Examples
    --------
    >>> names_setting("teachers.folds: expected at most 10"), names_setting("data: 3 of the rows are equal")
    (True, False)
    """
    own = {one.name for one in fields(Config) if one.init} - OF_DATA
    return re.split(r"[.:\s]", text, maxsplit=1)[0] in own


def _check_job(run: RunFolder) -> None:
    config = run.config
    check_task(config)
    check_search(config)
    check_ood(config)
    for seed in range(config.seeds):
        _check_folds(config.trial() if config.searched else config, seed)  # it may have fewer labelled rows
        copies_of(config, seed)
    split = config.split(0)
    models: list[tuple[str, TorchMembers | StudentConfig]] = [
        (f"teachers.members.{i} ({m.name}): ", m)
        for i, m in enumerate(run.teachers.recipes)
        if isinstance(m, TorchMembers)
    ]
    models += [
        (f"distill.students.{name}.", s) for name, s in config.distill.students.items() if s.model is not None
    ]
    for name, one in models:
        student = one if isinstance(one, StudentConfig) else None
        try:
            model: Any = one.model
            prepared = prepare(model, one.preprocess, split, 0, variance=one.variance)
            weights = None if student is None else student.weights
            module = build_student(
                prepared.factory, split.labelled, len(split.classes), prepared.preprocess, weights, split.task
            )
            if student is not None:
                heads = with_heads(student, config.distill, prepared.factory)
                if heads is not None:
                    build_student(
                        heads, split.labelled, len(split.classes), prepared.preprocess, None, split.task
                    )
                for optimization in (student.optimization, student.baseline):
                    tried = optimization.with_numbers(1000, optimization.accumulate, 1e-3)
                    build_optimizer(tried, module)
                    check_divides(tried.accumulate, tried.batch_size)
                chosen("recompute_modules", module, student.recompute_modules)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}{error}") from error
    for name, one in config.distill.students.items():
        if one.estimator is not None:
            _check_estimator(name, one, split)
    for name, one in config.distill.students.items():
        if one.shrink is not None:
            precision = config.distill.mixed_precision
            check_shrink(name, one.shrink, run.teachers.recipes, split, split.task, precision)
        check_hints(name, config.distill, run.teachers.recipes, split)
    if not all(run.is_finished(Unit("teachers", seed)) for seed in range(config.seeds)):
        for i, recipe in enumerate(run.teachers.recipes):
            try:
                recipe.check_storable()
                (own,) = prepare_recipes([recipe], split.labelled.inputs, len(split.classes), 0)
                if run.plan is None:  # the portfolio's members are known to be fitted, saved and loaded
                    own.check(split.labelled, split.classes)
            except (ValueError, TypeError) as error:
                raise ValueError(f"teachers.members.{i}.init_args.{error}") from error
        splits = [config.split(seed) for seed in range(config.seeds)]
        for i, recipe in enumerate(run.teachers.recipes):
            if isinstance(recipe, ExistingMembers):
                try:
                    check_stored(recipe, splits, config.cache)
                except ValueError as error:
                    where = "" if str(error).startswith("cache.") else f"teachers.members.{i}.init_args."
                    raise ValueError(f"{where}{error}") from error
    try:
        codec_of(config.cache.codec, split.task).fields(1, len(split.classes))
    except ValueError as error:
        raise ValueError(f"cache.{error}") from error
    _check_preprocess(run)
    _check_transfer(run, split)
    if config.cache.augment is not None:
        try:
            view_inputs(config.cache.augment, split.labelled.inputs[:2], split.labelled.uids[:2], 0, 0)
        except (ValueError, TypeError) as error:
            raise ValueError(f"cache.augment: {error}") from error


def _check_estimator(name: str, student: StudentConfig, split: Split) -> None:
    """Fit a student's estimator to labels of a few rows, predict, save and load it; and to probabilities."""
    try:
        recipe = SklearnMembers(student.estimator, name=name, preprocess=student.preprocess)
        (own,) = prepare_recipes([recipe], split.labelled.inputs, len(split.classes), 0)
        few = split.labelled.take(few_rows(split.labelled.labels))
        direct = Direct(few, split.classes, student.preprocess)
        if split.task == "classification":
            own.check(split.labelled, split.classes)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of few rows; the training itself warns
                _check_saved(direct.on_labels(student.estimator, few, 0), few, own.trusted)
        if split.task != "regression":  # numbers are not smoothed
            direct.on_smoothed_labels(student.estimator, few, 0)
    except (ValueError, TypeError) as error:
        raise ValueError(f"distill.students.{name}.{error}") from error


def _check_saved(member: Member, rows: Rows, trusted: Sequence[str]) -> None:
    inputs = rows.inputs[np.arange(len(rows))]
    answers = predictions_of(member, inputs)
    with tempfile.TemporaryDirectory() as folder:
        member.save(folder)
        again = predictions_of(load_member(folder, trusted), inputs)
    unit = answers.std(0) if rows.task == "regression" else 1.0
    if not np.allclose(again, answers, rtol=1e-6, atol=1e-4 * unit):
        raise ValueError("estimator: saved and loaded again, it answers otherwise")


def _check_preprocess(run: RunFolder) -> None:
    """Refuse a preprocess that does not take the pool's rows or the test rows of some seed."""
    config, pool = run.config, run.config.cache.transfer.pool
    for seed in range(config.seeds):
        split, tried = config.split(seed), set()
        for where, preprocess in _fitted(run, seed):
            if id(preprocess) not in tried:  # members without a setting of their own share one
                tried.add(id(preprocess))
                try:
                    check_rows(preprocess, split, pool=pool)
                except ValueError as error:
                    raise ValueError(f"{where}: {error} (seed {seed})") from error


def _fitted(run: RunFolder, seed: int) -> list[tuple[str, Preprocess | None]]:
    """The place in the settings of every preprocess, and the preprocess as a seed's stages fit it."""
    config, split = run.config, run.config.split(seed)
    found: list[tuple[str, Preprocess | None]] = []
    if not run.is_finished(Unit("teachers", seed)):
        try:
            made = prepare_recipes(run.teachers.recipes, split.labelled.inputs, len(split.classes), seed)
        except (ValueError, TypeError) as error:
            raise ValueError(f"teachers.members: {error} (seed {seed})") from error
        for i, recipe in enumerate(made):
            if isinstance(recipe, Prepared):
                found.append((f"teachers.members.{i}.init_args.preprocess: {recipe.name}", recipe.preprocess))
    for name, student in config.distill.students.items():
        if student.searched or student.shrink is not None:
            continue  # the search fits its own, and a member brings one
        try:
            if student.estimator is None:
                preprocess = prepare_student(student, split, seed).preprocess
            else:
                preprocess = fitted_preprocess(student, split, seed)
            found.append((f"distill.students.{name}.preprocess", preprocess))
        except (ValueError, TypeError) as error:
            raise ValueError(f"distill.students.{name}.{error} (seed {seed})") from error
    return found


def _check_transfer(run: RunFolder, split: Split) -> None:
    """Refuse sources of synthetic rows that do not fit the data, or need gradients that a member has not."""
    config = run.config
    try:
        config.cache.transfer.check(split)
    except ValueError as error:
        raise ValueError(f"cache.{error}") from error
    for index, source in enumerate(config.cache.transfer.synthetic):
        for place, recipe in enumerate(run.teachers.recipes):
            if needs_ensemble(source) and not isinstance(recipe, (TorchMembers, ExistingMembers)):
                raise ValueError(
                    f"cache.transfer.synthetic.{index}: {type(source).__name__} needs members that are torch "
                    f"modules, whose outputs have gradients; teachers.members.{place} are of "
                    f"{type(recipe).__name__}"
                )


def _check_folds(config: Config, seed: int) -> None:
    split = config.split(seed)
    if split.task != "classification":
        labelled = len(split.labelled)
        for name, folds in (
            ("teachers.folds", config.teachers.folds),
            ("distill.folds", config.distill.folds),
        ):
            if folds > labelled:
                raise ValueError(f"{name}: expected at most {labelled}, the labelled rows; got {folds}")
        _try_folds(config, split, seed)
        return
    counts = np.bincount(split.labelled.labels, minlength=len(split.classes))
    rare = int(counts.argmin())
    rows = f"{counts[rare]} of the labelled rows of seed {seed} are of class {split.classes[rare]!r}"
    if counts[rare] < 2:
        raise ValueError(
            f"data: {rows}; expected at least 2 of each class, one to learn from and one to be held out"
        )
    for name, folds in (("teachers.folds", config.teachers.folds), ("distill.folds", config.distill.folds)):
        if folds > counts[rare]:
            raise ValueError(f"{name}: expected at most {counts[rare]}, because {rows}; got {folds}")
    _try_folds(config, split, seed)


def _try_folds(config: Config, split: Split, seed: int) -> None:
    for stage, folds, stream in (
        ("teachers", config.teachers.folds, "folds"),
        ("distill", config.distill.folds, "direct folds"),
    ):
        try:
            own = split.labelled
            stratified_folds(own.inputs, own.labels, folds, derive_seed(stream, seed), own.groups)
        except ValueError as error:
            raise ValueError(f"{stage}.{error} (seed {seed})") from error


def copies_of(config: Config, seed: int, transfer: Rows | None = None) -> Copies:
    """Count the equal inputs in the parts of a seed, the synthetic rows of the transfer set among them where
    it is there.

    Raises
    ------
    ValueError
        More test rows than ``config.max_test_copies`` allows equal a row that is trained on.
    """
    split, pool = config.split(seed), config.cache.transfer.pool
    made_from = len(split.labelled) + (len(split.pool) if pool else 0)
    made = None
    if transfer is not None:
        made = subset(transfer.inputs, np.arange(made_from, len(transfer)))
    copies = count_copies(split, made, pool=pool)
    copies.refuse(config.max_test_copies, f"data: seed {seed}")
    return copies
