"""Autograd for the native ops, which make the gradient together with the loss: one text for all of them.

An op's first arguments are tensors, student and targets before all; it returns the loss, the student's
gradient, and by-products that have none.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, is_functorch_wrapped_tensor

from ensdistill.loss.signature import Signature
from ensdistill.loss.wrapped import is_plain

# The first derivative needs only the gradient that the forward made. A second derivative needs the inputs
# too, and a forward pass does not show whether one follows. So in eager mode autograd saves the gradient
# alone. The student's logits and the tensors of size O(N) are kept as plain references, whose versions are
# checked only by a second derivative. The targets [K, N, C] are large and not the graph's own: they are kept
# by a weak reference. If they are gone or were overwritten by then, the second derivative raises, and names
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
    """The inputs of one call, for a second derivative: the op's tensors, of which the targets may be given as
    the caller's own, with their class dimension in ``held``, and the shape that the op takes."""

    __slots__ = ("held", "name", "rest", "shape", "student", "targets", "versions")

    def __init__(self, name: str, tensors: Sequence[Any], shape: Sequence[int], held: int | None) -> None:
        self.name, self.shape, self.held = name, shape, held
        self.student, targets, *self.rest = tensors
        self.targets: Any = targets if held is None else weakref.ref(targets)
        self.versions = _versions(*tensors)

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
        fault = f"{self.name}: a second derivative needs the inputs, and {fault}, or pass recompute=True"
        return [self.student, None, *self.rest], fault


def scaled(gradient: Tensor, grad_loss: Tensor, owned: bool) -> Tensor:
    """``gradient`` times each row's upstream factor, in the loss's precision and rounded once; in its own
    memory if that is ``owned``."""
    # Autograd batches upstream factors only, so the gradient is not checked: that check takes as long as the
    # rest.
    plain = is_plain(grad_loss) and type(gradient) is Tensor and not is_functorch_wrapped_tensor(gradient)
    # The usual case, loss.backward(), scales by 1: on the CPU that is checked without waiting for a device.
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
        grad_loss, _, *tensors, ctx.operator, ctx.call, ctx.fault = inputs
        ctx.save_for_backward(grad_loss, *map(saveable, tensors))

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Any, ...]:
        if ctx.fault:
            raise RuntimeError(ctx.fault)
        operator = ctx.operator
        grad_loss, *tensors = ctx.saved_tensors
        arguments = operator.call(*tensors, *ctx.call[operator.tensors :])._asdict()
        student = arguments.pop("student")
        for flag in ("with_gradient", "with_statistics"):
            arguments.pop(flag, None)
        vjp: Any = torch.func.vjp

        def first(grad_loss: Tensor, student: Tensor) -> Tensor:
            _, pull = vjp(lambda s: operator.reference(student=s, **arguments), student)
            return pull(grad_loss)[0]

        _, pull = vjp(first, grad_loss, student)
        second_loss, second_student = pull(direction)
        return second_loss, None, second_student, *(None,) * (operator.tensors - 1), None, None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        ctx.operator.refuse_forward_mode()


class Made:
    """The results of an op that ran outside of autograd, with the inputs of its backward.

    Parameters
    ----------
    operator : Operator
    call : Call
        Its settings and flags, without tensors.
    tensors : sequence of Tensor or None
        The op's; the targets may be the caller's own, with ``held`` as in :class:`_Inputs`.
    shape : sequence of int
        Of the op's targets.
    output : tuple of Tensor
        The loss, the gradient, and others that have no derivative.
    """

    __slots__ = ("call", "held", "operator", "output", "shape", "tensors")

    def __init__(
        self,
        operator: Operator,
        call: Any,
        tensors: Sequence[Any],
        shape: Sequence[int],
        held: int | None,
        output: tuple[Tensor, ...],
    ) -> None:
        self.operator, self.call, self.output = operator, call, output
        self.tensors, self.shape, self.held = tensors, shape, held

    def differentiable(self, student: Tensor) -> tuple[Tensor, ...]:
        """The results without the gradient, as functions of ``student``."""
        results: tuple[Tensor, ...] = _apply(student, self)
        return results


