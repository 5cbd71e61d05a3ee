"""The main job's settings as dataclasses; the command line reads them from YAML and dotted overrides."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sklearn.base import BaseEstimator
from torch import nn

from ensdistill.cache.codecs import codec_of
from ensdistill.common.combiners import Combiner
from ensdistill.common.describe import describe, module_recipe
from ensdistill.common.fingerprint import digest
from ensdistill.common.optimizers import StudentOptimization, as_student
from ensdistill.common.scalars import check_temperature, plain_fields
from ensdistill.data import Dataset, Rows, Split
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.preprocess import as_setting
from ensdistill.data.transfer import TransferSet
from ensdistill.job.search_config import SearchBudget, SearchedStudent, held_back
from ensdistill.loss.settings import DEFAULTS, LossSettings, check_trained
from ensdistill.student.averaging import check_decay
from ensdistill.student.trainer import StudentTrainer
from ensdistill.student.trees import DEFAULT_VALIDATION, TreeStudent, check_validation
from ensdistill.student.validation import Metric, Validation
from ensdistill.teachers.recipes import Recipe, SklearnMembers


@dataclass(frozen=True)
class TeachersConfig:
    """The teachers, and how they are combined.

    Parameters
    ----------
    members : list of Recipe
        Each a class_path with init_args: TorchMembers or SklearnMembers of ensdistill.teachers.recipes; for
        members that exist already SavedEnsemble, SavedMembers, MemberFile or StoredPredictions of
        ensdistill.teachers.existing; or your own.
    folds : int
        Folds of the labelled rows, for the out-of-fold predictions that calibration and weights are fitted
        on.
    combiner : {"prob", "logit", "log_prob"}
        The mean of the members' probabilities, of their logits, or of their log-probabilities.
    prior_rows : float
        How many rows of evidence for equal weights the fit starts with; 0 trusts the out-of-fold rows alone.
    """

    members: list[Recipe]
    folds: int = 5
    combiner: Combiner = "prob"
    prior_rows: float = 3.0

    def __post_init__(self) -> None:
        plain_fields(self)
        if not self.members:
            raise ValueError("teachers.members: expected at least one; got none")
        names = [name for i, recipe in enumerate(self.members) for name in _names(i, recipe)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"teachers.members: expected different names; {names.count(twice[0])} are called "
                f"{twice[0]!r}; give each its own init_args.name"
            )
        if self.folds < 2:
            raise ValueError(f"teachers.folds: expected at least 2; got {self.folds}")
        if not 0 <= self.prior_rows < math.inf:
            raise ValueError(
                f"teachers.prior_rows: expected a finite number of at least 0; got {self.prior_rows}"
            )


def _names(place: int, recipe: Recipe) -> list[str]:
    try:
        return recipe.names()
    except (ValueError, OSError) as error:
        raise ValueError(f"teachers.members.{place}.init_args.{error}") from error


@dataclass(frozen=True)
class CacheConfig:
    """The teachers' inputs, and how their logits are stored.

    Parameters
    ----------
    transfer : TransferSet
        The inputs that the student learns from: labelled rows, the pool, and synthetic rows made from both.
    codec : {"uint8", "fp16", "bf16", "fp32", "topk-N", "counts-N"} or an import path
        How a target is stored. "uint8", "fp16", "bf16" and "fp32" hold the logits of every member, in 8, 16,
        16 and 32 bits for each class. "topk-N", for example "topk-8", holds the mixture's N likeliest classes
        and the exact mass of the others. "counts-N" holds N classes drawn from the mixture, at most 255.
        These two need ``mixture_at``. An import path, such as my_package.my_codec.MyCodec, names a codec of
        your own; ``docs/extending.md`` shows one.
    mixture_at : float, optional
        Keep only the mixture, at this temperature, which has to be distill.loss.temperature: by default every
        member's logits are kept, which serve every temperature. The best member, which a student is distilled
        from for comparison, then gets a cache of its own.
    views : int
        Versions of each row, each changed in its own way by ``augment``; in epoch e the student sees version
        e mod views, the pixels that the teachers saw.
    augment : Augmentation, optional
        Changes the rows of the transfer set before the teachers and the student see them.
    labelled : {"in_sample", "out_of_fold", "mixed"}
        The targets of labelled rows: the members' own; those of members that did not learn from the row (of
        the folds by which the ensemble is weighted); or the members' own mixed with the label.
    label_share : float
        The label's share in ``mixed`` targets.
    max_kl : float, optional
        Refuse to store targets that differ from a member's, or from the mixture, by more than so many nats in
        any row.
    """

    transfer: TransferSet = field(default_factory=TransferSet)
    codec: str = "uint8"
    mixture_at: float | None = None
    views: int = 1
    augment: Augmentation | None = None
    max_kl: float | None = None
    labelled: Literal["in_sample", "out_of_fold", "mixed"] = "in_sample"
    label_share: float = 0.5

    def __post_init__(self) -> None:
        plain_fields(self)
        try:
            codec = codec_of(self.codec)
        except ValueError as error:
            raise ValueError(f"cache.{error}") from error
        if self.mixture_at is not None:
            check_temperature("cache.mixture_at", self.mixture_at)
        if codec.mixture_only and self.mixture_at is None:
            raise ValueError(
                "cache.mixture_at: expected a temperature, that of distill.loss.temperature, because codec "
                f"{self.codec} holds the mixture at one only; got none"
            )
        if not 0 < self.label_share < 1:
            raise ValueError(f"cache.label_share: expected a share in (0, 1); got {self.label_share}")
        if self.labelled == "out_of_fold" and self.augment is not None:
            raise ValueError(
                "cache.labelled: expected in_sample or mixed, because held-out logits are of rows without "
                "augmentation; got out_of_fold with cache.augment"
            )
        if self.views < 1:
            raise ValueError(f"cache.views: expected at least 1; got {self.views}")
        if self.views > 1 and self.augment is None:
            raise ValueError(
                f"cache.augment: expected an augmentation, because {self.views} views without one would all "
                "be alike; got none"
            )
        if self.max_kl is not None and not 0 <= self.max_kl < math.inf:
            raise ValueError(
                f"cache.max_kl: expected a finite number of at least 0, in nats; got {self.max_kl}"
            )


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
        How the same model is trained on hard labels: as many steps, but the batch size and learning rate
        that serve it best. The weight decay may be raised and the steps cut on held-out folds (see
        ``DistillConfig.folds``). The student's by default.
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
    estimator : class_path with init_args
        In place of a model: a classifier of LightGBM, XGBoost or CatBoost, which is trained with the
        distillation loss, or an estimator of scikit-learn. On hard labels it is fitted by its own library,
        and the folds choose fewer rounds or more regularisation.
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
    estimator: dict[str, Any] | BaseEstimator | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        object.__setattr__(self, "optimization", as_student(self.optimization))
        if self.direct is not None:
            object.__setattr__(self, "direct", as_student(self.direct))
        if self.check_search({"model": self.model, "estimator": self.estimator}):
            return
        if (self.model is None) == (self.estimator is None):
            got = "neither" if self.model is None else "both"
            raise ValueError(f"model: expected a model or an estimator, one of the two; got {got}")
        if self.estimator is not None:
            self._check_estimator()
            return
        if self.weights is not None and not Path(self.weights).is_file():
            raise ValueError(f"weights: expected a safetensors file; there is none at {self.weights}")
        self.trainer(self.optimization)  # checks the settings
        if module_recipe(self.network) is None:
            raise ValueError(f"model: expected a module class with plain arguments; got {self.model!r}")
        if self.ema is not None:
            check_decay("ema", self.ema)
        as_setting(self.preprocess)  # which stays as it is written: a fingerprint is made of it
        if self.baseline.steps != self.optimization.steps:
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

    def tree_student(self, loss: LossSettings = DEFAULTS) -> TreeStudent:
        """The trainer of a student that is an estimator."""
        return TreeStudent(self.estimator, loss)

    @property
    def held_out(self) -> Validation:
        """The validation of a student that is an estimator."""
        return DEFAULT_VALIDATION if self.validation is None else self.validation.build()

    def _check_estimator(self) -> None:
        """Build the estimator of a config's class_path, and refuse one that is no student."""
        object.__setattr__(self, "estimator", SklearnMembers(self.estimator).estimator)
        as_setting(self.preprocess)
        check_validation(self.held_out)
        self.tree_student()
        plain = StudentConfig(nn.Identity)
        for name in ("optimization", "direct", "ema", "weights", "compile", "recompute_modules"):
            if getattr(self, name) != getattr(plain, name):
                raise ValueError(
                    f"{name}: expected none for an estimator, whose parameters are its own; got "
                    f"{getattr(self, name)}"
                )

    def trainer(self, optimization: StudentOptimization, *arguments: Any, **settings: Any) -> StudentTrainer:
        """The trainer of this student by ``optimization``, which is its own or its baseline's."""
        return StudentTrainer(
            optimization,
            *arguments,
            compile=self.compile,
            recompute_modules=self.recompute_modules,
            **settings,
        )

    @property
    def trained_by(self) -> list[Any]:
        """The settings of every training of this student that are not in its optimisation, as data for a
        digest; empty where there are none, so that earlier runs keep theirs."""
        weights = None if self.weights is None else digest(Path(self.weights).read_bytes())
        settings = {"weights": weights, "compile": self.compile, "recompute": self.recompute_modules}
        given = {name: value for name, value in settings.items() if value}
        return [given] if given else []

    @property
    def chosen_by(self) -> list[Any]:
        """The settings by which weights are chosen, as data for a digest; empty where there are none, so that
        earlier runs keep theirs."""
        settings = {"validation": self.validation, "ema": self.ema}
        given = {name: value for name, value in settings.items() if value is not None}
        return [describe(given)] if given else []


