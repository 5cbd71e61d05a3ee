"""New rows, read piece by piece, with the rows that can't be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

CELLS = 2**22  # numbers of a piece, by which its rows are chosen
MOST_ROWS = 65536
SKIP = "--on-error skip leaves such rows out, and counts them"


@dataclass(frozen=True)
class Fault:
    """A row that can't be read.

    Parameters
    ----------
    row : int
        Its position in the input, from 0.
    text : str
        Its column, its value and the expectation.
    """

    row: int
    text: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.text}"


@dataclass
class Piece:
    """Some rows of the input.

    Parameters
    ----------
    samples : batch
        Those rows that can be read, as a student takes them.
    rows : ndarray [n], int64
        Their positions in the input.
    kept : pyarrow.Table or None
        The columns to be carried to the output, [n].
    faults : list of Fault
        The other rows.
    """

    samples: Any
    rows: np.ndarray
    kept: Any = None
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def without(self, bad: np.ndarray, faults: Sequence[Fault]) -> Piece:
        """The piece without the rows at these positions of it, int64, whose faults are given."""
        from ensdistill.data import batches as b

        good = np.setdiff1d(np.arange(len(self.rows)), bad)
        kept = None if self.kept is None else self.kept.take(good)
        if isinstance(self.samples, list):  # of values that may be no samples
            samples: Any = [self.samples[place] for place in good.tolist()]
        else:
            samples = b.take(self.samples, good)
        return Piece(samples, self.rows[good], kept, [*self.faults, *faults])


class Source(Protocol):
    """New samples, in a file, a folder or a stream."""

    total: int | None
    """Rows, where their number is known beforehand."""
    names: list[str]
    """The columns; none of arrays and of files by themselves."""
    unused: list[str]
    """Columns that are neither inputs nor carried to the output."""

    def pieces(self) -> Iterator[Piece]:
        """All rows in order, once."""
        ...


@dataclass(frozen=True)
class Wanted:
    """The columns and rows that are read of a source.

    Parameters
    ----------
    samples : mapping
        The training samples' form, of :func:`ensdistill.data.samples.form`.
    data : mapping
        How the training's files were read: ``missing``, ``mode``, ``file``, ``text``; ``roles`` and
        ``ignored``, columns that are no inputs; ``columns``, where the inputs were chosen by name.
    id : str, optional
        A column to be carried to the output.
    keep : bool
        Whether all columns are.
    ignore : sequence of str
        Columns that are left out.
    batch : int, optional
        Rows of a piece; by the number of columns by default.
    skip : bool
        Whether rows that can't be read become faults rather than an error.
    """

    samples: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    keep: bool = False
    ignore: Sequence[str] = ()
    batch: int | None = None
    skip: bool = False

    def rows_of(self, cells: int) -> int:
        """Rows of a piece, of so many numbers each."""
        return self.batch or max(1, min(MOST_ROWS, CELLS // max(1, cells)))

    def carried(self, names: Sequence[str]) -> list[str]:
        """The columns that are carried to the output."""
        if self.keep:
            return [name for name in names if name not in self.ignore]
        return [] if self.id is None else [self.id]