class _Eager(torch.autograd.Function):
    """The op outside of tracing and torch.func, at a third of the cost of a call through torch.library."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, made: Made) -> tuple[Tensor, ...]:
        ctx.operator, ctx.call = made.operator, made.call
        loss, gradient, *others = made.output
        if made.call.with_gradient:
            ctx.save_for_backward(gradient)
            ctx.inputs = _Inputs(made.operator.name, made.tensors, made.shape, made.held)
        else:
            ctx.save_for_backward(None, *map(saveable, made.tensors))
        ctx.set_materialize_grads(False)
        if others:
            ctx.mark_non_differentiable(*others)
        return loss, *others

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
        return ctx.operator.student_gradient(ctx, grad_loss), None


# Function.apply looks for functorch's dead wrappers among the arguments first. Here are none.
_apply = super(torch.autograd.Function, _Eager).apply


class Operator:
    """A native op, and all that differentiating it takes.

    Parameters
    ----------
    qualified : str
        ``ensdistill::`` and its name; its derivative is registered with torch here.
    name : str
        The public function's, for messages.
    run : callable
        The op.
    reference : callable
        The loss, in plain torch, of the op's arguments by name without its flags.
    signature : Signature
        Of the op.
    """

    def __init__(
        self,
        qualified: str,
        name: str,
        run: Callable[..., tuple[Tensor, ...]],
        reference: Callable[..., Tensor],
        signature: Signature,
    ) -> None:
        self.name, self.run, self.reference = name, run, reference
        self.call, self.tensors = signature.call, signature.tensors
        self.transformable: Any = _transformable(self)
        torch.library.register_autograd(qualified, self.backward, setup_context=self.setup_context)

    def differentiable(self, call: Any, held: tuple[Tensor, int] | None = None) -> Any:
        """The op, by the shortest way that is right in torch's present mode.

        ``held`` is the caller's own tensor, of which the targets are a view, and its class dimension: a
        second derivative takes the targets from there. Without it the targets themselves are kept.
        """
        if torch.compiler.is_compiling():
            if differentiating():
                refuse_in_one_graph(self.name)
            return self.run(*call)
        if torch._C._are_functorch_transforms_active():
            return self.transformable.apply(*call)
        if not (call.student.requires_grad and torch.is_grad_enabled()):
            return self.run(*call)
        with torch._C._AutoDispatchBelowAutograd():
            output = self.run(*call)
        tensors = call[: self.tensors]
        if held is not None and call.with_gradient:
            tensors = tensors[0], held[0], *tensors[2:]
        shape, dim = call.targets.shape, held and held[1]
        made = Made(self, self.without_tensors(call), tensors, shape, dim, output)
        loss, *others = made.differentiable(call.student)
        return loss, output[1], *others

    def without_tensors(self, call: Any) -> Any:
        """The call's settings and flags: a graph must keep no tensor but those that autograd saves."""
        return self.call(*(None,) * self.tensors, *call[self.tensors :])

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call = self.without_tensors(self.call(*inputs))
        ctx.save_for_backward(output[1], *map(saveable, inputs[: self.tensors]))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])

    def backward(self, ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        return self.student_gradient(ctx, grad_loss), *(None,) * (len(self.call._fields) - 1)

    def student_gradient(self, ctx: Any, grad_loss: Tensor | None) -> Tensor | None:
        if grad_loss is None:
            return None
        gradient, *tensors = ctx.saved_tensors
        traced = type(grad_loss) is not Tensor
        # A kept graph is walked again. A leaf makes the returned tensor its .grad and adds to it, so it has
        # to be a copy.
        kept = traced or torch._C._autograd._get_current_graph_task_keep_graph()
        owned, fault = not kept, None
        twice = torch.is_grad_enabled()
        if not ctx.call.with_gradient:
            again = ctx.call._replace(with_gradient=True)
            if "with_statistics" in again._fields:
                again = again._replace(with_statistics=False)
            detached = (None if x is None else x.detach() for x in tensors)
            gradient, owned = self.run(*detached, *again[self.tensors :])[1], True
        elif not tensors:  # of _Eager
            if twice:
                tensors, fault = ctx.inputs.again()
            if not kept:
                ctx.inputs = None
        if twice and (grad_loss.requires_grad or tensors[0].requires_grad):
            twice_differentiable: Tensor = _First.apply(grad_loss, gradient, *tensors, self, ctx.call, fault)
            return twice_differentiable
        return scaled(gradient, grad_loss, owned)

    def refuse_forward_mode(self, *_: Any) -> Any:
        raise NotImplementedError(
            f"{self.name}: {FORWARD_MODE}; take torch.func.jacrev, of itself for a Hessian, or "
            "impl='reference', which has all of them"
        )


def _transformable(operator: Operator) -> Any:
    """The op under torch.func, which refuses the function that torch.library registers."""

    class Transformable(torch.autograd.Function):
        generate_vmap_rule = True
        forward = staticmethod(lambda *arguments: operator.run(*arguments))
        setup_context = staticmethod(operator.setup_context)
        backward = staticmethod(operator.backward)
        jvp = staticmethod(operator.refuse_forward_mode)  # type: ignore[assignment]

    return Transformable


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


def empty_gradient(student: Tensor, with_gradient: bool) -> Tensor:
    """Laid out like ``student``: classes last, or first in memory where it has them first."""
    *lead, classes = student.shape
    if not with_gradient:
        lead[0] = 0
    if student.stride(-1) == 1 or classes <= 1:
        return student.new_empty((*lead, classes))
    return student.new_empty((*lead[:-1], classes, lead[-1])).transpose(-1, -2)
