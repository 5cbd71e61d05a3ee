"""The native op of the loss over a softmax, registered with torch: a fake kernel for tracing, autograd, vmap.
Validation for users is in functional.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensdistill.loss import _native, reference
from ensdistill.loss.autograd import Operator, empty_gradient
from ensdistill.loss.checks import visible
from ensdistill.loss.layout import ready
from ensdistill.loss.signature import SIGNATURE, TENSORS, Call, OpSettings, OpTensors, op_call

__all__ = [
    "build_info",
    "differentiable_loss",
    "distill_loss",
    "instruction_set",
    "release_memory",
    "use_instruction_set",
]

build_info = _native.build_info
instruction_set = _native.instruction_set
release_memory = _native.release_memory
use_instruction_set = _native.use_instruction_set

distill_loss = torch.ops.ensdistill.distill_loss.default

# In float16 the cross entropy of few labelled rows among many would be scaled out of range: see mean_as_sum.
_LARGEST_SCALE = 1024.0


@torch.library.register_fake("ensdistill::distill_loss")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*arguments)
    student = call.student
    dtype = torch.float64 if torch.float64 in (student.dtype, call.targets.dtype) else torch.float32
    n = student.shape[0] if student.dim() == 2 else student.shape[0] * student.shape[1]
    loss = student.new_empty((n,) if call.reduction == "none" else (), dtype=dtype)
    statistics = student.new_empty((n if call.with_statistics else 0, 4), dtype=dtype)
    return loss, empty_gradient(student, call.with_gradient), statistics


# Autograd
# ------------------------------------------------------------------------------------------------------------

# Looked up at every call: tests put another device's op in this module.
OPERATOR = Operator(
    "ensdistill::distill_loss",
    "distillation_loss",
    lambda *arguments: distill_loss(*arguments),
    lambda **arguments: reference.distill_loss(**arguments, with_statistics=False)[0],
    SIGNATURE,
)
differentiable_loss = OPERATOR.differentiable


def without_divergence(
    student: Tensor, targets: Tensor, tensors: Any, settings: Any
) -> tuple[Tensor, Any, Any]:
    """Targets, other tensors and settings of the same loss where alpha is 0.

    The teachers have no share there, not even as 0 times infinity: the student itself, at distance 0, stands
    in for them.
    """
    stand_in = student.detach().unsqueeze(0)
    if targets.dtype == torch.float64:  # it decides the loss's dtype
        stand_in = stand_in.double()
    tensors = tensors._replace(scale=None, offset=None, ids=None, tail=None, weights=None)
    settings = settings._replace(
        kind="logits", divergence="forward_kl", temperature=1.0, combiner="prob", tail_mode="tail"
    )
    return stand_in, tensors, settings


def mean_as_sum(tensors: Any, settings: Any, rows: int, classes: int) -> tuple[Any, float | Tensor]:
    """Tensors with which the op's sum over ``rows`` rows is N times their mean, and a factor of the loss that
    is left.

    A mean averages the cross entropy over the labelled rows alone. Class weights scale the cross entropy and
    nothing else, so they can raise it by N / (labelled rows). Where that factor is large, all rows are scaled
    down instead, so that float16 holds the gradient.
    """
    labels = tensors.labels
    if labels is None or settings.alpha == 1:
        return tensors, 1.0
    scale = rows / (labels != settings.ignore_index).sum().clamp(min=1).double()
    shrunk = (scale / _LARGEST_SCALE).clamp(min=1.0)
    each_class, each_row = tensors.class_weights, tensors.sample_weights
    each_class = (
        scale * torch.ones(classes, dtype=scale.dtype, device=scale.device)
        if each_class is None
        else each_class * scale
    )
    each_row = (
        torch.ones(labels.shape, dtype=scale.dtype, device=scale.device) / shrunk
        if each_row is None
        else each_row / shrunk
    )
    return tensors._replace(class_weights=each_class, sample_weights=each_row), shrunk


# vmap
# ------------------------------------------------------------------------------------------------------------


@torch.library.register_vmap("ensdistill::distill_loss")
def _(
    info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The batch as an outer leading dimension where that is possible, else one call for each of it."""
    size, call = info.batch_size, Call(*arguments)
    dims = in_dims[:TENSORS]
    tensors = [
        x if d is None or x is None else x.movedim(d, 0) for x, d in zip(call[:TENSORS], dims, strict=True)
    ]
    batched = Call(*(d is not None for d in dims), *call[TENSORS:])
    # The rows of one call share the weights of members and classes, and the number of labelled rows.
    if batched.weights or batched.class_weights or (batched.labels and not _all_labelled(call)):
        calls = [[x[i] if b else x for x, b in zip(tensors, batched, strict=False)] for i in range(size)]
        outputs = zip(*(distill_loss(*each, *call[TENSORS:]) for each in calls), strict=True)
        return tuple(torch.stack(x) for x in outputs), (0, 0, 0)
    tensors = [
        x if x is None or b else x.expand(size, *x.shape) for x, b in zip(tensors, batched, strict=False)
    ]
    return _one_call(size, Call(*tensors, *call[TENSORS:]))


