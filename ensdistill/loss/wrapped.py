"""Kinds of tensors: with memory of their own, traced, or batched by a map."""

from __future__ import annotations

import torch
from torch import Tensor

# Of autograd's own batches (torch.autograd.grad(is_grads_batched=True)), which aren't torch.func's.
_BATCHED = torch._C._dispatch_key_parse("Batched")


def is_plain(x: Tensor) -> bool:
    """Whether it has memory of its own, that one may look at and write to: not traced, not wrapped, not
    batched."""
    functorch = torch._C._functorch
    return (
        type(x) is Tensor
        and not functorch.is_functorch_wrapped_tensor(x)
        and not torch._C._dispatch_keys(x).has(_BATCHED)
    )


def is_batched(x: Tensor) -> bool:
    """Whether it is one of many, at any level of wrapping: it has no single value then."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return bool(torch._C._dispatch_keys(x).has(_BATCHED))
