"""The interface of members, and functions that adapters share: classes, logits, batches, `member.json`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ensdistill.common.describe import class_path
from ensdistill.common.files import write_json
from ensdistill.common.source import code_parts
from ensdistill.common.tasks import Task, task_of
from ensdistill.data import BadRows

FORMAT = 1
_UNSEEN = "was fitted without the classes"
# Probabilities p become the logits log(p + SMOOTHING): after softmax that is (p + SMOOTHING) / (1 + C *
# SMOOTHING). An exact zero, which a forest returns for every class that none of its leaves holds, would rule
# the class out.
SMOOTHING = 1e-6
SUM_TOLERANCE = 1e-3  # sums of float16 probabilities keep it

Blob = bytes  # members have a property of that name
Logits = TypeVar("Logits", np.ndarray, Tensor)


@runtime_checkable
class Member(Protocol):
    """One teacher.

    ``classes`` are the names of its outputs in their order, or None for unnamed outputs. ``parameters`` and
    ``bytes`` count the learned numbers and their storage.

    A member of another task than classification has an attribute ``task``. Of a multi-label member,
    ``predict_logits`` returns the log-odds of each label; a regressor has ``predict_moments(inputs)`` in its
    place, which returns :class:`ensdistill.teachers.members.moments.Moments`. ``classes`` are then the names
    of the labels, or of the numbers.

    Optional methods: ``fingerprint_parts()`` names the digests of which the fingerprint is made, so that a
    stale cache can name the part that differs. A class method ``load(folder, description, trusted)`` reads a
    saved member again; see :func:`write_description`.
    """

    name: str
    classes: tuple[str, ...] | None

    @property
    def parameters(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    def predict_logits(self, inputs: Any) -> np.ndarray:
        """float32 [N, C] for a batch: an array [N, ...], a frame, a list of texts or images, or a mapping of
        these (see :mod:`ensdistill.data.batches`)."""
        ...

    def fingerprint(self) -> str:
        """Digest of everything on which its predictions depend."""
        ...

    def save(self, folder: Path | str) -> None: ...


def not_distributions(values: np.ndarray, tolerance: float = SUM_TOLERANCE) -> np.ndarray:
    """Positions of rows of ``values`` [N, C] with a negative value, NaN, or a sum beyond 1 ±
    ``tolerance``."""
    p = np.asarray(values, np.float64)
    return np.flatnonzero(~((p >= 0).all(-1) & (np.abs(p.sum(-1) - 1) <= tolerance)))


def to_logits(
    probabilities: np.ndarray, smoothing: float = SMOOTHING, tolerance: float = SUM_TOLERANCE
) -> np.ndarray:
    """log(p + smoothing) as float32.

    Raises
    ------
    ValueError
        A row is not a distribution: a negative or NaN value, or a sum other than one (within ``tolerance``,
        by default 1e-3, which float16 sums keep).

    Examples
    --------
    >>> to_logits(np.array([[1.0, 0.0]])).round(2).tolist()
    [[0.0, -13.819999694824219]]
    """
    p = np.asarray(probabilities, np.float64)
    bad = not_distributions(p, tolerance)
    if len(bad):
        raise BadRows(
            f"probabilities: expected rows that are at least 0 and sum to 1; row {bad[0]} is "
            f"{p[bad[0]].round(4).tolist()} ({len(bad)} such rows). If they are logits, pass them as logits",
            bad,
        )
    return np.log(p + smoothing).astype(np.float32)


def as_float32(logits: np.ndarray) -> np.ndarray:
    """Logits [N, C] as float32. A row that rounding moves by more than 1e-3 is shifted first."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded: np.ndarray = logits.astype(np.float32)
        if logits.dtype != np.float64 or logits.ndim != 2 or not logits.size:
            return rounded
        largest = logits.max(1, keepdims=True)
        moved = (np.abs(rounded - logits) > 1e-3).any(1) & np.isfinite(largest[:, 0])
        rounded[moved] = (logits[moved] - largest[moved]).astype(np.float32)
    return rounded


def two_logits(margins: np.ndarray) -> np.ndarray:
    """The two logits [N, 2] whose softmax is the sigmoid of a binary margin [N]."""
    return np.stack([-margins / 2, margins / 2], axis=1)


def check_width(name: str, logits: Logits, rows: int, classes: tuple[str, ...] | None) -> Logits:
    """The outputs themselves; ValueError unless they are [rows, C] with one column for each class."""
    if logits.ndim != 2 or len(logits) != rows or (classes is not None and logits.shape[1] != len(classes)):
        expected = "C" if classes is None else len(classes)
        shape = f"[{rows}, {expected}], one for each class"
        raise ValueError(f"{name}: expected outputs {shape}; got {list(logits.shape)}")
    return logits


