"""Any map-style data set: of torch, of Hugging Face, or with ``len()`` and ``[i]``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.data import batches as b
from ensdistill.data.collate import collate
from ensdistill.data.labels import is_missing
from ensdistill.data.partition import DRAWN, POOL, TEST, Partition, Whole
from ensdistill.data.reading import default_workers
from ensdistill.data.rows import UNLABELLED
from ensdistill.data.samples import Joined, Lazy, positions, stream
from ensdistill.data.sources import base
from ensdistill.data.sources.roles import DIVIDING, roles_of, whole_of
from ensdistill.data.sources.target import Target

BATCH = 256
FEW = 4096  # so many items are read before worker processes would have started
PART_NAMES = {"train": DRAWN, "test": TEST, "pool": POOL, "unlabelled": POOL, "unsupervised": POOL}


@dataclass(frozen=True)
class Items(base.Divided):
    """The items of a data set, read when they are needed.

    Parameters
    ----------
    dataset : map-style data set, or path
        ``len(dataset)`` and ``dataset[i]``: an (input, label) pair, or a dict. A path is a folder written by
        ``save_to_disk`` of Hugging Face ``datasets``, of one data set or of several named ``train``, ``test``
        and ``pool``. Lists of numbers in these become arrays of the column's dtype.
    label : str
        The key of the label in dicts. A label of None or -100 is unknown (and -1 in Hugging Face's
        ``ClassLabel``); such items go to the pool.
    input : str, optional
        The key of the input in dicts. By default the input is all that is no label: one value, or a dict of
        several.
    labels : list, optional
        The classes in the order of their indices; see :class:`Table`.
    test_dataset, pool_dataset : map-style data set or path, optional
        Of the test items, and of items without labels.
    copies : bool
        Whether equal inputs are looked for, so that they stay together. All items are read once for that.
        Otherwise only labels are read, and equal inputs may be trained on and tested.
    parts : Partition
        How the items of ``dataset`` are divided. Its columns are keys of dicts, which are no inputs then.

    Raises
    ------
    TypeError
        The data set has no positions: an ``IterableDataset``.
    ValueError
        (by ``split``) There are fewer items than ``len()``, an item has no label, the labels that the data
        set lists are not those of its items, or labels are no classes.

    Notes
    -----
    Labels come from an attribute ``targets`` or ``labels``, or a Hugging Face column, where there is one, and
    from the items otherwise; class names from ``classes`` or ``ClassLabel``. Uids are the items' positions,
    those of the test and pool after those of ``dataset``.

    Examples
    --------
    >>> items = [(np.array([i, i + 1.0]), "ab"[i % 2]) for i in range(40)]
    >>> split = Items(items).split(seed=0)
    >>> len(split.labelled), len(split.test), split.classes
    (30, 10, ('a', 'b'))
    """

    dataset: Any
    label: str = "label"
    input: str | None = None
    labels: list[Any] | None = None
    test_dataset: Any = None
    pool_dataset: Any = None
    copies: bool = True
    parts: Partition = field(default_factory=Partition)

    def __post_init__(self) -> None:
        base.not_both_given(self.parts, self.test_dataset, "test_dataset")

    def _read(self) -> Whole:
        import pandas as pd

        columns = {role: name for role in DIVIDING if (name := getattr(self.parts, role)) is not None}
        found, start = [], 0
        for part, dataset in self._data_sets():
            divided = _Divided(dataset, self.label, self.input, tuple(columns.values()), part == POOL)
            found.append(self._contents(divided, part, start))
            start += len(divided)
        names = next((one.names for one in found if one.names is not None), None)
        values = [value for one in found for value in one.labels]
        frame = pd.DataFrame({self.label: pd.Series(values, dtype=object)})
        for place, name in enumerate(columns.values()):
            frame[name] = [row[place] for one in found for row in one.columns]
        whole = whole_of(
            found[0].samples if len(found) == 1 else Joined(tuple(one.samples for one in found)),
            frame,
            roles_of(self.parts, target=self.label),
            np.concatenate([np.full(len(one.labels), one.part, np.int8) for one in found]),
            target=Target(self.label, order=self.labels),
            uids=np.arange(start),
        )
        # The names of classes stand for the numbers that the items have.
        return whole if names is None else replace(whole, labels=tuple(map(names.index, whole.classes)))

    def _data_sets(self) -> list[tuple[int, Any]]:
        given = [(DRAWN, self.dataset), (TEST, self.test_dataset), (POOL, self.pool_dataset)]
        found: list[tuple[int, Any]] = []
        for part, dataset in given:
            if dataset is None:
                continue
            loaded = _loaded(dataset) if isinstance(dataset, (str, Path)) else dataset
            if isinstance(loaded, Mapping) and part == DRAWN:  # Hugging Face's DatasetDict
                if not {"train"} <= set(loaded) <= set(PART_NAMES):
                    raise ValueError(
                        f"dataset: expected data sets named {', '.join(PART_NAMES)}, train among them; got "
                        f"{', '.join(loaded)}: choose some, and write these with save_to_disk"
                    )
                found += [(PART_NAMES[name], one) for name, one in loaded.items()]
            else:
                found.append((part, loaded))
        for part, name in ((TEST, "test"), (POOL, "pool")):
            if sum(one == part for one, _ in found) > 1:
                raise ValueError(f"{name}_dataset: expected no other {name} data set; dataset has one")
        return found

    def _contents(self, divided: _Divided, part: int, start: int) -> _Contents:
        count = len(divided)
        if not count:
            raise ValueError("dataset: expected items; len() is 0")
        listed, names = (None, None) if part == POOL else _listed_labels(divided)
        different = np.arange(start, start + count).astype(np.uint64)
        if not self.copies and not divided.columns and (listed is not None or part == POOL):
            divided.item(count - 1)  # raises if there are fewer items
            labels, keys, columns = listed or [None] * count, different, [()] * count
        else:
            labels, keys, columns = self._all_items(divided)
        if listed is not None:
            _check_listed(listed, divided, names)
            labels = listed
        known = [None if part == POOL or _unknown(label) else label for label in labels]
        samples = Lazy(divided, content_keys=keys if self.copies else different)
        return _Contents(samples, part, known, columns, names)

    def _all_items(self, divided: _Divided) -> tuple[list[Any], np.ndarray, list[Any]]:
        """Labels, keys and columns of all items, each of which is read once."""
        reader = _Reader(divided, self.copies)
        parts = positions(len(divided), BATCH)
        workers = default_workers(reader) if len(divided) > FEW else 0
        read = stream(reader, parts, workers=workers)
        labels: list[Any] = []
        keys, columns = [], []
        for some, hashes, more in base.watched(read, len(parts), f"batches of {BATCH} items read"):
            labels += some
            keys.append(hashes)
            columns += more
        return labels, np.concatenate(keys), columns


@dataclass(frozen=True)
class _Contents:
    """What was read of one data set."""

    samples: Lazy
    part: int
    labels: list[Any]
    columns: list[tuple[Any, ...]]
    names: list[str] | None


@dataclass(frozen=True)
class _Divided:
    """Items as (input, label) pairs.

    Parameters
    ----------
    dataset : map-style data set
    label : str
    input : str or None
    columns : tuple of str
        Keys of dicts that are neither input nor label.
    unlabelled : bool
        Whether items need no label.
    """

    dataset: Any
    label: str
    input: str | None
    columns: tuple[str, ...]
    unlabelled: bool

    def __post_init__(self) -> None:
        Lazy(self.dataset)  # raises where it is no map-style data set

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        return self.item(position)[:2]

    def item(self, position: int) -> tuple[Any, Any, tuple[Any, ...]]:
        """Input, label and columns."""
        try:
            item = self._arrays(self.dataset[position])
        except IndexError as error:
            raise ValueError(
                f"dataset: len() of {type(self.dataset).__name__} is {len(self)}, but it has no item "
                f"{position} ({error})"
            ) from error
        if isinstance(item, Mapping):
            return self._of_dict(item, position)
        if self.columns:
            raise ValueError(
                f"parts: expected items that are dicts, with the key {self.columns[0]!r}; item {position} is "
                f"a {type(item).__name__}"
            )
        if isinstance(item, (tuple, list)) and len(item) == 2:
            return item[0], _scalar(item[1]), ()
        if self.unlabelled:
            return item, None, ()
        raise ValueError(
            f"dataset: expected items that are (input, label) pairs, or dicts; item {position} is "
            f"{f'a {type(item).__name__} of {len(item)}' if isinstance(item, (tuple, list)) else type(item)}"
        )

    def _arrays(self, item: Any) -> Any:
        """The item with lists of numbers of a Hugging Face column as arrays of the column's dtype."""
        features, given = getattr(self.dataset, "features", None), getattr(self.dataset, "format", None)
        if not isinstance(item, Mapping) or not isinstance(features, Mapping):
            return item
        # A transform or another format of the user's own decides the values itself.
        if not isinstance(given, Mapping) or given.get("type") is not None:
            return item
        return {name: _as_array(value, features.get(name)) for name, value in item.items()}

    def _of_dict(self, item: Mapping[str, Any], position: int) -> tuple[Any, Any, tuple[Any, ...]]:
        needed = [*self.columns, *([] if self.unlabelled else [self.label])]
        needed += [] if self.input is None else [self.input]
        if missing := [name for name in needed if name not in item]:
            setting = "input" if missing[0] == self.input else "label"
            raise ValueError(
                f"{setting}: expected the key {missing[0]!r} in each item; item {position} has "
                f"{', '.join(map(repr, item))}"
            )
        label, columns = item.get(self.label), tuple(_scalar(item[name]) for name in self.columns)
        rest = {name: v for name, v in item.items() if name != self.label and name not in self.columns}
        if self.input is not None:
            return item[self.input], _scalar(label), columns
        return (next(iter(rest.values())) if len(rest) == 1 else rest), _scalar(label), columns