@dataclass(frozen=True)
class DistillConfig:
    """How students learn, and how their baselines are chosen.

    Parameters
    ----------
    students : dict of str to StudentConfig
        The students by name. The report's headline is about the first one.
    loss : LossSettings
        How a student is compared with the targets and the labels. The divergence is the mean over all rows of
        a batch, the cross entropy the mean over those rows that have a label.
    augment : Augmentation, optional
        The members' augmentation, which the direct baseline may use too: it is trained with and without, and
        the better on held-out folds of the labelled rows is *direct*.
    folds : int
        Folds of the labelled rows, on which *direct* chooses whether to use ``augment``, its weight decay,
        dropout (where the model has an argument of that name), number of steps, and temperature. Rows with
        equal inputs are in one fold.
    label_smoothing : float
        Label smoothing of the baseline *direct with label smoothing*.
    mixed_precision : {"no", "bf16", "fp16"}
        Precision of the student's forward pass.
    """

    students: dict[str, StudentConfig]
    loss: LossSettings = field(default_factory=LossSettings)
    augment: Augmentation | None = None
    folds: int = 3
    label_smoothing: float = 0.1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"

    def __post_init__(self) -> None:
        plain_fields(self)
        if not self.students:
            raise ValueError("distill.students: expected at least one; got none")
        for name in self.students:
            _check_folder_name("distill.students", name)
        check_trained("distill.loss", self.loss)
        for name, student in self.students.items():
            if student.estimator is not None:
                try:
                    student.tree_student(self.loss)
                except ValueError as error:
                    raise ValueError(f"distill.{error} (distill.students.{name})") from error
        if self.mixed_precision == "fp16":
            raise ValueError(
                "distill.mixed_precision: fp16 needs a GPU, but a job trains on the CPU; choose 'no' or "
                "'bf16'"
            )
        if self.folds < 2:
            raise ValueError(f"distill.folds: expected at least 2; got {self.folds}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"distill.label_smoothing: expected a share in [0, 1); got {self.label_smoothing}"
            )


