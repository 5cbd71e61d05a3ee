"""The batches of a training, gathered from the rows and the source of targets for a block of steps at a
time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.processes import Processes
from ensdistill.common.random import BatchOrder, GroupedOrder, derive_seed, random_generator
from ensdistill.data import Rows
from ensdistill.data.reading import ReadAhead
from ensdistill.data.samples import buffer_of, groups_of
from ensdistill.student.blocks import Block, OneAhead, Piece, draw_block
from ensdistill.student.cost import StepCost
from ensdistill.student.inputs import (
    Inputs,
    Preparation,
    StepReader,
    moved,
    rows_of,
    steps_together,
    tensor_of,
)
from ensdistill.student.machines import DividedOrder, Division

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
        The targets of the B rows, in the form that their source holds, on the student's device. None in a
        training on labels alone.
    labels : Tensor [B], int64
        On the student's device; -100 where the label is unknown. Of other tasks [B, C] or [B, D]; see
        :class:`~ensdistill.student.methods.StudentLoss`.
    uids : ndarray [B], int64
        The rows' uids in their data set.
    step : int
        The number of the step, from 0.
    label_factor : float or None
        With several processes: the factor that makes the mean over this process's labelled rows a part of the
        mean over those of all processes. Gradients are averaged over processes; a mean of the processes' own
        means would weigh their rows differently. The same for the parts into which a batch is divided. None
        with one process and whole batches.
    weights : Tensor [B], float32, or None
        The rows' weights, divided by the mean over all rows of the training; None where they have none.
    features : mapping of str to Tensor
        The outputs of the student's layers that the method names in ``layers``, with gradients, in float32.
    own : Module or None
        The method's own module, which trains along.
    group : Processes
        Those that share the batch of the step: ``group.mean(tensor)`` is a mean over all of its rows.
    """

    inputs: Inputs
    targets: Any
    labels: Tensor
    uids: np.ndarray
    step: int
    label_factor: float | None
    weights: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    own: nn.Module | None = None
    group: Processes = field(default_factory=Processes)


