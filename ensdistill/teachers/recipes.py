"""Members that are yet to be trained, as a config names them by ``class_path`` and ``init_args``."""

from __future__ import annotations

import difflib
import importlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.multiclass import OneVsRestClassifier
from torch import nn

from ensdistill.common.describe import class_path, module_recipe
from ensdistill.common.optimization import Optimization
from ensdistill.common.scalars import plain_fields
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.teachers.members import SMOOTHING, Member, Output, TorchMember, load_member
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.stack import Way, train_stack
from ensdistill.teachers.stack.fitting import TrainingRows, as_member, check_stopping, few_rows, fitted, is_estimator, parts, seeds_of
from ensdistill.teachers.stack.validation import as_float32


@dataclass(frozen=True)
class Job:
    """One member to train: its final name, its seed, and the positions of the rows it learns from (int64)."""

    name: str
    seed: int
    rows: np.ndarray


@runtime_checkable
class MemberSpec(Protocol):
    """What ``members`` in a config may name.

    ``together`` says that all jobs (every fold of every member, and the final ones) are best given to one call of ``fit``;
    ``trusted`` are the class paths that loading its saved members may build. A method ``check(labelled, classes)``, where there is one,
    raises ValueError for what can't be trained; a job calls it before any work.
    """

    name: str
    count: int
    together: bool

    @property
    def trusted(self) -> tuple[str, ...]: ...

    def fit(
        self,
        inputs: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        jobs: Sequence[Job],
        *,
        checkpoint: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Member]:
        """One trained member per job; ``checkpoint`` is a folder for state that lets a killed call go on."""
        ...


def job_names(spec: MemberSpec) -> list[str]:
    """``cnn-1``, ``cnn-2``, ...; the plain name where there is one member."""
    return [spec.name] if spec.count == 1 else [f"{spec.name}-{i + 1}" for i in range(spec.count)]


@dataclass(frozen=True)
class TorchMembers:
    """Members of one torch architecture that differ by their seed.

    Parameters
    ----------
    model : callable
        A module class, or a ``functools.partial`` of one; in a config its ``class_path`` and ``init_args``.
    count : int
    name : str
    optimization : Optimization
    augment : Augmentation, optional
    way : {"auto", "measured", "stacked", "one_by_one", "side_by_side"}
        See :func:`ensdistill.teachers.stack.train_stack`.
    device : str
    checkpoint_every : int
        Steps between checkpoints.

    Examples
    --------
    >>> from ensdistill.models import MLP
    >>> job_names(TorchMembers(MLP, count=2, name="mlp"))
    ['mlp-1', 'mlp-2']
    """

    model: Callable[[], nn.Module]
    count: int = 4
    name: str = "net"
    optimization: Optimization = field(default_factory=Optimization)
    augment: Augmentation | None = None
    way: Way = "auto"
    device: str = "cpu"
    checkpoint_every: int = 256
    together = True

    def __post_init__(self) -> None:
        plain_fields(self)
        _check(self.name, self.count)
        if module_recipe(self.model) is None:
            raise ValueError(
                f"model: {self.name}: expected a module class, or functools.partial of one with plain arguments; got {self.model!r}"
            )

    @property
    def trusted(self) -> tuple[str, ...]:
        recipe = module_recipe(self.model)
        return () if recipe is None else (recipe["class_path"],)

    def fit(
        self,
        inputs: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        jobs: Sequence[Job],
        *,
        checkpoint: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Member]:
        modules = train_stack(
            self.model,
            as_float32("inputs", inputs),
            labels,
            classes=len(classes),
            seeds=[job.seed for job in jobs],
            rows=[job.rows for job in jobs],
            names=[job.name for job in jobs],
            optimization=self.optimization,
            augment=self.augment,
            way=self.way,
            device=self.device,
            checkpoint=checkpoint,
            checkpoint_every=self.checkpoint_every,
            progress=progress,
        )
        settings: Any = {"classes": classes, "factory": self.model, "output": "logits"}
        return [TorchMember(m, name=job.name, **settings) for m, job in zip(modules, jobs, strict=True)]