@dataclass(frozen=True)
class Config(SearchBudget):
    """The main job: ensemble, cache, students, report.

    Parameters
    ----------
    data : Dataset
        class_path with init_args of a data set: Table, ImageFolder, Texts, Items or ArrayDataset of
        ensdistill.data, or your own.
    teachers, cache, distill
        The stages' settings.
    name : str
        The run's folder in ``folder``.
    folder : path
        Where runs are written.
    seeds : int
        Everything is repeated this often, with another split each time.
    workers : int
        Processes that share the work; 0: as many as there are cores, but no more than there is work for. The
        numbers do not depend on it.
    threads : int
        Threads of each process. The numbers' last bits may depend on it.
    max_test_copies : float
        The largest share of the test rows that may equal a row that is trained on (labelled, pool or
        synthetic); with more the job is refused. Coarse categorical tables hold equal rows legitimately:
        allow more there. The report counts the copies, and gives the figures without them too.
    """

    data: Dataset
    teachers: TeachersConfig
    cache: CacheConfig
    distill: DistillConfig
    name: str = "run"
    folder: Path = Path("runs")
    seeds: int = 3
    workers: int = 0
    threads: int = 1
    max_test_copies: float = 0.01
    _splits: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plain_fields(self)
        self.check_search_budget()
        for name, least in (("seeds", 1), ("workers", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}; got {getattr(self, name)}")
        if not 0 <= self.max_test_copies <= 1:
            raise ValueError(
                f"max_test_copies: expected a share of the test rows, 0 to 1; got {self.max_test_copies}"
            )
        _check_folder_name("name", self.name)
        made_at, wanted = self.cache.mixture_at, self.distill.loss.temperature
        if made_at is not None and made_at != wanted:
            raise ValueError(
                f"cache.mixture_at: expected distill.loss.temperature, {wanted}, because a mixture at one "
                "temperature serves no other; got "
                f"{made_at}: make the two equal, or leave mixture_at out, with codec uint8, fp16, bf16 or "
                "fp32, to keep every member"
            )

    def split(self, seed: int) -> Split:
        """The data's split for a seed; kept, because every stage's fingerprint needs it.

        Raises
        ------
        ValueError
            The data set's own ``split`` raised something, or returned no ``Split``.
        """
        if seed not in self._splits:
            where = f"data: {type(self.data).__name__}.split(seed={seed})"
            try:
                split = self.data.split(seed)
            except Exception as error:  # it is the user's code: any error of it is about the data
                raise ValueError(f"{where}: {_told(error)}") from error
            if not isinstance(split, Split):
                raise ValueError(f"{where}: expected an ensdistill.data.Split; got {type(split).__name__}")
            self._splits[seed] = held_back(split, seed) if self.searched else (split, None)
        parts: tuple[Split, Rows | None] = self._splits[seed]
        return parts[0]

    @property
    def searched(self) -> list[str]:
        """The students whose models are searched for."""
        return [name for name, one in self.distill.students.items() if one.searched]

    def validation(self, seed: int) -> Rows | None:
        """The labelled rows that judge searched students: in no part of the split."""
        self.split(seed)
        parts: tuple[Split, Rows | None] = self._splits[seed]
        return parts[1]

    @property
    def run_folder(self) -> Path:
        return Path(self.folder) / self.name


def _told(error: Exception) -> str:
    """The error's message; where it is no check of this package, with its kind and the line of the user's
    code."""
    frames = list(traceback.extract_tb(error.__traceback__))
    frames = frames[1:] or frames  # the first is the call itself
    if Path(__file__).parents[1] in Path(frames[-1].filename).parents:
        return str(error)
    # The user's code may have called a library that raised it.
    own = next((f for f in reversed(frames) if f.filename == frames[0].filename), frames[-1])
    return f"{type(error).__name__}: {error} ({own.filename}, line {own.lineno})"


def _check_folder_name(argument: str, name: str) -> None:
    if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise ValueError(f"{argument}: expected a name that can be a folder's; got {name!r}")
