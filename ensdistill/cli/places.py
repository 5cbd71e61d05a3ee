"""The modules whose classes a setting may name, and the methods that a class of one's own needs."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

PLACES = (
    "ensdistill.data",
    "ensdistill.teachers.recipes",
    "ensdistill.data.transfer",
    "ensdistill.data.augmentation",
    "ensdistill.models",
)


def protocol_methods(name: str) -> str:
    """What a class needs to be the protocol of this name, as it has to declare it."""
    found = [vars(module)[name] for module in map(importlib.import_module, PLACES) if name in vars(module)]
    return f"Expected, types included: {'; '.join(methods(found[0]))}" if found else ""


def methods(protocol: Any) -> list[str]:
    own = [(n, f) for n, f in vars(protocol).items() if n[0] != "_" and inspect.isfunction(f)]
    return [f"def {name}{inspect.signature(function)}".replace("'", "") for name, function in own]
