"""Conditions of a student's training, most of them checked before it begins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.cache import TargetCache
from ensdistill.common.describe import make_module
from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.teachers.members.dtypes import refusal
from ensdistill.teachers.stack.validation import as_float32, check_ending, check_fresh


def build_student(factory: Callable[[], nn.Module], rows: Rows, classes: int) -> nn.Module:
    """Return a new student, in eval mode, after a forward pass of two rows.

    Raises
    ------
    ValueError
        The student does not take the rows' inputs, or does not return [N, classes].
    TypeError
        ``factory`` makes no module, or is one itself.
    """
    check_fresh(factory, "the student", {})
    model = make_module(factory)
    if len(rows) == 0:
        raise ValueError("rows: expected at least one; got none")
    model.eval()
    first = torch.from_numpy(np.ascontiguousarray(as_float32("rows.inputs", rows.inputs[:2])))
    try:
        with torch.no_grad():
            logits = model(first)
    except RuntimeError as error:
        raise _refused(model, rows, first, error) from error
    expected = (min(2, len(rows)), classes)
    if tuple(logits.shape) != expected:
        raise ValueError(
            f"model: {type(model).__name__}: expected {classes} outputs per sample, one for each class, "
            f"{list(expected)}; "
            f"got {list(logits.shape)}"
        )
    check_ending(model, first, type(model).__name__)
    return model


def _refused(model: nn.Module, rows: Rows, first: Tensor, error: RuntimeError) -> ValueError:
    """The error for a module whose forward pass failed: the dtypes are blamed if they differ, else the
    shape."""
    if (by_dtype := refusal("factory", f"the student's {type(model).__name__}", model, first)) is not None:
        return by_dtype
    shape = list(rows.inputs.shape[1:])
    return ValueError(f"model: {type(model).__name__}: does not take inputs of shape {shape} ({error})")


def check_rows_only(cache: TargetCache) -> None:
    """Raise ValueError for a cache of sequences."""
    if cache.manifest["sequences"]:
        raise ValueError(
            f"cache: {cache.path} holds sequences, which this trainer does not take; gather their targets "
            "in a loop of your own"
        )


def check_first_loss(loss: object, name: str) -> None:
    """Raise TypeError for a loss that returned anything but a scalar tensor with a gradient."""
    if isinstance(loss, Tensor) and loss.ndim == 0 and loss.is_floating_point() and loss.requires_grad:
        return
    got = type(loss).__name__
    if isinstance(loss, Tensor):
        got = f"{loss.dtype} {list(loss.shape)}{'' if loss.requires_grad else ' without a gradient'}"
    raise TypeError(
        f"loss: expected {name} to return a floating-point tensor [] that depends on the student's outputs; "
        f"got {got}"
    )


def check_finite(losses: Tensor, done: int, optimization: Optimization) -> None:
    """Raise FloatingPointError where one of the losses [steps] after the first ``done`` steps is not
    finite."""
    if bad := losses.isfinite().logical_not().nonzero().flatten().tolist():
        raise FloatingPointError(
            f"student: the loss is {losses[bad[0]].item()} at step {done + bad[0]} of {optimization.steps}; "
            "lower "
            f"optimization.learning_rate ({optimization.learning_rate}) or look for extreme inputs or targets"
        )
