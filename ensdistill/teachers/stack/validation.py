"""Checks of a training before it begins."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import get_args

import numpy as np
import torch
from torch import nn

from ensdistill.common.describe import make_module
from ensdistill.common.errors import is_out_of_memory
from ensdistill.common.tasks import Task
from ensdistill.data.tasks import known_rows, task_of_labels
from ensdistill.teachers.members.dtypes import as_float32 as as_float32
from ensdistill.teachers.members.dtypes import refusal
from ensdistill.teachers.members.ending import ending
from ensdistill.teachers.members.logits import logits_of
from ensdistill.teachers.stack.label_loss import LABELS_ALONE, LabelLoss
from ensdistill.teachers.stack.strategies import CONCRETE, Way

Seen = dict[int, tuple[str, weakref.ref[nn.Parameter]]]
"""Whose parameters there were, by their identity, which is used again for others once they are gone."""


def check_way(way: Way, device: str | torch.device) -> None:
    if way not in get_args(Way):
        raise ValueError(
            f"way: expected auto, measured, {', '.join(CONCRETE[:-1])} or {CONCRETE[-1]}; got {way!r}"
        )
    if way == "side_by_side" and torch.device(device).type != "cpu":
        raise ValueError(f"way: side_by_side trains on the CPU's threads; got device {str(device)!r}")


def check_fresh(factory: Callable[[], nn.Module], name: str, seen: Seen) -> None:
    """Raise ValueError for a factory that returns a module which exists already: training would change the
    caller's own."""
    with torch.random.fork_rng(devices=[]):
        first, second = make_module(factory), make_module(factory)
        check_own([(name, first), (f"a second call for {name}", second)], seen)


def check_ending(
    module: nn.Module, inputs: torch.Tensor, name: str, task: Task | None = "classification"
) -> None:
    """Raise ValueError for a module that ends in a softmax or a sigmoid, or that fails on inputs of this
    dtype.

    Training takes a module's outputs for logits, and its inputs are float32.
    """
    mode, refused = module.training, refusal("factory", name, module, inputs)
    try:
        if refused is not None:  # a module may cast its inputs itself
            with torch.no_grad():
                module.eval()(inputs)
        module.eval()
        end = ending(lambda batch: logits_of(module(batch)), inputs)
    except (RuntimeError, IndexError) as error:
        if refused is None or is_out_of_memory(error):
            raise
        raise refused from error
    finally:
        module.train(mode)
    if end is not None and task == "regression":
        raise ValueError(
            f"factory: {name} ends in a {end}, whose outputs lie in 0..1; training expects standardised "
            f"numbers, of which half are below 0: leave the {end} off"
        )
    if end is not None:
        raise ValueError(
            f"factory: {name} ends in a {end}, whose outputs are probabilities; training expects logits. "
            f"Leave the {end} off: the "
            "trained model applies it when it predicts probabilities"
        )


def check_data(
    inputs: np.ndarray,
    labels: np.ndarray,
    rows: list[np.ndarray],
    names: list[str],
    count: int,
    classes: int,
    weights: np.ndarray | None = None,
    loss: LabelLoss = LABELS_ALONE,
) -> None:
    task = task_of_labels(labels)
    loss.check(names[0] if names else "", task, classes)
    if count == 0 or len(rows) != count or len(names) != count:
        raise ValueError(
            f"seeds, rows and names: expected one of each for each model; got {count}, {len(rows)} and "
            f"{len(names)}"
        )
    if inputs.dtype != np.float32 or inputs.ndim < 2:
        raise ValueError(f"inputs: expected float32 [N, ...]; got {inputs.dtype} {list(inputs.shape)}")
    if task is None or len(labels) != len(inputs) or (labels.ndim == 2 and labels.shape[1] != classes):
        raise ValueError(
            f"labels: expected int64 [{len(inputs)}], one for each input, or int8 or float64 "
            f"[{len(inputs)}, {classes}]; got {labels.dtype} {list(labels.shape)}"
        )
    if weights is not None and (
        weights.shape != labels.shape[:1] or not (np.isfinite(weights) & (weights >= 0)).all()
    ):
        raise ValueError(
            f"weights: expected [{len(inputs)}], finite numbers of at least 0; got {weights.dtype} "
            f"{list(weights.shape)}"
        )
    for name, index in zip(names, rows, strict=True):
        if len(index) == 0 or index.min() < 0 or index.max() >= len(inputs):
            raise ValueError(
                f"rows: {name}: expected positions in 0..{len(inputs) - 1}, at least one; got {len(index)} "
                "positions"
            )
        used = labels[index]
        if labels.ndim == 2 and not known_rows(used).all():
            wrong = int(np.flatnonzero(~known_rows(used))[0])
            raise ValueError(f"labels: {name}: expected a label in each row; row {index[wrong]} has none")
        if task == "classification" and (used.min() < 0 or used.max() >= classes):
            wrong = int(np.flatnonzero((used < 0) | (used >= classes))[0])
            raise ValueError(
                f"labels: {name}: expected 0..{classes - 1}; row {index[wrong]} has {used[wrong]}"
            )
        if weights is not None and not (weights[index] > 0).any():
            raise ValueError(f"weights: {name}: expected one above 0 among its {len(index)} rows; got none")


def check_own(modules: Iterable[tuple[str, nn.Module]], seen: Seen) -> None:
    """Raise where two of ``modules`` (name, module) share a parameter, or one with those of an earlier call
    with the same ``seen``."""
    for name, module in modules:
        for key, parameter in module.named_parameters():
            owner, known = seen.get(id(parameter), (name, None))
            seen[id(parameter)] = name, weakref.ref(parameter)
            if owner != name and known is not None and known() is parameter:
                raise ValueError(
                    f"factory: expected a new module from every call; {name} shares {key} with {owner}. "
                    "To start from a module that exists, return copy.deepcopy(module)"
                )


def check_models(models: list[nn.Module], names: list[str]) -> None:
    shapes = [(n, p.shape) for n, p in models[0].named_parameters()]
    for i, model in enumerate(models):
        if [(n, p.shape) for n, p in model.named_parameters()] != shapes:
            raise ValueError(
                f"factory: expected one architecture; the parameters of {names[i]} differ from those of "
                f"{names[0]}"
            )
    check_own(zip(names, models, strict=True), {})
