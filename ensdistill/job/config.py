"""The main job's settings as dataclasses; the command line reads them from YAML and dotted overrides. A
student's are in :mod:`ensdistill.job.student_config`."""

from __future__ import annotations

import math
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ensdistill.cache.codecs import Codec, codec_of
from ensdistill.common.combiners import Combiner
from ensdistill.common.scalars import check_temperature, plain_fields
from ensdistill.common.tasks import TASKS
from ensdistill.data import Dataset, Rows, Split
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.transfer import TransferSet
from ensdistill.job.method_config import MethodSetting, check_described, check_methods, temperatures
from ensdistill.job.search_config import SearchBudget, held_back
from ensdistill.job.student_config import StudentConfig
from ensdistill.loss.settings import LossSettings, check_trained
from ensdistill.teachers.auto import Plan, check_minutes
from ensdistill.teachers.recipes import Recipe


@dataclass(frozen=True)
class TeachersConfig:
    """The teachers, and how they are combined.

    Parameters
    ----------
    members : list of Recipe, or "auto"
        Each a class_path with init_args: TorchMembers or SklearnMembers of ensdistill.teachers.recipes; for
        members that exist already SavedEnsemble, SavedMembers, MemberFile or StoredPredictions of
        ensdistill.teachers.existing; or your own. "auto", for tables and arrays [N, F]: unlike members within
        a budget of time, reduced to those that a greedy selection by out-of-fold predictions takes; see
        :mod:`ensdistill.teachers.auto`. ``teachers: auto`` is short for it.
    folds : int
        Folds of the labelled rows, for the out-of-fold predictions that calibration and weights are fitted
        on.
    combiner : {"prob", "logit", "log_prob"}
        The mean of the members' probabilities, of their logits, or of their log-probabilities.
    prior_rows : float
        How many rows of evidence for equal weights the fit starts with; 0 trusts the out-of-fold rows alone.
    minutes : float, optional
        The budget of ``members: auto``, by a rule of cost for one core: 4 by default.
    select : bool
        Give no weight to members that a greedy selection by out-of-fold predictions leaves out; the cache
        then holds no targets of theirs. Always so with ``members: auto``.
    """

    members: list[Recipe] | Literal["auto"]
    folds: int = 5
    combiner: Combiner = "prob"
    prior_rows: float = 3.0
    minutes: float | None = None
    select: bool = False

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.minutes is not None:
            if not self.is_auto:
                raise ValueError(
                    "teachers.minutes: expected none beside a list of members, which are all trained; got "
                    f"{self.minutes}: leave it out, or set members: auto"
                )
            try:
                check_minutes(self.minutes)
            except (ValueError, TypeError) as error:
                raise ValueError(f"teachers.{error}") from error
        if self.is_auto:
            object.__setattr__(self, "select", True)
        elif isinstance(self.members, str):
            raise ValueError(f"teachers.members: expected auto, or a list of recipes; got {self.members!r}")
        if not self.members:
            raise ValueError("teachers.members: expected at least one; got none")
        names = [name for i, recipe in enumerate(self.recipes) for name in _names(i, recipe)]
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

    @property
    def is_auto(self) -> bool:
        return isinstance(self.members, str) and self.members == "auto"

    @property
    def recipes(self) -> list[Recipe]:
        """The members that the settings name; none where they are yet to be planned."""
        return [] if isinstance(self.members, str) else self.members

    def planned(self, plan: Plan) -> TeachersConfig:
        """The settings with the members of a plan in place of "auto"."""
        return replace(self, members=plan.recipes, minutes=None)


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
    codec : {"uint8", "fp16", "bf16", "fp32", "topk-N", "counts-N", ...} or import path, optional
        How a target is stored. "uint8", "fp16", "bf16" and "fp32" hold the logits of every member, in 8, 16,
        16 and 32 bits for each class or label. By default "uint8"; of a regression "fp32", beside which it
        has "fp16", "affine16" and "uint8", for standardised means and variances. "topk-N", for example
        "topk-8", holds the mixture's N likeliest classes and the exact mass of the others. "counts-N" holds N
        classes drawn from the mixture, at most 255. "topk4-N", "topk5-N", "topk6-N", "topk8-N" and "draws-N"
        hold the same in fewer bytes, for large vocabularies. All these need ``mixture_at``. An import path,
        such as my_package.my_codec.MyCodec, names a codec of your own; ``docs/extending.md`` shows one.
    mixture_at : float, optional
        Keep only the mixture, at this temperature, which has to be distill.loss.temperature: by default every
        member's logits are kept, which serve every temperature. The best member, which a student is distilled
        from for comparison, then gets a cache of its own.
    views : int
        Versions of the transfer set; in epoch e the student sees version e mod views. In each one, every row
        is changed in its own way by ``augment``. Without ``augment``, the synthetic rows are made anew in
        each version, and the labelled rows and the pool stay as they are. The teachers see what the student
        sees, so they predict for ``views`` times the rows.
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
    max_error : float, optional
        The same for a regression, in units of the targets' spread.
    """

    transfer: TransferSet = field(default_factory=TransferSet)
    codec: str | None = None
    mixture_at: float | None = None
    views: int = 1
    augment: Augmentation | None = None
    max_kl: float | None = None
    labelled: Literal["in_sample", "out_of_fold", "mixed"] = "in_sample"
    label_share: float = 0.5
    max_error: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        try:
            codec = self.any_codec
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
            try:
                self.transfer.check_rounds()
            except ValueError as error:
                raise ValueError(f"cache.{error}") from error
            if self.labelled != "in_sample":
                raise ValueError(
                    "cache.labelled: expected in_sample with several views of synthetic rows, because other "
                    f"targets belong to one version of the labelled rows; got {self.labelled}: take views: 1 "
                    "and more synthetic rows"
                )
        for name, unit in (("max_kl", "nats"), ("max_error", "units of the targets' spread")):
            most = getattr(self, name)
            if most is not None and not 0 <= most < math.inf:
                raise ValueError(
                    f"cache.{name}: expected a finite number of at least 0, in {unit}; got {most}"
                )

    @property
    def any_codec(self) -> Codec:
        """The codec, of the first task that has one of this name."""
        refused: ValueError | None = None
        for task in TASKS:
            try:
                return codec_of(self.codec, task)
            except ValueError as error:
                refused = refused or error
        assert refused is not None
        raise refused

    def changes(self, split: Split, seed: int) -> Augmentation | None:
        """How the versions of the transfer set of a split differ: by the augmentation, or by synthetic rows
        that are made anew. None for one version of rows that are not augmented."""
        if self.augment is None and self.views > 1:
            return self.transfer.rounds(split, seed)
        return self.augment


def other_targets_refused(cache: CacheConfig) -> str:
    """The setting that forbids a student other targets of labelled rows than the cache's; empty where none
    does."""
    settings = {
        f"cache.labelled: {cache.labelled}": cache.labelled != "in_sample",
        "cache.mixture_at": cache.mixture_at is not None,
        "cache.augment": cache.augment is not None,
        f"cache.views: {cache.views}": cache.views > 1,
    }
    return next((name for name, refused in settings.items() if refused), "")


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
    method : str or dict, optional
        In place of ``loss``: the name of a method, such as ``dkd``, or names with weights or settings, such
        as ``{kd: {temperature: 4.0}, dist: 0.5}``; see ``docs/methods.md``.
    augment : Augmentation, optional
        The members' augmentation, which the direct baseline may use too: it is trained with and without, and
        the better on held-out folds of the labelled rows is *direct*.
    folds : int
        Folds of the labelled rows, on which *direct* chooses whether to use ``augment``, its learning rate
        (where it is not set), weight decay, dropout (where the model has an argument of that name), number of
        steps, and temperature. Rows with equal inputs are in one fold.
    label_smoothing : float
        Label smoothing of the baseline *direct with label smoothing*.
    mixed_precision : {"no", "bf16", "fp16"}
        Precision of the student's forward pass.
    """

    students: dict[str, StudentConfig]
    loss: LossSettings = field(default_factory=LossSettings)
    method: MethodSetting | None = None
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
        check_described(self.method, self.loss, "distill.")
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

    @property
    def max_temperature(self) -> float:
        """The largest temperature of a student's loss, for which the cache has to be made."""
        return max(t for student in self.students.values() for t in temperatures(student, self))


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
        numbers do not depend on it, but for searches by minutes: free processes help these, and more trials
        fit in.
    threads : int
        Threads of each process. The numbers' last bits may depend on it.
    max_test_copies : float
        The largest share of the test rows that may equal a row that is trained on (labelled, pool or
        synthetic); with more the job is refused. Coarse categorical tables hold equal rows legitimately:
        allow more there. The report counts the copies, and gives the figures without them too.
    show_rows : bool
        Whether the report has the test rows themselves (fields, texts, pictures) on which students and
        ensemble differ most. False where no row may leave the machine.
    ood : Dataset, optional
        A data set of the same form whose rows are out of distribution. The report shows how well the models'
        uncertainties tell them from test rows. Without it, and with a student whose method keeps the members'
        spread (``hydra``, ``proxy_dirichlet``, ``endd``), these are test rows with shuffled columns.
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
    show_rows: bool = True
    ood: Dataset | None = None
    _splits: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plain_fields(self)
        self.check_search_budget(bool(self.searched))
        for name, least in (("seeds", 1), ("workers", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}; got {getattr(self, name)}")
        if not 0 <= self.max_test_copies <= 1:
            raise ValueError(
                f"max_test_copies: expected a share of the test rows, 0 to 1; got {self.max_test_copies}"
            )
        _check_folder_name("name", self.name)
        check_methods(self.distill, self.cache)
        made_at, wanted = self.cache.mixture_at, self.distill.loss.temperature
        if made_at is not None and made_at != wanted and self.distill.method is None:
            raise ValueError(
                f"cache.mixture_at: expected distill.loss.temperature, {wanted}, because a mixture at one "
                "temperature serves no other; got "
                f"{made_at}: make the two equal, or leave mixture_at out, with codec uint8, fp16, bf16 or "
                "fp32, to keep every member"
            )
        combiner = self.distill.loss.combiner
        if made_at is not None and combiner not in (None, self.teachers.combiner):
            raise ValueError(
                f"distill.loss.combiner: expected teachers.combiner, {self.teachers.combiner}, because "
                f"cache.mixture_at keeps the mixture only; got {combiner}: leave one of the two out"
            )

        for name, student in self.distill.students.items():
            self._check_rows(name, student)

    def _check_rows(self, name: str, student: StudentConfig) -> None:
        labelled = None if student.rows is None else student.rows.labelled
        if labelled in (None, self.cache.labelled):
            return
        if reason := other_targets_refused(self.cache):
            raise ValueError(
                f"distill.students.{name}.rows.labelled: expected none with {reason}; got {labelled}"
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
            self._splits[seed] = (split, *(held_back(split, seed) if self.searched else (split, None)))
        parts: tuple[Split, Split, Rows | None] = self._splits[seed]
        return parts[0] if self.refit else parts[1]

    def trial(self) -> Config:
        """The same job without the labelled rows that judge searched students, in a folder of its own: their
        search is done in it, where ``refit`` is set."""
        trial = replace(self, refit=False, folder=self.run_folder, name="trial")
        object.__setattr__(trial, "_splits", self._splits)
        return trial

    @property
    def searched(self) -> list[str]:
        """The students whose models are searched for."""
        return [name for name, one in self.distill.students.items() if one.searched]

    @property
    def shrunk(self) -> list[str]:
        """The students that are made from a member."""
        return [name for name, one in self.distill.students.items() if one.shrink is not None]

    def validation(self, seed: int) -> Rows | None:
        """The labelled rows that judge searched students: in no part of the trial's split."""
        self.split(seed)
        parts: tuple[Split, Split, Rows | None] = self._splits[seed]
        return parts[2]

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
