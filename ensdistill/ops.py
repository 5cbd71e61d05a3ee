"""The native ops as torch sees them: fake kernels for tracing, autograd, vmap. Validation for users is in functional.py."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, is_functorch_wrapped_tensor

from ensdistill import _native, reference
from ensdistill.layout import ready
from ensdistill.wrapped import is_plain

__all__ = ["build_info", "differentiable_loss", "distill_loss", "instruction_set", "release_memory", "scaled", "use_instruction_set"]

build_info = _native.build_info
instruction_set = _native.instruction_set
release_memory = _native.release_memory
use_instruction_set = _native.use_instruction_set

distill_loss = torch.ops.ensdistill.distill_loss.default

# student, targets, scale, offset, ids, tail, weights, labels, class_weights, sample_weights; then kind ... with_statistics
_TENSORS, _SETTINGS = 10, 14
_WEIGHTS, _CLASS_WEIGHTS = 6, 8
_KIND, _IGNORE_INDEX, _REDUCTION, _DIVISOR = 0, 7, 10, 11


@torch.library.register_fake("ensdistill::distill_loss")
def _(student: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    reduction, (with_gradient, with_statistics) = rest[_TENSORS - 2 + _REDUCTION], rest[-2:]
    dtype = torch.float64 if torch.float64 in (student.dtype, targets.dtype) else torch.float32
    n = student.shape[0] if student.dim() == 2 else student.shape[0] * student.shape[1]
    loss = student.new_empty((n,) if reduction == "none" else (), dtype=dtype)
    return loss, _empty_gradient(student, with_gradient), student.new_empty((n if with_statistics else 0, 4), dtype=dtype)


def _empty_gradient(student: Tensor, with_gradient: bool) -> Tensor:
    """Laid out like ``student``: classes last, or first in memory where it has them first."""
    *lead, classes = student.shape
    if not with_gradient:
        lead[0] = 0
    if student.stride(-1) == 1 or classes <= 1:
        return student.new_empty((*lead, classes))
    return student.new_empty((*lead[:-1], classes, lead[-1])).transpose(-1, -2)


# Autograd -------------------------------------------------------------------------------------------------------------
# The first derivative needs the gradient that the forward made, and nothing else; only the second one needs the inputs, and a forward
# can't know whether somebody will ask for that. So in eager mode autograd saves the gradient alone. The student's logits and what is
# O(N) are kept as plain references, which nobody's version check looks at unless a second derivative is made; the targets [K, N, C],
# the one large thing that isn't the graph's own, by a weak reference: whoever has let go of them, or written over them, is told so by a
# second derivative, and can ask for recompute=True, which saves the inputs as autograd does. Under torch.func and while tracing
# nothing outlives the call (a traced graph keeps only what it uses), and all inputs are saved.

FORWARD_MODE = "has no forward-mode derivative (torch.func.jvp, jacfwd, hessian)"


def saveable(x: Tensor | None) -> Tensor | None:
    """``x``, or the same memory under another name: autograd saves no tensor that was made under torch.inference_mode()."""
    if x is None or not x.is_inference():
        return x
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage(), x.storage_offset(), x.size(), x.stride())


def _versions(*tensors: Tensor | None) -> list[int | None]:
    """How often each was changed in place. Of those made under torch.inference_mode() torch doesn't know."""
    try:
        return [x._version for x in tensors if x is not None]
    except RuntimeError:
        return [None if x.is_inference() else x._version for x in tensors if x is not None]


