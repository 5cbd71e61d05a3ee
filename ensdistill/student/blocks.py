"""The samples of a block of steps: their positions, their versions, and their targets from the cache."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.cache import CacheMismatch, TargetCache
from ensdistill.cache.fingerprint import as_json, differences
from ensdistill.common.random import BatchOrder
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.samples import in_memory, whole
from ensdistill.data.versions import describe_views, view_inputs


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


def draw_block(order: BatchOrder, step: int, count: int, rank: int, world: int) -> Block:
    """This process's share of the steps ``step`` to ``step + count``."""
    positions = np.stack([order(step + i) for i in range(count)])
    epochs = (step * order.batch_size + np.arange(positions.size)).reshape(positions.shape) // order.rows
    return Block(positions[:, rank::world], epochs[:, rank::world], positions)


class TargetBlocks:
    """Targets of blocks; while one is used the next is gathered on another thread."""

    def __init__(self, cache: TargetCache, rows: Rows) -> None:
        self.cache, self.uids = cache, rows.uids
        self._executor = ThreadPoolExecutor(1, "ensdistill-cache")
        self._ahead: tuple[Block, Future[Any]] | None = None

    def __enter__(self) -> TargetBlocks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def of(self, block: Block) -> Any:
        """The block's targets, one step after the other."""
        if self._ahead is not None and self._ahead[0] is block:
            return self._ahead[1].result()
        return self._gather(block)

    def ahead(self, block: Block) -> None:
        """Begin to gather the block that the next call of `of` returns."""
        self._ahead = (block, self._executor.submit(self._gather, block))

    def _gather(self, block: Block) -> Any:
        return self.cache.gather(
            self.uids[block.positions.reshape(-1)], block.epochs.reshape(-1) % self.cache.views
        )


@dataclass(frozen=True)
class Versions:
    """How the teachers of a cache with views saw its samples.

    Parameters
    ----------
    cache : TargetCache
    seed : int
        Of the versions.
    """

    cache: TargetCache
    seed: int


def versions_of(cache: TargetCache, rows: Rows, augment: Augmentation | None) -> Versions | None:
    """How a cache's inputs are made from the rows; None where they are the rows themselves.

    Rows in memory are all compared with the cache, in their first version; lazy ones as they are read.

    Raises
    ------
    CacheMismatch
        Other rows than the cache's, or another augmentation.
    """
    made_by = cache.manifest["fingerprint"].get("views")
    if made_by is None:
        if augment is not None:
            raise CacheMismatch(
                f"augment: the cache {cache.path} was made from inputs as they are; got {augment!r}"
            )
        if in_memory(rows.inputs):
            cache.verify_inputs(rows.uids, rows.inputs)
        return None
    if augment is None:
        raise CacheMismatch(
            f"augment: the cache {cache.path} was made from inputs changed by {made_by['augment']}; pass "
            "that, got None"
        )
    given = as_json("augment", describe_views(augment, cache.views, made_by["seed"]))
    if differing := differences(made_by, given):
        raise CacheMismatch(f"augment: not the one that the cache {cache.path} was made with:", differing)
    seed = made_by["seed"]
    if in_memory(rows.inputs):  # lazy samples are compared as they are read
        cache.verify_inputs(rows.uids, view_inputs(augment, whole(rows.inputs), rows.uids, 0, seed))
    return Versions(cache, seed)
