"""What every member is, and what the adapters share: classes by name, probabilities as logits, batches, the saved description."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ensdistill.common.files import write_json
from ensdistill.data import BadRows

FORMAT = 1
_UNSEEN = "was fitted without the classes"
# Probabilities p become the logits log(p + SMOOTHING): after softmax that is (p + SMOOTHING) / (1 + C * SMOOTHING), so that an exact
# zero, which a forest says of every class that none of its leaves holds, does not rule the class out.
SMOOTHING = 1e-6
SUM_TOLERANCE = 1e-3  # what sums of float16 probabilities keep

Blob = bytes  # members have a property of that name
Logits = TypeVar("Logits", np.ndarray, Tensor)


@runtime_checkable
class Member(Protocol):
    """One teacher.

    ``classes`` are the names of its outputs in their order, or None where it knows no names; ``parameters`` and ``bytes`` count the
    learned numbers and their storage.
    """

    name: str
    classes: tuple[str, ...] | None

    @property
    def parameters(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        """float32 [N, C] for inputs [N, ...]."""
        ...

    def fingerprint(self) -> str:
        """Digest of everything its predictions depend on."""
        ...

    def save(self, folder: Path | str) -> None: ...


def not_distributions(values: np.ndarray, tolerance: float = SUM_TOLERANCE) -> np.ndarray:
    """Positions of the rows of ``values`` [N, C] that hold a negative value or NaN, or whose sum is not one within ``tolerance``."""
    p = np.asarray(values, np.float64)
    return np.flatnonzero(~((p >= 0).all(-1) & (np.abs(p.sum(-1) - 1) <= tolerance)))


def to_logits(probabilities: np.ndarray, smoothing: float = SMOOTHING, tolerance: float = SUM_TOLERANCE) -> np.ndarray:
    """log(p + smoothing) as float32.

    Raises
    ------
    ValueError
        A row is not a distribution: a negative or NaN value, or a sum other than one (within ``tolerance``, by default 1e-3, which
        float16 sums keep).

    Examples
    --------
    >>> to_logits(np.array([[1.0, 0.0]])).round(2).tolist()
    [[0.0, -13.819999694824219]]
    """
    p = np.asarray(probabilities, np.float64)
    bad = not_distributions(p, tolerance)
    if len(bad):
        raise BadRows(
            f"probabilities: expected rows that are at least 0 and sum to 1; row {bad[0]} is {p[bad[0]].round(4).tolist()} "
            f"({len(bad)} such rows). If they are logits, say so",
            bad,
        )
    return np.log(p + smoothing).astype(np.float32)


def as_float32(logits: np.ndarray) -> np.ndarray:
    """Logits [N, C] as float32; a row that this would move by more than 1e-3 is shifted first, which softmax does not see."""
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


def batches(inputs: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """At most ``size`` rows at a time; one empty batch for no rows, so that the result knows C."""
    for start in range(0, max(len(inputs), 1), size):
        yield inputs[start : start + size]


def check_width(name: str, logits: Logits, rows: int, classes: tuple[str, ...] | None) -> Logits:
    """The outputs themselves, if they are [rows, C] with one column for each class."""
    if logits.ndim != 2 or len(logits) != rows or (classes is not None and logits.shape[1] != len(classes)):
        expected = "C" if classes is None else len(classes)
        raise ValueError(f"{name}: expected outputs [{rows}, {expected}], one for each class; got {list(logits.shape)}")
    return logits


def as_classes(name: str, classes: Sequence[Any] | None) -> tuple[str, ...] | None:
    """Return the classes' names as strings; an estimator's labels may be integers, booleans or whole floats. None stays None.

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
    names = tuple(str(int(c) if isinstance(c, float | np.floating) and float(c).is_integer() else c) for c in values)
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
    """Return the names of the outputs, and for each the column of the model's own order (None: the columns are in order).

    Parameters
    ----------
    known : sequence, optional
        The model's ``classes_``.
    wanted : sequence of str, optional
        The order that is wanted. It is read by name; where it has none of the model's names, and these are integers below C, as indices.
    columns : sequence of str, optional
        Names for ``known``, in its order. With them everything is read by name.
    partly : bool
        The model may lack wanted classes: their column is -1 (see :func:`arranged`), and a warning names them.

    Raises
    ------
    ValueError
        The model has other classes, or its integers could be names as well as indices; the message shows both lists.
    """
    classes, own = as_classes(name, wanted), as_classes(name, known if columns is None else columns)
    if columns is not None and known is not None and len(columns) != len(known):
        raise ValueError(f"columns: {name}: expected {len(known)} names, one for each class of {list(known)}; got {list(columns)}")
    if own is None or classes is None:
        return own if classes is None else classes, None
    unknown = set(own) - set(classes)
    if unknown == set(own) and columns is None and _are_indices(known, len(classes)):
        own, unknown = tuple(classes[int(c)] for c in np.asarray(known).tolist()), set()
    unseen = [c for c in classes if c not in own]
    if unknown or (unseen and not partly):
        remedy = "; name its classes, in the order of its classes_, by columns=" if partly and unknown != set(own) else ""
        raise ValueError(
            f"classes: {name} knows {np.asarray(known if columns is None else columns).tolist()}; expected {list(classes)}{remedy}"
        )
    if unseen:
        warn_of_unseen(name, unseen, stacklevel=4)
    return classes, positions(own, classes)


