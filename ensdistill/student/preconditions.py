"""Conditions of a student's training, most of them checked before it begins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ensdistill.common.describe import make_module
from ensdistill.data import Rows
from ensdistill.data.preprocess.base import Preprocess
from ensdistill.student.inputs import Inputs, Preparation, call, takes_ids
from ensdistill.teachers.members.dtypes import refusal
from ensdistill.teachers.stack.validation import check_ending, check_fresh


def build_student(
    factory: Callable[[], nn.Module], rows: Rows, classes: int, preprocess: Preprocess | None = None
) -> nn.Module:
    """Return a new student, in eval mode, after a forward pass of two rows.

    Raises
    ------
    ValueError
        The student does not take the rows' inputs, or does not return [N, classes].
    TypeError
        ``factory`` makes no module, or is one itself; or the rows are no numbers, and nothing makes numbers
        of them.
    """
    check_fresh(factory, "the student", {})
    model = make_module(factory)
    if len(rows) == 0:
        raise ValueError("rows: expected at least one; got none")
    model.eval()
    first = Preparation(preprocess, takes_ids(model))(rows.inputs[:2])
    try:
        with torch.no_grad():
            logits = call(model, first)
    except (RuntimeError, IndexError, TypeError) as error:
        raise _refused(model, first, error) from error
    expected = (min(2, len(rows)), classes)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model: {type(model).__name__}: expected {classes} outputs per sample, one for each class, "
            f"{list(expected)}; got {got}"
        )
    if isinstance(first, Tensor) and first.is_floating_point():
        check_ending(model, first, type(model).__name__)
    return model


def _refused(model: nn.Module, first: Inputs, error: Exception) -> ValueError:
    """The error for a module whose forward pass failed: the dtypes are blamed if they differ, else the
    shape."""
    name = type(model).__name__
    if isinstance(first, dict):
        shapes = {key: list(part.shape[1:]) for key, part in first.items()}
        return ValueError(f"model: {name}: does not take inputs by name, of the shapes {shapes} ({error})")
    if (by_dtype := refusal("factory", f"the student's {name}", model, first)) is not None:
        return by_dtype
    return ValueError(f"model: {name}: does not take inputs of shape {list(first.shape[1:])} ({error})")


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
