"""The native ops as torch sees them: fake kernels for tracing, autograd, vmap. Validation for users is in
functional.py."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, is_functorch_wrapped_tensor

from ensdistill.loss import _native, reference
from ensdistill.loss.checks import visible
from ensdistill.loss.layout import ready
from ensdistill.loss.signature import TENSORS, Call, OpSettings, OpTensors, op_call
from ensdistill.loss.wrapped import is_plain

__all__ = [
    "build_info",
    "differentiable_loss",
    "distill_loss",
    "instruction_set",
    "release_memory",
    "scaled",
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
    return loss, _empty_gradient(student, call.with_gradient), statistics


def _empty_gradient(student: Tensor, with_gradient: bool) -> Tensor:
    """Laid out like ``student``: classes last, or first in memory where it has them first."""
    *lead, classes = student.shape
    if not with_gradient:
        lead[0] = 0
    if student.stride(-1) == 1 or classes <= 1:
        return student.new_empty((*lead, classes))
    return student.new_empty((*lead[:-1], classes, lead[-1])).transpose(-1, -2)


# Autograd
# ------------------------------------------------------------------------------------------------------------
# The first derivative needs only the gradient that the forward made. A second derivative needs the inputs
# too, and a forward can't know whether one will follow. So in eager mode autograd saves the gradient alone.
# The student's logits and the tensors of size O(N) are kept as plain references, whose versions are checked
# only by a second derivative. The targets [K, N, C] are large and not the graph's own: they are kept by a
# weak reference. If they are gone or were overwritten by then, the second derivative raises, and names
# recompute=True, which saves the inputs as autograd does. Under torch.func and while tracing nothing outlives
# the call (a traced graph keeps only the tensors that it uses), and all inputs are saved.

FORWARD_MODE = "has no forward-mode derivative (torch.func.jvp, jacfwd, hessian)"


def saveable(x: Tensor | None) -> Tensor | None:
    """``x``, or the same memory under another name: autograd saves no tensor that was made under
    torch.inference_mode()."""
    if x is None or not x.is_inference():
        return x
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        x.untyped_storage(), x.storage_offset(), x.size(), x.stride()
    )


def _versions(*tensors: Tensor | None) -> list[int | None]:
    """How often each was changed in place; None for those made under torch.inference_mode(), whose changes
    torch doesn't count."""
    try:
        return [x._version for x in tensors if x is not None]
    except RuntimeError:
        return [None if x.is_inference() else x._version for x in tensors if x is not None]


class _Inputs:
    """The inputs of one call, for a second derivative. ``held`` are the caller's own targets, and their class
    dimension."""

    __slots__ = ("held", "rest", "shape", "student", "targets", "versions")

    def __init__(self, call: Any, held: tuple[Tensor, int] | None) -> None:
        self.student, targets, *self.rest = call[:TENSORS]
        self.shape, self.held, self.targets = targets.shape, held and held[1], targets
        if held is not None:
            targets = held[0]
            self.targets = weakref.ref(targets)
        self.versions = _versions(self.student, targets, *self.rest)

    def again(self) -> tuple[list[Tensor | None], str | None]:
        """Return the saved inputs, and an error message if they are stale."""
        targets = self.targets if self.held is None else self.targets()
        if targets is None:
            fault = "the targets are gone; keep them until then"
        elif _versions(self.student, targets, *self.rest) != self.versions:
            fault = "they have been changed in place; change copies"
        else:
            if self.held is not None:
                targets = targets.detach().movedim(self.held, -1).reshape(self.shape)
            return [self.student, targets, *self.rest], None
        fault = (
            f"distillation_loss: a second derivative needs the inputs, and {fault}, or pass recompute=True"
        )
        return [self.student, None, *self.rest], fault