class _Inputs:
    """The inputs of one call, for a second derivative. ``held`` are the targets as the caller holds them, and their class dimension."""

    __slots__ = ("held", "rest", "shape", "student", "targets", "versions")

    def __init__(self, arguments: tuple[Any, ...], held: tuple[Tensor, int] | None) -> None:
        self.student, targets, self.rest = arguments[0], arguments[1], arguments[2:_TENSORS]
        self.shape, self.held, self.targets = targets.shape, held and held[1], targets
        if held is not None:
            targets = held[0]
            self.targets = weakref.ref(targets)
        self.versions = _versions(self.student, targets, *self.rest)

    def again(self) -> tuple[list[Tensor | None], str | None]:
        """They, and what is wrong with them, if so."""
        targets = self.targets if self.held is None else self.targets()
        if targets is None:
            fault = "the targets are gone; keep them until then"
        elif _versions(self.student, targets, *self.rest) != self.versions:
            fault = "they have been changed in place; change copies"
        else:
            if self.held is not None:
                targets = targets.detach().movedim(self.held, -1).reshape(self.shape)
            return [self.student, targets, *self.rest], None
        fault = f"distillation_loss: a second derivative needs the inputs, and {fault}, or pass recompute=True"
        return [self.student, None, *self.rest], fault


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *ctx.settings, ctx.with_gradient, _ = inputs[_TENSORS:]
    ctx.save_for_backward(output[1], *map(saveable, inputs[:_TENSORS]))
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[2])


def _student_gradient(ctx: Any, grad_loss: Tensor | None) -> Tensor | None:
    if grad_loss is None:
        return None
    gradient, *tensors = ctx.saved_tensors
    traced = type(grad_loss) is not Tensor
    # A kept graph is walked again: what goes out then must not be what stays, for a leaf makes it its .grad and adds to it.
    kept = traced or torch._C._autograd._get_current_graph_task_keep_graph()
    owned, fault = not kept, None
    twice = torch.is_grad_enabled()
    if not ctx.with_gradient:
        gradient, owned = distill_loss(*(None if x is None else x.detach() for x in tensors), *ctx.settings, True, False)[1], True
    elif not tensors:  # of _Eager
        if twice:
            tensors, fault = ctx.inputs.again()
        if not kept:
            ctx.inputs = None
    if twice and (grad_loss.requires_grad or tensors[0].requires_grad):
        twice_differentiable: Tensor = _First.apply(grad_loss, gradient, *tensors, ctx.settings, fault)
        return twice_differentiable
    return scaled(gradient, grad_loss, owned)


_NOTHING = (None,) * (_TENSORS + _SETTINGS - 1)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    return _student_gradient(ctx, grad_loss), *_NOTHING


def scaled(gradient: Tensor, grad_loss: Tensor, owned: bool) -> Tensor:
    """``gradient`` times each row's upstream factor, in the loss's precision and rounded once; in its own memory if that is ``owned``."""
    # Autograd's own batches are of upstream factors, so of the gradient it need not be asked: that takes as long as the rest of this.
    plain = is_plain(grad_loss) and type(gradient) is Tensor and not is_functorch_wrapped_tensor(gradient)
    # The usual case, loss.backward(), scales by 1: on the CPU that is known without waiting for anybody.
    if plain and not grad_loss.is_cuda and grad_loss.dim() == 0 and grad_loss.item() == 1:
        return gradient if owned else gradient.clone()
    # One number for all: on the CPU it enters in its own precision. On a GPU it would enter in the gradient's, where a loss scale of
    # 2^16 is infinite in float16; with dimensions it doesn't.
    shape = (1,) * gradient.dim() if grad_loss.dim() == 0 else (*gradient.shape[:-1], 1)
    factor = grad_loss if grad_loss.dim() == 0 and grad_loss.device.type == "cpu" else grad_loss.reshape(shape)
    if owned and plain and gradient.is_cuda and grad_loss.dim() == 0 and grad_loss.dtype == torch.float32:
        torch.ops.ensdistill.scale_gradient(gradient, grad_loss)
        return gradient
    if owned and plain:
        return gradient.mul_(factor)
    return (gradient * factor).to(gradient.dtype)


def _refuse_forward_mode(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        f"distillation_loss: {FORWARD_MODE}; take torch.func.jacrev, of itself for a Hessian, or impl='reference', which has all of them"
    )