@dataclass(frozen=True)
class _Reader:
    """Batches of labels, hashes and columns; travels to worker processes."""

    dataset: _Divided
    hashes: bool

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: np.ndarray) -> tuple[list[Any], np.ndarray, list[tuple[Any, ...]]]:
        items = [self.dataset.item(i) for i in index.tolist()]
        inputs = [item[0] for item in items]
        hashes = b.hashes(collate(inputs, index.tolist())) if self.hashes else np.zeros(len(items), "<u8")
        return [item[1] for item in items], hashes, [item[2] for item in items]


def _as_array(value: Any, feature: Any) -> Any:
    """A list of numbers as an array of the dtype that a Hugging Face feature has; other values as they
    are."""
    while (inner := getattr(feature, "feature", None)) is not None:
        feature = inner
    if not isinstance(value, list):
        return value
    try:
        dtype = np.dtype(getattr(feature, "dtype", None) or "O")
        return np.array(value, dtype) if dtype.kind in "biuf" else value
    except (TypeError, ValueError):  # no dtype of NumPy, a gap, or lists of unlike lengths
        return value


def _loaded(path: str | Path) -> Any:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise ValueError(
            f"dataset: reading {path} needs Hugging Face's datasets: pip install datasets"
        ) from error
    try:
        return load_from_disk(str(path))
    except FileNotFoundError as error:
        raise ValueError(
            f"dataset: expected a folder written by save_to_disk; got {str(path)!r} ({error})"
        ) from error


