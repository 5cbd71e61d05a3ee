"""Seeds, random generators and the order of batches, each keyed by everything that it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdistill.common.fingerprint import digest


def derive_seed(*parts: Any) -> int:
    """A seed in [0, 2^63) that depends on every part: independent streams for independent uses of one job
    seed.

    Examples
    --------
    >>> derive_seed(0, "cnn", 3) == derive_seed(0, "cnn", 3)
    True
    >>> derive_seed(0, "cnn", 3) == derive_seed(0, "cnn", 4)
    False
    """
    return int(digest(parts), 16) >> 65


def random_generator(*parts: Any) -> np.random.Generator:
    """A counter-based generator (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") keyed by
    every part."""
    return np.random.Generator(np.random.Philox(key=int(digest(parts), 16)))


class BatchOrder:
    """Positions of endless reshuffled epochs, cut into batches; a batch may reach into the next epoch, so
    none is ever short.

    Steps can be taken in any order, so nothing has to be saved to resume.

    Parameters
    ----------
    rows : int
        Rows of one epoch; may be fewer than ``batch_size``.
    batch_size, seed : int

    Examples
    --------
    >>> order = BatchOrder(rows=3, batch_size=6, seed=0)
    >>> np.bincount(order(7)).tolist()
    [2, 2, 2]
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        if rows < 1 or batch_size < 1:
            raise ValueError(f"rows and batch_size: expected at least 1; got {rows} and {batch_size}")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._epochs: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> np.ndarray:
        """Positions [batch_size], int64, of the batch of ``step`` (0, 1, ...)."""
        start = step * self.batch_size
        first, last = start // self.rows, (start + self.batch_size - 1) // self.rows
        self._epochs = {
            epoch: self._epochs[epoch] if epoch in self._epochs else self._shuffle(epoch)
            for epoch in range(first, last + 1)
        }
        order = np.concatenate(list(self._epochs.values())) if last > first else self._epochs[first]
        return order[start - first * self.rows :][: self.batch_size]

    def epochs(self, step: int, count: int) -> np.ndarray:
        """How many epochs each sample had been part of before, int64 [count, batch_size], from ``step``
        on."""
        drawn = step * self.batch_size + np.arange(count * self.batch_size)
        return drawn.reshape(count, self.batch_size) // self.rows

    def _shuffle(self, epoch: int) -> np.ndarray:
        return random_generator("batch order", self.seed, epoch).permutation(self.rows)


class GroupedOrder(BatchOrder):
    """A :class:`BatchOrder` for rows that are read group by group: at any time, rows of few groups are asked
    for.

    An epoch takes the groups in random order, ``buffer`` of them at a time, and shuffles the rows of these.
    So a reader that keeps ``buffer`` groups in memory reads each group once an epoch.

    Parameters
    ----------
    groups : sequence of int
        Rows of each group, in the order of the rows.
    batch_size, seed : int
    buffer : int
        Groups whose rows are mixed.

    Examples
    --------
    >>> order = GroupedOrder([4, 4, 4], batch_size=4, seed=0, buffer=1)
    >>> sorted(len(np.unique(order(step) // 4)) for step in range(3))
    [1, 1, 1]
    """

    def __init__(
        self, groups: Sequence[int] | np.ndarray, batch_size: int, seed: int, buffer: int = 8
    ) -> None:
        if buffer < 1:
            raise ValueError(f"buffer: expected at least 1 group; got {buffer}")
        self.sizes, self.buffer = np.asarray(groups, np.int64), buffer
        super().__init__(int(self.sizes.sum()), batch_size, seed)

    def _shuffle(self, epoch: int) -> np.ndarray:
        generator = random_generator("grouped order", self.seed, epoch)
        starts, order = np.cumsum(self.sizes) - self.sizes, generator.permutation(len(self.sizes))
        mixed = []
        for first in range(0, len(order), self.buffer):
            chosen = order[first : first + self.buffer]
            mixed.append(
                generator.permutation(np.concatenate([starts[g] + np.arange(self.sizes[g]) for g in chosen]))
            )
        return np.concatenate(mixed)