class _First(torch.autograd.Function):
    """The first derivative as something that can be differentiated again (``create_graph=True``, torch.func.grad). Itself it is the
    kernel's; its own derivative is that of the specification, made only if somebody asks.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(grad_loss: Tensor, gradient: Tensor, *_: Any) -> Tensor:
        return scaled(gradient, grad_loss, owned=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_loss, _, *tensors, ctx.settings, ctx.fault = inputs
        ctx.save_for_backward(grad_loss, *map(saveable, tensors))

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Any, ...]:
        if ctx.fault:
            raise RuntimeError(ctx.fault)
        grad_loss, student, *rest = ctx.saved_tensors
        vjp: Any = torch.func.vjp

        def first(grad_loss: Tensor, student: Tensor) -> Tensor:
            _, pull = vjp(lambda s: reference.distill_loss(s, *rest, *ctx.settings)[0], student)
            return pull(grad_loss)[0]

        _, pull = vjp(first, grad_loss, student)
        second_loss, second_student = pull(direction)
        return second_loss, None, second_student, *(None,) * (len(rest) + 2)

    jvp = staticmethod(_refuse_forward_mode)


class _Eager(torch.autograd.Function):
    """The op outside of tracing and torch.func, at a third of what its registration with torch.library costs a call."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output: tuple[Tensor, Tensor, Tensor] = distill_loss(*arguments[:-1])
        ctx.settings, ctx.with_gradient = arguments[_TENSORS:-3], arguments[-3]
        if ctx.with_gradient:
            ctx.save_for_backward(output[1])
            ctx.inputs = _Inputs(arguments, arguments[-1])
        else:
            ctx.save_for_backward(None, *map(saveable, arguments[:_TENSORS]))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1], output[2])
        return output

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
        return _student_gradient(ctx, grad_loss), *_NOTHING, None


class _Transformable(torch.autograd.Function):
    """The op under torch.func, which refuses what torch.library's registration makes."""

    generate_vmap_rule = True
    forward = staticmethod(lambda *arguments: distill_loss(*arguments))
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse_forward_mode)


@torch.compiler.assume_constant_result
def differentiating() -> bool:
    """Whether torch.func differentiates, asked while torch.compile traces it."""
    return any(level.key() == TransformType.Grad for level in get_interpreter_stack() or ())


def refuse_in_one_graph(name: str) -> None:
    """Without fullgraph=True torch.compile takes this for a place to break the graph at, and what is around it runs uncompiled."""
    raise NotImplementedError(
        f"{name}: torch.compile can't take torch.func.grad, vjp or jacrev of it into one graph; compile with fullgraph=False, or "
        "differentiate by loss.backward()"
    )


