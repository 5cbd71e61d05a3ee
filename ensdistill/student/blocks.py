"""The samples of a block of steps: their positions and their versions; and results that are made ahead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ensdistill.common.random import BatchOrder
from ensdistill.student.machines import DividedOrder


@dataclass(frozen=True, eq=False)
class Block:
    """The samples of some steps.

    Parameters
    ----------
    positions : ndarray [steps, batch], int64
        This process's samples, as positions among the rows.
    epochs : ndarray [steps, batch], int64
        How many epochs each had been part of before.
    whole : ndarray [steps, processes * batch], int64
        Positions of the samples of all processes.
    """

    positions: np.ndarray
    epochs: np.ndarray
    whole: np.ndarray

    def pieces(self, step: int, count: int) -> list[Piece]:
        """The block, whose first step is ``step``, in parts of ``count`` steps."""
        parts = [slice(i, i + count) for i in range(0, len(self.positions), count)]
        return [Piece(step + part.start, self.positions[part], self.epochs[part]) for part in parts]


@dataclass(frozen=True)
class Piece:
    """The samples of some steps of a block, which are read together. Pieces of one training are equal where
    they begin with the same step.

    Parameters
    ----------
    step : int
        The first step.
    positions, epochs : ndarray [steps, batch], int64
        See :class:`Block`.
    """

    step: int
    positions: np.ndarray = field(compare=False)
    epochs: np.ndarray = field(compare=False)


def draw_block(order: BatchOrder | DividedOrder, step: int, count: int, rank: int, world: int) -> Block:
    """This process's share of the steps ``step`` to ``step + count``."""
    positions = np.stack([order(step + i) for i in range(count)])
    return Block(positions[:, rank::world], order.epochs(step, count)[:, rank::world], positions)


def _use_one_thread() -> None:
    """Limit OpenMP to the calling thread, in its own parallel regions.

    Each thread that enters one has a team of its own. With more threads in all teams than cores, OpenMP's
    runtime (libgomp) lets threads sleep between regions in place of spinning: those of the training, too,
    which then wakes its team in each of its operations.
    """
    torch.get_num_threads()  # at its first use in a thread torch sets the number anew
    threadpool_limits(1, user_api="openmp")


Key = TypeVar("Key")
Result = TypeVar("Result")


class OneAhead(Generic[Key, Result]):
    """Results of a function; while one is used, the next is made on another thread.

    Parameters
    ----------
    function : callable
    alone : bool
        Whether torch's operations on that thread are to use it alone. It is for functions that copy: a sum
        over other parts would have other bits.

    Examples
    --------
    >>> with OneAhead(abs) as results:
    ...     results.ahead(-3)
    ...     results.of(-3), results.of(-4)
    (3, 4)
    """

    def __init__(self, function: Callable[[Key], Result], *, alone: bool = False) -> None:
        self.function = function
        self._executor = ThreadPoolExecutor(1, "ensdistill-targets", _use_one_thread if alone else None)
        self._ahead: tuple[Key, Future[Result]] | None = None

    def __enter__(self) -> OneAhead[Key, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def of(self, key: Key) -> Result:
        """The result for ``key``."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == key:
            return ahead[1].result()
        if ahead is not None and not ahead[1].cancel():
            wait([ahead[1]])  # the function is never called twice at once
        return self.function(key)

    def ahead(self, key: Key) -> None:
        """Begin to make the result that the next call of `of` returns."""
        self._ahead = (key, self._executor.submit(self.function, key))
