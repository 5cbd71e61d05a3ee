"""Torch modules as members: one stack, or one training of which every member is a moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.describe import make_module, module_recipe
from ensdistill.common.optimization import trained_parameters
from ensdistill.common.random import derive_seed
from ensdistill.data.batches import kind_of
from ensdistill.data.samples import whole
from ensdistill.teachers.jobs import Job, TrainingRows
from ensdistill.teachers.members import Member, TorchMember
from ensdistill.teachers.members.dtypes import as_float32, tables
from ensdistill.teachers.members.inputs import as_batch
from ensdistill.teachers.members.outputs import Output
from ensdistill.teachers.members.standardised import Standardised
from ensdistill.teachers.methods import FastGeometric, Snapshot, as_method
from ensdistill.teachers.stack import Status, Watch, train_stack, train_trajectory
from ensdistill.teachers.stack.objectives import units_of

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
    if recipe.variance and data.task != "regression":
        raise ValueError(
            f"variance: {recipe.name}: expected with the task regression alone; got labels of {data.task}"
        )
    modules = train(recipe, data, jobs, checkpoint, watch)
    factory = None if module_recipe(recipe.model) is None else recipe.model
    for job, trained in zip(jobs, modules, strict=True):
        module = trained.inner if isinstance(trained, Unpacked) else trained
        yield job, _member(recipe, module, job, data, factory)


def _member(
    recipe: TorchMembers,
    module: nn.Module,
    job: Job,
    data: TrainingRows,
    factory: Callable[[], nn.Module] | None,
) -> Member:
    """The trained module as a member; a regressor predicts in the units of the rows that it learned from."""
    named: dict[str, Any] = {"name": job.name, "classes": data.classes, "factory": factory}
    if data.task != "regression":
        return TorchMember(module, output="logits", task=data.task, **named)
    location, scale = (values.tolist() for values in units_of(data.labels[job.rows]))
    if factory is not None:
        inner = factory if isinstance(factory, partial) else partial(factory)
        named["factory"] = partial(Standardised, model=inner, location=location, scale=scale)
    output: Output = "mean_and_variance" if recipe.variance else "mean"
    whole = Standardised(module, location, scale).eval()
    return TorchMember(whole, output=output, task="regression", **named)


class Unpacked(nn.Module):
    """A module of token ids, or of several inputs by name, behind one array of float32 that holds them all.

    Parameters
    ----------
    inner : Module
    fields : list of (str, list of int, dtype)
        Name, shape of a sample and dtype of each input, in order; the name "" is the only positional input.
    """

    def __init__(self, inner: nn.Module, fields: Sequence[tuple[str, list[int], torch.dtype]]) -> None:
        super().__init__()
        self.inner, self.fields = inner, list(fields)

    def forward(self, packed: Tensor) -> Tensor:
        inputs, start = {}, 0
        for name, shape, dtype in self.fields:
            size = math.prod(shape)
            part = packed[..., start : start + size].to(dtype)
            inputs[name], start = part.reshape(*packed.shape[:-1], *shape), start + size
        output = self.inner(inputs[""]) if "" in inputs else self.inner(**inputs)
        logits: Tensor = getattr(output, "logits", output)
        return logits

    def _get_name(self) -> str:
        return type(self.inner).__name__  # warnings name the user's class


def packed(recipe: TorchMembers, samples: Any) -> tuple[Callable[[], nn.Module], np.ndarray]:
    """The model's factory, and its inputs as float32 [N, ...].

    Integers of an array stay integers for a model with embeddings, and those of a mapping for every model:
    the factory's modules are then :class:`Unpacked`. float32 holds ids below 2 ** 24.

    Raises
    ------
    TypeError
        Neither an array nor a mapping of arrays: the recipe needs a preprocess.
    BadRows
        Numbers that float32 can't hold.
    """
    batch = whole(samples)
    if isinstance(batch, Tensor):
        batch = as_batch(batch)
    if isinstance(batch, np.ndarray) and not (batch.dtype.kind in "iu" and _embeds(recipe)):
        return recipe.model, as_float32("data", batch)
    parts = as_batch(batch) if isinstance(batch, Mapping) else {"": batch}
    if not all(isinstance(part, np.ndarray) and part.dtype.kind in "fiub" for part in parts.values()):
        kind = kind_of(batch).name
        raise TypeError(
            f"preprocess: {recipe.name}: expected numbers, an array or a mapping of arrays, for a network; "
            f"got a batch of kind {kind!r}: name a preprocess that makes numbers of it"
        )
    fields = [(name, [*part.shape[1:]], _dtype(part)) for name, part in parts.items()]
    flat = [as_float32("data", part).reshape(len(part), -1) for part in parts.values()]
    return partial(_unpacked, recipe.model, fields), np.concatenate(flat, 1)


def _unpacked(factory: Callable[[], nn.Module], fields: list[Any]) -> nn.Module:
    return Unpacked(make_module(factory), fields)


def _dtype(part: np.ndarray) -> torch.dtype:
    return torch.float32 if part.dtype.kind == "f" else torch.bool if part.dtype.kind == "b" else torch.int64


def _embeds(recipe: TorchMembers) -> bool:
    with torch.random.fork_rng(devices=[]):
        return bool(tables(make_module(recipe.model)))


def _common(recipe: TorchMembers, data: TrainingRows, checkpoint: Path | None) -> dict[str, Any]:
    common: dict[str, Any] = {
        "classes": len(data.classes),
        "variance": recipe.variance,
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
    factory, inputs = packed(recipe, data.inputs)
    return train_stack(
        factory,
        inputs,
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
    with torch.random.fork_rng(devices=[]):
        size = trained_parameters(make_module(recipe.model))
    optimization, captures = method.plan(recipe.optimization.for_member(len(data.labels), size), len(jobs))
    if len(jobs[0].rows) < len(data.labels):
        data = data.take(jobs[0].rows)

    def shared(status: Status) -> None:
        """One training, of which every job is a part."""
        for job, end in zip(jobs, captures, strict=True):
            if watch is not None:
                watch(Status((job.key,), min(status.step, end), end, status.losses, status.accuracies))

    factory, inputs = packed(recipe, data.inputs)
    return train_trajectory(
        factory,
        inputs,
        data.labels,
        seed=derive_seed("trajectory", jobs[0].seed),
        captures=captures,
        optimization=optimization,
        weights=data.weights,
        name=jobs[0].key,
        watch=None if watch is None else shared,
        **_common(recipe, data, checkpoint),
    )
