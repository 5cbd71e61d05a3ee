"""The family's functions on a GPU, for tests written without one: arguments move there, results move
back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ensdistill.loss import ops

DEVICE = torch.device("cuda", 0)


def need_gpu() -> None:
    """Skips the module that calls it; with a GPU but without kernels for it there is nothing to skip, but
    something to build."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU, or a torch without CUDA", allow_module_level=True)
    if not ops.build_info()["cuda"]["built"]:
        pytest.fail(
            "there is a GPU, and the CUDA kernels aren't built: python setup.py build_ext --inplace",
            pytrace=False,
        )


def with_memory(x: Tensor) -> Tensor:
    """The same view of a copy of all the memory that it is a view of."""
    everything = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage()).to(DEVICE, copy=True)
    return torch.empty(0, dtype=x.dtype, device=DEVICE).set_(
        everything.untyped_storage(), x.storage_offset(), x.shape, x.stride()
    )


class _Strided(torch.autograd.Function):
    """A view, with all that lies around it in memory: strides, gaps and an offset that no vector is aligned
    to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return with_memory(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.cpu()


def moved(x: Any) -> Any:
    """A tensor on the GPU, laid out as it was; of a target all its tensors; anything else as it is."""
    if isinstance(x, Tensor):
        # .to() keeps the strides of a tensor that fills its memory, and the transforms of torch.func support it.
        return (
            x.to(DEVICE)
            if torch.empty_like(x).stride() == x.stride() and not x.storage_offset()
            else _Strided.apply(x)
        )
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{field.name: moved(getattr(x, field.name)) for field in fields(x)})
    return x


def back(x: Any) -> Any:
    """The opposite: of a tensor, of targets, of by-products, of a tuple of these; anything else as it is."""
    if isinstance(x, Tensor):
        return x.cpu()
    if isinstance(x, tuple):
        return tuple(back(part) for part in x)
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{field.name: back(getattr(x, field.name)) for field in fields(x)})
    return x


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of tensors on the CPU, computed on the GPU; gradients flow through both copies."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        return back(
            function(*(moved(x) for x in arguments), **{name: moved(x) for name, x in keywords.items()})
        )

    return call


def leaf(x: Tensor) -> Tensor:
    """The same on the GPU, wanting a gradient of its own."""
    return moved(x.detach()).detach().requires_grad_()
