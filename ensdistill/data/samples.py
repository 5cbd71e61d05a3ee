"""Samples: raw inputs as the user has them, in memory or read when they are needed.

A NumPy array is a sequence of samples. So is a :class:`Held` container of another kind (a frame, strings, a
mapping), and a :class:`Lazy` data set, whose samples are read when they are needed. All have a length, and
return the batch at some positions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import xxhash

from ensdistill.common.ahead import ahead
from ensdistill.data import batches as b
from ensdistill.data.batches.arrays import is_tensor
from ensdistill.data.batches.kind import Kind
from ensdistill.data.collate import collate

LABELS = ("label", "labels")  # keys of items that are no inputs
BUFFER = 8  # groups that are shuffled together where samples name no number
GROUP = 65536  # rows in memory that are shuffled together beside groups that are read
SAMPLED = 64  # samples of a lazy data set that its fingerprint reads


@runtime_checkable
class Samples(Protocol):
    """Raw inputs in a fixed order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: np.ndarray | slice) -> Any:
        """The batch of the samples at these positions (int64 [M], or a slice), in a container of their
        kind."""
        ...

    def subset(self, index: np.ndarray) -> Samples:
        """The samples at these positions, int64 [M], as samples; lazy ones are not read."""
        ...


@dataclass(frozen=True, eq=False)
class Held:
    """Samples in memory, in a container of any kind (see :mod:`ensdistill.data.batches`); nothing is copied.

    Parameters
    ----------
    batch : container
    kind : Kind, optional
        That of the container, found by default. An empty list has no kind of its own.

    Examples
    --------
    >>> samples = Held(["a text", "another", "a third"])
    >>> len(samples), samples[np.array([2, 0])]
    (3, ['a third', 'a text'])
    """

    batch: Any
    kind: Kind = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.kind is None:
            object.__setattr__(self, "kind", b.kind_of(self.batch))

    def __len__(self) -> int:
        return self.kind.count(self.batch)

    def __getitem__(self, index: np.ndarray | slice) -> Any:
        return self.kind.take(self.batch, index)

    def subset(self, index: np.ndarray) -> Held:
        return Held(self[index], self.kind)

    def __fingerprint__(self) -> Any:
        return fingerprint_of(self)


@dataclass(frozen=True, eq=False)
class Lazy:
    """The inputs of a map-style torch ``Dataset``, or of a Hugging Face one, read when they are asked for.

    Parameters
    ----------
    dataset : sequence-like
        ``len(dataset)`` and ``dataset[i]``: an input, an (input, label) pair, or a dict.
    label : str, optional
        The key of the label in items that are dicts; it is no input.
    content_keys : ndarray [N], uint64, optional
        Equal for equal samples, and comparable within one data set: copies are found by them without reading
        the samples.

    Raises
    ------
    TypeError
        An ``IterableDataset``, whose samples have no positions.
    """

    dataset: Any
    label: str | None = None
    content_keys: np.ndarray | None = None

    def __post_init__(self) -> None:
        if _is_iterable_only(self.dataset) or not hasattr(self.dataset, "__getitem__"):
            raise TypeError(
                "dataset: expected a map-style data set, with len() and [i]; got "
                f"{type(self.dataset).__name__}, whose samples have no "
                "stable positions. Write its items to files once (Parquet, images), or give it __len__ and "
                "__getitem__, whose positions are the samples' uids then"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: np.ndarray | slice) -> Any:
        positions = (
            range(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index).tolist()
        )
        return collate(
            [self._input(item, i) for item, i in zip(self._items(positions), positions, strict=True)],
            positions,
        )

    def subset(self, index: np.ndarray) -> Lazy:
        from torch.utils.data import Subset

        keys = None if self.content_keys is None else self.content_keys[index]
        return Lazy(Subset(self.dataset, np.asarray(index).tolist()), self.label, keys)

    def __fingerprint__(self) -> Any:
        return fingerprint_of(self)

    def _items(self, positions: Sequence[int]) -> Sequence[Any]:
        """The items, in one call where the data set takes several positions, as torch's loader does."""
        several = getattr(self.dataset, "__getitems__", None)
        if callable(several):
            try:
                items: Sequence[Any] = several(list(positions))
                return items
            except Exception:  # read one by one, the item at fault is named
                pass
        return [self._read(i) for i in positions]

    def item(self, position: int) -> tuple[Any, Any]:
        """One sample and its label, which is None where the item has none.

        Raises
        ------
        ValueError
            The data set raised an error for this position; names it.
        """
        return self._parts(self._read(position), position)

    def _input(self, item: Any, position: int) -> Any:
        return self._parts(item, position)[0]

    def _read(self, position: int) -> Any:
        try:
            return self.dataset[position]
        except Exception as error:
            error.add_note(f"(while sample {position} of {type(self.dataset).__name__} was read)")
            raise

    def _parts(self, item: Any, position: int) -> tuple[Any, Any]:
        """An item's input and label."""
        if isinstance(item, tuple) and len(item) == 2:
            return item
        if isinstance(item, Mapping) and self.label is not None:
            if self.label not in item:
                raise ValueError(
                    f"label: expected a key of each item, {sorted(item)}; got {self.label!r}, which sample "
                    f"{position} has not"
                )
            return {name: value for name, value in item.items() if name != self.label}, item[self.label]
        if isinstance(item, Mapping) and (found := [name for name in LABELS if name in item]):
            raise ValueError(
                f"dataset: expected inputs without a label; item {position} has the key {found[0]!r}, which "
                f"models would be given: pass Lazy(dataset, label={found[0]!r}), or rename an input of that "
                "name"
            )
        return item, None


