"""What every member is, and what the adapters share: classes by name, probabilities as logits, batches, the saved description."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor

from ensdistill.data import BadRows
from ensdistill.files import write_json

FORMAT = 1
# Probabilities p become the logits log(p + SMOOTHING): after softmax that is (p + SMOOTHING) / (1 + C * SMOOTHING), so that an exact
# zero, which a forest says of every class that none of its leaves holds, does not rule the class out.
SMOOTHING = 1e-6
SUM_TOLERANCE = 1e-3  # what sums of float16 probabilities keep

Blob = bytes  # members have a property of that name
Logits = TypeVar("Logits", np.ndarray, Tensor)
Speech = Literal["logits", "probabilities"]
"""What a member answers with."""


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


def not_distributions(values: np.ndarray) -> np.ndarray:
    """Positions of the rows of ``values`` [N, C] that hold a negative value or NaN, or don't sum to one (within 1e-3)."""
    p = np.asarray(values, np.float64)
    return np.flatnonzero(~((p >= 0).all(-1) & (np.abs(p.sum(-1) - 1) <= SUM_TOLERANCE)))


def to_logits(probabilities: np.ndarray, smoothing: float = SMOOTHING) -> np.ndarray:
    """log(p + smoothing) as float32.

    Raises
    ------
    ValueError
        A row is not a distribution: a negative or NaN value, or a sum other than one (within 1e-3, which float16 sums keep).

    Examples
    --------
    >>> to_logits(np.array([[1.0, 0.0]])).round(2).tolist()
    [[0.0, -13.819999694824219]]
    """
    p = np.asarray(probabilities, np.float64)
    bad = not_distributions(p)
    if len(bad):
        raise BadRows(
            f"probabilities: expected rows that are at least 0 and sum to 1; row {bad[0]} is {p[bad[0]].round(4).tolist()} "
            f"({len(bad)} such rows). If they are logits, say so",
            bad,
        )
    return np.log(p + smoothing).astype(np.float32)


def hear(values: np.ndarray) -> Speech:
    """What values [N, C] are: probabilities where all rows are distributions (N at least 1), else logits.

    Logits whose rows are all non-negative and sum to one don't come by chance, except in very few rows: who has such says what they are.
    """
    return "logits" if len(not_distributions(values)) or len(values) == 0 else "probabilities"


def as_logits(values: np.ndarray, output: Speech, smoothing: float = SMOOTHING) -> np.ndarray:
    """Answers of either kind as float32 logits."""
    return to_logits(values, smoothing) if output == "probabilities" else values.astype(np.float32)


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
    """Classes' names as strings, as those of estimators are (their ``classes_`` may be integers); None stays None.

    Raises
    ------
    ValueError
        Two are equal.
    """
    if classes is None:
        return None
    names = tuple(str(c) for c in np.asarray(classes, object).tolist())
    if twice := [c for c in names if names.count(c) > 1]:
        raise ValueError(f"classes: {name}: expected different names; {twice[0]!r} stands {len(twice)} times")
    return names


def align(name: str, known: Sequence[Any] | None, wanted: Sequence[Any] | None) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    """Names of the outputs, and for each the column of the model's own order (None: they are in order).

    Parameters
    ----------
    known : sequence, optional
        The model's ``classes_``.
    wanted : sequence of str, optional
        The order that is wanted: by name, or, where these are no names of the model's and its own are the integers 0..C-1, as indices.

    Raises
    ------
    ValueError
        The model knows other classes; the message shows both lists.
    """
    classes = as_classes(name, wanted)
    if known is None:
        return classes, None
    known = list(np.asarray(known).tolist())
    if classes is None:
        return tuple(str(c) for c in known), None
    position = {str(c): column for column, c in enumerate(known)}
    indices = all(isinstance(c, int) and not isinstance(c, bool) for c in known) and sorted(known) == list(range(len(classes)))
    if indices and set(position) != set(classes):
        return classes, np.array([known.index(i) for i in range(len(classes))])
    if set(position) != set(classes):
        raise ValueError(f"classes: {name} knows {known}; expected {list(classes)}")
    return classes, np.array([position[c] for c in classes])


def flat(inputs: np.ndarray) -> np.ndarray:
    """Inputs [N, ...] as rows of features [N, F], without a copy where that can be."""
    return inputs.reshape(len(inputs), int(np.prod(inputs.shape[1:], dtype=np.int64)))


def check_smoothing(smoothing: float) -> float:
    if not (0 < smoothing < 1):
        raise ValueError(f"smoothing: expected a number in (0, 1); got {smoothing}")
    return smoothing


def content_of(member: Member) -> str:
    """Digest of what a saved member holds: its fingerprint, but for members whose code isn't saved with them."""
    return getattr(member, "saved_content", member.fingerprint)()


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
