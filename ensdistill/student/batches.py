"""The batches of a training, gathered from the rows and the cache for a block of steps at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.cache import TargetCache
from ensdistill.common.processes import Processes
from ensdistill.common.random import BatchOrder, derive_seed, random_generator
from ensdistill.data import UNLABELLED, Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.student.blocks import Block, TargetBlocks, Versions, draw_block
from ensdistill.teachers.stack.validation import as_float32

# Batches are gathered, and losses checked, once per block of steps; checkpoints lie between blocks.
BLOCK = 32


@dataclass(slots=True, eq=False)
class Batch:
    """One process's share of the batch of one step.

    Parameters
    ----------
    inputs : Tensor [B, ...], float32
        On the student's device, augmented where the training is.
    targets : one of :mod:`ensdistill.loss.targets`, or None
        The cache's targets of the B rows, as stored, on the student's device. None in a training on labels
        alone.
    labels : Tensor [B], int64
        On the student's device; -100 where the label is unknown.
    uids : ndarray [B], int64
        The rows' uids in their data set.
    step : int
        The number of the step, from 0.
    label_factor : float or None
        With several processes: the factor that makes the mean over this process's labelled rows a part of the
        mean over those of all processes. Gradients are averaged over processes; a mean of the processes' own
        means would weigh their rows differently. None with one process.
    """

    inputs: Tensor
    targets: Any
    labels: Tensor
    uids: np.ndarray
    step: int
    label_factor: float | None


class Batches(AbstractContextManager["Batches"]):
    """All batches of a training, for one of its processes. A cache's targets of the next block are gathered
    on another thread.

    Parameters
    ----------
    rows : Rows
    cache : TargetCache or None
    augment : Augmentation, Versions or None
        An augmentation changes the inputs at random; versions are the inputs that the teachers saw.
    seed : int
    steps, size : int
        Steps of the training, and rows of the batch of all processes.
    """

    def __init__(
        self,
        rows: Rows,
        cache: TargetCache | None,
        augment: Augmentation | Versions | None,
        seed: int,
        steps: int,
        size: int,
    ) -> None:
        self.rows, self.augment, self.seed, self.steps, self.size = rows, augment, seed, steps, size
        self._order = BatchOrder(len(rows), size, derive_seed("student batches", seed))
        self._inputs = torch.from_numpy(np.ascontiguousarray(as_float32("rows.inputs", rows.inputs)))
        self._labels = torch.from_numpy(rows.labels)
        self._targets = None if cache is None else TargetBlocks(cache, rows)
        self._next: tuple[int, Block] | None = None

    def __exit__(self, *_: object) -> None:
        if self._targets is not None:
            self._targets.close()

    def block(self, step: int, group: Processes, device: torch.device) -> Iterator[Batch]:
        """The batches of the block that begins with ``step``: of ``BLOCK`` steps, or of those that are
        left."""
        block = self._draw(step, group)
        inputs, labels, uids = (
            self._augmented(block, step, group),
            self._labels[block.positions],
            self.rows.uids[block.positions],
        )
        targets = None if self._targets is None else self._targets.of(block)
        if (following := step + len(labels)) < self.steps:
            self._next = following, self._draw(following, group)
            if self._targets is not None:
                self._targets.ahead(self._next[1])
        factors, rows = self._label_factors(block), labels.shape[1]
        for i, (batch, hard) in enumerate(zip(inputs.unbind(), labels.to(device).unbind(), strict=True)):
            target = None if targets is None else targets.rows(i * rows, (i + 1) * rows)
            if target is not None and device.type != "cpu":
                target = target.to(device, non_blocking=True)
            yield Batch(batch.to(device), target, hard, uids[i], step + i, factors[i])

    def _draw(self, step: int, group: Processes) -> Block:
        if self._next is not None and self._next[0] == step:
            return self._next[1]
        return draw_block(self._order, step, min(BLOCK, self.steps - step), group.rank, group.count)

    def _augmented(self, block: Block, step: int, group: Processes) -> Tensor:
        """The block's inputs [steps, batch, ...]."""
        if isinstance(self.augment, Versions):
            return torch.from_numpy(as_float32("rows.inputs", self.augment.inputs(block)))
        inputs = self._inputs[torch.from_numpy(block.positions)]
        if self.augment is None:
            return inputs
        # Every process draws for the whole block and takes its share, so that the draws do not depend on the
        # number of processes.
        generator = random_generator("student augment", self.seed, step // BLOCK)
        draws = torch.from_numpy(self.augment.draw(BLOCK * self.size, generator)).unflatten(
            0, (BLOCK, self.size)
        )
        share = draws[: len(inputs), group.rank :: group.count]
        return self.augment.apply(inputs.flatten(0, 1), share.flatten(0, 1)).view(inputs.shape)

    def _label_factors(self, block: Block) -> list[float | None]:
        own, whole = self.rows.labels[block.positions], self.rows.labels[block.whole]
        if own.shape == whole.shape:
            return [None] * len(own)
        counts = zip((own != UNLABELLED).sum(1).tolist(), (whole != UNLABELLED).sum(1).tolist(), strict=True)
        return [mine * whole.shape[1] / (max(everyones, 1) * own.shape[1]) for mine, everyones in counts]
