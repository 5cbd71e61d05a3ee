"""Dtypes of inputs that a module takes, and the reason why it refuses others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.data import BadRows
from ensdistill.data.batches import kind_of


def floating_type(module: nn.Module) -> torch.dtype | None:
    """The floating type of a module's parameters; None for none or several."""
    found = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def as_float32(argument: str, inputs: np.ndarray) -> np.ndarray:
    """Inputs [N, ...] as float32, which modules are trained on: float64 rounded, integers and booleans
    exactly.

    Raises
    ------
    ValueError
        Another dtype, a number beyond float32's range, or an integer that float32 would round.
    """
    if inputs.dtype == np.float32:
        return inputs
    if inputs.dtype != np.float64 and inputs.dtype.kind not in "iub":
        got = f"{inputs.dtype} {list(inputs.shape)}"
        raise ValueError(f"{argument}: expected float32, float64 or integer inputs for a module; got {got}")
    with np.errstate(over="ignore"):
        rounded = inputs.astype(np.float32)
    if inputs.dtype == np.float64:
        wrong = np.isinf(rounded) & np.isfinite(inputs)
    else:
        wrong = rounded.astype(np.float64) != inputs.astype(np.float64)
    if len(bad := np.flatnonzero(wrong.reshape(len(inputs), -1).any(1))):
        raise BadRows(
            f"{argument}: expected numbers that float32 can hold; row {bad[0]} has others ({len(bad)} such "
            "rows)",
            bad,
        )
    return rounded


def cast_for(module: nn.Module, inputs: Any) -> Any:
    """Inputs in the dtype that a module takes: float32, unless it is of float64 or embeds integers.

    Integers and booleans of a mapping, which are token ids and masks, stay as they are.
    """
    if isinstance(inputs, Mapping):
        return {name: cast_for(module, part) if _is_floating(part) else part for name, part in inputs.items()}
    if not isinstance(inputs, np.ndarray):
        return inputs
    if inputs.dtype == np.float64 and floating_type(module) != torch.float64:
        return inputs.astype(np.float32)
    if inputs.dtype.kind in "iub" and not tables(module):
        return as_float32("inputs", inputs)
    return inputs


def _is_floating(part: Any) -> bool:
    return isinstance(part, np.ndarray) and part.dtype.kind == "f"


def check_inputs(name: str, module: nn.Module, inputs: Any) -> None:
    """Raise an error unless inputs are float32, of the module's type, or integers that int64 can hold; or a
    mapping of such arrays, or of booleans.

    Raises
    ------
    TypeError
        No array and no mapping of arrays: the member needs a preprocess.
    ValueError
        Another dtype.
    """
    if isinstance(inputs, Mapping):
        for key, part in inputs.items():
            if not (isinstance(part, np.ndarray) and part.dtype == bool):
                check_inputs(f"{name}: {key}", module, part)
        return
    if not isinstance(inputs, np.ndarray):
        raise TypeError(
            f"inputs: {name} takes an array, or a mapping of arrays; got a batch of kind "
            f"{kind_of(inputs).name!r}. Give it a preprocess: Ensemble.from_members([(module, preprocess)])"
        )
    dtype = floating_type(module)
    # NumPy has no bfloat16, and its float64 equals None.
    own = np.float32 if dtype in (None, torch.bfloat16) else torch.empty(0, dtype=dtype).numpy().dtype
    if inputs.dtype not in (np.float32, own) and inputs.dtype.kind not in "iu":
        also = "" if own == np.float32 else f" or {own}"
        expected = f"expects float32{also}, or integers for a model of tokens"
        raise ValueError(f"inputs: {name} {expected}; got {inputs.dtype} {list(inputs.shape)}")
    too_large = inputs.dtype == np.uint64 and inputs.size and inputs.max() > np.iinfo(np.int64).max
    if too_large and tables(module):
        raise ValueError(f"inputs: {name} expects token ids that int64 can hold; got {inputs.max()}")


