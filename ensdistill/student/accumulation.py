"""The gradients of one step, by the parts of a batch that go through the model one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ensdistill.common.processes import Processes
from ensdistill.student.batch_statistics import split_norms
from ensdistill.student.batches import Batch
from ensdistill.student.engine import Engine
from ensdistill.student.inputs import rows_of
from ensdistill.student.methods import StudentLoss, name_of
from ensdistill.student.preconditions import check_first_loss
from ensdistill.student.units import known_of

if TYPE_CHECKING:
    from ensdistill.student.trainer import StudentTrainer


def check_divides(parts: int, size: int, processes: int = 1) -> None:
    """Raise ValueError unless a process's rows of a batch can be divided into so many parts."""
    share = size // processes
    if share % parts:
        whole = f"optimization.batch_size ({size})"
        rows = whole if processes == 1 else f"the {share} rows of each of the {processes} processes"
        divisors = [d for d in range(1, share + 1) if share % d == 0]
        raise ValueError(
            f"optimization.accumulate: expected a divisor of {rows}; got {parts}: choose "
            f"{max(d for d in divisors if d <= parts)}"
            + (f" or {min(later)}" if (later := [d for d in divisors if d > parts]) else "")
        )


def warn_of_parts(parts: int, size: int, group: Processes, model: nn.Module) -> None:
    """Warn of BatchNorm, whose statistics are those of the parts of a batch."""
    if parts > 1 and group.rank == 0 and (names := split_norms(model)):
        rows = size // group.count // parts
        more = f" and {len(names) - 1} more" if names[1:] else ""
        warnings.warn(
            f"BatchNorm ({names[0]}{more}) takes mean and variance of {rows} rows at a time, the "
            f"parts of a batch (optimization.accumulate={parts}), so the student is another one than that of "
            "whole batches",
            stacklevel=5,  # the line that calls ``distill`` or ``direct``
        )


def add_gradients(
    trainer: StudentTrainer, engine: Engine, batch: Batch, loss: StudentLoss, parts: int
) -> Tensor:
    """Compute the gradients of a batch, and return its loss [], without a gradient."""
    engine.optimizer.zero_grad()
    total: Tensor | None = None
    step = type(trainer).training_step.__qualname__
    name = name_of(loss) if step == "StudentTrainer.training_step" else step
    for part in split(batch, parts):
        value = trainer.training_step(engine.forward, part, loss)
        check_first_loss(value, name)
        if parts > 1:
            value = value / parts
        engine.backward(value)
        total = value.detach() if total is None else total + value.detach()
    assert total is not None
    return total


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """A batch's rows in so many equal parts, whose mean loss is that of the batch: ``label_factor`` makes the
    mean over the labelled rows of a part its share of the mean over those of the batch."""
    if parts == 1:
        yield batch
        return
    size = len(batch.labels) // parts
    counts = known_of(batch.labels).view(parts, size).sum(1).tolist()
    whole = 1.0 if batch.label_factor is None else batch.label_factor
    for i, count in enumerate(counts):
        rows = slice(i * size, (i + 1) * size)
        yield replace(
            batch,
            inputs=rows_of(batch.inputs, rows),
            targets=None if batch.targets is None else batch.targets.rows(rows.start, rows.stop),
            labels=batch.labels[rows],
            uids=batch.uids[rows],
            label_factor=whole * parts * count / max(sum(counts), 1),
            weights=None if batch.weights is None else batch.weights[rows],
        )