def as_classes(name: str, classes: Sequence[Any] | None) -> tuple[str, ...] | None:
    """The classes' names as strings, from strings, integers, booleans or whole floats; None stays None.

    Raises
    ------
    ValueError
        Two are equal.

    Examples
    --------
    >>> as_classes("svc", np.array([0.0, 1.0])), as_classes("svc", [False, True])
    (('0', '1'), ('False', 'True'))
    """
    if classes is None:
        return None
    values = np.asarray(classes, object).tolist()
    whole = [isinstance(c, float | np.floating) and float(c).is_integer() for c in values]
    names = tuple(str(int(c) if is_whole else c) for c, is_whole in zip(values, whole, strict=True))
    if twice := [c for c in names if names.count(c) > 1]:
        raise ValueError(f"classes: {name}: expected different names; {twice[0]!r} stands {len(twice)} times")
    return names


def align(
    name: str,
    known: Sequence[Any] | None,
    wanted: Sequence[Any] | None,
    columns: Sequence[Any] | None = None,
    *,
    partly: bool = False,
) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    """Names of the outputs, and for each its column in the model's own order (None: they are in order).

    Parameters
    ----------
    known : sequence, optional
        The model's ``classes_``.
    wanted : sequence of str, optional
        The required order, by name. If it has none of the model's names, and these are integers below C, they
        are indices into it.
    columns : sequence of str, optional
        Names for ``known``, in its order. With them everything is read by name.
    partly : bool
        The model may lack required classes: their column is -1 (see :func:`arranged`), and a warning names
        them.

    Raises
    ------
    ValueError
        The model has other classes, or its integers could be names as well as indices; the message shows both
        lists.
    """
    classes, own = as_classes(name, wanted), as_classes(name, known if columns is None else columns)
    if columns is not None and known is not None and len(columns) != len(known):
        names = f"{len(known)} names, one for each class of {list(known)}"
        raise ValueError(f"columns: {name}: expected {names}; got {list(columns)}")
    if own is None or classes is None:
        return own if classes is None else classes, None
    unknown = set(own) - set(classes)
    if unknown == set(own) and columns is None and _are_indices(known, len(classes)):
        own, unknown = tuple(classes[int(c)] for c in np.asarray(known).tolist()), set()
    unseen = [c for c in classes if c not in own]
    if unknown or (unseen and not partly):
        remedy = (
            "; name its classes, in the order of its classes_, by columns="
            if partly and unknown != set(own)
            else ""
        )
        found = np.asarray(known if columns is None else columns).tolist()
        raise ValueError(f"classes: {name} has {found}; expected {list(classes)}{remedy}")
    if unseen:
        warn_of_unseen(name, unseen, stacklevel=4)
    return classes, positions(own, classes)


def check_earlier_order(folder: Path, description: dict[str, Any], known: Sequence[Any] | None) -> None:
    """Refuse an earlier version's member whose integer labels may be names or places among ``classes``.

    The first version read integers 0..C-1 as places, later ones as names; ``member.json`` has ``columns``
    since then.

    Raises
    ------
    ValueError
        The two readings differ.
    """
    classes = description["classes"]
    if "columns" in description or known is None or classes is None or not _are_indices(known, len(classes)):
        return
    own = as_classes(description["name"], known) or ()
    if set(own) <= set(classes) and any(classes[int(c)] != c for c in own):
        raise ValueError(
            f"{folder}: member.json is of an earlier version (format {description['format']} without "
            f"columns), in which the labels {np.asarray(known).tolist()} may be names as well as places "
            f"among the classes {classes}. Make the member again from its model, with classes= and columns=, "
            "and save it"
        )


def warn_of_unseen(name: str, classes: Sequence[str], stacklevel: int) -> None:
    """Warn that a model gives probability 0 to classes without a row at its fit."""
    warnings.warn(f"{name} {_UNSEEN} {list(classes)}: it gives them probability 0", stacklevel=stacklevel)


