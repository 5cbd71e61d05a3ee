"""Numbers of a table as records, one for each row, so that a row is gathered by one copy.

A frame stores a column after the other. Rows in random order then cost a cache line for each number, and a
record costs a few for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ensdistill.data.arrow_types import as_frame

LINE = 64  # bytes of a cache line
SLAB = 2**25  # bytes of columns that are decoded together
PART = 2**16  # rows that become records together: these fit into the last-level cache
BLOCK = 256  # rows that are transposed together: their records and columns fit into the second-level cache


class Layout:
    """How the rows of tables with one Arrow schema are held.

    Parameters
    ----------
    schema : pyarrow.Schema
    types : dict of str to str
        See :func:`ensdistill.data.arrow_types.types_of`.
    """

    def __init__(self, schema: Any, types: Mapping[str, str]) -> None:
        import pyarrow.types as pt

        self.types = dict(types)
        empty = as_frame(schema.empty_table(), types)
        self._columns, self._attributes = empty.columns, empty.attrs
        places: dict[np.dtype, list[int]] = {}
        for i, (field, dtype) in enumerate(zip(schema, empty.dtypes, strict=True)):
            number = pt.is_integer(field.type) or pt.is_floating(field.type) or pt.is_boolean(field.type)
            if number and isinstance(dtype, np.dtype) and dtype.kind in "fiub":
                places.setdefault(dtype, []).append(i)
        self._places = dict(sorted(places.items(), key=lambda pair: (-pair[0].itemsize, pair[0].str)))
        self.record = np.dtype(
            [(dtype.str, dtype, (len(held),)) for dtype, held in self._places.items()], align=True
        )
        """One row's numbers, those of one type side by side."""
        self.numbers = [schema.names[i] for held in self._places.values() for i in held]
        """Columns that records hold: integers and floats, and booleans without gaps."""
        held = [i for several in self._places.values() for i in several]
        self._others = [i for i in range(len(schema.names)) if i not in set(held)]
        self.others = [schema.names[i] for i in self._others]
        """All other columns, which stay in Arrow."""
        self.in_arrow = bool(self.others) or not self.numbers
        self._order = np.argsort([*held, *self._others])

    def slabs(self, rows: int) -> list[list[str]]:
        """The columns of numbers in parts, of which each is decoded as a whole: its Arrow table needs about
        ``SLAB`` bytes, and fills whole cache lines of each record."""
        width = max(1, SLAB // max(1, rows) // LINE) * LINE
        ends = np.array([offset + dtype.itemsize for dtype, offset in self._fields()])
        cuts = np.flatnonzero(np.diff((ends - 1) // width)) + 1
        return [part.tolist() for part in np.split(np.array(self.numbers, object), cuts)]

    def records(self, rows: int, tables: Iterable[Any]) -> np.ndarray:
        """The numbers of ``rows`` rows as records [rows]; the Arrow tables have the columns ``numbers``, some
        each."""
        records, fields = np.empty(rows, self.record), iter(self._fields())
        for table in tables:
            columns = [(np.asarray(column), *next(fields)) for column in table.columns]
            for start in range(0, rows, PART):
                part = as_bytes(records[start : start + PART])
                for column, dtype, offset in columns:
                    place = part[:, offset : offset + dtype.itemsize].view(dtype)[:, 0]
                    # Integers of a column with gaps are floats; no other change of the type is safe.
                    np.copyto(place, column[start : start + PART], casting="safe")
        return records

    def _fields(self) -> list[tuple[np.dtype, int]]:
        """Type and place in a record, in bytes, of each of ``numbers``."""
        places: Any = self.record.fields
        return [
            (dtype, places[dtype.str][1] + i * dtype.itemsize)
            for dtype, held in self._places.items()
            for i in range(len(held))
        ]

    def frame(self, records: np.ndarray, order: np.ndarray, others: Any) -> Any:
        """The pandas frame that Arrow makes of these rows: numbers of one type are one array, a column after
        the other.

        Parameters
        ----------
        records : ndarray [M]
        order : ndarray [M], int64
            Positions among the records.
        others : pyarrow.Table or None
            The other columns, in the frame's order.
        """
        import pandas as pd

        if not self.numbers:
            return as_frame(others, self.types)
        rows = as_bytes(records)
        blocks = {dtype: np.empty((len(held), len(order)), dtype) for dtype, held in self._places.items()}
        for start in range(0, len(order), BLOCK):
            some = np.take(rows, order[start : start + BLOCK], axis=0).view(self.record)[:, 0]
            for dtype, block in blocks.items():
                block[:, start : start + BLOCK] = some[dtype.str].T
        parts = [pd.DataFrame(block.T, copy=False) for block in blocks.values()]
        if self.in_arrow:
            parts.append(as_frame(others, self.types))
        frame = parts[0] if len(parts) == 1 else pd.concat(parts, axis=1)
        if (np.diff(self._order) != 1).any():
            frame = frame.iloc[:, self._order]
        frame.columns, frame.attrs = self._columns, self._attributes
        return frame


def as_bytes(records: np.ndarray) -> np.ndarray:
    """The same memory as uint8 [rows, bytes]: NumPy gathers these rows four times as fast as records."""
    return records.view(np.uint8).reshape(len(records), records.dtype.itemsize)
