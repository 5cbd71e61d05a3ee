"""The machines of a training, and the division of its rows between them: each reads its own shards of the
cache."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.cache import TargetCache
from ensdistill.common.processes import Processes
from ensdistill.common.random import BatchOrder, derive_seed
from ensdistill.data import Rows


def machines_of(group: Processes) -> tuple[int, ...]:
    """The machine of each process, numbered in the order of their first processes.

    Processes are of one machine where ``torchrun`` gave them the same ``GROUP_RANK``, which is its node's
    number; without ``torchrun``, where they have the same host name. All processes call this.
    """
    name = os.environ.get("GROUP_RANK") or socket.gethostname()
    names = group.each(derive_seed("machine", name))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return tuple(numbers[name] for name in names)


@dataclass(frozen=True, eq=False)
class Division:
    """The rows of each machine: a stretch of the cache, as long as its share of the processes.

    Parameters
    ----------
    cache : TargetCache
    machines : tuple of int [P]
        The machine of each process.
    starts : ndarray [machines], int64
        The cache's row with which each stretch begins.
    rank : int
        Of this process.
    """

    cache: TargetCache
    machines: tuple[int, ...]
    starts: np.ndarray
    rank: int

    def of(self, uids: np.ndarray) -> np.ndarray:
        """The machine of each sample, int64 [M]."""
        return machine_of(self.starts, self.cache.samples.ids(uids, 0))

    def own(self, rows: Rows) -> Rows:
        """Those of the rows that belong to this process's machine."""
        return rows.take(self.of(rows.uids) == self.machines[self.rank])

    def shares(self, batch_size: int) -> list[int]:
        """How many rows of a batch each machine takes."""
        processes: list[int] = np.bincount(self.machines).tolist()
        return [batch_size * count // len(self.machines) for count in processes]


def divide(cache: Any, rows: Rows, machines: tuple[int, ...], rank: int) -> Division | None:
    """The division of the training's rows; None where one machine has all of them.

    Raises
    ------
    ValueError
        Another source of targets than a cache, or fewer rows than processes.
    """
    if not isinstance(cache, TargetCache):
        raise ValueError(
            f"divide_rows: expected a TargetCache, whose shards are divided; got {type(cache).__name__}: "
            "open a cache, or leave divide_rows out"
        )
    if max(machines) == 0:
        return None
    starts = starts_of(cache.samples.ids(rows.uids, 0), machines)
    return Division(cache, machines, starts, rank)


def starts_of(places: np.ndarray, machines: Sequence[int]) -> np.ndarray:
    """The cache's row with which the stretch of each machine begins, int64 [machines].

    Machines get rows in proportion to their processes, so that all pass through theirs equally often. A shard
    that a stretch ends in is read by both of its machines.

    Parameters
    ----------
    places : ndarray [N], int64
        The training's rows in the cache, in any order.
    machines : sequence of int [P]
        The machine of each process.
    """
    processes = np.bincount(machines)
    if len(places) < len(machines):
        raise ValueError(
            f"rows: expected at least one for each of the {len(machines)} processes; got {len(places)}; "
            "leave divide_rows out"
        )
    before = np.cumsum(processes) - processes
    starts = np.sort(places)[before * len(places) // len(machines)]
    starts[0] = 0  # rows before it, of a validation, are the first machine's, too
    return starts


def machine_of(starts: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The machine of each of the cache's rows, int64 [M]."""
    return np.searchsorted(starts, places, side="right") - 1


class DividedOrder:
    """The order of batches of which each machine draws its share from its own rows.

    In a batch, process r has the positions r, r + P, r + 2P, ..., as in a
    :class:`~ensdistill.common.random.BatchOrder`.

    Parameters
    ----------
    orders : sequence of BatchOrder [machines]
        Each over the places of its machine's rows among its own, with its share of the batch.
    rows : sequence of ndarray [machines]
        The rows of each machine, as positions among all.
    machines : sequence of int [P]
        The machine of each process.
    """

    def __init__(
        self, orders: Sequence[BatchOrder], rows: Sequence[np.ndarray], machines: Sequence[int]
    ) -> None:
        self.orders, self._rows = orders, rows
        self.batch_size = sum(order.batch_size for order in orders)
        of_place = np.resize(np.asarray(machines), self.batch_size)
        self._places = [np.flatnonzero(of_place == machine) for machine in range(len(orders))]

    def __call__(self, step: int) -> np.ndarray:
        """Positions [batch_size], int64, of the batch of ``step`` (0, 1, ...)."""
        batch = np.empty(self.batch_size, np.int64)
        for order, rows, places in zip(self.orders, self._rows, self._places, strict=True):
            batch[places] = rows[order(step)]
        return batch

    def epochs(self, step: int, count: int) -> np.ndarray:
        """How many epochs each sample had been part of before, int64 [count, batch_size], from ``step``
        on."""
        found = np.empty((count, self.batch_size), np.int64)
        for order, places in zip(self.orders, self._places, strict=True):
            found[:, places] = order.epochs(step, count)
        return found