def _without_tensors(call: Any) -> Any:
    """The call's settings and flags: a graph must keep no tensor but those that autograd saves."""
    return Call(*(None,) * TENSORS, *call[TENSORS:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.call = _without_tensors(Call(*inputs))
    ctx.save_for_backward(output[1], *map(saveable, inputs[:TENSORS]))
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[2])


def _student_gradient(ctx: Any, grad_loss: Tensor | None) -> Tensor | None:
    if grad_loss is None:
        return None
    gradient, *tensors = ctx.saved_tensors
    traced = type(grad_loss) is not Tensor
    # A kept graph is walked again. A leaf makes the returned tensor its .grad and adds to it, so it has to be
    # a copy.
    kept = traced or torch._C._autograd._get_current_graph_task_keep_graph()
    owned, fault = not kept, None
    twice = torch.is_grad_enabled()
    if not ctx.call.with_gradient:
        again = ctx.call._replace(with_gradient=True, with_statistics=False)
        gradient, owned = (
            distill_loss(*(None if x is None else x.detach() for x in tensors), *again[TENSORS:])[1],
            True,
        )
    elif not tensors:  # of _Eager
        if twice:
            tensors, fault = ctx.inputs.again()
        if not kept:
            ctx.inputs = None
    if twice and (grad_loss.requires_grad or tensors[0].requires_grad):
        twice_differentiable: Tensor = _First.apply(grad_loss, gradient, *tensors, ctx.call, fault)
        return twice_differentiable
    return scaled(gradient, grad_loss, owned)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    return _student_gradient(ctx, grad_loss), *(None,) * (len(Call._fields) - 1)


def scaled(gradient: Tensor, grad_loss: Tensor, owned: bool) -> Tensor:
    """``gradient`` times each row's upstream factor, in the loss's precision and rounded once; in its own
    memory if that is ``owned``."""
    # Autograd batches upstream factors only, so the gradient is not checked: that check takes as long as the
    # rest.
    plain = is_plain(grad_loss) and type(gradient) is Tensor and not is_functorch_wrapped_tensor(gradient)
    # The usual case, loss.backward(), scales by 1: on the CPU that is known without waiting for anybody.
    if plain and not grad_loss.is_cuda and grad_loss.dim() == 0 and grad_loss.item() == 1:
        return gradient if owned else gradient.clone()
    # One number for all: on the CPU it enters in its own precision. On a GPU it would enter in the
    # gradient's, where a loss scale of 2^16 is infinite in float16; with dimensions it doesn't.
    shape = (1,) * gradient.dim() if grad_loss.dim() == 0 else (*gradient.shape[:-1], 1)
    factor = (
        grad_loss if grad_loss.dim() == 0 and grad_loss.device.type == "cpu" else grad_loss.reshape(shape)
    )
    if owned and plain and gradient.is_cuda and grad_loss.dim() == 0 and grad_loss.dtype == torch.float32:
        torch.ops.ensdistill.scale_gradient(gradient, grad_loss)
        return gradient
    if owned and plain:
        return gradient.mul_(factor)
    return (gradient * factor).to(gradient.dtype)


def _refuse_forward_mode(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        f"distillation_loss: {FORWARD_MODE}; take torch.func.jacrev, of itself for a Hessian, or "
        "impl='reference', which has all of them"
    )


class _First(torch.autograd.Function):
    """The first derivative as something that can be differentiated again (``create_graph=True``,
    torch.func.grad). Itself it is the kernel's; its own derivative is that of the specification, made on
    demand only.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(grad_loss: Tensor, gradient: Tensor, *_: Any) -> Tensor:
        return scaled(gradient, grad_loss, owned=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_loss, _, *tensors, ctx.call, ctx.fault = inputs
        ctx.save_for_backward(grad_loss, *map(saveable, tensors))

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Any, ...]:
        if ctx.fault:
            raise RuntimeError(ctx.fault)
        grad_loss, *tensors = ctx.saved_tensors
        arguments = Call(*tensors, *ctx.call[TENSORS:])._asdict()
        student = arguments.pop("student")
        del arguments["with_gradient"]
        arguments["with_statistics"] = False
        vjp: Any = torch.func.vjp

        def first(grad_loss: Tensor, student: Tensor) -> Tensor:
            _, pull = vjp(lambda s: reference.distill_loss(s, **arguments)[0], student)
            return pull(grad_loss)[0]

        _, pull = vjp(first, grad_loss, student)
        second_loss, second_student = pull(direction)
        return second_loss, None, second_student, *(None,) * (TENSORS - 1), None, None

    jvp = staticmethod(_refuse_forward_mode)


class _Eager(torch.autograd.Function):
    """The op outside of tracing and torch.func, at a third of the cost of a call through torch.library."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, call: Any, held: tuple[Tensor, int] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output: tuple[Tensor, Tensor, Tensor] = distill_loss(*call)
        ctx.call = _without_tensors(call)
        if call.with_gradient:
            ctx.save_for_backward(output[1])
            ctx.inputs = _Inputs(call, held)
        else:
            ctx.save_for_backward(None, *map(saveable, call[:TENSORS]))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1], output[2])
        return output

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
        return _student_gradient(ctx, grad_loss), None, None


class _Transformable(torch.autograd.Function):
    """The op under torch.func, which refuses the function that torch.library registers."""

    generate_vmap_rule = True
    forward = staticmethod(lambda *arguments: distill_loss(*arguments))
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse_forward_mode)


def differentiating() -> bool:
    """Whether torch.func differentiates; evaluated while torch.compile traces."""
    return any(level.key() == TransformType.Grad for level in get_interpreter_stack() or ())


# The mark of torch.compiler.assume_constant_result, which would import the compiler: a second of every start.
vars(differentiating)["_dynamo_marked_constant"] = True


def refuse_in_one_graph(name: str) -> None:
    """Raise NotImplementedError. Without fullgraph=True torch.compile breaks the graph here and runs the
    caller uncompiled."""
    raise NotImplementedError(
        f"{name}: torch.compile can't take torch.func.grad, vjp or jacrev of it into one graph; compile "
        "with fullgraph=False, or "
        "differentiate by loss.backward()"
    )


def differentiable_loss(call: Any, held: tuple[Tensor, int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """:data:`distill_loss`, by the shortest way that is right in torch's present mode.

    ``held`` is the caller's own tensor, of which the targets are a view, and its class dimension: a second
    derivative takes the targets from there. Without it the targets themselves are kept.
    """
    if torch.compiler.is_compiling():
        if differentiating():
            refuse_in_one_graph("distillation_loss")
        function: Any = distill_loss
    elif torch._C._are_functorch_transforms_active():
        function = _Transformable.apply
    elif call.student.requires_grad and torch.is_grad_enabled():
        output: tuple[Tensor, Tensor, Tensor] = _Eager.apply(call.student, call, held)
        return output
    else:
        function = distill_loss
    output = function(*call)
    return output


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


torch.library.register_autograd("ensdistill::distill_loss", _backward, setup_context=_setup_context)


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