@dataclass(frozen=True, eq=False)
class Joined:
    """Several samples one after the other, lazy ones among them.

    Examples
    --------
    >>> both = Joined((Held(["a", "b"]), Held(["c"])))
    >>> len(both), both[np.array([2, 0])]
    (3, ['c', 'a'])
    """

    parts: tuple[Any, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: np.ndarray | slice) -> Any:
        index = np.arange(len(self))[index]
        owner, inner = self._places(index)
        order = np.argsort(owner, kind="stable")
        parts = [self.parts[k][inner[order[owner[order] == k]]] for k in np.unique(owner)]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return b.take(b.join(parts), back) if len(parts) > 1 else b.take(parts[0], back)

    def subset(self, index: np.ndarray) -> Samples:
        owner, inner = self._places(np.asarray(index))
        # In the order that was asked for: runs of one part stay together.
        runs = np.split(np.arange(len(owner)), np.flatnonzero(np.diff(owner)) + 1)
        parts = tuple(subset(self.parts[owner[run[0]]], inner[run]) for run in runs if len(run))
        return Joined(parts) if len(parts) != 1 else parts[0]

    @property
    def content_keys(self) -> np.ndarray | None:
        """Those of all parts, if each has them."""
        keys = [getattr(part, "content_keys", None) for part in self.parts]
        known = [key for key in keys if key is not None]
        return np.concatenate(known) if len(known) == len(keys) else None

    @property
    def groups(self) -> np.ndarray | None:
        """See :func:`groups_of`; parts in memory are groups of ``GROUP`` rows."""
        found = [groups_of(part) for part in self.parts]
        if all(groups is None for groups in found) or any(
            groups is None and not in_memory(part) for groups, part in zip(found, self.parts, strict=True)
        ):
            return None
        return np.concatenate(
            [
                np.array([len(one) for one in positions(len(part), GROUP)]) if groups is None else groups
                for groups, part in zip(found, self.parts, strict=True)
            ]
        ).astype(np.int64)

    @property
    def form(self) -> dict[str, Any]:
        return form(next((part for part in self.parts if len(part)), self.parts[0]))

    @property
    def buffer(self) -> int:
        return min(buffer_of(part) for part in self.parts)

    def __fingerprint__(self) -> Any:
        return [fingerprint_of(part) for part in self.parts]

    def _places(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each position its part's number, and its position there."""
        ends = np.cumsum([len(part) for part in self.parts])
        owner = np.searchsorted(ends, index, side="right")
        return owner, index - (ends - [len(part) for part in self.parts])[owner]


def in_memory(samples: Any) -> bool:
    """Whether the samples are an array or a held container, and need no reading."""
    return isinstance(samples, (np.ndarray, Held))


def whole(samples: Any, *, batch_size: int = 1024, workers: int = 0) -> Any:
    """All samples as one batch in memory; lazy ones are read.

    Examples
    --------
    >>> whole(Held(["a", "b"]))
    ['a', 'b']
    """
    if isinstance(samples, np.ndarray):
        return samples
    if isinstance(samples, Held):
        return samples.batch
    parts = list(stream(samples, positions(len(samples), batch_size), workers=workers))
    return b.join(parts) if parts else samples[:0]


def form(samples: Any) -> dict[str, Any]:
    """Kind and form of the samples as plain JSON; see :func:`ensdistill.data.batches.describe`.

    Samples that know it for all of theirs have it as ``form``. Of others it is that of the first sample.

    Examples
    --------
    >>> form(np.zeros((2, 3), np.float32))
    {'kind': 'array', 'dtype': 'float32', 'shape': [3]}
    """
    if isinstance(samples, Held):
        return {"kind": samples.kind.name, **samples.kind.describe(samples.batch)}
    own: dict[str, Any] | None = getattr(samples, "form", None)
    return b.describe(samples if isinstance(samples, np.ndarray) else samples[:1]) if own is None else own


def joined(parts: Sequence[Any]) -> Any:
    """The samples of all parts, one after the other: one array of arrays, one container of containers of a
    kind.

    Raises
    ------
    ValueError
        Two parts are of unlike kinds, shapes or columns.

    Examples
    --------
    >>> joined([Held(["a"]), Held(["b", "c"])])[:]
    ['a', 'b', 'c']
    """
    parts = [part for part in parts if len(part)] or list(parts[:1])
    if len(parts) == 1:
        return parts[0]
    if all(in_memory(part) for part in parts):
        return as_samples(b.join([whole(part) for part in parts]))
    forms = [form(part) for part in parts]
    if unlike := [one for one in forms if one != forms[0]]:
        raise ValueError(f"samples: expected parts that are all alike, {forms[0]}; got {unlike[0]}")
    return Joined(tuple(parts))


def positions(count: int, batch_size: int) -> list[np.ndarray]:
    """The positions of batches in order, int64: ``0 .. batch_size - 1`` and so on.

    >>> positions(5, 3)
    [array([0, 1, 2]), array([3, 4])]
    """
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def subset(samples: Any, index: np.ndarray) -> Any:
    """The samples at the positions ``index``, int64 [M], as samples: an array of an array, unread of what is
    lazy."""
    return samples[index] if isinstance(samples, np.ndarray) else samples.subset(index)


def sample_hashes(samples: Any, *, batch_size: int = 4096, workers: int = 0) -> np.ndarray:
    """One 64-bit hash of each sample's content, little-endian uint64 [N]; lazy samples are read once, a batch
    at a time."""
    if isinstance(samples, np.ndarray):
        return b.hashes(samples)
    if isinstance(samples, Held):
        return samples.kind.hashes(samples.batch)
    parts = positions(len(samples), batch_size)
    return np.concatenate(
        [np.zeros(0, "<u8"), *(b.hashes(batch) for batch in stream(samples, parts, workers=workers))]
    )


def stream(
    samples: Any, parts: Iterable[np.ndarray], *, workers: int = 0, prefetch: int = 2
) -> Iterator[Any]:
    """The batches at each of these positions, in order; samples that have to be read are read ahead.

    Parameters
    ----------
    samples : Samples
    parts : iterable of ndarray [M], int64
    workers : int
        Processes that read; 0 reads here. Arrays and frames are in memory already and need none. Parquet and
        Arrow are read ahead by one thread; see :func:`read_by_thread`.
    prefetch : int
        Batches that each worker reads ahead, which bounds the memory: ``workers * prefetch`` batches.
    """
    workers = 0 if in_memory(samples) else workers
    thread = read_by_thread(samples)
    yield from ahead(samples.__getitem__, parts, workers=workers, thread=thread, prefetch=prefetch)


def groups_of(samples: Any) -> np.ndarray | None:
    """Rows of each group that is read as a whole, int64, in the order of the rows; None where samples are
    read one by one."""
    groups: np.ndarray | None = getattr(samples, "groups", None)
    return groups


def read_by_thread(samples: Any) -> bool:
    """Whether one thread reads these samples ahead: Parquet (decoded by its own threads), and mapped Arrow.

    A mapped batch costs less to read than to send from another process.
    """
    mapped: bool = getattr(samples, "mapped", False)
    return mapped or groups_of(samples) is not None


def buffer_of(samples: Any) -> int:
    """Groups that the samples keep in memory at a time, so that their rows can be shuffled together."""
    buffer: int = getattr(samples, "buffer", BUFFER)
    return buffer


def fingerprint_of(samples: Any) -> dict[str, Any]:
    """Plain JSON that changes with the samples: of those in memory with any of them; of lazy ones with their
    number, the data set's class, its own ``fingerprint()`` and its samples' keys (where it has these), and
    the content of some, evenly spaced."""
    if in_memory(samples):
        hashed = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(sample_hashes(samples)).data)
        return {"rows": len(samples), "hash": hashed}
    places = np.unique(np.linspace(0, len(samples) - 1, min(SAMPLED, len(samples))).astype(np.int64))
    some = [b.hashes(samples[places[i : i + 1]]) for i in range(len(places))]
    own = getattr(getattr(samples, "dataset", samples), "fingerprint", None)
    keys = getattr(samples, "content_keys", None)
    return {
        "rows": len(samples),
        "lazy": type(getattr(samples, "dataset", samples)).__qualname__,
        "own": own() if callable(own) else None,
        **({} if keys is None else {"keys": xxhash.xxh3_128_hexdigest(np.ascontiguousarray(keys).data)}),
        "sampled": xxhash.xxh3_128_hexdigest(np.concatenate([np.zeros(0, "<u8"), *some]).data),
    }


def as_samples(value: Any, argument: str = "inputs") -> Any:
    """Whatever the user has, as samples: an array stays as it is, other containers are held, data sets are
    read lazily.

    Raises
    ------
    TypeError
        Not samples of any kind.

    Examples
    --------
    >>> len(as_samples(["a", "b"])), as_samples(np.zeros((3, 2))).shape
    (2, (3, 2))
    """
    if isinstance(value, np.ndarray):
        b.kind_of(value, argument)
        return value
    if isinstance(value, (Held, Lazy, Joined)) or hasattr(value, "subset"):
        return value
    try:
        b.kind_of(value, argument)
    except TypeError:
        container = isinstance(value, (list, tuple, Mapping)) or is_tensor(value)
        if _is_iterable_only(value) or (not container and hasattr(value, "__getitem__")):
            return Lazy(value)
        raise
    return Held(value)


def _is_iterable_only(value: Any) -> bool:
    """Whether it is an ``IterableDataset`` of torch, which is not imported to find out."""
    data = sys.modules.get("torch.utils.data")
    return data is not None and isinstance(value, data.IterableDataset)
