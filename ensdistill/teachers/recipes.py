"""Recipes: descriptions of members that are yet to be trained. One trainer takes them from the API and from a
job's YAML alike."""

from __future__ import annotations

import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.multiclass import OneVsRestClassifier
from torch import nn

from ensdistill.common.describe import class_path, describe, module_recipe
from ensdistill.common.optimization import Optimization
from ensdistill.common.scalars import plain_fields
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.preprocess import as_setting, trusted_by
from ensdistill.teachers import estimators, networks
from ensdistill.teachers.built import built
from ensdistill.teachers.jobs import Job, TrainingRows
from ensdistill.teachers.members import SMOOTHING, Member, Output, load_member
from ensdistill.teachers.members.boosted import check_keywords, library_of
from ensdistill.teachers.members.moments import predictions_of
from ensdistill.teachers.methods import FastGeometric, Method, Seeds, Snapshot, as_method, plan_jobs
from ensdistill.teachers.stack import LabelLoss, Watch, Way
from ensdistill.teachers.stack.fitting import (
    check_stopping,
    few_rows,
    is_estimator,
    parts,
    seeds_of,
    stops_early,
    versions,
)


class Recipe(ABC):
    """Members of one kind that are yet to be trained. A class of your own, named by its import path in a
    config, needs `fit` alone.

    Attributes
    ----------
    name : str
        Of the member; with several they are called ``name-1``, ``name-2``, ...
    count : int
        Number of members.
    trusted : tuple of str
        Class paths that loading its saved members may build.
    preprocess : "auto", None, Preprocess, or an object with ``fit``
        See :func:`ensdistill.data.preprocess.fitted`. It is fitted to all labelled samples without their
        labels; `fit` gets the result, and its members are given out with it
        (:class:`ensdistill.teachers.members.Preprocessed`). None: `fit` gets the samples as they are.
    """

    name: str
    count: int = 1
    trusted: tuple[str, ...] = ()
    preprocess: Any = None

    @abstractmethod
    def fit(
        self,
        data: TrainingRows,
        jobs: Sequence[Job],
        *,
        checkpoint: Path | None = None,
        watch: Watch | None = None,
        finished: Container[str] = (),
    ) -> Iterator[tuple[Job, Member]]:
        """Train the jobs' members, and give out each as soon as it is trained.

        Parameters
        ----------
        data : TrainingRows
        jobs : sequence of Job
            Each has the rows from which its member learns.
        checkpoint : folder, optional
            For the state of long trainings: the same call resumes from it with the same bits.
        watch : callable, optional
            Is called with a :class:`ensdistill.teachers.stack.Status` along the way.
        finished : container of str
            Keys of jobs whose members are kept already. They may be left out, or be trained with the others
            where that costs nothing.
        """

    def names(self) -> list[str]:
        """The members' names."""
        return [self.name] if self.count == 1 else [f"{self.name}-{i + 1}" for i in range(self.count)]

    def jobs(
        self, labels: np.ndarray, seed: int, allowed: np.ndarray | None = None, part: int | None = None
    ) -> list[Job]:
        """The jobs of all members, which may learn from the positions ``allowed`` (all by default); see
        :func:`ensdistill.teachers.methods.plan_jobs`."""
        return plan_jobs(self.names(), self.name, Seeds(), labels, seed, allowed, part)

    def units(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """The jobs in sets that one process has to train as a whole; each by itself by default."""
        return [[job] for job in jobs]

    def fingerprint(self) -> Any:
        """Plain data of everything that a member depends on beside its job and the rows; the other members
        are not among that."""
        return describe(self)

    def files(self) -> list[Path]:
        """Files that the members are made of; a job's stage is stale when one changes."""
        return []

    def check(self, labelled: Rows, classes: Sequence[str]) -> None:  # noqa: B027 (nothing to be refused by default)
        """Raise ValueError for members that can't be trained on these rows; a job calls it before any
        work."""

    def check_storable(self) -> None:  # noqa: B027
        """Raise ValueError for members that can't be saved, before any is trained."""


@dataclass(frozen=True)
class TorchMembers(Recipe):
    """Members of one torch architecture. Several labels are learned by the sum of their binary cross
    entropies, numbers by the squared error after they are standardised.

    Parameters
    ----------
    model : callable
        A module class, or a ``functools.partial`` of one; in a config its ``class_path`` and ``init_args``.
    count : int
        Number of members.
    name : str, optional
        Prefix of the members' names: "mlp" names them mlp-1, mlp-2 and so on. The model's class name in lower
        case by default; "net" of a function.
    optimization : Optimization
        How each member is trained.
    augment : Augmentation, optional
        Changes each batch of training rows.
    method : str or Method
        The reason why the members differ: "seeds", "bagging", "subsample", "snapshot", "fast_geometric", or
        a class of ``ensdistill.teachers.methods``. Snapshots and fast geometric cycles take all members from
        one training of ``optimization.steps`` steps.
    way : {"auto", "measured", "stacked", "one_by_one", "side_by_side"}
        The order of the trainings, which changes their speed alone; see
        :func:`ensdistill.teachers.stack.train_stack`.
    device : str
        Device that trains them, such as "cpu" or "cuda".
    checkpoint_every : int
        Steps between checkpoints.
    preprocess : "auto", None, a preprocess, an object with ``fit``, or a function's import path
        From raw samples to the model's input, fitted to the labelled samples. ``auto``: arrays and mappings
        as they are, tables by :class:`ensdistill.data.preprocess.TableDefaults`, texts by
        :class:`ensdistill.data.preprocess.HashedNgrams`, images by
        :class:`ensdistill.data.preprocess.ImageTransform`.
    variance : bool
        Of a regression: the model returns two numbers for each one of a row, all means and then the
        logarithms of all variances, and learns both by the Gaussian NLL. By default it returns the means.
    pos_weight : sequence of float [C], or "balanced", optional
        Of several labels: the factor of the positive part of each label's cross entropy, so that rare labels
        count more; see :class:`ensdistill.teachers.stack.LabelLoss`. The log-odds that are learned are higher
        by its logarithm, as with a classifier's ``class_weight="balanced"``: thresholds allow for that,
        temperatures do not.
    class_weights : sequence of float [C], optional
        Of several labels: the factor of each label in the loss.
    tune : bool
        Find label smoothing, learning rate, steps, weight decay and dropout near those of ``optimization``
        and ``model`` first, by some trainings of one member on up to 20 000 rows; see
        :func:`ensdistill.teachers.tuning.tuned`.

    Examples
    --------
    >>> from ensdistill.models import MLP
    >>> TorchMembers(MLP, count=2).names()
    ['mlp-1', 'mlp-2']
    """

    model: Callable[[], nn.Module]
    count: int = 4
    name: str = ""
    optimization: Optimization = field(default_factory=Optimization)
    augment: Augmentation | None = None
    method: str | Method = "seeds"
    way: Way = "auto"
    device: str = "cpu"
    checkpoint_every: int = 256
    preprocess: Any = "auto"
    variance: bool = False
    pos_weight: Sequence[float] | str | None = None
    class_weights: Sequence[float] | None = None
    tune: bool = False

    def __post_init__(self) -> None:
        plain_fields(self)
        object.__setattr__(self, "preprocess", as_setting(self.preprocess))
        for key in ("pos_weight", "class_weights"):
            object.__setattr__(self, key, getattr(self.label_loss, key))
        if self.tune and self.one_training:
            raise ValueError(
                "tune: expected members of trainings of their own; got those of one training, whose steps "
                f"decide when each is kept: leave tune out, or method={self.method!r}"
            )
        cls = getattr(self.model, "func", self.model)  # of a functools.partial
        default = cls.__name__.lower() if isinstance(cls, type) else "net"
        object.__setattr__(self, "name", self.name or default)
        _check(self.name, self.count)
        as_method(self.method)

    @property
    def trusted(self) -> tuple[str, ...]:  # type: ignore[override]
        recipe = module_recipe(self.model)
        own = () if recipe is None else (recipe["class_path"],)
        return (*own, *trusted_by(self.preprocess))

    @property
    def label_loss(self) -> LabelLoss:
        """What the loss of labels weighs, and what the model predicts of numbers."""
        return LabelLoss(self.variance, self.pos_weight, self.class_weights)

    @property
    def one_training(self) -> bool:
        """Whether all members come from one training."""
        return isinstance(as_method(self.method), (Snapshot, FastGeometric))

    def jobs(
        self, labels: np.ndarray, seed: int, allowed: np.ndarray | None = None, part: int | None = None
    ) -> list[Job]:
        return plan_jobs(self.names(), self.name, as_method(self.method), labels, seed, allowed, part)

    def units(self, jobs: Sequence[Job]) -> list[list[Job]]:
        if not self.one_training:
            return super().units(jobs)
        return [[job for job in jobs if job.part == part] for part in dict.fromkeys(job.part for job in jobs)]

    def fingerprint(self) -> Any:
        made = [
            describe(as_method(self.method)),
            self.optimization,
            self.way,
            torch.__version__,
            self.count if self.one_training else 0,
            # Only settings that differ from the default, so that earlier digests hold.
            *(name for name in ("variance", "tune") if getattr(self, name)),
            *([[self.pos_weight, self.class_weights]] if self.label_loss.weighed else []),
        ]
        return [describe(self.model), None if self.augment is None else describe(self.augment), *made]

    def check_storable(self) -> None:
        if isinstance(self.model, nn.Module) or module_recipe(self.model) is None:
            raise ValueError(
                f"model: {self.name}: expected a module class, or functools.partial of one with plain "
                "arguments, so that its members can "
                f"be saved; got {self.model!r}"
            )

    def fit(
        self,
        data: TrainingRows,
        jobs: Sequence[Job],
        *,
        checkpoint: Path | None = None,
        watch: Watch | None = None,
        finished: Container[str] = (),
    ) -> Iterator[tuple[Job, Member]]:
        # Members that are trained one by one in any case are put away one by one.
        alone = self.way == "one_by_one" and not self.one_training
        groups = [[job] for job in jobs] if alone else self.units(jobs) if self.one_training else [list(jobs)]
        for group in groups:
            if any(job.key not in finished for job in group):
                home = checkpoint if checkpoint is None or len(groups) == 1 else checkpoint / group[0].key
                yield from networks.fit(self, data, group, home, watch)


@dataclass(frozen=True)
class SklearnMembers(Recipe):
    """Members fitted by one estimator of scikit-learn, XGBoost, LightGBM or CatBoost.

    Parameters
    ----------
    estimator : estimator
        A classifier; or a regressor of scikit-learn, which is fitted to one column per class (1 for the
        class, -1 for the others) and whose predictions serve as logits once they are calibrated (a
        least-squares classifier, for example ``KernelRidge``). For several labels a classifier that takes
        them: a forest, or ``MultiOutputClassifier``, ``ClassifierChain`` or ``OneVsRestClassifier`` around
        another. ``MultiOutputClassifier`` leaves rows out of the fit of a label that they lack; others take
        no unknown labels. For numbers a regressor. In a config its ``class_path`` and
        ``init_args``; estimators within (of a pipeline, a vote) are written in the same way. A booster that
        stops early does so by a fifth of its rows, drawn by its seed.
    count : int
        More than one needs an estimator with a ``random_state`` that is None, of which each member gets its
        own, or a method that draws rows.
    name : str, optional
        The estimator's class name in lower case by default.
    output : {"auto", "probability", "decision"}
        ``predict_proba``, or ``decision_function`` (``predict`` of a regressor); auto takes the first that
        the estimator has. For estimators of scikit-learn alone.
    smoothing : float
        Added to probabilities before the logarithm.
    one_vs_rest : bool
        Fit one copy of a binary classifier for each class. An ``SVC`` that votes between pairs of classes has
        coarse decision values; one against the rest, its margins calibrate well.
    augment : Augmentation, optional
        The estimator is fitted to every variant of every row.
    method : str or Method
        The reason why the members differ: "seeds", "bagging", "subsample", or a class of
        ``ensdistill.teachers.methods``.
    n_jobs : int, optional
        Members fitted at once, as in scikit-learn.
    trusted : list of str
        Class paths that loading the saved members may build, beyond scikit-learn's own, the boosters', and
        those of the estimator and its parts.
    preprocess : "auto", None, a preprocess, an object with ``fit``, or a function's import path
        From raw samples to the estimator's input, fitted to the labelled samples. ``auto``: arrays as they
        are. Tables and texts as they are for a pipeline, or an estimator with a ``ColumnTransformer`` within;
        tables by :class:`ensdistill.data.preprocess.Categories` for boosters and histogram gradient boosting,
        by :class:`ensdistill.data.preprocess.TableDefaults` for others.
    ignore_weights : bool
        Fit to all rows alike where the rows have weights, for an estimator whose fit takes none. By default
        its fit gets the weights, in a pipeline that of the last step alone.
    refit : bool
        A booster that stops early is fitted again, to all of its rows, with the rounds at which it stopped.

    Raises
    ------
    ValueError
        It is no estimator, can't be built from its ``class_path`` and ``init_args``, its members would be
        equal, or a part of it would stop early by rows that cannot be passed to it.

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
    method: str | Method = "seeds"
    n_jobs: int | None = None
    trusted: tuple[str, ...] = ()
    preprocess: Any = "auto"
    ignore_weights: bool = False
    refit: bool = False

    def __post_init__(self) -> None:
        plain_fields(self)
        object.__setattr__(self, "preprocess", as_setting(self.preprocess))
        object.__setattr__(self, "estimator", built(self.estimator))
        if not is_estimator(self.estimator):
            raise ValueError(
                "estimator: expected one of scikit-learn, XGBoost, LightGBM or CatBoost that is to be "
                "fitted, in a config its class_path "
                f"and init_args; got {self.estimator!r}"
            )
        object.__setattr__(self, "name", self.name or type(self.estimator).__name__.lower())
        check_keywords("estimator", self.name, parts(self.estimator).values())
        own = {class_path(type(part)) for part in parts(self.estimator).values()}
        own |= {*trusted_by(self.preprocess)}
        object.__setattr__(self, "trusted", tuple(sorted({*self.trusted, *own})))
        _check(self.name, self.count)
        method = as_method(self.method)
        if isinstance(method, (Snapshot, FastGeometric)):
            raise ValueError(
                f"method: {self.name}: {type(method).__name__} is for torch modules alone; choose seeds, "
                "bagging or subsample"
            )
        if self.count > 1 and isinstance(method, Seeds) and not seeds_of(self.estimator, 0):
            raise ValueError(
                f"count: {self.name} has no random_state that is None, so its {self.count} members would be "
                "equal; choose method='bagging', or different estimators"
            )
        if library_of(self.estimator) is not None and self.output != "auto" and not self.one_vs_rest:
            raise ValueError(
                f"output: {self.name}: expected auto, because boosted trees decide it themselves; got "
                f"{self.output}"
            )
        check_stopping(self.whole, self.name, np.arange(1))
        if self.refit and stops_early(self.whole) is None:
            raise ValueError(
                f"refit: {self.name}: expected a booster that stops early, for example by "
                f"early_stopping_rounds; got a {type(self.whole).__name__} that does not: leave refit out"
            )

    @property
    def whole(self) -> Any:
        """The estimator that is copied and fitted."""
        return OneVsRestClassifier(self.estimator) if self.one_vs_rest else self.estimator

    def jobs(
        self, labels: np.ndarray, seed: int, allowed: np.ndarray | None = None, part: int | None = None
    ) -> list[Job]:
        return plan_jobs(self.names(), self.name, as_method(self.method), labels, seed, allowed, part)

    def fingerprint(self) -> Any:
        settings = [self.output, self.smoothing, self.one_vs_rest, describe(as_method(self.method))]
        more = [name for name in ("ignore_weights", "refit") if getattr(self, name)]  # earlier digests hold
        return [
            describe(self.estimator),
            None if self.augment is None else describe(self.augment),
            *settings,
            versions(self.estimator),
            *more,
        ]

    def weighed(self, data: TrainingRows) -> TrainingRows:
        """The rows with the weights that the fit gets."""
        return replace(data, weights=None) if self.ignore_weights else data

    def check(self, labelled: Rows, classes: Sequence[str]) -> None:
        """Fit a member to a few rows, predict, save and load it; and to all rows where that fails, so that no
        work is lost later.

        Raises
        ------
        ValueError
            It can't be fitted, does not return a column for each class, or can't be saved or loaded again.
        """
        few, everything = few_rows(labelled.labels), np.arange(len(labelled))
        try:
            self._try(labelled, classes, few)
        except OSError:  # a full disk, for example
            raise
        except Exception:
            try:  # few rows may have been too few for it: all decide, and their error is raised
                self._try(labelled, classes, everything)
            except Exception as error:  # the kind depends on the library
                several = len(classes) > 1 and np.ndim(labelled.labels) == 2 and "1d" in str(error)
                wrapper = "Regressor" if labelled.labels.dtype.kind == "f" else "Classifier"
                remedy = f" For {len(classes)} columns: MultiOutput{wrapper}(estimator)" if several else ""
                raise ValueError(
                    f"estimator: {self.name}: it can't be used: {type(error).__name__}: {error}{remedy}"
                ) from error

    def _try(self, labelled: Rows, classes: Sequence[str], rows: np.ndarray) -> None:
        inputs = labelled.inputs[rows]
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # of few rows and few steps; the training itself warns
            data = TrainingRows(labelled.inputs, labelled.labels, tuple(classes))
            ((_, member),) = self.fit(data, [Job(self.name, 0, rows, rows)])
            answers = predictions_of(member, inputs)
            if answers.shape != (len(rows), len(classes)) or not np.isfinite(answers.max(1)).all():
                raise ValueError(
                    f"expected finite answers [{len(rows)}, {len(classes)}]; got {list(answers.shape)}: "
                    f"{answers[0]}"
                )
            member.save(folder)
            again = predictions_of(load_member(folder, self.trusted), inputs)
            unit = answers.std() if data.task == "regression" else 1.0
            if not np.allclose(again, answers, rtol=0, atol=1e-4 * unit):
                raise ValueError("saved and loaded again, it answers otherwise")

    def fit(
        self,
        data: TrainingRows,
        jobs: Sequence[Job],
        *,
        checkpoint: Path | None = None,
        watch: Watch | None = None,
        finished: Container[str] = (),
    ) -> Iterator[tuple[Job, Member]]:
        options: dict[str, Any] = {"smoothing": self.smoothing}
        options |= {} if library_of(self.whole) else {"output": self.output}
        left, data = [job for job in jobs if job.key not in finished], self.weighed(data)
        fitting: dict[str, Any] = {"augment": self.augment, "refit": self.refit}
        yield from estimators.fit(self.whole, left, data, self.n_jobs, watch, **fitting, **options)


def check_name(name: str) -> None:
    """Raise ValueError for a name that can't be a folder's."""
    if not name or any(c in name for c in "/\\\0") or name.startswith("."):
        raise ValueError(f"name: expected a name that can be a folder's; got {name!r}")


def _check(name: str, count: int) -> None:
    check_name(name)
    if count < 1:
        raise ValueError(f"count: {name}: expected at least 1; got {count}")
