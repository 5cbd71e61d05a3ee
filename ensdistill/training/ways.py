"""The ways in which a group of models can be trained, and which of them is the fastest."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from ensdistill.training.job import Job
from ensdistill.training.side_by_side import hindrance, single_threaded

# Measured on one thread of a 2-core x86 machine (torch 2.13), ms per step of all models, one by one / stacked:
#   MLP 64-64-10, batch 64           1 model 0.5/0.9    4 models 1.8/1.2     24 models 10.7/3.0
#   CNN 8-16, batch 64               1 model 1.6/2.0    4 models 4.5/3.2     24 models 26.8/14.6
#   CNN (16, 32) + 64, batch 32      1 model 3.2/4.0    4 models 9.4/10.9    24 models 63.1/46.9
STACK_FROM = 4
MEASURE_FROM = 200  # steps; timing all ways takes as long as about ten
_PROBES, _PROBE = 2, 2  # timings of as many steps, after one to warm up
_HOPELESS = 1.5  # times the best so far: not timed again

Way = Literal["auto", "measured", "stacked", "one_by_one", "side_by_side"]
CONCRETE: tuple[Way, ...] = ("stacked", "one_by_one", "side_by_side")


def workers(count: int) -> int:
    """How many models are trained at once side by side."""
    return min(count, torch.get_num_threads())


def fastest(models: list[nn.Module], inputs: np.ndarray, job: Callable[[Sequence[int]], Job]) -> Way:
    """The way whose steps take the least time; ``job`` makes jobs of copies, which are used up."""
    count, at_once, single = len(models), workers(len(models)), job([0])
    seconds: dict[Way, float] = {"one_by_one": count * step_seconds(lambda steps: single.block(0, steps))}
    if at_once > 1 and single.inputs.device.type == "cpu" and can_run_side_by_side(models, single):
        jobs = [single, *(job([i]) for i in range(1, at_once))]
        try:
            with single_threaded(at_once) as pool:
                one = step_seconds(lambda steps: list(pool.map(lambda each: each.block(0, steps), jobs)))
            seconds["side_by_side"] = math.ceil(count / at_once) * one
        except Exception as error:  # of whatever kind: one by one it has just worked
            _warn(models[0], "side by side", error)
    if stackable(models, inputs):
        stack = job(range(count))
        seconds["stacked"] = step_seconds(lambda steps: stack.block(0, steps), _HOPELESS * min(seconds.values()))
    return min(seconds, key=lambda way: seconds[way])


def step_seconds(block: Callable[[int], object], hopeless: float = math.inf) -> float:
    """What one of the steps that ``block`` does takes; timed once only where that is more than ``hopeless``."""
    block(1)
    best = math.inf
    for _ in range(_PROBES):
        start = time.perf_counter()
        block(_PROBE)  # looks at the losses, so that a GPU has done its work
        best = min(best, (time.perf_counter() - start) / _PROBE)  # what disturbs adds
        if best > hopeless:
            break
    return best


def stackable(models: list[nn.Module], inputs: np.ndarray) -> bool:
    """Whether the models run under ``vmap``, tried on copies of their parameters and buffers; if not, a warning says why."""
    base = models[0].train()
    parameters, buffers = stack_module_state(models)
    batch = torch.from_numpy(inputs[:2]).to(next(iter(parameters.values())).device).expand(len(models), *inputs[:2].shape)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), randomness="different")(parameters, buffers, batch)
    except (RuntimeError, ValueError) as error:
        _warn(base, "as a stack", error)
        return False
    return True


def can_run_side_by_side(models: Sequence[nn.Module], job: Job) -> bool:
    """Whether nothing speaks against it; if something does, a warning says what."""
    reason = hindrance(models, job)
    if reason is not None:
        _warn(models[0], "side by side", reason)
    return reason is None


def _warn(model: nn.Module, how: str, reason: object) -> None:
    line = (str(reason).splitlines() or [type(reason).__name__])[0]
    warnings.warn(f"{type(model).__name__} can't be trained {how}: {line}", stacklevel=5)
