"""Distillation through a student's last linear layer, without ever holding its logits: they are made and used
up in chunks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from ensdistill.common.scalars import whole
from ensdistill.loss import autograd, ops
from ensdistill.loss.arguments import explain_nan, make_problem
from ensdistill.loss.checks import check_device, check_floats, check_kernels, check_number
from ensdistill.loss.functional import RowStatistics
from ensdistill.loss.layout import product, ready
from ensdistill.loss.settings import LossKeywords, LossSettings, settings_of
from ensdistill.loss.signature import PARAMETERS, TENSORS, OpSettings, OpTensors, op_call, record
from ensdistill.loss.targets import Targets
from ensdistill.loss.wrapped import is_batched

# Of logits in one chunk: large enough for the matrix products to run at full speed, small beside any layer
# that this is for.
CHUNK_BYTES = 48 * 2**20


@overload
def linear_distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor | Targets,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    settings: LossSettings | None = None,
    weights: Tensor | Sequence[float] | None = None,
    class_weights: Tensor | Sequence[float] | None = None,
    sample_weights: Tensor | Sequence[float] | None = None,
    statistics: Literal[False] = False,
    **keywords: Unpack[LossKeywords],
) -> Tensor: ...


@overload
def linear_distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor | Targets,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    settings: LossSettings | None = None,
    weights: Tensor | Sequence[float] | None = None,
    class_weights: Tensor | Sequence[float] | None = None,
    sample_weights: Tensor | Sequence[float] | None = None,
    statistics: Literal[True],
    **keywords: Unpack[LossKeywords],
) -> tuple[Tensor, RowStatistics]: ...


def linear_distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor | Targets,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    settings: LossSettings | None = None,
    weights: Tensor | Sequence[float] | None = None,
    class_weights: Tensor | Sequence[float] | None = None,
    sample_weights: Tensor | Sequence[float] | None = None,
    statistics: bool = False,
    **keywords: Any,
) -> Tensor | tuple[Tensor, RowStatistics]:
    r""":func:`~ensdistill.loss.functional.distillation_loss` of the logits ``hidden @ weight.T + bias``,
    which never exist as a whole.

    Rows go through in chunks: a matrix product makes a chunk's logits, the fused kernel their loss and
    gradient, two more products take the gradient on to ``hidden`` and ``weight``. Memory beside the gradients
    is two chunks, about 100 MB for any N: the logits and their gradient. The gradient can't overwrite the
    logits: the kernel reads a row again in double precision where its numbers leave a float's range, and a
    soft cap and by-products read the logits again. Half precision in more than one chunk also needs
    ``weight``'s gradient in float32 and one product of its size; autocast needs ``weight`` in the autocast
    dtype.

    Parameters
    ----------
    hidden : Tensor [..., D], float32, bfloat16, float16 or float64
        The input of the last layer; any leading dimensions, N rows altogether.
    weight : Tensor [C, D]
        Of the last layer, in ``hidden``'s dtype (any under autocast, which then decides the dtype in which
        both are multiplied).
    targets, labels, settings, weights, class_weights, sample_weights, statistics, **keywords
        As in :func:`~ensdistill.loss.functional.distillation_loss`, for logits [..., C]; the classes of dense
        targets are last.
    bias : Tensor [C], optional
        Like ``weight``.
    softcap : float, optional
        The logits are softcap · tanh(logits / softcap).
    chunk_rows : int, optional
        Rows in a chunk. By default so many that their logits take 48 MiB.

    Returns
    -------
    Tensor [], or [...] for ``reduction="none"``; with ``statistics=True`` a pair of it and a RowStatistics
        In nats. float64 if the logits or targets are, else float32.

    Raises
    ------
    ValueError, TypeError
        Names the argument, the value and the expectation.
    NotImplementedError
        On a device that has no kernels. Where it is differentiated twice, or by torch.func.vmap:
        ``distillation_loss`` of the logits can do both. In forward mode (torch.func.jvp, jacfwd, hessian),
        and in torch.func.grad under torch.compile(fullgraph=True).

    Notes
    -----
    With ``recompute=True`` all gradients are made in the backward: no gradients are kept in between, but all
    inputs, and the logits are made twice. So they are with ``reduction="none"``, where each row's upstream
    factor is known in the backward only. Otherwise the forward makes them.

    The weight's gradient is summed over chunks in float32 (float64 for float64), and rounded to the weight's
    dtype once. Chunking after Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2025,
    and Hsu et al., "Liger Kernel", 2024. softcap: Gemma Team, "Gemma 2", 2024, section 2.

    Examples
    --------
    >>> hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(10, 4, requires_grad=True)
    >>> teachers = torch.randn(3, 6, 10)
    >>> loss = linear_distillation_loss(hidden, weight, teachers, temperature=2.0, softcap=30.0)
    >>> loss.backward()
    >>> hidden.grad.shape, weight.grad.shape
    (torch.Size([6, 4]), torch.Size([10, 4]))
    """
    settings = settings_of(settings, keywords)
    dtype = check_layer(hidden, weight, bias)
    if softcap is not None:
        check_number("softcap", softcap)
    classes, lead = weight.shape[0], tuple(hidden.shape[:-1])
    problem = make_problem(
        (*lead, classes),
        len(lead),
        dtype,
        hidden.device,
        targets,
        labels,
        settings,
        weights=weights,
        class_weights=class_weights,
        sample_weights=sample_weights,
        statistics=statistics,
    )
    check_kernels("hidden", hidden.device)
    n = product(lead)
    if chunk_rows is None:
        chunk_rows = max(1, CHUNK_BYTES // (classes * dtype.itemsize))
        # Each chunk reads the weight twice, and its gradient once: few, large chunks.
        chunk_rows -= chunk_rows % 16 if chunk_rows > 16 else 0
    elif not whole(chunk_rows) or chunk_rows < 1:
        raise ValueError(f"chunk_rows: expected an int of at least 1; got {chunk_rows!r}")
    values = problem.values.detach()
    tensors, op, factor = problem.tensors, problem.settings, 1.0 / problem.settings.divisor
    each_row = op.reduction == "none"
    if op.reduction == "mean":
        tensors, shrunk = ops.mean_as_sum(tensors, op, n, classes)
        factor = shrunk / max(n, 1)
    op = op._replace(reduction="none" if each_row else "sum", divisor=1.0)
    inputs = (hidden, weight, *(() if bias is None else (bias,)))
    now = (
        torch.is_grad_enabled()
        and not settings.recompute
        and not each_row
        and any(x.requires_grad for x in inputs)
    )
    call = LinearCall(
        hidden.reshape(n, hidden.shape[-1]),
        weight,
        bias,
        values.reshape(len(values), n, classes) if problem.dense else values,
        *tensors,
        *op,
        softcap=float(softcap or 0.0),
        chunk_rows=chunk_rows,
        dtype=dtype,
        with_hidden=now and hidden.requires_grad,
        with_weight=now and weight.requires_grad,
        with_bias=now and bias is not None and bias.requires_grad,
        with_statistics=statistics,
        upstream=None,
    )
    loss, _, _, _, by_products = _differentiable(call)
    # After the gradient, which so stays as large as a row's is: in float16 the mean's would round to nothing.
    loss = loss.reshape(lead) if each_row else (loss * factor).to(loss.dtype)
    explain_nan(problem, targets, classes, len(lead), loss)
    return (loss, RowStatistics.from_rows(by_products, lead)) if statistics else loss


def check_layer(hidden: Any, weight: Any, bias: Any) -> torch.dtype:
    """Check the layer, and return the dtype in which it is multiplied."""
    check_floats("hidden", hidden, " [..., D]")
    check_floats("weight", weight, " [C, D]")
    if hidden.dim() < 1:
        raise ValueError(f"hidden: expected [..., D]; got shape {list(hidden.shape)}")
    if weight.dim() != 2 or weight.shape[0] < 1 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight: expected [C, {hidden.shape[-1]}] with C >= 1, for hidden {list(hidden.shape)}; got "
            f"{list(weight.shape)}"
        )
    check_device("weight", weight, hidden.device)
    if bias is not None:
        check_floats("bias", bias, " [C]")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias: expected [{weight.shape[0]}]; got shape {list(bias.shape)}")
        check_device("bias", bias, hidden.device)
    device = hidden.device.type
    # As torch's own matrix products: float64 is never cast.
    if torch.is_autocast_enabled(device) and torch.float64 not in (hidden.dtype, weight.dtype):
        return torch.get_autocast_dtype(device)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype != hidden.dtype:
            raise TypeError(f"{name}: expected {hidden.dtype} like hidden; got {value.dtype}")
    return hidden.dtype


# The op: a loop over chunks. As an op of its own it is one node for torch.compile, however many chunks there
# are. ------


# The layer stands in place of the student's logits; targets, tensors and settings are distill_loss's, under
# the same names.
_LAYER = ("Tensor hidden", "Tensor weight", "Tensor? bias")
_CHOICES = (
    *("float softcap", "int chunk_rows", "ScalarType dtype"),
    *("bool with_hidden", "bool with_weight", "bool with_bias", "bool with_statistics", "Tensor? upstream"),
)
_PARAMETERS = (*_LAYER, *PARAMETERS[1:-2], *_CHOICES)
_INPUTS = len(_LAYER) + TENSORS - 1  # the tensors that it begins with
LinearCall = record("LinearCall", [parameter.split()[1] for parameter in _PARAMETERS])


def _parts(call: Any) -> tuple[Any, Any]:
    """A call's OpTensors and OpSettings."""
    tensors, settings = (
        kind(*(getattr(call, name) for name in kind._fields)) for kind in (OpTensors, OpSettings)
    )
    return tensors, settings