def warn_of_unseen(name: str, classes: Sequence[str], stacklevel: int) -> None:
    warnings.warn(f"{name} {_UNSEEN} {list(classes)}: it gives them probability 0", stacklevel=stacklevel)


@contextmanager
def warned_already() -> Iterator[None]:
    """Silence the warning of unseen classes: what is loaded was warned of when it was made."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*{_UNSEEN}")
        yield


def _are_indices(known: Sequence[Any] | None, count: int) -> bool:
    values = np.asarray(known).tolist()
    whole = all(not isinstance(c, bool) and isinstance(c, int | float) and float(c).is_integer() for c in values)
    return whole and all(0 <= c < count for c in values)


def arranged(logits: Logits, columns: np.ndarray | None, smoothing: float = SMOOTHING) -> Logits:
    """Logits [N, C'] of a model's own classes in another order: [N, C].

    Parameters
    ----------
    logits : ndarray or Tensor [N, C']
    columns : ndarray [C], optional
        The column of each class; -1 for a class that the model never saw. None leaves the logits as they are.
    smoothing : float
        The probability of a class that the model never saw, in comparison with all others together.

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
    return None if tuple(own) == tuple(classes) else np.array([own.index(c) if c in own else -1 for c in classes])


def class_columns(estimator: Any, classes: Sequence[str]) -> list[str] | None:
    """The names of an estimator's own classes, where its ``classes_`` are indices into ``classes``; None where it has no ``classes_``."""
    own = getattr(estimator, "classes_", None)
    return None if own is None else [classes[int(i)] for i in own]


def flat(inputs: np.ndarray) -> np.ndarray:
    """Inputs [N, ...] as rows of features [N, F], in their own dtype and without a copy where that can be; [N] stays [N]."""
    return inputs.reshape(len(inputs), math.prod(inputs.shape[1:])) if inputs.ndim > 2 else inputs


def check_smoothing(smoothing: float) -> float:
    if not (0 < smoothing < 1):
        raise ValueError(f"smoothing: expected a number in (0, 1); got {smoothing}")
    return smoothing


def content_of(member: Member) -> str:
    """Digest of what a saved member holds: its fingerprint, but for members whose code isn't saved with them."""
    return getattr(member, "saved_content", member.fingerprint)()


def parts_of(member: Member) -> dict[str, str]:
    """Digests (or plain words) of what a member's fingerprint is made of, by name; none of one that does not tell."""
    parts: dict[str, str] = getattr(member, "fingerprint_parts", dict)()
    return parts


def is_member(value: Any) -> bool:
    """``isinstance(value, Member)`` without asking: up to Python 3.11 that computes properties, and a forest's size takes seconds."""
    names = ("name", "classes", "parameters", "bytes", "predict_logits", "fingerprint", "save")
    return all(hasattr(type(value), name) or hasattr(value, name) for name in names)


def write_about(folder: Path | str, member: Member, kind: str, content: str | None = None, /, **more: Any) -> None:
    """Write ``member.json``, the last file of a saved member; ``content`` is `content_of` the member, where that is known."""
    classes = None if member.classes is None else list(member.classes)
    fingerprint = content_of(member) if content is None else content
    about = {"format": FORMAT, "kind": kind, "name": member.name, "classes": classes, "fingerprint": fingerprint, **more}
    write_json(Path(folder) / "member.json", about)


Loader = Callable[[Path, dict[str, Any], tuple[str, ...]], Member]
"""From a saved member's folder, its member.json and the trusted class paths."""