def as_batch(module: nn.Module, inputs: Any, device: torch.device) -> Any:
    """Checked inputs [N, ...] as a tensor, or a mapping of tensors: numbers in the module's floating type,
    token ids in int64."""
    if isinstance(inputs, Mapping):
        return {name: as_batch(module, part, device) for name, part in inputs.items()}
    dtype = floating_type(module)
    if inputs.dtype.kind in "iu" and tables(module):
        inputs = inputs.astype(np.int64, copy=False)
    x = torch.from_numpy(np.ascontiguousarray(inputs)).to(device)
    return x.to(dtype) if x.is_floating_point() and dtype is not None else x


def tables(module: nn.Module) -> dict[str, int]:
    """Rows of the module's embeddings, by name."""
    embeddings = (nn.Embedding, nn.EmbeddingBag)
    return {name or "it": m.num_embeddings for name, m in module.named_modules() if isinstance(m, embeddings)}


def refusal(argument: str, name: str, module: nn.Module, inputs: Tensor) -> ValueError | None:
    """The error for a module that failed on ``inputs``, if their dtypes may be the reason.

    Parameters
    ----------
    argument : str
        Argument that the message blames for a module of another dtype than ``inputs``.
    name : str
        The module's name in the message.
    """
    found = {p.dtype: key for key, p in module.named_parameters() if p.is_floating_point()}
    embeddings, got = tables(module), f"{_short(inputs.dtype)} {list(inputs.shape)}"
    if inputs.is_floating_point():
        if others := {dtype: key for dtype, key in found.items() if dtype != inputs.dtype}:
            dtype, key = next(iter(others.items()))
            return ValueError(
                f"{argument}: {name}: expected {_short(inputs.dtype)} parameters for inputs of {got}; {key} "
                f"is {_short(dtype)}. module.{_CASTS.get(inputs.dtype, 'float')}() gives all parameters that "
                "dtype"
            )
        if embeddings:
            return ValueError(
                f"inputs: {name}: expected integers (int64), because {next(iter(embeddings))} is an "
                f"Embedding of token ids; got {got}. Pass inputs.astype(numpy.int64) if they are ids"
            )
        return None
    if found and not embeddings:
        return ValueError(
            f"inputs: {name}: expected {_short(next(iter(found)))}, the dtype of its parameters; got {got}. "
            "Pass inputs.astype(numpy.float32)"
        )
    if (
        embeddings
        and inputs.numel()
        and (int(inputs.max()) >= min(embeddings.values()) or int(inputs.min()) < 0)
    ):
        held = ", ".join(f"{key} has {rows} rows" for key, rows in embeddings.items())
        found_ids = f"ids from {int(inputs.min())} to {int(inputs.max())}"
        return ValueError(
            f"inputs: {name}: expected token ids below the number of embeddings ({held}); got {found_ids}"
        )
    return None


def unsaved_types(module: nn.Module) -> dict[str, str]:
    """The floating types of unsaved buffers, by name, because a factory may build them with another."""
    saved = module.state_dict().keys()
    return {
        name: str(b.dtype)[6:]
        for name, b in module.named_buffers()
        if name not in saved and b.is_floating_point()
    }


def named_types(names: dict[str, str]) -> dict[str, torch.dtype]:
    """The types that these names are of; others are left out."""
    found = {name: getattr(torch, str(kind), None) for name, kind in names.items()}
    return {name: dtype for name, dtype in found.items() if isinstance(dtype, torch.dtype)}


def give_types(module: nn.Module, types: dict[str, torch.dtype]) -> None:
    """Give parameters and buffers these floating types, in place: tied ones stay tied."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        dtype = types.get(name, value.dtype)
        if dtype != value.dtype and dtype.is_floating_point and value.is_floating_point():
            value.data = value.data.to(dtype)


_CASTS = {torch.float64: "double", torch.float16: "half", torch.bfloat16: "bfloat16"}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