@torch.library.custom_op(
    "ensdistill::linear_distill_loss",
    mutates_args=(),
    schema=f"({', '.join(_PARAMETERS)}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _linear(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss [] (summed) or [N]; gradients of its sum, or of its product with ``upstream`` [N]; statistics [N,
    4].

    A gradient that is not needed is [0].

    ``upstream`` is applied where a row is D long, not C.
    """
    call = LinearCall(*arguments)
    hidden, weight, bias, dtype, softcap, chunk_rows = (
        call.hidden,
        call.weight,
        call.bias,
        call.dtype,
        call.softcap,
        call.chunk_rows,
    )
    tensors, settings = _parts(call)
    n, kept = len(hidden), torch.promote_types(weight.dtype, torch.float32)
    with_gradient = call.with_hidden or call.with_weight or call.with_bias
    w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
    grad_hidden = (
        torch.empty_like(hidden, memory_format=torch.contiguous_format)
        if call.with_hidden
        else hidden.new_empty(0)
    )
    grad_weight = weight.new_empty(0)
    grad_bias = torch.zeros(len(weight) if call.with_bias else 0, dtype=kept, device=weight.device)
    losses, statistics = [], []
    buffer = hidden.new_empty((min(chunk_rows, n), len(weight)), dtype=dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, max(n, 1), chunk_rows):
            rows = slice(start, min(start + chunk_rows, n))
            h = hidden[rows].to(dtype)
            logits = buffer[: len(h)]
            torch.mm(h, w.t(), out=logits) if b is None else torch.addmm(b, h, w.t(), out=logits)
            if softcap:
                logits.div_(softcap).tanh_().mul_(softcap)
            values = call.targets[rows] if settings.kind == "topk" else ready(call.targets[:, rows])
            part, chunk_settings = _rows_of(tensors, rows), settings
            by_products = None
            if settings.alpha == 0:
                if call.with_statistics:  # they compare with the teachers all the same
                    by_products = ops.distill_loss(
                        *op_call(logits, values, part, chunk_settings, with_statistics=True)
                    )[2]
                values, part, chunk_settings = ops.without_divergence(logits, values, part, chunk_settings)
            flags = {
                "with_gradient": with_gradient,
                "with_statistics": call.with_statistics and settings.alpha > 0,
            }
            loss, gradient, found = ops.distill_loss(*op_call(logits, values, part, chunk_settings, **flags))
            by_products = found if by_products is None else by_products
            losses.append(loss)
            statistics.append(by_products)
            if not with_gradient:
                continue
            if softcap:  # 1 - tanh^2
                gradient.addcmul_(gradient, logits.div_(softcap).square_(), value=-1)
            factor = None if call.upstream is None else call.upstream[rows].unsqueeze(-1)
            if call.with_hidden:
                g = gradient @ w
                grad_hidden[rows] = g if factor is None else g * factor
            if call.with_weight:
                h = h if factor is None else (h * factor).to(dtype)
                # Not added to zeros, which would be two more passes over memory of the weight's size.
                if start == 0:
                    grad_weight = gradient.t() @ h
                elif dtype == kept:
                    grad_weight.addmm_(gradient.t(), h)
                else:
                    grad_weight = grad_weight.to(kept).add_(gradient.t() @ h)
            if call.with_bias:
                grad_bias.add_(
                    gradient.sum(0, dtype=kept)
                    if factor is None
                    else gradient.t().to(kept) @ factor.squeeze(-1).to(kept)
                )
    total = (
        torch.cat(losses)
        if settings.reduction == "none"
        else torch.stack(losses).sum(dtype=torch.float64).to(losses[0].dtype)
    )
    return (
        total,
        grad_hidden,
        grad_weight.to(weight.dtype),
        grad_bias.to(weight.dtype if bias is None else bias.dtype),
        torch.cat(statistics),
    )


def _rows_of(tensors: Any, rows: slice) -> Any:
    """The tensors of some rows."""
    by_row = {name: getattr(tensors, name) for name in ("ids", "tail", "labels", "sample_weights")}
    by_member = {name: getattr(tensors, name) for name in ("scale", "offset")}
    return tensors._replace(
        **{name: None if x is None else x[rows] for name, x in by_row.items()},
        **{name: None if x is None else x[:, rows] for name, x in by_member.items()},
    )


@_linear.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    call = LinearCall(*arguments)
    hidden, weight, bias = call.hidden, call.weight, call.bias
    n, precision = (
        hidden.shape[0],
        torch.float64 if torch.float64 in (call.dtype, call.targets.dtype) else torch.float32,
    )
    return (
        hidden.new_empty((n,) if call.reduction == "none" else (), dtype=precision),
        hidden.new_empty(hidden.shape if call.with_hidden else 0),
        weight.new_empty(weight.shape if call.with_weight else 0),
        (weight if bias is None else bias).new_empty(weight.shape[0] if call.with_bias else 0),
        hidden.new_empty((n if call.with_statistics else 0, 4), dtype=precision),
    )


# Autograd
# ------------------------------------------------------------------------------------------------------------

_NO_VMAP = "linear_distillation_loss: has no rule for torch.func.vmap"


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call = LinearCall(*inputs)
    ctx.call = LinearCall(*(None,) * _INPUTS, *call[_INPUTS:])
    ctx.made = call.with_hidden or call.with_weight or call.with_bias
    # Gradients that are made need no inputs any more: those stay only for a second derivative to arrive at,
    # which is refused there.
    ctx.leads_to = [
        x if x is not None and x.requires_grad else None for x in (call.hidden, call.weight, call.bias)
    ]
    ctx.save_for_backward(*output[1:4], *(() if ctx.made else map(autograd.saveable, inputs[:_INPUTS])))
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    nothing = (None,) * (len(ctx.needs_input_grad) - 3)
    if grad_loss is None:
        return None, None, None, *nothing
    saved = ctx.saved_tensors
    made, inputs = saved[:3], saved[3:]
    wanted = ctx.needs_input_grad[:3]
    each_row = ctx.call.reduction == "none"
    kept = type(grad_loss) is not Tensor or torch._C._autograd._get_current_graph_task_keep_graph()
    owned, leads_to = not kept, ctx.leads_to
    if not kept:
        ctx.leads_to = None
    if not ctx.made:
        if each_row and is_batched(grad_loss):
            raise NotImplementedError(
                f"{_NO_VMAP}, nor for many backward passes in one with reduction='none'"
            )
        tensors = [None if x is None else x.detach() for x in inputs]
        again = ctx.call._replace(
            with_hidden=wanted[0],
            with_weight=wanted[1],
            with_bias=wanted[2],
            with_statistics=False,
            upstream=grad_loss.detach() if each_row else None,
        )
        _, *made, _ = _linear(*tensors, *again[_INPUTS:])
        owned = type(grad_loss) is Tensor
    # Each row's factor is in them already.
    gradients = [
        (x if each_row else autograd.scaled(x, grad_loss, owned)) if w else None
        for x, w in zip(made, wanted, strict=True)
    ]
    if torch.is_grad_enabled():
        gradients = [None if g is None else _Once.apply(g, grad_loss, *leads_to) for g in gradients]
    return *gradients, *nothing


def _refuse_forward_mode(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        f"linear_distillation_loss: {autograd.FORWARD_MODE}; take distillation_loss of the logits with "
        "impl='reference'"
    )


class _Once(torch.autograd.Function):
    """Raise an error where gradients that can't be differentiated again are."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *_: Any) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "linear_distillation_loss: has no second derivative; take distillation_loss of the logits for one"
        )

    jvp = staticmethod(_refuse_forward_mode)


class _Function(torch.autograd.Function):
    """The op for eager mode and torch.func, which refuses the function that torch.library registers."""

    forward = staticmethod(lambda *arguments: _linear(*arguments))
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse_forward_mode)

    @staticmethod
    def vmap(*_: Any) -> Any:
        raise NotImplementedError(f"{_NO_VMAP}; give it leading dimensions instead")


_linear.register_autograd(_backward, setup_context=_setup_context)


def _differentiable(call: Any) -> tuple[Tensor, ...]:
    if not torch.compiler.is_compiling():
        output: tuple[Tensor, ...] = _Function.apply(*call)
        return output
    if autograd.differentiating():
        autograd.refuse_in_one_graph("linear_distillation_loss")
    output = _linear(*call)
    return output
