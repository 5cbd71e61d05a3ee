"""The layer of a module that torch's exporter refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ensdistill.common.describe import class_path

TRIED = 60  # modules that are exported one by one at most

Call = tuple[tuple[Any, ...], dict[str, Any]]
Export = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], bool], Any]


def layer_at_fault(module: nn.Module, example: Any, export: Export) -> str:
    """The smallest module within that can't be exported by itself, in words.

    Parameters
    ----------
    module : Module
    example : Tensor or dict of these
        Its input.
    export : callable
        Exports a module for the arguments of a call, and raises an error where it can't; the last argument
        is whether the first axis of each tensor is free.
    """
    calls = _calls(module, example)
    tried = 0

    def fails(name: str, part: nn.Module, free: bool) -> bool:
        nonlocal tried
        if name not in calls or tried >= TRIED:
            return False
        tried += 1
        try:
            export(part, *calls[name], free)
        except Exception:  # of many kinds
            return True
        return False

    place, found = "", module
    while True:
        within = [(f"{place}.{name}".removeprefix("."), one) for name, one in found.named_children()]
        # A layer fails for its operators, or because it takes one number of rows alone.
        worst = next(
            ((name, one) for free in (False, True) for name, one in within if fails(name, one, free)), None
        )
        if worst is None:
            break
        place, found = worst
    where = place.removeprefix("module").removeprefix(".")
    if place.startswith("before"):
        return f"the preprocess's module {class_path(type(found))}"
    if not where:
        inner = getattr(module, "module", found)
        return f"the module {class_path(type(inner))}"
    return f"the layer {where!r} ({class_path(type(found))})"


def _calls(module: nn.Module, example: Any) -> dict[str, Call]:
    """The arguments of the first call of each module within, by its name."""
    calls: dict[str, Call] = {}
    hooks = []
    for name, part in module.named_modules():

        def kept(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], name: str = name) -> None:
            calls.setdefault(name, (inputs, named))

        hooks.append(part.register_forward_pre_hook(kept, with_kwargs=True))
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return calls
