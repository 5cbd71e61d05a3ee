"""Common to data sets whose rows are read once, and divided anew for each seed."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from ensdistill.data.partition import DRAWN, PARTS, POOL, TEST, Partition, Whole
from ensdistill.data.rows import BadRows
from ensdistill.data.splits import Split

Item = TypeVar("Item")
FILES = (("path", DRAWN), ("test_path", TEST), ("pool_path", POOL))
PATIENCE = 5.0  # seconds without a sign of progress


class Divided:
    """A data set with ``parts``, how it is divided, and ``_read()``, which returns all of its rows."""

    parts: Partition

    def split(self, seed: int) -> Split:
        """The rows of this seed, divided as ``parts`` says."""
        return self.parts.split(self.whole, seed)

    @cached_property
    def whole(self) -> Whole:
        """All rows, read once."""
        return self._read()

    def _read(self) -> Whole:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        # A worker process reads for itself.
        return {name: value for name, value in self.__dict__.items() if name != "whole"}


def numbered(values: Sequence[Any], argument: str, missing: np.ndarray) -> np.ndarray:
    """int64 [N]: equal numbers for equal values.

    Raises
    ------
    BadRows
        A value is missing.
    """
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        raise BadRows(
            f"{argument}: expected a value in each row; row {row} has none ({missing.sum()} such rows)",
            np.flatnonzero(missing),
        )
    number: dict[Any, int] = {}
    return np.array([number.setdefault(value, len(number)) for value in values], np.int64)


def given_parts(values: Sequence[Any], argument: str, missing: np.ndarray) -> np.ndarray:
    """int8 [N]: the parts named by a column, ``DRAWN`` where it names none.

    Raises
    ------
    BadRows
        Another name.
    """
    names = [None if gap else str(value).strip().lower() for value, gap in zip(values, missing, strict=True)]
    bad = np.array(
        [row for row, name in enumerate(names) if name is not None and name not in PARTS], np.int64
    )
    if len(bad):
        raise BadRows(
            f"{argument}: expected {', '.join(PARTS)} or an empty field in each row; row {bad[0]} has "
            f"{values[bad[0]]!r} ({len(bad)} such rows)",
            bad,
        )
    return np.array([DRAWN if name is None else PARTS[name] for name in names], np.int8)


def one_file_of_parts(files: np.ndarray, column: np.ndarray | None) -> np.ndarray | None:
    """The part of each row by its file and by its column; None where neither decides.

    Parameters
    ----------
    files, column : ndarray [N], int8
    """
    if column is not None:
        files = np.where(files == DRAWN, column, files)
    return None if (files == DRAWN).all() else files


def not_both_given(parts: Partition, **paths: Any) -> None:
    """Raise ValueError where files and settings both decide on the test rows."""
    if paths.get("test_path") is None:
        return
    for name in ("test", "folds", "time", "column", "test_seed"):
        if getattr(parts, name) is not None:
            raise ValueError(
                f"test_path: expected without parts.{name}, because both decide on the test rows"
            )


def watched(items: Iterable[Item], total: int, doing: str) -> Iterator[Item]:
    """The items themselves; on a terminal, a line of progress every five seconds."""
    last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last > PATIENCE and sys.stderr.isatty():
            print(f"{doing}: {done} of {total}", file=sys.stderr)
            last = now
        yield item


DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}([T ]\d.*)?|\d{1,2}([./-])\d{1,2}\2(\d{4}|\d\d)([T ]\d.*)?")


def holds_dates(values: Iterable[Any]) -> bool:
    """Whether all of these strings, at least one, are dates."""
    found = [bool(DATE.fullmatch(value.strip())) for value in values]
    return bool(found) and all(found)
