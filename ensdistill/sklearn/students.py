"""From the parameter ``student`` to a trained student, and to the models that the report compares it with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from sklearn.base import is_regressor

from ensdistill.cache import TargetCache
from ensdistill.common.combiners import Combiner
from ensdistill.common.describe import class_path, module_recipe
from ensdistill.common.tasks import Task
from ensdistill.data import Rows, Split
from ensdistill.data.preprocess import trusted_by
from ensdistill.job.config import DistillConfig
from ensdistill.job.direct import train_baselines
from ensdistill.job.method_config import loss_of, loss_of_member
from ensdistill.job.predictions import direct_scaling
from ensdistill.job.prepared import prepare_student
from ensdistill.job.student_config import StudentConfig
from ensdistill.loss.settings import LossSettings
from ensdistill.student.generations import born_again
from ensdistill.student.trees import DEFAULT_VALIDATION, TreeStudent
from ensdistill.student.trees.direct import Direct
from ensdistill.student.validation import Validation
from ensdistill.teachers.choices import Choices
from ensdistill.teachers.fitting.calibration import log_mixture
from ensdistill.teachers.fitting.multilabel import mixture_of_labels
from ensdistill.teachers.fitting.scaling import Scaling
from ensdistill.teachers.members import Member, Moments, load_member

SMOOTHING = 0.1
FOLDS = 3  # of the labelled rows, as a job's by default


@dataclass(frozen=True)
class Lesson:
    """All that a student learns from.

    Parameters
    ----------
    split : Split
    rows : Rows
        The transfer set of the cache.
    cache : TargetCache
    loss : LossSettings
    seed : int
    folder : Path
        For files that are not kept.
    """

    split: Split
    rows: Rows
    cache: TargetCache
    loss: LossSettings
    seed: int
    folder: Path

    def targets(self, chosen: np.ndarray) -> Any:
        """The mixture's probabilities [M, C] for these rows of the transfer set, float64, or its Moments
        [M, D] in the data's units."""
        uids = self.rows.uids[chosen]
        if self.split.task == "regression":
            stored = cast(Any, self.cache.gather(uids))
            mean, variance = (one.double().numpy() for one in stored.mixture())
            location, scale = np.asarray(self.cache.location), np.asarray(self.cache.scale)
            return Moments(location + scale * mean, np.square(scale) * variance)
        logits, combiner = self.cache.gather_logits(uids), cast(Combiner, self.cache.combiner)
        if self.split.task == "multilabel":
            return mixture_of_labels(logits, np.asarray(self.cache.weights), combiner)
        return np.exp(log_mixture(logits, self.cache.weights, combiner))


@dataclass(frozen=True)
class Baseline:
    """A model that learns from labels alone, and the calibration that is fitted to its held-out rows."""

    member: Member
    scaling: Scaling = Scaling()  # noqa: RUF009 (frozen)


class Student(Protocol):
    """The methods of each kind of student.

    Attributes
    ----------
    description : str
    about_baselines : str
        For the report, how its baselines are chosen; empty where it is by a job's search.
    """

    @property
    def about_baselines(self) -> str: ...

    @property
    def description(self) -> str: ...

    def distilled(self, lesson: Lesson, member: str | None = None) -> Member:
        """The student of the mixture, or of one member."""
        ...

    def baselines(self, lesson: Lesson) -> tuple[Baseline, Baseline | None, str]:
        """The same model on labels, the same with label smoothing (None of numbers), and how they were
        trained."""
        ...


@dataclass(frozen=True)
class Network:
    """A torch module as a student."""

    config: StudentConfig
    about_baselines: str = ""

    @property
    def description(self) -> str:
        recipe = module_recipe(self.config.network) or {"class_path": "", "init_args": {}}
        name = recipe["class_path"].rpartition(".")[2]
        arguments = ", ".join(f"{k}={v}" for k, v in recipe["init_args"].items())
        return f"{name}({arguments})"

    def distilled(self, lesson: Lesson, member: str | None = None) -> Member:
        prepared = prepare_student(self.config, lesson.split, lesson.seed)
        validation = self.config.validation
        settings = DistillConfig({"student": self.config}, lesson.loss)
        loss = (loss_of if member is None else loss_of_member)(self.config, settings)
        trainer = self.config.trainer(
            self.config.optimization, loss, ema=self.config.ema, **self.config.watched()
        )
        trained = born_again(
            trainer,
            prepared.factory,
            lesson.rows,
            lesson.cache,
            generations=self.config.generations,
            seed=lesson.seed,
            member=member,
            preprocess=prepared.preprocess,
            weights=self.config.weights,
            validation=None if validation is None else validation.build(),
        )[-1]
        return trained.member(classes=lesson.split.classes, factory=prepared.factory)

    def baselines(self, lesson: Lesson) -> tuple[Baseline, Baseline | None, str]:
        settings = DistillConfig({"student": self.config}, lesson.loss, label_smoothing=SMOOTHING)
        split = lesson.split
        found = train_baselines(self.config, settings, split, lesson.seed, lesson.folder, _silent)
        recipe = module_recipe(self.config.network)
        trusted = () if recipe is None else (recipe["class_path"],)
        trusted = (*trusted, *trusted_by(prepare_student(self.config, split, lesson.seed).preprocess))
        plain, smoothed = (
            None if by is None else Baseline(load_member(lesson.folder / kind, trusted), by)
            for kind in ("direct", "direct_label_smoothing")
            for by in [direct_scaling(found, kind)]
        )
        assert plain is not None
        return plain, smoothed, found["recipe"]


