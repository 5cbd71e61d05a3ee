"""The native op of the multi-label loss, registered with torch: a fake kernel for tracing, autograd, vmap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensdistill.loss import multilabel_reference
from ensdistill.loss.autograd import Operator, empty_gradient
from ensdistill.loss.signature import Signature

multilabel_loss = torch.ops.ensdistill.multilabel_loss.default
SIGNATURE = Signature(multilabel_loss)


@torch.library.register_fake("ensdistill::multilabel_loss")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    call = SIGNATURE.call(*arguments)
    student = call.student
    dtype = torch.float64 if torch.float64 in (student.dtype, call.targets.dtype) else torch.float32
    n = student.shape[0] if student.dim() == 2 else student.shape[0] * student.shape[1]
    loss = student.new_empty((n,) if call.reduction == "none" else (), dtype=dtype)
    return loss, empty_gradient(student, call.with_gradient)


# Looked up at every call: tests put another device's op in this module.
_OPERATOR = Operator(
    "ensdistill::multilabel_loss",
    "multilabel_distillation_loss",
    lambda *arguments: multilabel_loss(*arguments),
    multilabel_reference.multilabel_loss,
    SIGNATURE,
)
differentiable_loss = _OPERATOR.differentiable


@torch.library.register_vmap("ensdistill::multilabel_loss")
def _(
    info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """One call for each of the batch."""
    outputs = []
    for i in range(info.batch_size):
        each = [x if d is None else x.select(d, i) for x, d in zip(arguments, in_dims, strict=True)]
        outputs.append(multilabel_loss(*each))
    loss, gradient = zip(*outputs, strict=True)
    return (torch.stack(loss), torch.stack(gradient)), (0, 0)
