"""Conditions of a student's training, most of them checked before it begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ensdistill.common.describe import make_module
from ensdistill.common.optimization import Optimization
from ensdistill.common.tasks import Task
from ensdistill.data import Rows
from ensdistill.data.preprocess.base import Preprocess
from ensdistill.student.inputs import Inputs, Preparation, takes_ids
from ensdistill.student.methods import StudentLoss, name_of
from ensdistill.student.units import widths
from ensdistill.student.weights import Weights, load_weights
from ensdistill.teachers.base import BaseEnsemble
from ensdistill.teachers.members.base import is_member
from ensdistill.teachers.members.dtypes import refusal
from ensdistill.teachers.members.logits import logits_of
from ensdistill.teachers.stack.validation import check_ending, check_fresh

TRAINS_ALONG = "has a module that trains along"


def build_student(
    factory: Callable[[], nn.Module],
    rows: Rows,
    classes: int,
    preprocess: Preprocess | None = None,
    weights: Weights | None = None,
    task: Task = "classification",
) -> nn.Module:
    """Return a new student, with its initial weights and in eval mode, after a forward pass of two rows.

    Raises
    ------
    ValueError
        The student does not take the rows' inputs, or does not return [N, classes] (of a regression
        [N, classes] or twice as many); or ``weights`` are those of another module.
    TypeError
        ``factory`` makes no module, or is one itself, or a teacher; or the rows are no numbers, and nothing
        makes numbers of them.
    """
    _check_no_teacher(factory)
    try:
        check_fresh(factory, "the student", {})
    except TypeError:
        if callable(factory) and not isinstance(factory, nn.Module):
            _check_no_teacher(factory())
        raise
    model = make_module(factory)
    if weights is not None:
        load_weights(model, weights)
    if len(rows) == 0:
        raise ValueError("rows: expected at least one; got none")
    model.eval()
    first = Preparation(preprocess, takes_ids(model))(rows.inputs[:2])
    try:
        with torch.no_grad():
            outputs = model(**first) if isinstance(first, dict) else model(first)
    except (RuntimeError, IndexError, TypeError) as error:
        raise _refused(model, first, error) from error
    count, name = min(2, len(rows)), type(model).__name__
    expected = [[count, width] for width in widths(task, classes)]
    nouns = {"classification": "one for each class", "multilabel": "one for each label"}
    wanted = f"model: {name}: expected {classes} outputs per sample, {nouns.get(task, '')}, {expected[0]}"
    if task == "regression":
        wanted = (
            f"model: {name}: expected {classes} outputs per sample, one for each number, {expected[0]}; or "
            f"{2 * classes}, the numbers' means and the logarithms of their variances"
        )
    try:
        logits = logits_of(outputs)
    except TypeError as error:
        raise ValueError(f"{wanted}; got {str(error).rpartition('; got ')[2]}") from None
    if list(logits.shape) not in expected:
        raise ValueError(f"{wanted}; got {list(logits.shape)}")
    if isinstance(first, Tensor) and first.is_floating_point() and task != "regression":
        check_ending(model, first, name)
    if not any(one.numel() for one in model.parameters() if one.requires_grad):
        raise ValueError(
            f"factory: {name} has no parameter that can be trained: all have requires_grad=False, as a "
            "teacher's copy has them, or are empty; let the factory call requires_grad_(True)"
        )
    return model


def check_rows(rows: Any) -> None:
    """Raise TypeError for anything but Rows."""
    if not isinstance(rows, Rows):
        raise TypeError(
            f"rows: expected Rows, such as Rows(inputs, uids, labels); got {type(rows).__name__}: uids are "
            "different integers, np.arange(len(inputs)) for example, and -100 stands for no label"
        )


def check_optimization(argument: str, optimization: Any) -> None:
    """Raise TypeError for anything but an Optimization."""
    if not isinstance(optimization, Optimization):
        raise TypeError(
            f"{argument}: expected an Optimization or a StudentOptimization; got {optimization!r}"
        )


def _check_no_teacher(factory: Any) -> None:
    """Raise TypeError for a member or an ensemble in place of what makes a student."""
    if isinstance(factory, (type, nn.Module)):
        return
    if is_member(factory) or isinstance(factory, BaseEnsemble):
        raise TypeError(
            f"factory: that's a teacher ({type(factory).__name__}): expected what makes a new module, which "
            "learns from the teachers (its class, functools.partial of it, a function)"
        )


def check_compiled(compiled: Any) -> bool | str:
    """``compile`` as it is, if it is a bool or a name."""
    if not isinstance(compiled, (bool, str)) or compiled == "":
        raise TypeError(f"compile: expected True, False, or the name of a backend; got {compiled!r}")
    return compiled


def hindrance(loss: StudentLoss) -> str:
    """Why a student can't be compiled or divided while a method trains it; empty where it can."""
    if loss.layers:
        return "reads the student's layers"
    return TRAINS_ALONG if loss.has_companion else ""


def check_method(trainer: Any, loss: StudentLoss, own: nn.Module | None) -> None:
    """Raise ValueError for a trainer's settings that a method's own module, or the layers that it reads, do
    not go with."""
    if own is None and not loss.layers:
        return
    reason = hindrance(loss) or TRAINS_ALONG
    for name in ("compile", "shard"):
        if (value := getattr(trainer, name)) not in (False, None):
            raise ValueError(
                f"{name}: expected False for the method {name_of(loss)}, which {reason}; got {value!r}: "
                "leave it out, or choose another method"
            )


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