@dataclass(frozen=True)
class Estimator:
    """An estimator as a student; see :class:`ensdistill.student.trees.TreeStudent`."""

    estimator: Any
    validation: Validation = DEFAULT_VALIDATION
    about_baselines: str = (
        "Direct: the same estimator on labels with its library's own loss, with fewer rounds or more "
        "regularisation by NLL on held-out folds of the labelled rows. Temperature scaling: direct on the "
        "same folds; the distilled to the ensemble's mixture on rows without a label. Never on the test rows."
    )

    @property
    def description(self) -> str:
        return " ".join(repr(self.estimator).split())

    def distilled(self, lesson: Lesson, member: str | None = None) -> Member:
        found = TreeStudent(self.estimator, lesson.loss, task=lesson.split.task).fit(
            lesson.rows, lesson.cache, validation=self.validation, seed=lesson.seed, member=member
        )
        return found.member

    def check(self, loss: LossSettings, weighted: bool, task: Task = "classification") -> None:
        """Raise ValueError for a loss, or for weights of rows, that the fit of the estimator can't have."""
        TreeStudent(self.estimator, loss, task=task).check_weights(weighted)

    def baselines(self, lesson: Lesson) -> tuple[Baseline, Baseline | None, str]:
        rows, classes = lesson.split.labelled, lesson.split.classes
        most = len(rows)
        if rows.task == "classification":
            most = int(np.bincount(rows.labels, minlength=len(classes)).min())
        folds = max(2, min(FOLDS, most))
        direct = Direct(rows, classes, smoothing=SMOOTHING, folds=folds, seed=lesson.seed)
        found = Choices(rows.labels)
        recipe, chosen = direct.search(self.estimator, found)
        plain = Baseline(direct.on_labels(chosen, rows, lesson.seed), found.scaling(recipe))
        if not direct.smooths:
            return plain, None, recipe
        name = direct.smoothed(recipe)
        smoothed = Baseline(direct.on_smoothed_labels(chosen, rows, lesson.seed), found.scaling(name))
        return plain, smoothed, recipe


def as_student(value: Any, default: StudentConfig | None, optimization: Any, preprocess: Any) -> Student:
    """The student that the parameter names, checked.

    Parameters
    ----------
    value : "auto", module class, functools.partial of one, StudentConfig, or classifier
    default : StudentConfig or None
        That of "auto"; None where the samples have none.
    optimization : Optimization or None
    preprocess
        Of module classes.
    """
    if isinstance(value, str):
        if value != "auto" or default is None:
            raise ValueError(f"student: expected 'auto', a module class or an estimator; got {value!r}")
        if optimization is None:
            return Network(default)
        return Network(replace(default, optimization=optimization, direct=None))
    if isinstance(value, StudentConfig):
        if optimization is not None:
            raise ValueError("optimization: expected None, because student is a StudentConfig that has one")
        if value.estimator is not None:
            return Estimator(value.estimator, value.held_out)
        return Network(value)
    if module_recipe(value) is not None:
        if optimization is not None:
            return Network(StudentConfig(value, optimization, preprocess=preprocess))
        if default is None:
            raise ValueError("optimization: expected an Optimization, because these samples have no default")
        return Network(StudentConfig(value, default.optimization, default.direct, preprocess=preprocess))
    if hasattr(value, "fit") and hasattr(value, "get_params") and not isinstance(value, type):
        if not is_regressor(value):  # which only a regression has, as its check says
            TreeStudent(value)
        if optimization is not None:
            raise ValueError("optimization: expected None for a student that is an estimator")
        return Estimator(value)
    raise TypeError(
        "student: expected 'auto', a module class, functools.partial of one with plain arguments (so that it "
        f"can be saved), or a classifier; got {value if callable(value) else class_path(type(value))!r}"
    )


def _silent(name: str, done: int, total: int, figures: object = "") -> None:
    """Progress of a stage, which is not shown."""
