"""Common to data sets whose rows are read once, and divided anew for each seed."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, TypeVar

from ensdistill.data.partition import DRAWN, POOL, TEST, Partition, Whole
from ensdistill.data.splits import Split

Item = TypeVar("Item")
FILES = (("path", DRAWN), ("test_path", TEST), ("pool_path", POOL))
PATIENCE = 5.0  # seconds without a sign of progress


class Divided(ABC):
    """A data set with ``parts``, how it is divided, and ``_read()``, which returns all of its rows."""

    parts: Partition

    def split(self, seed: int) -> Split:
        """The rows of this seed, divided as ``parts`` says."""
        return self.parts.split(self.whole, seed)

    @cached_property
    def whole(self) -> Whole:
        """All rows, read once."""
        return self._read()

    @abstractmethod
    def _read(self) -> Whole:
        """All rows, from the files."""

    def __getstate__(self) -> dict[str, Any]:
        # A worker process reads for itself.
        return {name: value for name, value in self.__dict__.items() if name != "whole"}


def not_both_given(parts: Partition, test_path: Any, name: str = "test_path") -> None:
    """Raise ValueError where files and settings both decide on the test rows."""
    for other in ("test", "folds", "time", "column", "test_seed"):
        if test_path is not None and getattr(parts, other) is not None:
            raise ValueError(f"{name}: expected without parts.{other}, because both decide on the test rows")


def watched(items: Iterable[Item], total: int, doing: str) -> Iterator[Item]:
    """The items themselves; on a terminal, a line of progress every five seconds."""
    last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last > PATIENCE and sys.stderr.isatty():
            print(f"{doing}: {done} of {total}", file=sys.stderr)
            last = now
        yield item
