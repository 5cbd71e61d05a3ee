"""A student's initial weights, from a file or a state dict."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

Weights = Path | str | Mapping[str, Tensor]
"""A ``.safetensors`` file, or a state dict."""


def read_weights(weights: Weights) -> Mapping[str, Tensor]:
    """The tensors by name.

    Raises
    ------
    ValueError
        No such file, or no safetensors file: others could run code when they are read.
    TypeError
        Neither a path nor a mapping of names to tensors.
    """
    if isinstance(weights, (str, Path)):
        path = Path(weights)
        if not path.is_file():
            raise ValueError(f"weights: expected a safetensors file; there is none at {path}")
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"weights: {path} is no safetensors file ({error}); write one with "
                "safetensors.torch.save_file(module.state_dict(), path). Files of torch.save are not read, "
                "because reading them can run code"
            ) from error
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"weights: expected a safetensors file or a state dict; got {type(weights).__name__}"
            + ("; pass its state_dict()" if isinstance(weights, nn.Module) else "")
        )
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"weights: {name}: expected a tensor; got {type(value).__name__}")
    return weights


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Give a student its initial weights: every tensor of its ``state_dict()``, and no other.

    Of tensors that the module has under several names, the file needs one.

    Raises
    ------
    ValueError
        Tensors that are missing, left over, or of another shape or dtype; they are named.
    """
    given, own = read_weights(weights), model.state_dict()
    own = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    places: dict[tuple[Any, ...], list[str]] = {}
    for name, value in own.items():
        places.setdefault((value.data_ptr(), value.shape, value.stride()), []).append(name)
    tied = {name: names for names in places.values() for name in names if own[name].numel()}
    missing = [name for name in own if not any(other in given for other in tied.get(name, [name]))]
    over = [name for name in given if name not in own]
    if missing or over:
        raise ValueError(
            f"weights: expected the tensors of {type(model).__name__}"
            + (f"; missing: {_listed(missing)}" if missing else "")
            + (f"; not in the student: {_listed(over)}{_prefix(over, own)}" if over else "")
        )
    wrong = [
        f"{name} is {_form(value)}, the student's {_form(own[name])}"
        for name, value in given.items()
        if value.shape != own[name].shape or value.dtype != own[name].dtype
    ]
    if wrong:
        cast = all(value.shape == own[name].shape for name, value in given.items())
        raise ValueError(
            f"weights: {_listed(wrong, '; ')}"
            + (": convert them first, {name: t.float() for name, t in weights.items()}" if cast else "")
        )
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(value)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _listed(names: list[str], comma: str = ", ") -> str:
    return comma.join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")


def _prefix(over: list[str], own: Mapping[str, Tensor]) -> str:
    """A remark where one prefix, such as ``module.``, makes the difference, or a name is misspelt."""
    for name in own:
        prefix = over[0].removesuffix(name)
        if prefix != over[0] and prefix.endswith("."):
            return f" (remove the prefix {prefix!r} from the names)"
    near = difflib.get_close_matches(over[0], list(own), 1)
    return f" (did you mean {near[0]}?)" if near else ""