@dataclass(frozen=True)
class SklearnMembers:
    """Members fitted by one estimator of scikit-learn, XGBoost, LightGBM or CatBoost.

    Parameters
    ----------
    estimator : estimator
        A classifier; or a regressor of scikit-learn, which is fitted to one column per class (1 for the class, -1 for the others) and
        whose predictions serve as logits once they are calibrated (a least-squares classifier, for example ``KernelRidge``). In a config
        its ``class_path`` and ``init_args``; estimators within (of a pipeline, a vote) are written in the same way. A booster that stops
        early does so by a fifth of its rows, drawn by its seed.
    count : int
        More than one needs an estimator with a ``random_state`` that is None; each member gets its own.
    name : str, optional
        The estimator's class name in lower case by default.
    output, smoothing
        See :class:`ensdistill.teachers.members.SklearnMember`. ``output`` is for estimators of scikit-learn alone.
    one_vs_rest : bool
        Fit one copy of a binary classifier for each class. An ``SVC`` that votes between pairs of classes has coarse decision
        values; one against the rest, its margins calibrate well.
    augment : Augmentation, optional
        The estimator is fitted to every variant of every row.
    trusted : list of str
        Class paths that loading the saved members may build, beyond scikit-learn's own, the boosters', and those of the estimator and its
        parts.

    Raises
    ------
    ValueError
        It is no estimator, can't be built from its ``class_path`` and ``init_args``, its members would be equal, or a part of it would stop
        early by rows that nobody can pass to it.

    Examples
    --------
    >>> from sklearn.svm import SVC
    >>> SklearnMembers(SVC()).name
    'svc'
    """

    estimator: dict[str, Any] | BaseEstimator  # a config's class_path and init_args until it is made
    count: int = 1
    name: str = ""
    output: Output = "auto"
    smoothing: float = SMOOTHING
    one_vs_rest: bool = False
    augment: Augmentation | None = None
    trusted: tuple[str, ...] = ()
    together = False

    def __post_init__(self) -> None:
        plain_fields(self)
        object.__setattr__(self, "estimator", _built(self.estimator))
        if not is_estimator(self.estimator):
            raise ValueError(
                "estimator: expected one of scikit-learn, XGBoost, LightGBM or CatBoost that is to be fitted, in a config its class_path "
                f"and init_args; got {self.estimator!r}"
            )
        object.__setattr__(self, "name", self.name or type(self.estimator).__name__.lower())
        own = {class_path(type(part)) for part in parts(self.estimator).values()}
        object.__setattr__(self, "trusted", tuple(sorted({*self.trusted, *own})))
        _check(self.name, self.count)
        if self.count > 1 and not seeds_of(self.estimator, 0):
            raise ValueError(f"count: {self.name} has no random_state that is None, so its {self.count} members would be equal")
        if library_of(self.estimator) is not None and self.output != "auto" and not self.one_vs_rest:
            raise ValueError(f"output: {self.name}: expected auto, because boosted trees decide it themselves; got {self.output}")
        check_stopping(self._whole, self.name, np.arange(1))

    @property
    def _whole(self) -> Any:
        return OneVsRestClassifier(self.estimator) if self.one_vs_rest else self.estimator

    def check(self, labelled: Rows, classes: Sequence[str]) -> None:
        """Fit a member to a few rows, ask it, save it and load it, and to all rows where that fails, so that no work is lost later.

        Raises
        ------
        ValueError
            It can't be fitted, does not answer with a column for each class, or can't be saved or loaded again.
        """
        few, everything = few_rows(labelled.labels), np.arange(len(labelled))
        try:
            self._try(labelled, classes, few)
        except OSError:  # of a full disk, say
            raise
        except Exception:
            try:  # perhaps there were too few
                self._try(labelled, classes, everything)
            except Exception as error:  # of whatever kind, of some library
                raise ValueError(f"estimator: {self.name}: it can't be used: {type(error).__name__}: {error}") from error

    def _try(self, labelled: Rows, classes: Sequence[str], rows: np.ndarray) -> None:
        inputs = labelled.inputs[rows]
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # of few rows and few steps; the training itself warns
            (member,) = self.fit(labelled.inputs, labelled.labels, classes, [Job(self.name, 0, rows)])
            answers = member.predict_logits(inputs)
            if answers.shape != (len(rows), len(classes)) or not np.isfinite(answers.max(1)).all():
                raise ValueError(f"expected finite answers [{len(rows)}, {len(classes)}]; got {list(answers.shape)}: {answers[0]}")
            member.save(folder)
            if not np.allclose(load_member(folder, self.trusted).predict_logits(inputs), answers, rtol=0, atol=1e-4):
                raise ValueError("saved and loaded again, it answers otherwise")

    def fit(
        self,
        inputs: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        jobs: Sequence[Job],
        *,
        checkpoint: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Member]:
        data = TrainingRows(inputs, labels, tuple(classes))
        members: list[Member] = []
        for job in jobs:
            estimator = fitted(self._whole, job.name, job.seed, job.rows, data, augment=self.augment)
            options: dict[str, Any] = {"smoothing": self.smoothing}
            options |= {} if library_of(estimator) else {"output": self.output}
            members.append(as_member(estimator, job.name, classes, labels[job.rows], **options))
            if progress is not None:
                progress(len(members), len(jobs))
        return members


def _built(value: Any) -> Any:
    """What a config's ``class_path`` and ``init_args`` stand for, those within included; other values as they are."""
    if isinstance(value, list):
        return [_built(item) for item in value]
    if not isinstance(value, dict):
        return value
    if not isinstance(path := value.get("class_path"), str):
        return {key: _built(item) for key, item in value.items()}
    arguments = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module)
        cls = getattr(found, name, None)
        if cls is None:
            near = difflib.get_close_matches(name, dir(found), 1)
            raise ValueError(f"module {module!r} has no attribute {name!r}.{f' Did you mean {near[0]!r}?' if near else ''}")
        return cls(**{key: _built(item) for key, item in arguments.items()})
    except Exception as error:  # of an import, or of a constructor of somebody's own
        raise ValueError(f"estimator: {path} can't be made: {type(error).__name__}: {error}") from error


def _check(name: str, count: int) -> None:
    if not name or any(c in name for c in "/\\\0") or name.startswith("."):
        raise ValueError(f"name: expected a name that can be a folder's; got {name!r}")
    if count < 1:
        raise ValueError(f"count: {name}: expected at least 1; got {count}")
