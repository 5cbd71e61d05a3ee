"""Checks of single arguments, shared by all functions. Each error names the argument, the value and the
expectation.

Shapes, dtypes and settings are always checked. Values are checked only where reading them costs no wait: on
the CPU, outside torch.compile and vmap. Elsewhere the kernel returns NaN for rows with values that it can't
use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ensdistill.common.combiners import COMBINERS
from ensdistill.common.scalars import real, whole
from ensdistill.loss import _native
from ensdistill.loss.wrapped import is_batched

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)
# A sum up to which the kernels normalise weights: far below the largest float64, far above weights in
# practice.
_LARGEST_WEIGHTS = 1e300


# Numbers and choices
# --------------------------------------------------------------------------------------------------


def check_number(name: str, value: Any) -> None:
    if not (real(value) and 0 < float(value) < math.inf):
        raise ValueError(f"{name}: expected a finite number above 0; got {value!r}")


def check_int(name: str, value: Any, low: int, high: int, what: str) -> None:
    if not (whole(value) or isinstance(value, torch.SymInt)):
        raise TypeError(f"{name}: expected an int; got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, {what}; got {value}")


def check_one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}; got {value!r}")


def check_combiner(name: str, value: Any) -> None:
    if value is not None:
        check_one_of(name, value, COMBINERS)


# Tensors
# ------------------------------------------------------------------------------------------------------------


def check_class_dim(class_dim: Any, name: str, shape: Sequence[int]) -> int:
    """``class_dim`` counted from the front."""
    dims = len(shape)
    if type(class_dim) is not int and not whole(class_dim):
        raise TypeError(f"class_dim: expected an int; got {class_dim!r}")
    if not -dims <= class_dim < dims:
        raise ValueError(
            f"class_dim: expected {-dims}..{dims - 1} for {name} of shape {list(shape)}; got {class_dim}"
        )
    return int(class_dim) % dims


def check_floats(name: str, value: Any, expected: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor{expected}; got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected {dtype_names(FLOATS)}; got {value.dtype}")
    if value.layout is not torch.strided:
        check_strided(name, value)


def check_strided(name: str, value: Tensor) -> None:
    if value.layout != torch.strided:
        raise TypeError(
            f"{name}: expected a dense Tensor; got one of layout {value.layout}; pass {name}.to_dense()"
        )


def check_device(name: str, value: Tensor, device: torch.device, others: str = "the student is") -> None:
    """Where it is, and that it lies there as numbers with strides."""
    if value.device != device:
        raise ValueError(f"{name}: on device {value.device}, but {others} on {device}; move one of them")
    check_strided(name, value)


def check_kernels(name: str, device: torch.device) -> None:
    """Check that ``impl="fused"`` has a kernel for the device. The model of the GPU is checked outside of
    tracing only."""
    if device.type == "cpu":
        return
    why = _native.why_no_kernels(device.type, None if torch.compiler.is_compiling() else device.index)
    if why is not None:
        raise NotImplementedError(f"{name}: on device {device}, {why}")


# Weights
# ------------------------------------------------------------------------------------------------------------


def member_weights(weights: Any, k: int | None, device: torch.device) -> Tensor:
    """Of K members, [K] float64."""
    result = numbers("weights", weights, (k,), "member" if k is None else f"of the {k} members", device)
    if visible(result):
        total = float(result.sum())
        if total <= 0:
            raise ValueError(f"weights: expected a sum above 0; got {shown(weights)}")
        if total > _LARGEST_WEIGHTS:
            raise ValueError(f"weights: expected a sum of at most {_LARGEST_WEIGHTS:g}; got {shown(weights)}")
    return result


def numbers(name: str, given: Any, shape: tuple[int | None, ...], what: str, device: torch.device) -> Tensor:
    """``given``, finite and not negative, as a flat float64 tensor on ``device``. None in ``shape`` is any
    length."""
    if isinstance(given, Tensor):
        if given.is_complex():
            raise TypeError(f"{name}: expected real numbers; got {given.dtype}")
        check_strided(name, given)
        if given.is_meta and device.type != "meta":
            raise ValueError(f"{name}: on device meta, but the student is on {device}; move one of them")
        if given.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: requires a gradient, and gradients flow to the student only; pass {name}.detach()"
            )
    try:
        value = torch.as_tensor(given, dtype=torch.float64, device=device).detach().contiguous()
    except OverflowError:
        raise ValueError(f"{name}: expected numbers that a float64 holds; got {given!r}") from None
    except (TypeError, ValueError):
        many = "".join(f" {n}" for n in shape if n is not None)
        raise TypeError(f"{name}: expected a Tensor or a sequence of{many} numbers; got {given!r}") from None
    if value.shape != shape and (shape != (None,) or value.dim() != 1):
        wanted = str([*shape]).replace("None", "any number")
        raise ValueError(f"{name}: expected one for each {what}, {wanted}; got shape {list(value.shape)}")
    value = value.reshape(-1)
    if value.numel() and visible(value):
        low, high = torch.aminmax(value)  # NaN if one is
        if not (float(low) >= 0 and float(high) < math.inf):
            raise ValueError(f"{name}: expected finite numbers of at least 0; got {shown(given)}")
    return value


# Words
# ------------------------------------------------------------------------------------------------------------


def visible(x: Tensor) -> bool:
    """Whether Python can look at values without waiting for a device, outside of a trace or a batch."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_batched(x)


def first(mask: Tensor) -> tuple[int, int]:
    row, column = mask.nonzero()[0].tolist()
    return row, column


def extent(lead: Sequence[int]) -> str:
    return f"{lead[0]} rows" if len(lead) == 1 else f"leading dimensions {list(lead)}"


def dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def shown(values: Any) -> str:
    numbers = values.flatten().tolist() if isinstance(values, Tensor) else values
    try:
        return str([*numbers]) if len(numbers) <= 20 else f"{[*numbers[:20]]} and {len(numbers) - 20} more"
    except TypeError:
        return repr(values)
