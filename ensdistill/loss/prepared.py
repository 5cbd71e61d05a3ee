"""Small calls of the loss on the CPU: Python's checks and the dispatcher cost more there than the arithmetic.

Shapes, types and settings are checked once for each signature; later calls give the kernel new addresses
only. Values (labels, weights, padding) are checked in every call: where the kernel refuses one, or has a NaN
to explain, the ordinary way is taken, which raises the error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ensdistill.loss import _native, ops
from ensdistill.loss.autograd import Made
from ensdistill.loss.explain import ELEMENTS
from ensdistill.loss.settings import LossSettings
from ensdistill.loss.signature import TENSORS, Call
from ensdistill.loss.targets import EnsembleLogits, Probs, QuantizedLogits, TopK

_OP = ops.distill_loss
_PLAIN = (Tensor, torch.nn.Parameter)
# Others may be equal to one of these and not be legal, as True is equal to 1.
_FACTS = (type(None), float, int, str)
_WEIGHTS = 6  # the place of the members' weights among the op's tensors
# The op keeps larger gradients for the next call: see csrc/cpu/inputs.h.
_LARGEST_GRADIENT = 1 << 20
_MOST_SIGNATURES = 256


class Prepared:
    """The kernel for one signature, with the settings and flags of its calls."""

    __slots__ = ("call", "held", "kernel", "loss", "settings", "shape", "weights")

    def __init__(self, settings: LossSettings, call: Any, weights: Tensor | None, held: int | None) -> None:
        self.settings = settings  # the key has its id, which must not become another object's
        self.call = Call(*(None,) * TENSORS, *call[TENSORS:])._replace(with_gradient=True)
        self.shape, self.held, self.weights = call.targets.shape, held, weights
        double = torch.float64 in (call.student.dtype, call.targets.dtype)
        rows = call.student.shape[:1] if call.reduction == "none" else ()
        self.loss = torch.empty(rows, dtype=torch.float64 if double else torch.float32)
        self.kernel: Any = _native.prepared_loss(call._asdict(), _layout(call))

    def run(self, tensors: list[Any], with_gradient: bool) -> Tensor | None:
        """The loss, or None where a value is refused."""
        if self.weights is not None:
            tensors[_WEIGHTS] = self.weights
        student, loss = tensors[0], torch.empty_like(self.loss)
        addresses = [0 if x is None else x.data_ptr() for x in tensors]
        if not (addresses[0] and addresses[1]):  # torch's zeros without memory
            return None
        if not with_gradient:
            return loss if self.kernel.run(*addresses, 0, loss.data_ptr()) else None
        gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
        if not self.kernel.run(*addresses, gradient.data_ptr(), loss.data_ptr()):
            return None
        made = Made(ops.OPERATOR, self.call, tensors, self.shape, self.held, (loss, gradient))
        return made.differentiable(student)[0]


_prepared: dict[tuple[Any, ...], Prepared] = {}
find = _prepared.get


def signature(
    student: Any,
    targets: Any,
    labels: Any,
    settings: LossSettings,
    weights: Any,
    class_weights: Any,
    sample_weights: Any,
) -> tuple[tuple[Any, ...], list[Any]] | None:
    """All that decides the results of the checks, as a key, and the tensors in the op's order, as given.

    None where the call has to take the ordinary way: other devices and targets, transforms, modes, profiling.
    """
    kind = type(targets)
    scale = offset = ids = tail = None
    facts: tuple[Any, ...] = ()
    if kind is Tensor:
        values = targets
    elif kind is EnsembleLogits:
        values, facts = targets.logits, (targets.combiner, targets.max_temperature)
    elif kind is QuantizedLogits:
        values, scale, offset = targets.codes, targets.scale, targets.offset
        facts = targets.combiner, targets.max_temperature, targets.temperature
    elif kind is TopK:
        values, ids = targets.log_probs, targets.ids
        tail = targets.tail_log_mass if settings.tail == "tail" else None
        facts = targets.temperature, targets.classes
    elif kind is Probs:
        values, facts = targets.probs, (targets.temperature,)
    else:
        return None
    if weights is None and kind is not Tensor and kind is not TopK:
        weights = targets.weights
    listed = None
    if type(weights) is list or type(weights) is tuple:
        weights, listed = None, tuple(weights)
    for fact in facts if listed is None else facts + listed:
        if type(fact) not in _FACTS:
            return None
    tensors = [student, values, scale, offset, ids, tail, weights, labels, class_weights, sample_weights]
    key: list[Any] = [id(settings), kind, facts, listed]
    for x in tensors:
        if x is None:
            key.append(None)
        elif type(x) in _PLAIN and x.is_cpu and x.layout is torch.strided and not (x.is_nested or x.is_neg()):
            key += x.shape, x.stride(), x.dtype
        else:
            return None
    for x in (weights, class_weights, sample_weights):
        if x is not None and x.requires_grad:  # an error, unless gradients are off
            return None
    if (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._autograd._profiler_enabled()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or ops.distill_loss is not _OP
    ):
        return None
    return tuple(key), tensors


def remember(
    found: tuple[tuple[Any, ...], list[Any]], settings: LossSettings, call: Any, held: int | None
) -> None:
    """Prepare a call that has passed all checks, for later ones with its signature, if the kernel can run
    those from addresses alone."""
    key, given = found
    taken = list(call[:TENSORS])
    weights = call.weights if given[_WEIGHTS] is None else None
    if weights is not None:
        taken[_WEIGHTS] = None
    student, values = call.student, call.targets
    if (
        given[0].dim() == student.dim() == 2
        and student.dtype != torch.float16  # its mean is divided in two steps
        and student.numel() * student.element_size() < _LARGEST_GRADIENT
        and settings.alpha > 0
        and not settings.recompute
        and all(x.stride(-1) == 1 or x.shape[-1] == 1 for x in (student, values))
        and all(map(_same_memory, given, taken))
    ):
        if len(_prepared) >= _MOST_SIGNATURES:
            _prepared.clear()
        _prepared[key] = Prepared(settings, call, weights, held)


def _same_memory(given: Tensor | None, taken: Tensor | None) -> bool:
    if given is None or taken is None:
        return given is taken
    return given.dtype == taken.dtype and given.data_ptr() == taken.data_ptr() != 0


def _layout(call: Any) -> dict[str, Any]:
    """Sizes, element types and strides, as csrc/cpu/module.cpp reads them."""
    student, values, dense = call.student, call.targets, call.kind != "topk"
    maps = {
        f"{name}_{stride}": 0 if x is None else x.stride(i)
        for name, x in (("scale", call.scale), ("offset", call.offset))
        for i, stride in enumerate(("member_stride", "stride"))
    }
    return {
        "rows": student.shape[0],
        "classes": student.shape[1],
        "members": len(values) if dense else 1,
        "entries": 0 if dense else values.shape[1],
        "student": ELEMENTS[student.dtype],
        "student_stride": student.stride(0),
        "targets": ELEMENTS[values.dtype],
        "target_stride": values.stride(-2),
        "target_member_stride": values.stride(0) if dense else 0,
        "tail_is_double": call.tail is not None and call.tail.dtype == torch.float64,
        **maps,
    }
