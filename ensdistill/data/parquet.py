"""Parquet files that are read by row groups when their rows are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import xxhash

from ensdistill.common.ahead import ahead
from ensdistill.common.errors import WrongArgument
from ensdistill.data.arrow_types import (
    Extent,
    as_frame,
    columns_of,
    extents_of_parquet,
    form_of,
    types_of,
)
from ensdistill.data.records import Layout, as_bytes
from ensdistill.data.samples import buffer_of, fingerprint_of, form, groups_of

CACHED_BYTES = 256 * 2**20
FOOTER = 2**16


@dataclass(frozen=True, eq=False)
class Group:
    """A row group in memory.

    Parameters
    ----------
    records : ndarray [rows]
        Its numbers; see :class:`ensdistill.data.records.Layout`.
    others : pyarrow.Table or None
        Its other columns.
    """

    records: np.ndarray
    others: Any

    @property
    def nbytes(self) -> int:
        return self.records.nbytes + (0 if self.others is None else int(self.others.nbytes))


class ParquetSamples:
    """The rows of one Parquet file, or of several one after the other, as pandas frames.

    Reading a row reads its whole row group, so rows of one group are best read together, in the order of a
    :class:`ensdistill.common.random.GroupedOrder`. The groups that were read last stay in memory, numbers as
    records (see :class:`ensdistill.data.records.Layout`).

    Parameters
    ----------
    path : path, or sequence of path
    columns : sequence of str, optional
        Those to be read; all by default.
    cached_bytes : int
        Of the groups that stay in memory; at least one group does, whatever its size.

    Raises
    ------
    ValueError
        There is no such file, it is no Parquet, a column is not there, or the files have unlike columns.
    """

    def __init__(
        self,
        path: Path | str | Sequence[Path | str],
        columns: Sequence[str] | None = None,
        *,
        cached_bytes: int = CACHED_BYTES,
    ) -> None:
        self.paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(one) for one in path]
        self.cached_bytes = cached_bytes
        files, sizes, places, largest = [], [], [], 1
        for number, one in enumerate(self.paths):
            file = self._opened(one)
            files.append(file)
            for group in range(file.metadata.num_row_groups):
                about = file.metadata.row_group(group)
                sizes.append(about.num_rows)
                largest = max(largest, about.total_byte_size)
                places.append((number, group))
        if not files:
            raise ValueError("path: expected at least one file; got none")
        schemas = [file.schema_arrow for file in files]
        for one, schema in zip(self.paths, schemas, strict=True):
            if not schema.equals(schemas[0]):
                raise ValueError(
                    f"path: expected files with equal columns; {one} has {schema.names}, {self.paths[0]} "
                    f"{schemas[0].names}"
                )
        names = schemas[0].names
        if unknown := [name for name in columns or () if name not in names]:
            raise ValueError(
                f"columns: {self.paths[0].name} has no column {unknown[0]!r}, but {', '.join(names[:10])}"
            )
        self.columns = list(columns_of(schemas[0]) if columns is None else columns)
        extents: dict[str, Extent] = {}
        for file in files:
            for name, extent in extents_of_parquet(file, self.columns).items():
                extents[name] = extents.get(name, Extent()) | extent
        self._schema = files[0].schema_arrow.empty_table().select(self.columns).schema
        self.types = types_of(self._schema, extents)
        self.groups = np.array(sizes, np.int64)
        """Rows of each row group, int64."""
        self.buffer = max(1, cached_bytes // largest)
        """Groups that stay in memory, by their size in the file before compression."""
        self._places, self._ends = places, np.cumsum(self.groups)
        self._lock = Lock()  # a reader thread and the main thread may both ask for rows
        self.content_keys: np.ndarray | None = None
        """Equal for equal rows, uint64 [N], where known; see :class:`ensdistill.data.samples.Lazy`."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: np.ndarray | slice) -> Any:
        index = np.arange(len(self))[index] if isinstance(index, slice) else np.asarray(index)
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(
                f"index: expected positions in 0..{len(self) - 1}; got {index.min()} to {index.max()}"
            )
        if not len(index):
            return as_frame(self._schema.empty_table(), self.types)
        order = np.argsort(index)
        ordered, layout = index[order], self._layout
        first, last = np.searchsorted(self._ends, ordered[[0, -1]], side="right")
        stops = np.searchsorted(ordered, self._ends[first : last + 1])
        wanted = {
            first + i: slice(start, stop)
            for i, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True))
            if start < stop
        }
        records = np.empty(len(index), layout.record)
        others = {}
        with self._lock:
            for group, held in self._decoded(list(wanted)):
                at, begin = wanted[group], self._ends[group] - self.groups[group]
                if layout.numbers:
                    rows = as_bytes(held.records)
                    np.take(rows, ordered[at] - begin, axis=0, out=as_bytes(records)[at], mode="clip")
                if layout.in_arrow:
                    where = np.sort(order[at])
                    others[group] = where, held.others.take(index[where] - begin)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return layout.frame(records, back, _joined([others[group] for group in sorted(others)]))

    @property
    def types(self) -> dict[str, str]:
        """Column -> pandas type, of integers and booleans with gaps in any row, of this data set or of one
        that it is joined with."""
        return self._layout.types

    @types.setter
    def types(self, types: dict[str, str]) -> None:
        self._layout = Layout(self._schema, types)
        self._cache: OrderedDict[int, Group] = OrderedDict()  # its records have another layout

    @property
    def form(self) -> dict[str, Any]:
        """Kind of the samples and types of the columns, which are those of all rows."""
        return form_of(self._schema, self.types)

    def subset(self, index: np.ndarray) -> Chosen:
        return Chosen(self, np.asarray(index, np.int64))

    def fingerprint(self) -> list[Any]:
        """Names, sizes and footers of the files."""
        return [[str(path.name), path.stat().st_size, _footer(path)] for path in self.paths]

    def __fingerprint__(self) -> Any:
        return fingerprint_of(self)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in self.__dict__.items() if name != "_lock"}
        return {**own, "_cache": OrderedDict()}  # a worker process reads for itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def _decoded(self, groups: list[int]) -> Iterator[tuple[int, Group]]:
        """These row groups: those in memory first, because the others take their place."""
        held = [group for group in groups if group in self._cache]
        for group in held:
            self._cache.move_to_end(group)
            yield group, self._cache[group]
        missing = [group for group in groups if group not in held]
        files: dict[int, Any] = {}

        def read(group: int) -> tuple[int, Iterable[Any], Any]:
            number, inner = self._places[group]
            if number not in files:
                files.clear()
                files[number] = self._opened(self.paths[number])
            return group, *self._arrow(files[number], number, inner)

        # One group is decoded while the rows of the one before it become records.
        for group, tables, others in ahead(
            read, missing, workers=min(1, len(missing) - 1), thread=True, prefetch=1
        ):
            rows = int(self.groups[group])
            self._make_room(rows * self._layout.record.itemsize)
            self._cache[group] = Group(self._layout.records(rows, tables), others)
            tables = ()  # freed before the next group is needed
            self._make_room(0)
            yield group, self._cache[group]

    def _arrow(self, file: Any, number: int, group: int) -> tuple[Iterable[Any], Any]:
        """A row group's numbers as tables, and its other columns as one."""
        names, numbers = self._layout.others, self._layout.numbers
        others = file.read_row_group(group, columns=names) if self._layout.in_arrow else None
        if not numbers:
            return (), others
        slabs = self._layout.slabs(file.metadata.row_group(group).num_rows)
        if len(slabs) == 1:
            return [file.read_row_group(group, columns=numbers)], others
        # A file of its own, because another thread reads the next group meanwhile.
        own = self._opened(self.paths[number])
        return (own.read_row_group(group, columns=names) for names in slabs), others

    def _make_room(self, size: int) -> None:
        """Forget the groups that were read longest ago, until ``size`` bytes more fit."""
        while len(self._cache) > (size == 0) and size + self._held_bytes() > self.cached_bytes:
            self._cache.popitem(last=False)

    def _held_bytes(self) -> int:
        return sum(held.nbytes for held in self._cache.values())

    def _opened(self, path: Path) -> Any:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError("reading Parquet needs pyarrow: pip install 'ensdistill[table]'") from error
        try:
            return pq.ParquetFile(path)
        except FileNotFoundError as error:
            raise WrongArgument(f"path: there is no file {str(path)!r}") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"path: {path} is not Parquet that can be read ({error})") from error


