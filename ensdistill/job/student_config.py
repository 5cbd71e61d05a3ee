"""The settings of one student of a job, and of the rows that choose its weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from sklearn.base import BaseEstimator
from torch import nn

from ensdistill.common.describe import describe, module_recipe
from ensdistill.common.fingerprint import digest
from ensdistill.common.optimization import AUTO
from ensdistill.common.optimizers import StudentOptimization, as_student
from ensdistill.common.scalars import plain_fields, whole
from ensdistill.common.tasks import Task
from ensdistill.data.preprocess import as_setting
from ensdistill.job.method_config import MethodSetting, check_described
from ensdistill.job.rows_config import StudentRows
from ensdistill.job.search_config import SearchedStudent
from ensdistill.loss.settings import DEFAULTS, LossSettings
from ensdistill.student.averaging import check_decay
from ensdistill.student.callbacks import Callback
from ensdistill.student.checkpoint_files import checkpoint_files
from ensdistill.student.comparisons import Metric
from ensdistill.student.methods import code_and_values
from ensdistill.student.shrink.settings import Shrink
from ensdistill.student.trainer import StudentTrainer
from ensdistill.student.trees import DEFAULT_VALIDATION, TreeStudent, check_validation
from ensdistill.student.validation import Validation
from ensdistill.teachers.recipes import SklearnMembers

# Settings of a network's training that are the user's, also where a search finds all others.
WATCHING = ("callbacks", "trackers", "checkpoint_every", "keep_last")


@dataclass(frozen=True)
class ValidationConfig:
    """Rows of the transfer set that a student does not learn from: they choose its weights.

    Parameters
    ----------
    share : float
        Of the rows, in (0, 1).
    every : int, optional
        Steps between two evaluations, rounded up to a multiple of 32; by default a twentieth of the training.
    metric : {"kl", "agreement", "nll", "accuracy"}, optional
        What decides which weights are the best: KL divergence from the ensemble or agreement with it, NLL or
        accuracy of the labels. By default ``kl``.
    patience : int, optional
        The training ends after so many evaluations in a row that are not better than the best one.
    """

    share: float = 0.1
    every: int | None = None
    metric: Metric | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        if not 0 < self.share < 1:
            raise ValueError(f"validation.share: expected a share in (0, 1); got {self.share}")
        self.build()

    def build(self) -> Validation:
        return Validation(rows=self.share, every=self.every, metric=self.metric, patience=self.patience)


def default_of(one: Field[Any]) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


@dataclass(frozen=True)
class StudentConfig(SearchedStudent):
    """One student, how it is distilled, and how its baseline is trained: a network, or an estimator.

    Parameters
    ----------
    model : class_path with init_args
        A torch module that maps [N, ...] to logits [N, C]. Of its arguments ``inputs``, ``image``,
        ``outputs`` and ``buckets``, those that are not given are taken from the data.
    optimization : StudentOptimization
        How the student is trained.
    direct : StudentOptimization, optional
        How the same model is trained on hard labels: as many steps (any number where the student's are
        ``auto``), but the batch size and learning rate that serve it best. The weight decay may be raised and
        the steps cut on held-out folds (see ``DistillConfig.folds``). The student's by default.
    description : str
        Text about the student, for the report.
    preprocess : "auto", null, class_path with init_args, a function's import path, or a path
        How raw samples become the model's input. ``auto``: numbers as they are; tables, texts and images by
        the defaults of ``ensdistill.data.preprocess``, fitted to the labelled rows and the pool. A path is of
        a tokenizer or of a saved preprocess. Of an estimator ``auto`` is as for SklearnMembers.
    validation : ValidationConfig, optional
        Rows of the transfer set that are held out; the student gets the weights that are the best on them.
        They choose the rounds of a booster, and the way in which an estimator learns probabilities; by
        default a tenth of the rows, and a patience of 50 rounds.
    ema : float, optional
        The decay, such as 0.999, of a moving average of the student's weights. With ``validation`` the better
        of the two is kept; without it, the average.
    weights : path, optional
        The student's first weights, a ``.safetensors`` file with all of its tensors. Its baselines have the
        same ones, and its dropout.
    compile : bool or str
        Whether torch.compile compiles the student, in the training on soft targets and in the baselines; or
        the name of its backend.
    recompute_modules : list of str
        Patterns of the names of modules whose activations are computed again for the backward pass, for less
        memory.
    callbacks : list of Callback
        Each a class_path with init_args of an ``ensdistill.student.Callback``; see ``docs/watching.md``.
        Every training has copies of its own. The baselines are watched by those whose class sets
        ``only_watches``; the folds choose how long a baseline is trained, so no other one is called there.
    trackers : list of str
        Where losses and scores of the student and its baselines go, beside ``training/log.jsonl``:
        ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``, or another tracker of accelerate.
    checkpoint_every : int
        Steps between two checkpoints, from the last of which a stopped job goes on.
    keep_last : int
        Checkpoints that stay while the student is trained; a finished one has none.
    estimator : class_path with init_args
        In place of a model: a classifier of LightGBM, XGBoost or CatBoost, which is trained with the
        distillation loss, or an estimator of scikit-learn. On hard labels it is fitted by its own library,
        and the folds choose fewer rounds or more regularisation.
    rows : StudentRows, optional
        The student's part of the transfer set; all of it by default. A search chooses it.
    variance : bool
        Of a regression: the model returns two numbers for each one of a row, all means and then the
        logarithms of all variances, and learns both. Without it, it returns means, and its variance is one
        fitted number. Default jobs have it.
    shrink : Shrink, optional
        In place of a model: a member's network, smaller. Its preprocess and its variance are the member's.
        Its baselines begin with the same weights, so *direct* is the member shrunk and trained on labels.
    method : str or dict, optional
        This student's own method, in place of ``loss`` and of ``distill.method``.
    generations : int
        Born-again networks: with 2 or more the student of the cache is trained first, then each further one
        from the one before it, by the same settings; the last is the student. So is the student that is
        distilled from the best member.
    """

    model: Callable[[], nn.Module] | None = None
    optimization: StudentOptimization = field(default_factory=StudentOptimization)
    direct: StudentOptimization | None = None
    description: str = ""
    preprocess: Any = "auto"
    validation: ValidationConfig | None = None
    ema: float | None = None
    weights: Path | None = None
    compile: bool | str = False
    recompute_modules: list[str] = field(default_factory=list)
    callbacks: list[Callback] = field(default_factory=list)
    trackers: list[Any] = field(default_factory=list)
    checkpoint_every: int = 1024
    keep_last: int = 1
    estimator: dict[str, Any] | BaseEstimator | None = None
    rows: StudentRows | None = None
    variance: bool = False
    shrink: Shrink | None = None
    method: MethodSetting | None = None
    generations: int = 1

    def __post_init__(self) -> None:
        plain_fields(self)
        check_described(self.method, self.loss)
        if not whole(self.generations) or self.generations < 1:
            raise ValueError(f"generations: expected an integer of at least 1; got {self.generations!r}")
        object.__setattr__(self, "optimization", as_student(self.optimization))
        if self.direct is not None:
            object.__setattr__(self, "direct", as_student(self.direct))
        if self.check_search(self._beside_search()):
            return
        if self.shrink is not None:
            self._check_shrunk()
            return
        if (self.model is None) == (self.estimator is None):
            got = "neither" if self.model is None else "both"
            raise ValueError(f"model: expected a model or an estimator, one of the two; got {got}")
        if self.estimator is not None:
            self._check_estimator()
            return
        if self.weights is not None and not Path(self.weights).is_file():
            raise ValueError(f"weights: expected a safetensors file; there is none at {self.weights}")
        self.trainer(self.optimization, **self.watched())  # checks the settings
        checkpoint_files(None, Path("training"), self.keep_last)
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every: expected at least 1 step; got {self.checkpoint_every}")
        if module_recipe(self.network) is None:
            raise ValueError(f"model: expected a module class with plain arguments; got {self.model!r}")
        if self.ema is not None:
            check_decay("ema", self.ema)
        as_setting(self.preprocess)  # which stays as it is written: a fingerprint is made of it
        # The number of steps of an automatic training is not known yet.
        steps = {self.optimization.steps, self.baseline.steps}
        if len(steps) > 1 and AUTO not in steps:
            raise ValueError(
                f"direct.steps: expected the student's, {self.optimization.steps}, for a fair comparison; "
                f"got {self.baseline.steps}"
            )

    @property
    def baseline(self) -> StudentOptimization:
        return self.direct or self.optimization

    @property
    def network(self) -> Callable[[], nn.Module]:
        """The model of a student that is a network."""
        assert self.model is not None
        return self.model

    def tree_student(self, loss: LossSettings = DEFAULTS, task: Task | None = None) -> TreeStudent:
        """The trainer of a student that is an estimator; before the task is known that of its kind."""
        from sklearn.base import is_regressor

        if task is None:
            task = "regression" if is_regressor(self.estimator) else "classification"
        return TreeStudent(self.estimator, loss, task=task)

    @property
    def held_out(self) -> Validation:
        """The validation of a student that is an estimator."""
        return DEFAULT_VALIDATION if self.validation is None else self.validation.build()

    def _beside_search(self) -> dict[str, tuple[Any, Any]]:
        """The settings that differ from their defaults, without those that a search leaves to the user; each
        with its default."""
        kept = {f.name for f in fields(SearchedStudent)} - {"loss"} | {"description", "method", *WATCHING}
        found = {}
        for one in fields(self):
            default = default_of(one)
            if one.name not in kept and (value := getattr(self, one.name)) != default:
                found[one.name] = (value, default)
        return found

    def _check_estimator(self) -> None:
        """Build the estimator of a config's class_path, and refuse one that is no student."""
        object.__setattr__(self, "estimator", SklearnMembers(self.estimator).estimator)
        as_setting(self.preprocess)
        check_validation(self.held_out)
        self.tree_student()
        plain = StudentConfig(nn.Identity)
        own = ("model", "estimator", "description", "preprocess", "validation", "loss", "rows", "method")
        for name in (f.name for f in fields(self) if f.name not in own):
            if getattr(self, name) != getattr(plain, name):
                raise ValueError(
                    f"{name}: expected none for an estimator, whose parameters are its own; got "
                    f"{getattr(self, name)}"
                )

    def _check_shrunk(self) -> None:
        """Refuse settings that a member brings; the others are checked once it is known."""
        for name in ("model", "estimator", "weights", "variance"):
            if value := getattr(self, name):
                raise ValueError(
                    f"{name}: expected none beside shrink, which takes the member's; got {value!r}: leave "
                    "one of the two out"
                )
        if self.preprocess != "auto":
            raise ValueError(
                f"preprocess: expected auto beside shrink, which takes the member's; got {self.preprocess!r}"
            )
        self.trainer(self.optimization, **self.watched())

    def trainer(self, optimization: StudentOptimization, *arguments: Any, **settings: Any) -> StudentTrainer:
        """The trainer of this student by ``optimization``, which is its own or its baseline's."""
        return StudentTrainer(
            optimization,
            *arguments,
            compile=self.compile,
            recompute_modules=self.recompute_modules,
            **settings,
        )

    def watched(self, *more: Callback, baseline: bool = False) -> dict[str, Any]:
        """The callbacks and trackers of one training, as arguments of its trainer. Callbacks may hold counts
        of the training that they see, so these are copies."""
        own = deepcopy([one for one in self.callbacks if one.only_watches or not baseline])
        return {"callbacks": [*own, *more], "trackers": self.trackers}

    def kept(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """A training with this student's settings of its folder."""
        return partial(train, checkpoint_every=self.checkpoint_every, keep_last=self.keep_last)

    @property
    def trained_by(self) -> list[Any]:
        """The settings of every training of this student that are not in its optimisation, as data for a
        digest; empty where there are none, so that earlier runs keep theirs."""
        weights = None if self.weights is None else digest(Path(self.weights).read_bytes())
        settings = {**self.trained_apart, "weights": weights, "variance": self.variance}
        given = {name: value for name, value in settings.items() if value}
        return [given] if given else []

    @property
    def trained_apart(self) -> dict[str, Any]:
        """The settings that only this student's own trainer has, so that its folds are not trained side by
        side; empty where there are none."""
        known: dict[str, Any] = {"weights": self.weights and str(self.weights), "compile": self.compile}
        known["recompute"] = self.recompute_modules
        return {name: value for name, value in known.items() if value}

    @property
    def chosen_by(self) -> list[Any]:
        """The settings that choose weights or end a training, as data for a digest; empty where there are
        none, so that earlier runs keep theirs. Trackers and callbacks that only watch are left out."""
        settings = {"validation": self.validation, "ema": self.ema, "rows": self.rows}
        settings["generations"] = None if self.generations == 1 else self.generations
        given = {name: value for name, value in settings.items() if value is not None}
        ending = [code_and_values(one) for one in self.callbacks if not one.only_watches]
        return [*([describe(given)] if given else []), *([["callbacks", ending]] if ending else [])]
