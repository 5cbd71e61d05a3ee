"""Targets batch by batch, gathered some batches ahead on another thread.

A training step evicts the reader from the processor's caches: code that runs once for each step runs cold,
several times slower than in a loop, and so does waking a thread. Hence batches are gathered in groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ensdistill.cache.reader import TargetCache
    from ensdistill.loss.targets import Moments, Targets

Batch = np.ndarray | tuple[np.ndarray, int | np.ndarray]

# Of one group. Two lie in memory at a time, and in the processor's last cache.
_BATCHES, _BYTES = 16, 4 << 20


def stream(cache: TargetCache, batches: Iterable[Batch]) -> Iterator[Targets | Moments]:
    """See `TargetCache.stream`."""
    with ThreadPoolExecutor(1, "ensdistill-cache") as executor:
        ahead: Future[list[Targets | Moments]] | None = None
        for group in _groups(cache, batches):
            ready, ahead = ahead, executor.submit(_gather, cache, group)
            if ready is not None:
                yield from ready.result()
        if ahead is not None:
            yield from ahead.result()


def _groups(cache: TargetCache, batches: Iterable[Batch]) -> Iterator[list[np.ndarray]]:
    """The batches' ids.

    A group of sequences has one batch: their lengths are in the shards, and only the other thread should wait
    for these.
    """
    group: list[np.ndarray] = []
    size = 0
    for batch in batches:
        uids, view = batch if isinstance(batch, tuple) else (batch, 0)
        group.append(cache.samples.ids(uids, view))
        size += len(group[-1]) * cache.layout.bytes
        if len(group) == _BATCHES or size >= _BYTES or cache.manifest["sequences"]:
            yield group
            group, size = [], 0
    if group:
        yield group


def _gather(cache: TargetCache, group: list[np.ndarray]) -> list[Targets | Moments]:
    if len(group) == 1:
        return [cache.target_of(cache.shards.gather(group[0]))]
    records = cache.shards.gather(np.concatenate(group))
    return [cache.target_of(part) for part in np.split(records, np.cumsum([len(ids) for ids in group])[:-1])]
