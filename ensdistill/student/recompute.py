"""Activation checkpointing: modules that compute their activations again during the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def check_patterns(given: Any) -> tuple[str, ...]:
    """The argument as a tuple of patterns of module names."""
    patterns = (given,) if isinstance(given, str) else given
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) and p for p in patterns):
        raise TypeError(
            f"recompute_modules: expected patterns of module names, such as 'blocks.*'; got {given!r}"
        )
    return tuple(patterns)


def chosen(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """The modules whose names match a pattern, without those inside of another one.

    Raises
    ------
    ValueError
        A pattern that matches none.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            names = list(modules)
            raise ValueError(
                f"recompute_modules: {pattern!r} matches no module of {type(model).__name__}; it has "
                f"{', '.join(names[:8])}{', ...' if names[8:] else ''}"
            )
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():  # an outer module comes before those inside of it
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and any(fnmatchcase(name, pattern) for pattern in patterns):
            found[name] = module
    return list(found.values())


def recomputed(model: nn.Module, patterns: Sequence[str]) -> AbstractContextManager[None]:
    """Return the context in which the chosen modules keep their inputs only, and compute their activations
    again when gradients need them: the same bits, random masks and running statistics included."""
    return _recomputed(chosen(model, patterns)) if patterns else nullcontext()


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
