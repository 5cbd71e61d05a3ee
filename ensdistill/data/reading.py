"""Batches of samples in an order that is known beforehand, read ahead of their use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ensdistill.common.ahead import ahead
from ensdistill.data.samples import in_memory, read_by_thread

Key = Any
MOST_WORKERS = 8


def default_workers(samples: Any) -> int:
    """Processes that read these samples where the user names no number: none for samples in memory, one
    thread for Parquet and Arrow, else as many as there are cores, up to eight."""
    if in_memory(samples):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if read_by_thread(samples) else min(MOST_WORKERS, cores)


class ReadAhead:
    """Batches asked for one after the other, while workers read the following ones.

    Parameters
    ----------
    samples : Samples
    following : callable
        From the key of a batch to the pairs (key, item) of this batch and of those after it, in order. A
        batch that is asked for out of this order is read, with those after it, by new workers.
    workers : int, optional
        Processes, or for Parquet and Arrow the one thread; :func:`default_workers` by default.
    read : callable, optional
        From an item to the batch; by default the samples at the positions ``item``.

    Examples
    --------
    >>> import numpy as np
    >>> order = lambda first: ((i, np.array([i, i + 1])) for i in range(first, 3))
    >>> batches = ReadAhead(np.arange(4), order)
    >>> batches(0).tolist(), batches(1).tolist(), batches(0).tolist()
    ([0, 1], [1, 2], [0, 1])
    """

    def __init__(
        self,
        samples: Any,
        following: Callable[[Key], Iterable[tuple[Key, Any]]],
        *,
        workers: int | None = None,
        read: Callable[[Any], Any] | None = None,
    ) -> None:
        self.following, self.read = following, read or samples.__getitem__
        self.workers = 0 if in_memory(samples) else default_workers(samples) if workers is None else workers
        self._thread = read_by_thread(samples)
        self._next: Key = None
        self._batches: Iterator[Any] | None = None
        self._keys: Iterator[Key] = iter(())

    def __call__(self, key: Key) -> Any:
        """The batch of this key."""
        if self._batches is None or self._next != key:
            self.close()
            self._keys = (one for one, _ in self.following(key))
            items = (item for _, item in self.following(key))
            self._batches = ahead(self.read, items, workers=self.workers, thread=self._thread)
            next(self._keys)
        batch = next(self._batches)
        self._next = next(self._keys, None)
        return batch

    def close(self) -> None:
        """End the workers."""
        if self._batches is not None and hasattr(self._batches, "close"):
            self._batches.close()
        self._batches = None
