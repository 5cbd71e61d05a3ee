"""Batches: some samples in memory, in the container that the user has them in.

Members, caches and students take rows of a batch, join batches, hash their rows and compare their columns.
Each kind of container (array, tensor, frame, strings, mapping of these) does so in its own way, in a module
of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

KINDS: list[Kind] = []


class Kind(Protocol):
    """One kind of container. All methods but ``holds`` take containers of this kind only."""

    name: str

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is a container of this kind."""
        ...

    def count(self, batch: Any) -> int:
        """Number of samples."""
        ...

    def take(self, batch: Any, index: np.ndarray | slice) -> Any:
        """The samples at these positions, int64 [M] or a slice, in a container of the same kind."""
        ...

    def join(self, batches: Sequence[Any]) -> Any:
        """All samples one after the other; the batches have equal :meth:`describe`."""
        ...

    def hashes(self, batch: Any) -> np.ndarray:
        """One 64-bit hash for each sample, little-endian uint64 [N], of content and type, equal on every
        machine."""
        ...

    def describe(self, batch: Any) -> dict[str, Any]:
        """Plain JSON: shape and dtype of a sample, or names and types of the columns."""
        ...


def register(kind: Kind) -> Kind:
    """Add a kind of container; a kind that was registered later is asked first."""
    KINDS.insert(0, kind)
    return kind


def kind_of(batch: Any, argument: str = "inputs") -> Kind:
    """The kind of a container.

    Raises
    ------
    TypeError
        No kind holds it.

    Examples
    --------
    >>> kind_of(["some text", "another"]).name, kind_of(np.zeros((2, 3))).name
    ('text', 'array')
    """
    for kind in KINDS:
        if kind.holds(batch):
            return kind
    names = ", ".join(sorted(kind.name for kind in KINDS))
    raise TypeError(f"{argument}: expected samples ({names}); got {_shown(batch)}")


def count(batch: Any) -> int:
    """Number of samples in a batch of any kind."""
    return kind_of(batch).count(batch)


def take(batch: Any, index: np.ndarray | slice) -> Any:
    """The samples at the positions ``index``, in the same kind of container.

    Examples
    --------
    >>> take(["a", "b", "c"], np.array([2, 0]))
    ['c', 'a']
    """
    return kind_of(batch).take(batch, index)


def join(batches: Sequence[Any]) -> Any:
    """All batches' samples one after the other.

    Raises
    ------
    ValueError
        There is no batch, or two are of unlike kinds, shapes or columns.
    """
    if not batches:
        raise ValueError("batches: expected at least one; got none")
    kind, first = kind_of(batches[0]), describe(batches[0])
    for batch in batches[1:]:
        if (other := describe(batch)) != first:
            raise ValueError(f"batches: expected samples that are all alike, {first}; got {other}")
    return kind.join(batches)


def hashes(batch: Any) -> np.ndarray:
    """One 64-bit hash for each sample, little-endian uint64 [N]."""
    return kind_of(batch).hashes(batch)


def describe(batch: Any) -> dict[str, Any]:
    """Kind and form of the samples as plain JSON.

    Examples
    --------
    >>> describe(np.zeros((2, 3), np.float32))
    {'kind': 'array', 'dtype': 'float32', 'shape': [3]}
    """
    kind = kind_of(batch)
    return {"kind": kind.name, **kind.describe(batch)}


def unlike(expected: dict[str, Any], got: dict[str, Any]) -> str:
    """How two forms (see :func:`describe`) differ, in words; empty where they are equal.

    Examples
    --------
    >>> frame = {"kind": "table", "columns": {"age": "integer", "city": "text"}}
    >>> unlike(frame, {"kind": "table", "columns": {"age": "text", "city": "text"}})
    "column 'age': expected integer; got text"
    >>> unlike(frame, {"kind": "text"})
    'expected table; got text'
    """
    if got["kind"] != expected["kind"]:
        return f"expected {expected['kind']}; got {got['kind']}"
    for part, noun in (("columns", "column"), ("fields", "field")):
        if part not in expected:
            continue
        ours, theirs = expected[part], got[part]
        if missing := [name for name in ours if name not in theirs]:
            return f"{noun} {missing[0]!r} is missing; got {', '.join(map(repr, sorted(theirs)[:10]))}"
        if more := [name for name in theirs if name not in ours]:
            return f"{noun} {more[0]!r} is not among {', '.join(map(repr, sorted(ours)[:10]))}"
        for name in ours:
            if part == "columns" and ours[name] != theirs[name]:
                return f"column {name!r}: expected {ours[name]}; got {theirs[name]}"
            if part == "fields" and (inner := unlike(ours[name], theirs[name])):
                return f"field {name!r}: {inner}"
    for name in ("dtype", "shape", "channels"):
        if name in expected and name in got and expected[name] != got[name]:
            return f"expected {name} {expected[name]}; got {got[name]}"
    return ""


def _shown(value: Any) -> str:
    if ragged := _ragged(value):
        return ragged
    if isinstance(value, np.ndarray):
        remedy = ": numbers need a dtype (astype), strings a list (tolist)" if value.dtype.hasobject else ""
        return f"an array of {value.dtype} {list(value.shape)}{remedy}"
    if isinstance(value, (list, tuple)) and value:
        return f"a {type(value).__name__} of {type(value[0]).__name__}"
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _ragged(value: Any) -> str:
    """The first two items of unlike shapes, in words; empty where there are none."""
    objects = isinstance(value, np.ndarray) and value.dtype.hasobject and value.ndim > 0
    if not objects and not isinstance(value, (list, tuple)):
        return ""
    shapes = [(len(item),) if isinstance(item, list) else tuple(getattr(item, "shape", ())) for item in value]
    other = next((row for row, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is None:
        return ""
    return (
        f"items of unlike shapes, {list(shapes[0])} in row 0 and {list(shapes[other])} in row {other}: pad "
        "or crop them to one shape, and stack them"
    )
