"""Distillation losses as functions. ``import ensdistill.functional`` costs little on top of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ensdistill import ops, reference
from ensdistill.targets import EnsembleLogits, QuantizedLogits, Targets

Combiner = Literal["prob", "logit", "log_prob"]
Reduction = Literal["mean", "sum", "none"]
Impl = Literal["fused", "reference", "compile"]

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def distillation_loss(
    student_logits: Tensor,
    targets: Tensor | Targets,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    weights: Tensor | Sequence[float] | None = None,
    combiner: Combiner = "prob",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    impl: Impl = "fused",
) -> Tensor:
    r"""Distil an ensemble's logits into a student's: KL to the members' mixture, mixed with cross entropy.

    For each row, with q = softmax(s/T) and the mixture p̄ = Σ w_k softmax(z_k/T),

    .. math:: \alpha T^2 \, KL(\bar p \,\|\, q) + (1 - \alpha) \, CE(y, softmax(s))

    The teacher's entropy is part of it, so the loss is 0 where the student equals the mixture (alpha = 1). T² keeps the
    gradient's size independent of T. Loss and gradient are made in one pass, without any intermediate of size [K, N, C]
    or [N, C].

    Parameters
    ----------
    student_logits : Tensor [N, C], float32, bfloat16, float16 or float64
        Only C has to be contiguous (other layouts are copied). ``-inf`` marks a masked class. N = 0 is legal.
    targets : Tensor [K, N, C] or [N, C], EnsembleLogits or QuantizedLogits
        What the teachers said. A bare tensor is logits, in any of the dtypes above, not necessarily the student's. Codes
        are read as stored. No gradient flows to them.
    labels : Tensor [N], int64, optional
        Hard labels. Rows equal to ``ignore_index`` don't count at all: neither for the KL, nor in the mean.
    temperature : float
        T > 0, for the KL term.
    alpha : float
        Share of the KL term, 0 to 1. Below 1, ``labels`` is needed.
    weights : Tensor or sequence [K], optional
        Non-negative; normalised to sum to one. By default the weights that ``targets`` carries, else uniform. A member of
        weight 0 is not read.
    combiner : {"prob", "logit", "log_prob"}
        ``prob``: mean of the members' softmaxes at T. ``logit`` and ``log_prob``: the softmax of the mean logits, which is
        the normalised geometric mean of their probabilities.
    ignore_index, label_smoothing
        As in :func:`torch.nn.functional.cross_entropy`.
    reduction : {"mean", "sum", "none"}
        ``mean`` divides by the number of rows that count; if none does, the loss is 0 with zero gradients.
    impl : {"fused", "reference", "compile"}
        The native kernel; the plain torch code that specifies it; the same through ``torch.compile``.

    Returns
    -------
    Tensor [] or [N]
        In natural units (nats). float64 if an input is float64, else float32, also for half-precision logits.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, what came and what was expected. Values on a GPU can't be looked at without waiting for it: a label
        out of range makes its row's loss and gradient NaN there, invalid weights every row's.

    Notes
    -----
    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.

    Examples
    --------
    >>> teachers = torch.tensor([[[2.0, 0.0, -1.0]], [[1.0, 1.0, -2.0]]])  # K=2, N=1, C=3
    >>> student = torch.zeros(1, 3, requires_grad=True)
    >>> loss = distillation_loss(student, teachers, temperature=2.0)
    >>> loss.backward()
    >>> loss.item(), student.grad
    (0.5757..., tensor([[-0.4117, -0.0144,  0.4261]]))
    """
    target = targets if isinstance(targets, EnsembleLogits | QuantizedLogits) else _as_ensemble(targets)
    weights = target.weights if weights is None else weights
    codes = isinstance(target, QuantizedLogits)
    values = target.codes if isinstance(target, QuantizedLogits) else target.logits
    _check_tensors(student_logits, values, codes)
    k = values.shape[0]
    if isinstance(target, QuantizedLogits):
        _check_affine(target)
    _check_settings(temperature, alpha, combiner, ignore_index, label_smoothing, reduction, impl, labels)
    weights = _check_weights(weights, k, student_logits.device)
    if labels is not None:
        _check_labels(labels, student_logits, ignore_index)
    if impl != "fused":
        function = reference.distillation_loss if impl == "reference" else _compiled_reference()
        loss: Tensor = function(
            student_logits,
            # In the loss's own precision, as the kernel decodes them.
            target.to_logits(torch.promote_types(student_logits.dtype, torch.float32)) if codes else values.detach(),
            labels,
            temperature=temperature,
            alpha=alpha,
            weights=weights,
            combiner=combiner,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )
        return loss
    # The op has no forward-mode rule, and torch would take that for a tangent of zero.
    if forward_ad.unpack_dual(student_logits).tangent is not None:
        raise NotImplementedError(
            "student_logits: carries a forward-mode tangent, which impl='fused' can't propagate; use impl='reference'"
        )
    result: Tensor = ops.distill_loss(
        _rows(student_logits),
        _rows(values).detach(),
        target.scale if isinstance(target, QuantizedLogits) else None,
        target.offset if isinstance(target, QuantizedLogits) else None,
        weights,
        None if labels is None else labels.contiguous(),
        float(temperature),
        float(alpha),
        combiner,
        ignore_index,
        float(label_smoothing),
        reduction,
        student_logits.requires_grad and torch.is_grad_enabled(),
    )[0]
    return result


@lru_cache(maxsize=1)
def _compiled_reference() -> Any:
    return torch.compile(reference.distillation_loss, dynamic=False)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def _as_ensemble(targets: Any) -> EnsembleLogits:
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets: expected a Tensor of logits, EnsembleLogits or QuantizedLogits; got {type(targets).__name__}")
    if targets.dim() not in (2, 3):
        raise ValueError(f"targets: expected logits [K, N, C] or [N, C]; got shape {list(targets.shape)}")
    return EnsembleLogits(targets if targets.dim() == 3 else targets.unsqueeze(0))


def _check_tensors(student: Tensor, values: Tensor, codes: bool) -> None:
    if not isinstance(student, Tensor):
        raise TypeError(f"student_logits: expected a Tensor; got {type(student).__name__}")
    if student.dim() != 2 or student.shape[1] < 1:
        raise ValueError(f"student_logits: expected [N, C] with C >= 1; got shape {list(student.shape)}")
    if student.dtype not in _FLOATS:
        raise TypeError(f"student_logits: expected {_names(_FLOATS)}; got {student.dtype}")
    if not isinstance(values, Tensor):
        raise TypeError(f"targets: expected Tensors inside {'QuantizedLogits' if codes else 'EnsembleLogits'}; got {type(values).__name__}")
    if codes and values.dtype != torch.uint8:
        raise TypeError(f"targets.codes: expected torch.uint8; got {values.dtype}")
    if not codes and values.dtype not in _FLOATS:
        hint = "; wrap codes in QuantizedLogits with their scale and offset" if values.dtype == torch.uint8 else ""
        raise TypeError(f"targets: expected {_names(_FLOATS)} logits; got {values.dtype}{hint}")
    n, c = student.shape
    if values.dim() != 3 or values.shape[0] < 1:
        raise ValueError(f"targets: expected [K, N, C] with K >= 1; got shape {list(values.shape)}")
    if values.shape[2] != c:
        raise ValueError(
            f"targets: {values.shape[2]} classes, but student_logits has {c} (shapes {list(values.shape)} and {list(student.shape)})"
        )
    if values.shape[1] != n:
        raise ValueError(
            f"targets: {values.shape[1]} rows, but student_logits has {n} (shapes {list(values.shape)} and {list(student.shape)})"
        )
    _check_device("targets", values, student)


def _check_affine(target: QuantizedLogits) -> None:
    for name in ("scale", "offset"):
        value = getattr(target, name)
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            raise TypeError(f"targets.{name}: expected torch.float32; got {getattr(value, 'dtype', type(value).__name__)}")
        if value.shape != target.codes.shape[:2]:
            raise ValueError(f"targets.{name}: expected [K, N] = {list(target.codes.shape[:2])}; got shape {list(value.shape)}")
        _check_device(f"targets.{name}", value, target.codes)


def _check_device(name: str, value: Tensor, student: Tensor) -> None:
    if value.device != student.device:
        raise ValueError(f"{name}: on device {value.device}, but student_logits is on {student.device}; move one of them")


def _check_settings(
    temperature: Any, alpha: Any, combiner: Any, ignore_index: Any, label_smoothing: Any, reduction: Any, impl: Any, labels: Any
) -> None:
    # Comparisons, not isfinite: torch.compile can trace them where the temperature is a variable.
    if not (isinstance(temperature, Real) and 0 < float(temperature) < math.inf):
        raise ValueError(f"temperature: expected a finite number above 0; got {temperature!r}")
    for name, value in (("alpha", alpha), ("label_smoothing", label_smoothing)):
        if not (isinstance(value, Real) and 0 <= float(value) <= 1):
            raise ValueError(f"{name}: expected a number from 0 to 1; got {value!r}")
    if alpha < 1 and labels is None:
        raise ValueError(f"labels: needed for alpha = {alpha!r}, which mixes in hard labels; pass labels or alpha=1.0")
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an int; got {ignore_index!r}")
    for name, value, allowed in (
        ("combiner", combiner, ("prob", "logit", "log_prob")),
        ("reduction", reduction, ("mean", "sum", "none")),
        ("impl", impl, ("fused", "reference", "compile")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(allowed)}; got {value!r}")


def _check_weights(weights: Any, k: int, device: torch.device) -> Tensor | None:
    if weights is None:
        return None
    given = weights
    if isinstance(given, Tensor) and given.is_complex():
        raise TypeError(f"weights: expected real numbers; got {given.dtype}")
    try:
        weights = torch.as_tensor(given, dtype=torch.float64, device=device).detach().contiguous()
    except (TypeError, ValueError):
        raise TypeError(f"weights: expected a Tensor or a sequence of {k} numbers; got {given!r}") from None
    if weights.shape != (k,):
        raise ValueError(f"weights: expected one for each of the {k} members, [{k}]; got shape {list(weights.shape)}")
    # On another device, or while tracing, looking would wait for the values; the kernel checks them there.
    if device.type == "cpu" and not torch.compiler.is_compiling():
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise ValueError(f"weights: expected finite numbers of at least 0; got {_shown(given)}")
        if float(weights.sum()) <= 0:
            raise ValueError(f"weights: expected a sum above 0; got {_shown(given)}")
    return weights


def _check_labels(labels: Any, student: Tensor, ignore_index: int) -> None:
    n, c = student.shape
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        raise TypeError(f"labels: expected a torch.int64 Tensor [N]; got {getattr(labels, 'dtype', type(labels).__name__)}")
    if labels.shape != (n,):
        raise ValueError(f"labels: expected [{n}], one for each row of student_logits; got shape {list(labels.shape)}")
    _check_device("labels", labels, student)
    if n == 0 or labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= c))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"labels: expected 0..{c - 1} or ignore_index {ignore_index}; got {int(labels[row])} in row {row}")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def _shown(weights: Any) -> str:
    return str(weights.tolist() if isinstance(weights, Tensor) else list(weights))
