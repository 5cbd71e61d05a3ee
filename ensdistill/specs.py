"""Members that are yet to be trained, as a config names them by ``class_path`` and ``init_args``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from sklearn.base import BaseEstimator, clone, is_regressor
from sklearn.multiclass import OneVsRestClassifier
from torch import nn

from ensdistill.augmentation import Augmentation
from ensdistill.describe import class_path, module_recipe
from ensdistill.members import SMOOTHING, Member, Output, SklearnMember, TorchMember
from ensdistill.members.base import class_columns
from ensdistill.optimization import Optimization
from ensdistill.scalars import plain_fields
from ensdistill.training import Way, train_stack


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
    ``trusted`` are the class paths that loading its saved members may build.
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
        See :func:`ensdistill.training.train_stack`.
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
            inputs,
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
    """Members fitted by one scikit-learn estimator.

    Parameters
    ----------
    estimator : estimator
        A classifier; or a regressor, which is fitted to one column per class (1 for the class, -1 for the others) and whose
        predictions serve as logits once they are calibrated (a least-squares classifier, for example ``KernelRidge``).
    count : int
        More than one needs an estimator with a ``random_state`` that is None; each member gets its own.
    name : str, optional
        The estimator's class name in lower case by default.
    output, smoothing
        See :class:`ensdistill.members.SklearnMember`.
    one_vs_rest : bool
        Fit one copy of a binary classifier for each class. An ``SVC`` that votes between pairs of classes has coarse decision
        values; one against the rest, its margins calibrate well.
    augment : Augmentation, optional
        The estimator is fitted to every variant of every row.
    trusted : list of str
        Class paths beyond scikit-learn's own that loading the saved members may build.

    Examples
    --------
    >>> from sklearn.svm import SVC
    >>> SklearnMembers(SVC()).name
    'svc'
    """

    estimator: BaseEstimator
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
        object.__setattr__(self, "name", self.name or type(self.estimator).__name__.lower())
        object.__setattr__(self, "trusted", tuple(sorted({*self.trusted, class_path(type(self.estimator))})))
        _check(self.name, self.count)
        if self.count > 1 and not self._unseeded():
            raise ValueError(f"count: {self.name} has no random_state that is None, so its {self.count} members would be equal")

    def _unseeded(self) -> list[str]:
        parameters: dict[str, Any] = self.estimator.get_params()
        return [name for name, value in parameters.items() if name.endswith("random_state") and value is None]

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
        members: list[Member] = []
        for job in jobs:
            estimator = clone(self.estimator).set_params(**{name: job.seed % 2**31 for name in self._unseeded()})
            if self.one_vs_rest:
                estimator = OneVsRestClassifier(estimator)
            x, y = inputs[job.rows], labels[job.rows]
            if self.augment is not None:
                variants = self.augment.variants(x)
                x, y = np.concatenate(variants), np.tile(y, len(variants))
            target = 2.0 * np.eye(len(classes))[y] - 1 if is_regressor(estimator) else y
            estimator.fit(x.reshape(len(x), -1).astype(np.float64), target)
            own = class_columns(estimator, classes)
            made = SklearnMember(estimator, name=job.name, classes=classes, columns=own, output=self.output, smoothing=self.smoothing)
            members.append(made)
            if progress is not None:
                progress(len(members), len(jobs))
        return members


def _check(name: str, count: int) -> None:
    if not name or any(c in name for c in "/\\\0") or name.startswith("."):
        raise ValueError(f"name: expected a name that can be a folder's; got {name!r}")
    if count < 1:
        raise ValueError(f"count: {name}: expected at least 1; got {count}")
