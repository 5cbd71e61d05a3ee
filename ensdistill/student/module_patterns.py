"""Modules of a student, chosen by patterns of their names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn


def check_patterns(argument: str, given: Any) -> tuple[str, ...]:
    """The patterns as a tuple.

    Raises
    ------
    TypeError
        Neither a pattern nor a sequence of them; begins with ``argument``.
    """
    patterns = (given,) if isinstance(given, str) else given
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) and p for p in patterns):
        raise TypeError(f"{argument}: expected patterns of module names, such as 'blocks.*'; got {given!r}")
    return tuple(patterns)


def chosen(argument: str, model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules whose names match a pattern, by name, without those inside of another one.

    Raises
    ------
    ValueError
        A pattern that matches none; begins with ``argument``.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            names = list(modules)
            raise ValueError(
                f"{argument}: {pattern!r} matches no module of {type(model).__name__}; it has "
                f"{', '.join(names[:8])}{', ...' if names[8:] else ''}"
            )
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():  # an outer module comes before those inside of it
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and any(fnmatchcase(name, pattern) for pattern in patterns):
            found[name] = module
    return found
