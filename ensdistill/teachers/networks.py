"""Torch modules as members: one stack, or one training of which every member is a moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ensdistill.common.describe import module_recipe
from ensdistill.common.random import derive_seed
from ensdistill.teachers.jobs import Job, TrainingRows
from ensdistill.teachers.members import Member, TorchMember
from ensdistill.teachers.methods import FastGeometric, Snapshot, as_method
from ensdistill.teachers.stack import Status, Watch, train_stack, train_trajectory
from ensdistill.teachers.stack.validation import as_float32

if TYPE_CHECKING:
    from ensdistill.teachers.recipes import TorchMembers


def fit(
    recipe: TorchMembers,
    data: TrainingRows,
    jobs: Sequence[Job],
    checkpoint: Path | None,
    watch: Watch | None,
) -> Iterator[tuple[Job, Member]]:
    """Train the jobs' modules together; of snapshots and fast geometric cycles the jobs are those of one
    training."""
    train = _trajectory if recipe.one_training else _stack
    modules = train(recipe, data, jobs, checkpoint, watch)
    factory = None if module_recipe(recipe.model) is None else recipe.model
    for job, module in zip(jobs, modules, strict=True):
        yield job, TorchMember(module, name=job.name, classes=data.classes, factory=factory, output="logits")


def _common(recipe: TorchMembers, data: TrainingRows, checkpoint: Path | None) -> dict[str, Any]:
    common: dict[str, Any] = {
        "classes": len(data.classes),
        "augment": recipe.augment,
        "device": recipe.device,
    }
    return common | {"checkpoint": checkpoint, "checkpoint_every": recipe.checkpoint_every}


def _stack(
    recipe: TorchMembers,
    data: TrainingRows,
    jobs: Sequence[Job],
    checkpoint: Path | None,
    watch: Watch | None,
) -> list[nn.Module]:
    return train_stack(
        recipe.model,
        as_float32("data", data.inputs),
        data.labels,
        seeds=[job.seed for job in jobs],
        rows=[job.rows for job in jobs],
        names=[job.key for job in jobs],
        weights=data.weights,
        optimization=recipe.optimization,
        way=recipe.way,
        watch=watch,
        **_common(recipe, data, checkpoint),
    )


def _trajectory(
    recipe: TorchMembers,
    data: TrainingRows,
    jobs: Sequence[Job],
    checkpoint: Path | None,
    watch: Watch | None,
) -> list[nn.Module]:
    method = as_method(recipe.method)
    assert isinstance(method, (Snapshot, FastGeometric))
    optimization, captures = method.plan(recipe.optimization, len(jobs))
    if len(jobs[0].rows) < len(data.labels):
        data = data.take(jobs[0].rows)

    def shared(status: Status) -> None:
        """One training, of which every job is a part."""
        for job, end in zip(jobs, captures, strict=True):
            if watch is not None:
                watch(Status((job.key,), min(status.step, end), end, status.losses, status.accuracies))

    return train_trajectory(
        recipe.model,
        as_float32("data", data.inputs),
        data.labels,
        seed=derive_seed("trajectory", jobs[0].seed),
        captures=captures,
        optimization=optimization,
        weights=data.weights,
        name=jobs[0].key,
        watch=None if watch is None else shared,
        **_common(recipe, data, checkpoint),
    )