def differentiable_loss(*arguments: Any, held: tuple[Tensor, int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """:data:`distill_loss`, by the shortest way that is right in torch's present mode.

    ``held`` is the tensor that the targets are a view of, where the caller of the loss holds it, and its class dimension: for a second
    derivative they are taken from there. Without it the targets are kept themselves.
    """
    if torch.compiler.is_compiling():
        if differentiating():
            refuse_in_one_graph("distillation_loss")
        function: Any = distill_loss
    elif torch._C._are_functorch_transforms_active():
        function = _Transformable.apply
    elif arguments[0].requires_grad and torch.is_grad_enabled():
        output: tuple[Tensor, Tensor, Tensor] = _Eager.apply(*arguments, held)
        return output
    else:
        function = distill_loss
    output = function(*arguments)
    return output


def without_divergence(
    student: Tensor, targets: Tensor, tensors: tuple[Tensor | None, ...], settings: tuple[Any, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...], tuple[Any, ...]]:
    """Targets, other tensors and settings of the same loss where alpha is 0.

    What the teachers say has no share there, not even as 0 times infinity: the student itself, at distance 0, stands in for them.
    """
    stand_in = student.detach().unsqueeze(0)
    if targets.dtype == torch.float64:  # which decides the loss's dtype
        stand_in = stand_in.double()
    return stand_in, (None,) * 5 + tuple(tensors[5:]), ("logits", "forward_kl", 0.5, 1.0, 0.0, "prob", "tail", *settings[7:])


torch.library.register_autograd("ensdistill::distill_loss", _backward, setup_context=_setup_context)


# vmap -----------------------------------------------------------------------------------------------------------------


@torch.library.register_vmap("ensdistill::distill_loss")
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The batch as an outer leading dimension where that is possible, else one call for each of it."""
    size = info.batch_size
    flags = arguments[-2:]
    tensors = [x if d is None or x is None else x.movedim(d, 0) for x, d in zip(arguments[:_TENSORS], in_dims, strict=False)]
    batched = [d is not None for d in in_dims[:_TENSORS]]
    if batched[_WEIGHTS] or batched[_CLASS_WEIGHTS]:  # which the rows of one call share
        calls = [[x[i] if b else x for x, b in zip(tensors, batched, strict=True)] for i in range(size)]
        outputs = zip(*(distill_loss(*call, *arguments[_TENSORS:]) for call in calls), strict=True)
        return tuple(torch.stack(x) for x in outputs), (0, 0, 0)
    tensors = [x if x is None or b else x.expand(size, *x.shape) for x, b in zip(tensors, batched, strict=True)]
    return _one_call(size, tensors, list(arguments[_TENSORS:-2]), *flags)


def _one_call(
    size: int, tensors: list[Any], settings: list[Any], with_gradient: bool, with_statistics: bool
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The batch as an outer leading dimension of all tensors (but the weights of members and classes). Reductions become row factors."""
    student, targets, scale, offset, ids, tail, weights, labels, class_weights, sample_weights = tensors
    each = student.shape[1:]  # [N, C] or [O, I, C]
    shape = (size, *each) if len(each) == 2 else (size * each[0], *each[1:])
    n = each[0] if len(each) == 2 else each[0] * each[1]
    kind, reduction, divisor = settings[_KIND], settings[_REDUCTION], settings[_DIVISOR]
    if reduction != "none":
        factor = student.new_full((size, 1), 1 / (max(n, 1) if reduction == "mean" else divisor), dtype=torch.float64)
        if reduction == "mean" and labels is not None:
            factor = 1 / (labels != settings[_IGNORE_INDEX]).sum(-1, keepdim=True).clamp(min=1).double()
        sample_weights = factor.expand(size, n) if sample_weights is None else factor * sample_weights
        settings[_REDUCTION], settings[_DIVISOR] = "none", 1.0

    def members(x: Tensor, *shape: int) -> Tensor:  # [B, K, ...] as [K, B, ...]
        return x.transpose(0, 1).reshape(-1, *shape)

    def rows(x: Tensor | None) -> Tensor | None:  # [B, N, ...] as [B * N, ...]
        return None if x is None else x.reshape(size * n, *x.shape[2:]).contiguous()

    loss, gradient, statistics = distill_loss(
        ready(student.reshape(shape)),
        rows(targets) if kind == "topk" else ready(members(targets, *shape)),
        None if scale is None else members(scale, size * n),
        None if offset is None else members(offset, size * n),
        rows(ids),
        rows(tail),
        None if weights is None else weights[0],
        rows(labels),
        None if class_weights is None else class_weights[0],
        rows(sample_weights),
        *settings,
        with_gradient,
        with_statistics,
    )
    loss = loss.reshape(size, n)
    return (
        loss if reduction == "none" else loss.sum(-1, dtype=torch.float64).to(loss.dtype),
        gradient.reshape(size, *each) if with_gradient else gradient[:0].reshape(0, *each[1:]),
        statistics.reshape(size, n, 4) if with_statistics else statistics,
    ), (0, 0 if with_gradient else None, 0 if with_statistics else None)
