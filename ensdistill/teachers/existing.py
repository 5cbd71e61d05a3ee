"""Recipes of members that exist already: saved by this package, in files of other libraries, or as stored
predictions.

They are loaded, not trained, so there are no folds and no out-of-fold predictions of them. A member that was
trained on the labelled rows predicts these better than others. So temperature and weight are fitted to its
predictions there only where ``held_out`` states that it was not. Otherwise its temperature stays as it is,
and its weight is an equal share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from torch import nn

from ensdistill.common.describe import describe, module_recipe
from ensdistill.common.errors import WrongArgument
from ensdistill.common.files import read_json
from ensdistill.common.scalars import plain_fields
from ensdistill.common.tasks import Task, check_task, task_of
from ensdistill.data import Rows
from ensdistill.data.preprocess import Preprocess, as_preprocess, as_setting, preprocess_file, trusted_by
from ensdistill.teachers import member_files
from ensdistill.teachers.jobs import Job, TrainingRows
from ensdistill.teachers.members import ArrayMember, Member, load_member
from ensdistill.teachers.members.function import members_for
from ensdistill.teachers.members.outputs import Output, check_output
from ensdistill.teachers.predict import over_parts, predicted
from ensdistill.teachers.recipes import Recipe, check_name
from ensdistill.teachers.stack import Status, Watch

TRIED = 16  # rows that a member is tried on before a job begins


class ExistingMembers(Recipe):
    """Members that are loaded. A class of your own needs `load`, `files` and, with several members, `names`.

    Attributes
    ----------
    held_out : bool
        Whether no member was trained on the labelled rows.
    """

    held_out: bool

    @abstractmethod
    def load(self, classes: Sequence[str]) -> Iterator[Member]:
        """The members, one after the other, for the classes of the data in their order."""

    @abstractmethod
    def files(self) -> list[Path]: ...

    def temperatures(self) -> dict[str, float]:
        """The members' temperatures by name, where they were calibrated before."""
        return {}

    def jobs(
        self, labels: np.ndarray, seed: int, allowed: np.ndarray | None = None, part: int | None = None
    ) -> list[Job]:
        return [Job(name, 0, np.zeros(0, np.int64)) for name in self.names()] if part is None else []

    def fingerprint(self) -> Any:
        return [describe(self), [content_of(file) for file in self.files()]]

    def check(self, labelled: Rows, classes: Sequence[str]) -> None:
        few = labelled if self.held_out else labelled.take(np.arange(min(TRIED, len(labelled))))
        for member in self.load(classes):
            if isinstance(member, ArrayMember) and not self.held_out:
                continue  # it may hold predictions of other rows alone
            (asked,) = members_for((member,), few.uids, few.uids)
            if task_of(asked) != few.task:
                raise ValueError(
                    f"task: {member.name}: expected a member of the task {few.task}, as the labels are; got "
                    f"one of {task_of(asked)}. A MemberFile and StoredPredictions have the setting task"
                )
            found = over_parts(few.inputs, partial(predicted, asked, names=classes))
            if (len(found), found.shape[-1]) != (len(few), len(classes)):
                got = list(found.shape)
                raise ValueError(f"{member.name}: expected outputs [{len(few)}, {len(classes)}]; got {got}")

    def fit(
        self,
        data: TrainingRows,
        jobs: Sequence[Job],
        *,
        checkpoint: Path | None = None,
        watch: Watch | None = None,
        finished: Container[str] = (),
    ) -> Iterator[tuple[Job, Member]]:
        wanted = {job.name: job for job in jobs}
        for member in self.load(data.classes):
            if (job := wanted.get(member.name)) is not None and job.key not in finished:
                if watch is not None:
                    watch(Status((job.key,), 1, 1, np.array([np.nan]), np.array([np.nan])))
                yield job, member


@dataclass(frozen=True)
class _InFolder(ExistingMembers):
    """Members that this package saved in a folder."""

    folder: Path
    prefix: str = ""
    trusted: tuple[str, ...] = ()
    held_out: bool = False
    preprocess: Any = None

    def __post_init__(self) -> None:
        plain_fields(self)
        object.__setattr__(self, "preprocess", own_preprocess(self.preprocess, self.trusted))
        object.__setattr__(self, "trusted", (*self.trusted, *trusted_by(self.preprocess)))

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.prefix}{Path(self.folder).resolve().name}"


