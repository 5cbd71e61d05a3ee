"""The native ops as torch sees them: fake kernels for tracing, and autograd. Validation for users is in functional.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensdistill import _native, reference

__all__ = ["build_info", "distill_loss", "instruction_set", "use_instruction_set"]

build_info = _native.build_info
instruction_set = _native.instruction_set
use_instruction_set = _native.use_instruction_set

distill_loss = torch.ops.ensdistill.distill_loss.default


@torch.library.register_fake("ensdistill::distill_loss")
def _(
    student: Tensor,
    targets: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    weights: Tensor | None,
    labels: Tensor | None,
    temperature: float,
    alpha: float,
    combiner: str,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    n, c = student.shape
    dtype = torch.float64 if torch.float64 in (student.dtype, targets.dtype) else torch.float32
    loss = student.new_empty((n,) if reduction == "none" else (), dtype=dtype)
    return loss, student.new_empty((n if with_gradient else 0, c))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    student, targets, scale, offset, weights, labels, *settings = inputs
    *ctx.settings, ctx.with_gradient = settings
    ctx.save_for_backward(output[1], student, targets, scale, offset, weights, labels)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    nothing = (None,) * 12
    gradient, student, *rest = ctx.saved_tensors
    if grad_loss is None:
        return None, *nothing
    if not ctx.with_gradient:
        raise RuntimeError("distill_loss: called with with_gradient=False, so there is no gradient to go back through")
    if torch.is_grad_enabled() and (grad_loss.requires_grad or student.requires_grad):
        return _differentiable_backward(grad_loss, student, rest, ctx.settings), *nothing
    # The usual case, loss.backward(), scales by 1: on the CPU that is known without waiting for anybody.
    if type(grad_loss) is Tensor and not grad_loss.is_cuda and grad_loss.dim() == 0 and grad_loss.item() == 1:
        # A kept graph is walked again: what goes out then must not be what stays, for a leaf makes it its .grad and adds to it.
        return gradient.clone() if torch._C._autograd._get_current_graph_task_keep_graph() else gradient, *nothing
    factor = grad_loss if grad_loss.dim() == 0 else grad_loss.unsqueeze(-1)
    # Scaled in the loss's precision and rounded once.
    return (gradient * factor).to(gradient.dtype), *nothing


def _differentiable_backward(grad_loss: Tensor, student: Tensor, rest: list[Tensor | None], settings: list[Any]) -> Tensor:
    """The gradient as a function that autograd can differentiate again (``create_graph=True``): that of the specification."""
    targets, scale, offset, weights, labels = rest
    temperature, alpha, combiner, ignore_index, label_smoothing, reduction = settings
    assert targets is not None
    if scale is not None and offset is not None:
        from ensdistill.targets import QuantizedLogits

        targets = QuantizedLogits(targets, scale, offset).to_logits(torch.promote_types(student.dtype, torch.float32))
    loss = reference.distillation_loss(
        student,
        targets.detach(),
        labels,
        temperature=temperature,
        alpha=alpha,
        weights=weights,
        combiner=combiner,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return torch.autograd.grad(loss, student, grad_loss, create_graph=True)[0]


torch.library.register_autograd("ensdistill::distill_loss", _backward, setup_context=_setup_context)
