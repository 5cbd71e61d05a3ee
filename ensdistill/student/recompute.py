"""Activation checkpointing: modules that compute their activations again during the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ensdistill.student.module_patterns import chosen


def recomputed(model: nn.Module, patterns: Sequence[str]) -> AbstractContextManager[None]:
    """Return the context in which the chosen modules keep their inputs only, and compute their activations
    again when gradients need them: the same bits, random masks and running statistics included."""
    if not patterns:
        return nullcontext()
    return _recomputed(list(chosen("recompute_modules", model, patterns).values()))


@contextmanager
def _recomputed(modules: list[nn.Module]) -> Iterator[None]:
    before = [(module, vars(module).get("forward")) for module in modules]
    for module in modules:
        module.forward = partial(_forward, module, module.forward)
    try:
        yield
    finally:
        for module, own in before:
            if own is None:
                del module.forward
            else:
                module.forward = own


def _forward(module: nn.Module, forward: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    contexts = partial(_contexts, module)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **keywords)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _buffers_kept(module)


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """In here the module changes copies of its buffers. BatchNorm would else follow each batch twice."""
    places: list[tuple[dict[str, Tensor | None], str, Tensor]] = [
        (part._buffers, name, buffer)
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    for owner, name, buffer in places:
        owner[name] = buffer.clone()
    try:
        yield
    finally:
        for owner, name, buffer in places:
            owner[name] = buffer