@contextmanager
def warned_already() -> Iterator[None]:
    """Silence the warning of unseen classes: for a loaded member it was given when the member was made."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*{_UNSEEN}")
        yield


def _are_indices(known: Sequence[Any] | None, count: int) -> bool:
    values = np.asarray(known).tolist()
    whole = all(
        not isinstance(c, bool) and isinstance(c, int | float) and float(c).is_integer() for c in values
    )
    return whole and all(0 <= c < count for c in values)


def arranged(logits: Logits, columns: np.ndarray | None, smoothing: float = SMOOTHING) -> Logits:
    """Logits [N, C'] of a model's own classes in another order: [N, C].

    Parameters
    ----------
    logits : ndarray or Tensor [N, C']
    columns : ndarray [C], optional
        The column of each class; -1 for a class that the model never saw. None leaves the logits as they are.
    smoothing : float
        The probability of a class that the model never saw, relative to that of all others together.

    Examples
    --------
    >>> arranged(np.log([[0.25, 0.75]]), np.array([1, -1, 0]), 1e-3).round(2).tolist()
    [[-0.29, -6.91, -1.39]]
    """
    if columns is None:
        return logits
    picked = logits[:, np.maximum(columns, 0).tolist()]
    empty = np.flatnonzero(columns < 0).tolist()
    if not empty:
        return picked
    if isinstance(picked, Tensor):
        picked[:, empty] = (torch.logsumexp(logits, 1, keepdim=True) + math.log(smoothing)).to(picked.dtype)
    else:
        from scipy.special import logsumexp

        picked[:, empty] = logsumexp(logits, axis=1, keepdims=True) + math.log(smoothing)
    return picked


def positions(own: Sequence[str], classes: Sequence[str]) -> np.ndarray | None:
    """For each of ``classes`` its place in ``own``, -1 where it has none; None where both are equal."""
    return (
        None
        if tuple(own) == tuple(classes)
        else np.array([own.index(c) if c in own else -1 for c in classes])
    )


def class_columns(estimator: Any, classes: Sequence[str]) -> list[str] | None:
    """Names of the classes whose indices are an estimator's ``classes_``; None if it has none."""
    own = getattr(estimator, "classes_", None)
    return None if own is None else [classes[int(i)] for i in own]


def flat(inputs: np.ndarray) -> np.ndarray:
    """Inputs [N, ...] as features [N, F] in their own dtype, without a copy if possible; [N] stays [N]."""
    return inputs.reshape(len(inputs), math.prod(inputs.shape[1:])) if inputs.ndim > 2 else inputs


def check_smoothing(smoothing: float) -> float:
    """``smoothing`` itself; ValueError unless it is in (0, 1)."""
    if not (0 < smoothing < 1):
        raise ValueError(f"smoothing: expected a number in (0, 1); got {smoothing}")
    return smoothing


def task_parts(task: Task) -> dict[str, str]:
    """The task as a part of a fingerprint; empty for classification, whose digests are older than tasks."""
    return {} if task == "classification" else {"task": task}


def wrong_task(name: str, task: Task, method: str) -> TypeError:
    """The error for a call of another task's prediction method."""
    other = "predict_moments" if task == "regression" else "predict_logits"
    return TypeError(f"{name}: expected {other}, because its task is {task}; got {method}")


def content_of(member: Member) -> str:
    """Digest of a saved member's content: ``saved_content()`` if it has one, else the fingerprint."""
    return getattr(member, "saved_content", member.fingerprint)()


def parts_of(member: Member) -> dict[str, str]:
    """Digests (or short texts) of a fingerprint's parts, by name; empty without ``fingerprint_parts``."""
    parts: dict[str, str] = getattr(member, "fingerprint_parts", dict)()
    return parts


def own_source(member: Any) -> dict[str, str]:
    """Digests of the code of another package's class; empty for this package's own classes."""
    if _is_ours(type(member)):
        return {}
    return {
        name: part
        for name, part in code_parts(type(member)).items()
        if not name.startswith("source of ensdistill.")
    }


def is_member(value: Any) -> bool:
    """``isinstance(value, Member)`` without computing properties: a forest's size takes seconds."""
    names = ("name", "classes", "parameters", "bytes", "fingerprint", "save")
    predicts = hasattr(value, "predict_logits") or hasattr(value, "predict_moments")
    return predicts and all(hasattr(type(value), name) or hasattr(value, name) for name in names)


def write_description(
    folder: Path | str, member: Member, kind: str = "own", content: str | None = None, /, **settings: Any
) -> None:
    """Write ``member.json``, the last file of a saved member.

    A class outside of this package is noted by its import path. Its class method ``load(folder, description,
    trusted)`` gets the content of ``member.json`` back, and returns the member. ``load_member`` calls it only
    if the import path is among ``trusted``.

    Parameters
    ----------
    folder : path
    member : Member
    kind : str
        Which of this package's formats the files have; ``"own"`` for none of these.
    content : str, optional
        `content_of` the member, if the caller has it already.
    **settings
        Further fields, as JSON.

    Raises
    ------
    ValueError
        The class can't be imported again, because it is defined in a function, a class or ``__main__``.
    """
    cls = type(member)
    path = {} if _is_ours(cls) else {"class_path": class_path(cls)}
    if path and ("." in cls.__qualname__ or cls.__module__ == "__main__"):
        raise ValueError(
            f"{member.name}: {path['class_path']} can't be imported when the member is loaded; define the "
            "class at the top of a module of its own"
        )
    classes = None if member.classes is None else list(member.classes)
    fingerprint = content_of(member) if content is None else content
    task = {} if task_of(member) == "classification" else {"task": task_of(member)}
    about = {
        "format": FORMAT,
        "kind": kind,
        **path,
        **task,
        "name": member.name,
        "classes": classes,
        "fingerprint": fingerprint,
    }
    write_json(Path(folder) / "member.json", {**about, **settings})


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "ensdistill"


class Loadable(Protocol):
    """A class whose saved members can be read again."""

    def load(self, folder: Path, description: dict[str, Any], trusted: tuple[str, ...]) -> Member:
        """The member that was saved in ``folder``; ``description`` holds its ``member.json``."""
        ...
