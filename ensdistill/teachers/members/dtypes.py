"""Dtypes of inputs that a module takes, and the reason why it refuses others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def floating_type(module: nn.Module) -> torch.dtype | None:
    """The floating type of a module's parameters; None for none or several."""
    found = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def check_inputs(name: str, module: nn.Module, inputs: np.ndarray) -> None:
    """Raise ValueError unless inputs are float32, of the module's type, or integers that int64 can hold."""
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


def as_batch(module: nn.Module, inputs: np.ndarray, device: torch.device) -> Tensor:
    """Checked inputs [N, ...] as a tensor: numbers in the module's floating type, token ids in int64."""
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


_CASTS = {torch.float64: "double", torch.float16: "half", torch.bfloat16: "bfloat16"}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
