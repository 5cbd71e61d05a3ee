"""The stages ``direct`` and ``distill`` of a student that is no network."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ensdistill.cache import TargetCache
from ensdistill.common.describe import describe
from ensdistill.common.fingerprint import digest
from ensdistill.common.progress import UnitProgress
from ensdistill.data import Rows, Split
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.preprocess import Preprocess
from ensdistill.data.samples import joined
from ensdistill.job.config import DistillConfig
from ensdistill.job.run_folder import finish, is_done, preprocess_setting
from ensdistill.job.student_config import StudentConfig
from ensdistill.student.trees.direct import SHORTER, STRONGER, Direct
from ensdistill.teachers.choices import Choices
from ensdistill.teachers.members import Member
from ensdistill.teachers.prepared import Prepared, prepare_recipes
from ensdistill.teachers.recipes import SklearnMembers
from ensdistill.teachers.stack.fitting import versions


def fitted_preprocess(student: StudentConfig, split: Split, seed: int) -> Preprocess | None:
    """The preprocess of an estimator, fitted to the labelled rows and the pool without any label."""
    samples = joined([split.labelled.inputs, split.pool.inputs]) if len(split.pool) else split.labelled.inputs
    recipe = SklearnMembers(student.estimator, preprocess=student.preprocess)
    (made,) = prepare_recipes([recipe], samples, len(split.classes), seed)
    return made.preprocess if isinstance(made, Prepared) else None


def distill_estimator(
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
) -> None:
    """Fit the estimator once for each of ``kinds``; see :func:`ensdistill.job.stages.distill`."""
    trainer = student.tree_student(student.loss or settings.loss, split.task)
    preprocess = fitted_preprocess(student, split, seed)
    for kind, (targets, member) in kinds.items():

        def fit(targets: TargetCache = targets, member: str | None = member) -> tuple[Member, str]:
            found = trainer.fit(
                rows,
                targets,
                validation=student.held_out,
                member=member,
                augment=changes,
                preprocess=preprocess,
                seed=seed,
            )
            return found.member, found.way

        _keep(folder / kind, inputs, fit, report)


def train_estimator_baselines(
    student: StudentConfig,
    settings: DistillConfig,
    split: Split,
    seed: int,
    folder: Path,
    report: UnitProgress,
) -> dict[str, Any]:
    """Fit *direct* and *direct with label smoothing*, and return the record of their search, as
    :func:`ensdistill.job.direct.train_baselines` does."""
    inputs = digest(
        [
            [describe(student.estimator), versions(student.estimator)],
            [settings.folds, settings.label_smoothing, SHORTER, list(STRONGER.items())],
            [split.labelled, list(split.classes), seed],
            *preprocess_setting(student, split),
        ]
    )
    direct = Direct(
        split.labelled,
        split.classes,
        fitted_preprocess(student, split, seed),
        settings.label_smoothing,
        settings.folds,
        seed,
    )
    found = Choices(split.labelled.labels, folder, inputs)
    recipe, chosen = direct.search(student.estimator, found, partial(report, "folds"))
    fits: dict[str, Callable[..., Member]] = {"direct": direct.on_labels}
    if direct.smooths:
        fits["direct_label_smoothing"] = direct.on_smoothed_labels
    for kind, fit in fits.items():

        def fitted(fit: Callable[..., Member] = fit) -> tuple[Member, str]:
            return fit(chosen, split.labelled, seed), recipe

        _keep(folder / kind, inputs, fitted, report)
    return found.record(recipe, direct.smoothed(recipe) if direct.smooths else None)


def _keep(folder: Path, inputs: str, fit: Callable[[], tuple[Member, str]], report: UnitProgress) -> None:
    """Fit one model and keep it with its way, unless it is kept already."""
    report(folder.name.replace("_", " "), 0, 1)
    if not is_done(folder, inputs):
        start = time.perf_counter()
        member, way = fit()
        member.save(folder)
        finish(folder, inputs, time.perf_counter() - start, way=way)
    report(folder.name.replace("_", " "), 1, 1)