def _listed_labels(divided: _Divided) -> tuple[list[Any] | None, list[str] | None]:
    """The labels, and the classes' names, that the data set gives without its items; None where it gives
    none."""
    dataset = divided.dataset
    names: Any = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping) and divided.label in features:
        names, values = getattr(features[divided.label], "names", None), dataset[divided.label]
    else:
        values = next(
            (v for n in ("targets", "labels") if (v := getattr(dataset, n, None)) is not None), None
        )
    if values is None or callable(values) or not isinstance(values, Iterable):
        return None, None
    labels = [_scalar(value) for value in values]
    if len(labels) != len(divided):
        raise ValueError(
            f"dataset: expected a label for each of {len(divided)} items; it lists {len(labels)}"
        )
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return labels, None
    if not all(isinstance(v, int) and (v < len(names)) for v in labels if not _unknown(v)):
        return labels, None
    return [None if _unknown(v) or v < 0 else names[v] for v in labels], list(names)


def _check_listed(listed: list[Any], divided: _Divided, names: list[str] | None) -> None:
    """Raise where the labels that the data set lists are not those of its items."""
    for place in sorted({0, len(listed) // 2, len(listed) - 1}):
        label = divided.item(place)[1]
        named = names[label] if names and isinstance(label, int) and 0 <= label < len(names) else label
        if not _unknown(label) and named != listed[place]:
            raise ValueError(
                "dataset: expected its list of labels to be those of its items; item "
                f"{place} has {named!r}, the list {listed[place]!r}"
            )


def _scalar(value: Any) -> Any:
    """A label or a column's value as a plain object."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _unknown(label: Any) -> bool:
    return is_missing(label) or (isinstance(label, int) and label == UNLABELLED)
