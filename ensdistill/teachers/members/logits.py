"""The logits among the outputs of a torch module: of a tensor, a tuple, a dict, a dataclass, or an object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ensdistill.common.describe import class_path


def logits_of(outputs: Any) -> Tensor:
    """The tensor itself; what is called ``logits``; else the one tensor [N, C] among several outputs.

    Raises
    ------
    TypeError
        There is none, or there are several of them; the message begins with the expectation.
    """
    if isinstance(outputs, Tensor):
        return outputs
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(named, Tensor):
        return named
    found = {name: part for name, part in _parts(outputs).items() if isinstance(part, Tensor)}
    possible = {name: part for name, part in found.items() if part.ndim == 2} if len(found) > 1 else found
    if len(possible) == 1:
        return next(iter(possible.values()))
    got = class_path(type(outputs))
    if found:
        shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in (possible or found).items())
        count = f"{len(possible) or 'no'} tensors that could be logits"
        remedy = "call them logits"
        if isinstance(outputs, (tuple, list)):
            remedy = "return the logits alone, or a dict in which they are called logits"
        got += f" with {count} ({shapes}): {remedy}"
    raise TypeError(f"expected a module that returns a tensor, or an object with .logits; got {got}")


def _parts(outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, Mapping):
        return {str(name): part for name, part in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        return {f"at {i}": part for i, part in enumerate(outputs)}
    if dataclasses.is_dataclass(outputs):
        return {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
    return {}
