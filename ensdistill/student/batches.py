"""The batches of a training, gathered from the rows and the cache for a block of steps at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.cache.verifying import verify_hashes
from ensdistill.common.processes import Processes
from ensdistill.common.random import BatchOrder, GroupedOrder, derive_seed, random_generator
from ensdistill.data import UNLABELLED
from ensdistill.data.reading import ReadAhead
from ensdistill.data.samples import buffer_of, groups_of, in_memory
from ensdistill.student.blocks import Block, TargetBlocks, draw_block
from ensdistill.student.inputs import (
    Inputs,
    Preparation,
    StepReader,
    moved,
    rows_of,
    steps_together,
    tensor_of,
)

if TYPE_CHECKING:
    from ensdistill.student.training import Training

# Batches are gathered, and losses checked, once per block of steps; checkpoints lie between blocks.
BLOCK = 32


@dataclass(slots=True, eq=False)
class Batch:
    """One process's share of the batch of one step.

    Parameters
    ----------
    inputs : Tensor [B, ...], or dict of str to Tensor
        On the student's device, augmented where the training is, and preprocessed: float32, or int64 for ids.
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
    weights : Tensor [B], float32, or None
        The rows' weights, divided by the mean over all rows of the training; None where they have none.
    """

    inputs: Inputs
    targets: Any
    labels: Tensor
    uids: np.ndarray
    step: int
    label_factor: float | None
    weights: Tensor | None = None


class Batches(AbstractContextManager["Batches"]):
    """All batches of a training, for one of its processes.

    Inputs in memory are prepared once, if they fit; others are read, changed and preprocessed step by step,
    ahead of their use where samples are lazy. A cache's targets of the next block are gathered on another
    thread.

    Parameters
    ----------
    training : Training
    prepare : Preparation
    steps, size : int
        Steps of the training, and rows of the batch of all processes.
    """

    def __init__(self, training: Training, prepare: Preparation, steps: int, size: int) -> None:
        self.training, self.steps, self.size = training, steps, size
        rows = self.rows = training.rows
        self._order = _order(rows.inputs, size, derive_seed("student batches", training.seed))
        self._labels = tensor_of(rows.labels)
        # Of mean 1, so that the loss has the scale of an unweighted one.
        weights = None if rows.weights is None else rows.weights / max(rows.weights.mean(), 1e-300)
        self._weights = None if weights is None else torch.from_numpy(weights).float()
        self._targets = None if training.cache is None else TargetBlocks(training.cache, rows)
        self._next: tuple[int, Block] | None = None
        # Plain numbers are changed at random as tensors, a block at a time. Other changes are made to the
        # samples, before these are preprocessed.
        plain = (
            training.versions is None and prepare.preprocess is None and isinstance(rows.inputs, np.ndarray)
        )
        self._held = prepare.held(rows.inputs) if training.augment is None or plain else None
        self._reader = None if self._held is not None else self._read(training, prepare)
        # Steps that are read together: a table's batch costs more by its columns than by its rows.
        self._chunk = 1 if self._held is not None else steps_together(prepare, rows.inputs, size)
        self._group: Processes | None = None

    def __exit__(self, *_: object) -> None:
        if self._targets is not None:
            self._targets.close()
        if self._reader is not None:
            self._reader.close()

    def block(self, step: int, group: Processes, device: torch.device) -> Iterator[Batch]:
        """The batches of the block that begins with ``step``: of ``BLOCK`` steps, or of those that are
        left."""
        self._group, block = group, self._draw(step, group)
        labels, uids = self._labels[block.positions].to(device), self.rows.uids[block.positions]
        targets = None if self._targets is None else self._targets.of(block)
        if (following := step + len(labels)) < self.steps:
            self._next = following, self._draw(following, group)
            if self._targets is not None:
                self._targets.ahead(self._next[1])
        inputs, factors, size = self._inputs(block, step, group), self._label_factors(block), labels.shape[1]
        weights = None if self._weights is None else self._weights[block.positions].to(device)
        for i, hard in enumerate(labels.unbind()):
            target = None if targets is None else targets.rows(i * size, (i + 1) * size)
            if target is not None and device.type != "cpu":
                target = target.to(device, non_blocking=True)
            yield Batch(
                inputs=moved(next(inputs), device),
                targets=target,
                labels=hard,
                uids=uids[i],
                step=step + i,
                label_factor=factors[i],
                weights=None if weights is None else weights[i],
            )

    def _draw(self, step: int, group: Processes) -> Block:
        if self._next is not None and self._next[0] == step:
            return self._next[1]
        return draw_block(self._order, step, min(BLOCK, self.steps - step), group.rank, group.count)

    def _inputs(self, block: Block, step: int, group: Processes) -> Iterator[Inputs]:
        """The inputs of the block's steps, one after the other."""
        if self._held is None:
            for i in range(0, len(block.positions), self._chunk):
                chunk = slice(i, i + self._chunk)
                inputs = self._checked(step + i, block.positions[chunk], block.epochs[chunk])
                size = block.positions.shape[1]
                for start in range(0, size * len(block.positions[chunk]), size):
                    yield rows_of(inputs, slice(start, start + size))
            return
        inputs = rows_of(self._held, torch.from_numpy(block.positions))
        if self.training.augment is not None and isinstance(inputs, Tensor):
            inputs = self._augmented(inputs, step, group)
        for i in range(len(block.positions)):
            yield rows_of(inputs, i)

    def _augmented(self, inputs: Tensor, step: int, group: Processes) -> Tensor:
        """Inputs [steps, batch, ...], changed at random."""
        augment = self.training.augment
        assert augment is not None
        # Every process draws for the whole block and takes its share, so that the draws do not depend on the
        # number of processes.
        generator = random_generator("student augment", self.training.seed, step // BLOCK)
        draws = torch.from_numpy(augment.draw(BLOCK * self.size, generator)).unflatten(0, (BLOCK, self.size))
        share = draws[: len(inputs), group.rank :: group.count]
        return augment.apply(inputs.flatten(0, 1), share.flatten(0, 1)).view(inputs.shape)

    def _read(self, training: Training, prepare: Preparation) -> ReadAhead:
        versions = training.versions
        # In memory, plain inputs were compared before the training; of versions one is in each batch.
        every = 0 if training.cache is None or versions is None else self.size
        every = 1 if training.cache is not None and not in_memory(training.rows.inputs) else every
        read = self._step = StepReader(
            samples=training.rows.inputs,
            uids=training.rows.uids,
            prepare=prepare,
            augment=training.augment,
            views=None if versions is None else versions.cache.views,
            seed=derive_seed("student augment", training.seed) if versions is None else versions.seed,
            every=every,
        )
        return ReadAhead(training.rows.inputs, self._following, workers=training.workers, read=read)

    def _following(self, step: int) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """Positions and epochs of this process's samples in the next steps, and in all after them."""
        group = self._group
        assert group is not None
        for later in range(step, self.steps, self._chunk):
            count = min(self._chunk, self.steps - later)
            block = draw_block(self._order, later, count, group.rank, group.count)
            yield later, (block.positions.reshape(-1), block.epochs.reshape(-1))

    def _checked(self, step: int, where: np.ndarray, epochs: np.ndarray) -> Inputs:
        """The inputs of some steps, of samples that are those of the cache.

        Raises
        ------
        CacheMismatch
            A sample differs from the cache's record of it.
        """
        assert self._reader is not None
        inputs, hashes, form = self._reader(step)
        if (cache := self.training.cache) is not None and len(hashes):
            some = self._step.hashed
            uids, views = self.rows.uids[where.reshape(-1)[some]], epochs.reshape(-1)[some] % cache.views
            verify_hashes(cache, uids, hashes, views, form)
        return inputs

    def _label_factors(self, block: Block) -> list[float | None]:
        own, whole = self.rows.labels[block.positions], self.rows.labels[block.whole]
        if own.shape == whole.shape:
            return [None] * len(own)
        counts = zip((own != UNLABELLED).sum(1).tolist(), (whole != UNLABELLED).sum(1).tolist(), strict=True)
        return [mine * whole.shape[1] / (max(everyones, 1) * own.shape[1]) for mine, everyones in counts]


def _order(samples: Any, size: int, seed: int) -> BatchOrder:
    """The order of batches; samples that are read in groups are shuffled some groups at a time."""
    groups = groups_of(samples)
    if groups is None:
        return BatchOrder(len(samples), size, seed)
    return GroupedOrder(groups, size, seed, buffer=buffer_of(samples))