def _joined(parts: list[tuple[np.ndarray, Any]]) -> Any:
    """Rows of several groups as one Arrow table; each part has their places in it. None of no parts."""
    if not parts:
        return None
    import pyarrow as pa

    order, table = np.concatenate([where for where, _ in parts]), pa.concat_tables([one for _, one in parts])
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return table if (back == np.arange(len(back))).all() else table.take(back)


def _footer(path: Path) -> str:
    """Digest of the file's last bytes, which hold the columns' statistics and places."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, FOOTER), 2)
        return xxhash.xxh3_128_hexdigest(file.read())


class Chosen:
    """Some rows of samples that are read when they are asked for."""

    def __init__(self, samples: Any, index: np.ndarray) -> None:
        self.samples, self.index = samples, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: np.ndarray | slice) -> Any:
        return self.samples[self.index[index]]

    def subset(self, index: np.ndarray) -> Chosen:
        return Chosen(self.samples, self.index[index])

    @property
    def content_keys(self) -> np.ndarray | None:
        """Those of the samples; see :class:`ensdistill.data.samples.Lazy`."""
        keys = getattr(self.samples, "content_keys", None)
        return None if keys is None else keys[self.index]

    @property
    def form(self) -> dict[str, Any]:
        return form(self.samples)

    @property
    def mapped(self) -> bool:
        return bool(getattr(self.samples, "mapped", False))

    @property
    def buffer(self) -> int:
        return buffer_of(self.samples)

    @property
    def groups(self) -> np.ndarray | None:
        """Rows of each row group, int64, where they stand in the file's order; else None."""
        groups = groups_of(self.samples)
        if groups is None or (np.diff(self.index) < 0).any():
            return None
        ends = np.cumsum(groups)
        counts = np.bincount(np.searchsorted(ends, self.index, side="right"), minlength=len(ends))
        return counts[counts > 0]

    def __fingerprint__(self) -> Any:
        return fingerprint_of(self)