@dataclass(frozen=True)
class SavedEnsemble(_InFolder):
    """The members of a saved ensemble, with their temperatures.

    Parameters
    ----------
    folder : path
        As ``Ensemble.save`` or a job wrote it.
    prefix : str
        Put before the members' names.
    trusted : list of str
        Class paths that may be built beside torch's, this package's and scikit-learn's own.
    held_out : bool
        Whether no member was trained on the labelled rows, so that temperatures and weights are fitted to
        them.
    preprocess : optional
        From raw samples to the members' input, for members that were saved without one: a preprocess, a
        function's import path, or the path of a fitted transformer (.skops), of a tokenizer, or of the folder
        of a saved preprocess. One that has to be fitted first is refused, because the members were trained
        with another.

    Raises
    ------
    ValueError
        (when it is read) There is no complete ensemble, it was calibrated by vectors, or a member is damaged.
    """

    def names(self) -> list[str]:
        return [self.prefix + name for name in self._settings()["members"]]

    def _settings(self) -> dict[str, Any]:
        file = Path(self.folder) / "ensemble.json"
        about = read_json(file)
        if not isinstance(about, dict) or not isinstance(about.get("members"), dict):
            raise ValueError(
                f"folder: expected a saved ensemble, whose last file is ensemble.json; got {self.folder}"
            )
        return about

    def temperatures(self) -> dict[str, float]:
        about = self._settings()
        return {
            name: float(own * about["temperature"])
            for name, own in zip(self.names(), about["temperatures"], strict=True)
        }

    def files(self) -> list[Path]:
        folders = [Path(self.folder) / "members" / name for name in self._settings()["members"]]
        return [
            Path(self.folder) / "ensemble.json",
            *(file for folder in folders for file in _files_in(folder)),
        ]

    def load(self, classes: Sequence[str]) -> Iterator[Member]:
        if self._settings().get("vectors") is not None and not self.held_out:
            raise ValueError(
                f"folder: the ensemble in {self.folder} was calibrated by vectors, which other members do "
                "not have; "
                "calibrate it by temperatures and save it again, or set held_out"
            )
        for name in self._settings()["members"]:
            yield _renamed(load_member(Path(self.folder) / "members" / name, self.trusted), self.prefix)


@dataclass(frozen=True)
class SavedMembers(_InFolder):
    """All saved members in a folder, in the order of their folders' names.

    Parameters
    ----------
    folder : path
        Holds a folder for each member, as ``member.save`` wrote it; or is one.
    prefix, trusted, held_out, preprocess
        See :class:`SavedEnsemble`.
    """

    def _folders(self) -> list[Path]:
        folder = Path(self.folder)
        found = (
            [folder]
            if (folder / "member.json").is_file()
            else sorted(p.parent for p in folder.glob("*/member.json"))
        )
        if not found:
            raise ValueError(
                f"folder: expected saved members, each a folder with member.json; {folder} holds none"
            )
        return found

    def names(self) -> list[str]:
        return [
            f"{self.prefix}{(read_json(folder / 'member.json') or {}).get('name')}"
            for folder in self._folders()
        ]

    def files(self) -> list[Path]:
        return [file for folder in self._folders() for file in _files_in(folder)]

    def load(self, classes: Sequence[str]) -> Iterator[Member]:
        for folder in self._folders():
            yield _renamed(load_member(folder, self.trusted), self.prefix)