class Batches(AbstractContextManager["Batches"]):
    """All batches of a training, for one of its processes.

    Inputs in memory are prepared once, if they fit; others are read, changed and preprocessed some steps at a
    time, ahead of their use where samples are lazy. The next block's targets are gathered on another thread.
    Where they are made from samples that are read or changed, they are made some steps at a time, on that
    thread too.

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
        self._order = order_of(rows, size, derive_seed("student batches", training.seed), training.division)
        units = training.units
        self._labels = tensor_of(rows.labels) if units is None else units.standardised(rows.labels)
        self._known = rows.known
        # Of mean 1, so that the loss has the scale of an unweighted one.
        weights = None if rows.weights is None else rows.weights / max(rows.weights.mean(), 1e-300)
        self._weights = None if weights is None else torch.from_numpy(weights).float()
        self._next: tuple[int, Block] | None = None
        # Plain numbers are changed at random as tensors, a block at a time. Other changes are made to the
        # samples, before these are preprocessed.
        targets = training.targets
        versions = None if targets is None else targets.versions
        plain = versions is None and prepare.preprocess is None and isinstance(rows.inputs, np.ndarray)
        unchanged = versions is None and training.augment is None
        self._held = prepare.held(rows.inputs) if unchanged or plain else None
        self._reader = None if self._held is not None else self._read(training, prepare)
        # Steps that are read together: a table's batch costs more by its columns than by its rows.
        self._chunk = 1 if self._held is not None else steps_together(prepare, rows.inputs, size)
        self._gathered = self._made = None
        if targets is not None and targets.needs_samples and self._reader is not None:
            self._made = OneAhead(self._with_targets)
        elif targets is not None:
            self._gathered = OneAhead(self._targets_of, alone=not targets.needs_samples)
        self.cost = StepCost(online=targets is not None and targets.needs_samples)
        self._group: Processes | None = None
        self._device = torch.device("cpu")

    def __exit__(self, *_: object) -> None:
        for part in (self._gathered, self._made, self._reader, self.training.targets):
            if part is not None:
                part.close()

    def block(self, step: int, group: Processes, device: torch.device) -> Iterator[Batch]:
        """The batches of the block that begins with ``step``: of ``BLOCK`` steps, or of those that are
        left."""
        self._group, self._device, block = group, device, self._draw(step, group)
        labels, uids = self._labels[block.positions].to(device), self.rows.uids[block.positions]
        targets = None
        if self._gathered is not None:
            with self.cost.counted("waited"):
                targets = self._gathered.of(block)
        if (following := step + len(labels)) < self.steps:
            self._next = following, self._draw(following, group)
            if self._gathered is not None and self._side_by_side():
                self._gathered.ahead(self._next[1])
        steps, factors = self._steps(block, targets, step, group), self._label_factors(block)
        weights = None if self._weights is None else self._weights[block.positions].to(device)
        for i, ((inputs, target), hard) in enumerate(zip(steps, labels.unbind(), strict=True)):
            if target is not None and device.type != "cpu":
                target = target.to(device, non_blocking=True)
            yield Batch(
                inputs=moved(inputs, device),
                targets=target,
                labels=hard,
                uids=uids[i],
                step=step + i,
                label_factor=factors[i],
                weights=None if weights is None else weights[i],
                group=group,
            )
        self.cost.add(len(block.positions))

    def _draw(self, step: int, group: Processes) -> Block:
        if self._next is not None and self._next[0] == step:
            return self._next[1]
        return draw_block(self._order, step, min(BLOCK, self.steps - step), group.rank, group.count)

    def _steps(self, block: Block, targets: Any, step: int, group: Processes) -> Iterator[tuple[Inputs, Any]]:
        """The inputs and targets of the block's steps, one after the other; ``targets`` are those of the
        whole block, or None."""
        size = block.positions.shape[1]
        if self._held is not None:
            inputs = rows_of(self._held, torch.from_numpy(block.positions))
            if self.training.augment is not None and isinstance(inputs, Tensor):
                inputs = self._augmented(inputs, step, group)
            for i in range(len(block.positions)):
                yield rows_of(inputs, i), _part(targets, i * size, (i + 1) * size)
            return
        pieces = block.pieces(step, self._chunk)
        for i, piece in enumerate(pieces):
            if self._made is None:
                inputs, own, first = self._checked(piece)[0], targets, i * self._chunk * size
            else:
                with self.cost.counted("waited"):
                    inputs, own, first = *self._made.of(piece), 0
                later = pieces[i + 1 :] or self._pieces_after(step + len(block.positions))
                if later and self._side_by_side():
                    self._made.ahead(later[0])
            for start in range(0, piece.positions.size, size):
                part = rows_of(inputs, slice(start, start + size))
                yield part, _part(own, first + start, first + start + size)

    def _pieces_after(self, step: int) -> list[Piece]:
        return self._next[1].pieces(step, self._chunk) if self._next and self._next[0] == step else []

    def _targets_of(self, block: Block) -> Any:
        """The targets of a block whose samples are unchanged."""
        targets, where = self.training.targets, block.positions.reshape(-1)
        assert targets is not None
        samples = self.rows.inputs[where] if targets.needs_samples else None
        self.cost.asked += len(where) if targets.needs_samples else 0
        with self.cost.counted("making"):
            return self._near(targets.of(self.rows.uids[where], block.epochs.reshape(-1), samples))

    def _with_targets(self, piece: Piece) -> tuple[Inputs, Any]:
        """The inputs of some steps, and the targets made from the samples behind them."""
        targets, where = self.training.targets, piece.positions.reshape(-1)
        assert targets is not None
        inputs, samples = self._checked(piece)
        self.cost.asked += len(where) if targets.needs_samples else 0
        with self.cost.counted("making"):
            return inputs, self._near(targets.of(self.rows.uids[where], piece.epochs.reshape(-1), samples))

    def _side_by_side(self) -> bool:
        """Whether the next targets are made while the student trains.

        Members and a student that both compute with several threads of one CPU would wait for each other's
        threads, which can take many times as long as one after the other.
        """
        targets = self.training.targets
        made = targets is not None and targets.needs_samples
        return not made or self._device.type != "cpu" or torch.get_num_threads() == 1

    def _near(self, targets: Any) -> Any:
        """Targets that were made on a GPU are copied to a student on the CPU together; a GPU takes them step
        by step."""
        return targets.to(self._device) if self._device.type == "cpu" else targets

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
        targets = training.targets
        versions = None if targets is None else targets.versions
        compared = "none" if targets is None else targets.compared
        read = self._step = StepReader(
            samples=training.rows.inputs,
            uids=training.rows.uids,
            prepare=prepare,
            augment=training.augment if versions is None else versions.augment,
            views=None if versions is None else versions.views,
            seed=derive_seed("student augment", training.seed) if versions is None else versions.seed,
            every={"none": 0, "one a batch": self.size, "all": 1}[compared],
            keep=targets is not None and targets.needs_samples,
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

    def _checked(self, piece: Piece) -> tuple[Inputs, Any]:
        """The inputs of some steps, of samples that the source of targets accepts, and these samples where it
        needs them.

        Raises
        ------
        CacheMismatch
            A sample differs from the cache's record of it.
        """
        assert self._reader is not None
        inputs, hashes, form, samples = self._reader(piece.step)
        if (targets := self.training.targets) is not None and len(hashes):
            some = self._step.hashed
            uids, epochs = self.rows.uids[piece.positions.reshape(-1)[some]], piece.epochs.reshape(-1)[some]
            targets.check(uids, epochs, hashes, form)
        return inputs, samples

    def _label_factors(self, block: Block) -> list[float | None]:
        if block.positions.shape == block.whole.shape:
            return [None] * len(block.positions)
        own, whole = self._known[block.positions], self._known[block.whole]
        counts = zip(own.sum(1).tolist(), whole.sum(1).tolist(), strict=True)
        return [mine * whole.shape[1] / (max(everyones, 1) * own.shape[1]) for mine, everyones in counts]


def _part(targets: Any, start: int, stop: int) -> Any:
    """The targets of some rows; None of none."""
    return None if targets is None else targets.rows(start, stop)


def order_of(rows: Rows, size: int, seed: int, division: Division | None = None) -> BatchOrder | DividedOrder:
    """The order of batches; samples that are read in groups are shuffled some groups at a time."""
    groups, buffer = groups_of(rows.inputs), buffer_of(rows.inputs)
    if division is None:
        return _shuffled(len(rows), groups, buffer, size, seed)
    machines, orders, owned = division.of(rows.uids), [], []
    group = None if groups is None else np.repeat(np.arange(len(groups)), groups)
    for machine, share in enumerate(division.shares(size)):
        own = np.flatnonzero(machines == machine)
        # Rows that are read together stay together: positions ascend, and a group's are one behind the other.
        mine = None if group is None else np.unique(group[own], return_counts=True)[1]
        orders.append(_shuffled(len(own), mine, buffer, share, derive_seed(seed, "machine", machine)))
        owned.append(own)
    return DividedOrder(orders, owned, division.machines)


def _shuffled(rows: int, groups: Any, buffer: int, size: int, seed: int) -> BatchOrder:
    return BatchOrder(rows, size, seed) if groups is None else GroupedOrder(groups, size, seed, buffer)
