"""Strategies to train a group of models (``way``), and the choice of the fastest."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ensdistill.teachers.members.logits import logits_of
from ensdistill.teachers.stack.dropout import OwnDropout
from ensdistill.teachers.stack.loop import Job
from ensdistill.teachers.stack.side_by_side import hindrance, single_threaded

# Measured on one thread of a 2-core x86 machine (torch 2.13), ms per step of all models, one by one /
# stacked: MLP 64-64-10, batch 64           1 model 0.5/0.9    4 models 1.8/1.2     24 models 10.7/3.0 CNN
# 8-16, batch 64               1 model 1.6/2.0    4 models 4.5/3.2     24 models 26.8/14.6 CNN (16, 32) + 64,
# batch 32      1 model 3.2/4.0    4 models 9.4/10.9    24 models 63.1/46.9
STACK_FROM = 4
MEASURE_FROM = 200  # steps; timing all ways takes as long as about ten
_PROBES, _PROBE = 2, 2  # timings of as many steps, after one to warm up
_HOPELESS = 1.5  # times the best so far: not timed again

# Of the trial whether models are one architecture. A stack adds up in another order, on a GPU in TF32; other
# code differs by far more.
TRIED, NUDGE, TOLERANCE = 16, 0.1, 1e-2

Way = Literal["auto", "measured", "stacked", "one_by_one", "side_by_side"]
CONCRETE: tuple[Way, ...] = ("stacked", "one_by_one", "side_by_side")


def workers(count: int) -> int:
    """How many models are trained at once side by side."""
    return min(count, torch.get_num_threads())


def fastest(models: list[nn.Module], job: Callable[[Sequence[int]], Job]) -> Way:
    """The way whose steps take the least time; ``job`` makes jobs of copies, which are used up."""
    count, at_once, single = len(models), workers(len(models)), job([0])
    seconds: dict[Way, float] = {"one_by_one": count * step_seconds(lambda steps: single.block(0, steps))}
    if at_once > 1 and single.inputs.device.type == "cpu" and can_run_side_by_side(models, single):
        try:
            jobs = [single, *(job([i]) for i in range(1, at_once))]
            with single_threaded(at_once) as pool:
                one = step_seconds(lambda steps: list(pool.map(lambda each: each.block(0, steps), jobs)))
            seconds["side_by_side"] = math.ceil(count / at_once) * one
        except Exception as error:  # one by one it has just worked
            _warn(models[0], "side by side", error)
    stack = as_stack(models, job)
    if stack is not None:
        try:
            seconds["stacked"] = step_seconds(partial(stack.block, 0), _HOPELESS * min(seconds.values()))
        except Exception as error:  # as above: too little memory, for example
            _warn(models[0], "as a stack", error)
    return min(seconds, key=lambda way: seconds[way])


def step_seconds(block: Callable[[int], object], hopeless: float = math.inf) -> float:
    """Seconds of one of the steps that ``block`` does; timed once only where that is more than
    ``hopeless``."""
    block(1)
    best = math.inf
    for _ in range(_PROBES):
        start = time.perf_counter()
        block(_PROBE)  # looks at the losses, so that a GPU has done its work
        best = min(best, (time.perf_counter() - start) / _PROBE)  # disturbances add
        if best > hopeless:
            break
    return best


def as_stack(
    models: list[nn.Module], job: Callable[[Sequence[int]], Job], insist: bool = False
) -> Job | None:
    """A stack of copies that has done a step and computes the same as each model alone; None, with a warning,
    if there is none.

    ``insist``: models that depend on each other by their random numbers cause a warning only.
    """
    try:
        stack = job(range(len(models)))
        reason: object
        if stack.traits.reassigns:
            reason = (
                "its forward pass assigns buffers anew, which vmap would lose; write into them instead "
                "(buffer.copy_(value))"
            )
        elif stack.traits.draws and not insist:
            reason = (
                "it draws from a global generator beside dropout, so that a model would depend on those it "
                "is trained with"
            )
        else:
            reason = difference(stack)
        if reason is None:
            stack.block(0, 1)
    except FloatingPointError:  # its message is true of the models, however they are trained
        raise
    except Exception as error:  # memory, operations that vmap lacks, modules that need real tensors
        reason = error
    if reason is not None:
        _warn(models[0], "as a stack", reason)
        return None
    if stack.traits.draws:
        warnings.warn(
            f"{models[0]._get_name()} draws from a global generator beside dropout: stacked, a model "
            "depends on those beside it",
            stacklevel=4,
        )
    return stack


@torch.no_grad()
def difference(stack: Job) -> str | None:
    """The sign that the models of a stack are not one architecture, or None.

    Their parameters have equal shapes, but attributes (a rate of dropout, a branch) would be the first
    model's for all.
    """
    base, parameters = stack.models[0], dict[str, Tensor]()
    for name, model in zip(stack.names, stack.models, strict=True):
        if repr(model.train()) != repr(base):
            return f"{name} is built otherwise than {stack.names[0]}"
    generator = torch.Generator().manual_seed(0)
    for name, value in stack.parameters.items():
        # Away from where they begin: a last layer of zeros returns zeros for every input.
        parameters[name] = (
            value + NUDGE * torch.randn(value.shape, generator=generator).to(value)
            if value.is_floating_point()
            else value
        )
    few = stack.inputs[
        torch.from_numpy(stack.rows[0][np.linspace(0, len(stack.rows[0]) - 1, TRIED).astype(int)]).to(
            stack.inputs.device
        )
    ]
    key = torch.tensor([1, 2], dtype=torch.int32, device=few.device)

    def answer(
        module: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor
    ) -> Tensor:
        with OwnDropout() as mode:
            mode.begin(key)
            return logits_of(functional_call(module, (parameters, buffers), (inputs,)))

    with torch.random.fork_rng(devices=[few.device] if few.device.type == "cuda" else []):
        together = vmap(partial(answer, base), in_dims=(0, 0, None), randomness="different")(
            parameters, {key: value.clone() for key, value in stack.buffers.items()}, few
        )
        if stack.traits.draws:
            return None
        for i, (name, model) in enumerate(zip(stack.names, stack.models, strict=True)):
            own = (
                {key: value[i] for key, value in parameters.items()},
                {key: value[i].clone() for key, value in stack.buffers.items()},
            )
            alone = answer(model, *own, few)
            scale = 1 + float(alone.float().nan_to_num().abs().max())
            if not torch.allclose(
                alone.float(), together[i].float(), rtol=0, atol=TOLERANCE * scale, equal_nan=True
            ):
                return f"{name} computes something else than {stack.names[0]} by what is no parameter of it"
    return None


def can_run_side_by_side(models: Sequence[nn.Module], job: Job) -> bool:
    """Whether the models can; if not, a warning gives the reason."""
    reason = hindrance(models, job)
    if reason is not None:
        _warn(models[0], "side by side", reason)
    return reason is None


def _warn(model: nn.Module, how: str, reason: object) -> None:
    line = (str(reason).splitlines() or [type(reason).__name__])[0]
    warnings.warn(f"{model._get_name()} can't be trained {how}: {line}", stacklevel=5)