@dataclass(frozen=True)
class MemberFile(ExistingMembers):
    """One member in a file of its library; nothing is unpickled.

    Parameters
    ----------
    file : path
        By its ending an ONNX file (.onnx), a fitted estimator (.skops), a booster of XGBoost (.ubj, .json),
        LightGBM (.txt) or CatBoost (.cbm, .json), or the state of a torch module (.safetensors).
    model : callable, optional
        The class of the torch module; in a config its ``class_path`` and ``init_args``.
    name : str, optional
        The file's name without its ending by default.
    classes : list of str, optional
        The classes in the order of the model's own outputs, or of its ``classes_``. By default the order of
        the data's.
    output : {"auto", "logits", "probabilities", "log_probabilities", "margin"}
        The meaning of the outputs of a torch module or of an ONNX file.
    trusted : list of str
        Class paths that an estimator may need beyond scikit-learn's own.
    held_out, preprocess
        See :class:`SavedEnsemble`.
    task : {"classification", "multilabel", "regression"}
        The model's; ``output`` has the kinds of that task, see
        :class:`ensdistill.teachers.members.TorchMember`.
    """

    file: Path
    model: Callable[[], nn.Module] | None = None
    name: str = ""
    classes: list[str] | None = None
    output: Output = "auto"
    trusted: tuple[str, ...] = ()
    held_out: bool = False
    preprocess: Any = None
    task: Task = "classification"

    def __post_init__(self) -> None:
        plain_fields(self)
        check_output(self.name or Path(self.file).stem, self.output, check_task(self.task))
        object.__setattr__(self, "preprocess", own_preprocess(self.preprocess, self.trusted))
        object.__setattr__(self, "name", self.name or Path(self.file).stem)
        check_name(self.name)
        member_files.check_kind(Path(self.file), self.model)
        own = [] if self.model is None else [(module_recipe(self.model) or {}).get("class_path")]
        own += trusted_by(self.preprocess)
        object.__setattr__(self, "trusted", tuple(sorted({*self.trusted, *filter(None, own)})))

    def files(self) -> list[Path]:
        return [Path(self.file), *member_files.external_files(Path(self.file))]

    def load(self, classes: Sequence[str]) -> Iterator[Member]:
        about = member_files.About(
            self.name, tuple(classes), self.classes, self.output, self.trusted, self.model, self.task
        )
        yield member_files.load(Path(self.file), about)


@dataclass(frozen=True)
class StoredPredictions(ExistingMembers):
    """One member's logits or probabilities, found by the samples' uids.

    A job needs those of the labelled rows, the pool and the test rows. There are none of synthetic or
    augmented rows.

    Parameters
    ----------
    file : path
        Predictions [N, C]: a ``.npy`` file, or a ``.safetensors`` file with ``logits`` or ``probabilities``,
        and perhaps ``uids``.
    uids : path, optional
        A ``.npy`` file of integers [N]: the uid of each prediction's sample. By default prediction i is that
        of uid i, which is row i of the file of an ``ArrayDataset``.
    name, classes, held_out
        See :class:`MemberFile`.
    output : {"auto", "logits", "probabilities", "log_probabilities", "margin"}
        The meaning of the numbers in a ``.npy`` file. ``auto`` refuses those that have two readings.
    task : {"classification", "multilabel", "regression"}
        Of a regression a ``.npy`` file holds means [N, D], or what ``output`` names; a ``.safetensors`` file
        holds ``means``, and perhaps ``variances``.
    """

    file: Path
    uids: Path | None = None
    name: str = ""
    classes: list[str] | None = None
    output: Output = "auto"
    held_out: bool = False
    task: Task = "classification"

    def __post_init__(self) -> None:
        plain_fields(self)
        check_output(self.name or Path(self.file).stem, self.output, check_task(self.task))
        object.__setattr__(self, "name", self.name or Path(self.file).stem)
        check_name(self.name)
        if Path(self.file).suffix not in (".npy", ".safetensors"):
            raise ValueError(f"file: expected answers in a .npy or a .safetensors file; got {self.file}")

    def files(self) -> list[Path]:
        return [Path(self.file)] if self.uids is None else [Path(self.file), Path(self.uids)]

    def load(self, classes: Sequence[str]) -> Iterator[Member]:
        uids = None if self.uids is None else Path(self.uids)
        about = member_files.About(self.name, tuple(classes), self.classes, self.output, (), None, self.task)
        yield member_files.stored_predictions(Path(self.file), uids, about)


def own_preprocess(setting: Any, trusted: Sequence[str]) -> Preprocess | None:
    """The preprocess of members that exist already.

    Raises
    ------
    ValueError
        It has to be fitted first.
    """
    if setting is None:
        return None
    if isinstance(setting, (str, Path)) and str(setting) != "auto":
        return preprocess_file(Path(setting), trusted) if Path(setting).exists() else as_preprocess(setting)
    found = as_setting(setting)
    if not isinstance(found, Preprocess):
        got = found if isinstance(found, str) else type(found).__name__
        raise ValueError(
            "preprocess: expected one that is fitted, because members that exist were trained with it; got "
            f"{got}"
        )
    return found


def content_of(file: Path) -> str:
    """Digest of a file's bytes, read a block at a time."""
    state = xxhash.xxh3_128()
    try:
        with file.open("rb") as opened:
            while block := opened.read(2**24):
                state.update(block)
    except OSError as error:
        kind = WrongArgument if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"file: {file} cannot be read ({error.strerror})") from error
    return state.hexdigest()


def _files_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "trained.json")


def _renamed(member: Member, prefix: str) -> Member:
    member.name = prefix + member.name
    return member