def _all_labelled(call: Any) -> bool:
    """Whether a mean's cross entropy is surely over all rows. Labels on another device are not waited for."""
    if call.reduction != "mean" or call.alpha == 1:
        return True
    return visible(call.labels) and not bool((call.labels == call.ignore_index).any())


def _one_call(size: int, call: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The batch as an outer leading dimension of all tensors (but the weights of members and classes).
    Reductions become row factors."""
    each = call.student.shape[1:]  # [N, C] or [O, I, C]
    shape = (size, *each) if len(each) == 2 else (size * each[0], *each[1:])
    n = each[0] if len(each) == 2 else each[0] * each[1]
    sample_weights, settings = (
        call.sample_weights,
        OpSettings(*(getattr(call, name) for name in OpSettings._fields)),
    )
    class_weights = None if call.class_weights is None else call.class_weights[0]
    if call.reduction != "none":
        factor = 1 / (max(n, 1) if call.reduction == "mean" else call.divisor)
        sample_weights = (
            call.student.new_full((size, n), factor, dtype=torch.float64)
            if sample_weights is None
            else factor * sample_weights
        )
        settings = settings._replace(reduction="none", divisor=1.0)
    if call.reduction == "mean" and call.labels is not None and call.alpha < 1:
        # All of the batch have as many labelled rows as the first.
        first = OpTensors(*(None,) * len(OpTensors._fields))._replace(
            labels=call.labels[0], class_weights=class_weights
        )
        class_weights = mean_as_sum(first, call, n, call.student.shape[-1])[0].class_weights

    def members(x: Tensor | None, *shape: int) -> Tensor | None:  # [B, K, ...] as [K, B, ...]
        return None if x is None else x.transpose(0, 1).reshape(-1, *shape)

    def rows(x: Tensor | None) -> Tensor | None:  # [B, N, ...] as [B * N, ...]
        return None if x is None else x.reshape(size * n, *x.shape[2:]).contiguous()

    tensors = OpTensors(
        scale=members(call.scale, size * n),
        offset=members(call.offset, size * n),
        ids=rows(call.ids),
        tail=rows(call.tail),
        weights=None if call.weights is None else call.weights[0],
        labels=rows(call.labels),
        class_weights=class_weights,
        sample_weights=rows(sample_weights),
    )
    targets: Any = rows(call.targets) if call.kind == "topk" else members(call.targets, *shape)
    flags = {"with_gradient": call.with_gradient, "with_statistics": call.with_statistics}
    loss, gradient, statistics = distill_loss(
        *op_call(
            ready(call.student.reshape(shape)),
            targets if call.kind == "topk" else ready(targets),
            tensors,
            settings,
            **flags,
        )
    )
    loss = loss.reshape(size, n)
    return (
        loss if call.reduction == "none" else loss.sum(-1, dtype=torch.float64).to(loss.dtype),
        gradient.reshape(size, *each) if call.with_gradient else gradient[:0].reshape(0, *each[1:]),
        statistics.reshape(size, n, 4) if call.with_statistics else statistics,
    ), (0, 0 if call.with_gradient else None, 0 if call.with_statistics else None)
