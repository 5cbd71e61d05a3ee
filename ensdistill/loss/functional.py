"""Distillation losses as functions. ``import ensdistill.loss.functional`` costs little on top of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ensdistill.common.combiners import Combiner
from ensdistill.loss import ops, prepared, reference
from ensdistill.loss.arguments import Problem, explain_nan, make_problem
from ensdistill.loss.checks import check_class_dim, check_floats, check_kernels
from ensdistill.loss.layout import collapse, product
from ensdistill.loss.settings import (
    Divergence,
    Impl,
    LossKeywords,
    LossSettings,
    Reduction,
    Tail,
    settings_of,
)
from ensdistill.loss.signature import op_call
from ensdistill.loss.targets import Targets

__all__ = [
    "Combiner",
    "Divergence",
    "Impl",
    "LossSettings",
    "Reduction",
    "RowStatistics",
    "Tail",
    "distillation_loss",
]


@dataclass(frozen=True)
class RowStatistics:
    """By-products of the loss, one number for each row, in the shape of the leading dimensions and the loss's
    dtype.

    No gradient flows through them. Rows of sample weight 0 are NaN.

    Parameters
    ----------
    student_entropy : Tensor [...]
        H(q), nats, of the student at the loss's temperature.
    mixture_entropy : Tensor [...]
        H(p), nats, over the outcomes of the divergence: with ``tail="tail"`` the listed classes and the
        bucket.
    agreement : Tensor [...]
        1 where student and mixture have the same most probable class, else 0.
    disagreement : Tensor [...]
        H(p) - sum of w_k H(p_k), nats: the members' disagreement. NaN where the target holds their mixture
        only. For the combiner ``prob`` it is the members' generalised Jensen-Shannon divergence (Lin,
        "Divergence measures based on the Shannon entropy", 1991, section IV), which isn't negative; a
        difference of rounded entropies, it can be -1e-6 where they agree.

    Examples
    --------
    >>> sure, unsure = torch.tensor([[50.0, 0.0]]), torch.zeros(1, 2)
    >>> _, rows = distillation_loss(unsure, torch.stack([sure, sure.flip(-1)]), statistics=True)
    >>> rows.student_entropy, rows.mixture_entropy, rows.disagreement
    (tensor([0.6931]), tensor([0.6931]), tensor([0.6931]))
    """

    student_entropy: Tensor
    mixture_entropy: Tensor
    agreement: Tensor
    disagreement: Tensor

    @classmethod
    def from_rows(cls, rows: Tensor, lead: Sequence[int]) -> RowStatistics:
        """From the op's [N, 4]."""
        return cls(*(x.reshape(lead) for x in rows.unbind(-1)))


@overload
def distillation_loss(
    student_logits: Tensor,
    targets: Tensor | Targets,
    labels: Tensor | None = None,
    *,
    settings: LossSettings | None = None,
    weights: Tensor | Sequence[float] | None = None,
    class_weights: Tensor | Sequence[float] | None = None,
    sample_weights: Tensor | Sequence[float] | None = None,
    class_dim: int = -1,
    statistics: Literal[False] = False,
    impl: Impl = "fused",
    **keywords: Unpack[LossKeywords],
) -> Tensor: ...


@overload
def distillation_loss(
    student_logits: Tensor,
    targets: Tensor | Targets,
    labels: Tensor | None = None,
    *,
    settings: LossSettings | None = None,
    weights: Tensor | Sequence[float] | None = None,
    class_weights: Tensor | Sequence[float] | None = None,
    sample_weights: Tensor | Sequence[float] | None = None,
    class_dim: int = -1,
    statistics: Literal[True],
    impl: Impl = "fused",
    **keywords: Unpack[LossKeywords],
) -> tuple[Tensor, RowStatistics]: ...


def distillation_loss(
    student_logits: Tensor,
    targets: Tensor | Targets,
    labels: Tensor | None = None,
    *,
    settings: LossSettings | None = None,
    weights: Tensor | Sequence[float] | None = None,
    class_weights: Tensor | Sequence[float] | None = None,
    sample_weights: Tensor | Sequence[float] | None = None,
    class_dim: int = -1,
    statistics: bool = False,
    impl: Impl = "fused",
    **keywords: Any,
) -> Tensor | tuple[Tensor, RowStatistics]:
    """Distil teachers into a student: a divergence of its logits from their mixture, mixed with cross
    entropy.

    For each row, with q = softmax(s/T), the teachers' mixture p at T, the row's label y, its sample weight
    u, and z of the z-loss,

        u [α T² D(p, q) + (1 − α) CE(y, softmax(s)) + z (log Σⱼ exp sⱼ)²]

    A row whose label is unknown has no cross entropy and keeps the rest: see ``ignore_index`` and
    ``reduction`` in
    :class:`~ensdistill.loss.settings.LossSettings`. The teacher's entropy is part of a KL, so the loss is 0
    where the student equals the mixture (alpha = 1). T² keeps the gradient's size independent of T. Loss and
    gradient are made in one pass, without any intermediate of size [K, N, C] or [N, C].

    Parameters
    ----------
    student_logits : Tensor [..., C], float32, bfloat16, float16 or float64
        Any leading dimensions, N rows altogether; N = 0 is legal. ``-inf`` marks a masked class. Read in
        place if the classes are contiguous, or if they come first as in a feature map (see ``class_dim``);
        the gradient is laid out like it.
    targets : Tensor [..., C] or [K, ..., C], or one of :mod:`ensdistill.loss.targets`
        The teachers' outputs. A bare tensor is logits, in any of the dtypes above, not necessarily the
        student's. Dense targets are read as stored; of TopK and Counts the loss makes copies of N·k numbers,
        unless they are int64 ids and float32 or float64 log-probabilities. No gradient flows to it. It may be
        made under :func:`torch.inference_mode`.
    labels : Tensor [...], int64, optional
        Hard labels; ``ignore_index`` where the class is unknown. They are used where alpha is below 1, and
        checked at any alpha.
    settings, **keywords
        A :class:`~ensdistill.loss.settings.LossSettings`, or its fields as keywords, ``temperature=2.0,
        alpha=0.9``. It describes all of them, with their ranges and defaults. One object for many calls is
        checked once, keywords are checked in every call.
    weights : Tensor or sequence [K], optional
        Of the members: non-negative; normalised to sum to one. By default those that ``targets`` carries,
        else uniform. A member of weight 0 is not read. Where the logits are on a GPU, weights of all kinds
        should be tensors there: others are copied, which waits for the device.
    class_weights : Tensor or sequence [C], optional
        As ``weight`` in :func:`torch.nn.functional.cross_entropy`: for the cross entropy of each row. The
        mean doesn't divide by them. They need labels, as smoothing does.
    sample_weights : Tensor or sequence [...], optional
        Non-negative factor u of each row. A row of weight 0 is not read, and has neither loss nor gradient.
        The mean divides by all rows, weighted or not; for the mean over some of them, sum
        (``reduction="sum"``) and divide. No gradient flows to weights of any kind.
    class_dim : int
        The class dimension of ``student_logits`` and (after K) of dense targets: 1 for feature maps [N, C, H,
        W]. The ids of TopK and Counts are last anyway: [N, H, W, k]. It can't be guessed: by default the
        columns of a feature map are taken for its classes, and only labels, whose shape then doesn't fit,
        give that away.
    statistics : bool
        Return a :class:`RowStatistics` too. On a GPU they are a launch of their own, which reads student and
        dense targets again.
    impl : {"fused", "reference", "compile"}
        The native kernel; the plain torch code that specifies it; the same through ``torch.compile``.

    Returns
    -------
    Tensor [], or [...] for ``reduction="none"``; with ``statistics=True`` a pair of it and a RowStatistics
        In natural units (nats). float64 if student or targets are float64, else float32, also for
        half-precision logits.

    Raises
    ------
    ValueError, TypeError
        Names the argument, the value and the expectation. A GPU takes at most 1024 members (of feature maps
        about 100), 2^30 classes, and as many entries as :class:`~ensdistill.loss.targets.TopK` states.
        Reading values on a GPU would wait for it, so a label out of range makes its row's loss and gradient
        NaN there, invalid weights every row's.
    NotImplementedError
        ``impl="fused"`` on a device that has no kernels: CUDA kernels that weren't built, or not for that
        GPU; in forward mode (torch.func.jvp, jacfwd, hessian); in torch.func.grad under
        torch.compile(fullgraph=True), which wraps it in an error of its own.
    RuntimeError
        Differentiated twice when the targets are gone, or inputs were changed in place.

    Notes
    -----
    Between forward and backward the gradient is kept, and the student's logits; not the targets, which may be
    freed or written over. A second derivative (``create_graph=True``) needs them once more: keep them until
    then, or pass ``recompute=True``.

    Logits that are NaN, or ``-inf`` in all classes, of the student or of a member that is used, aren't an
    error: the row's loss and gradient are NaN, so that a diverged model is seen.

    All arithmetic is in float32 (float64 for float64), and the gradient is rounded to the student's dtype
    once; a float16 mean's is kept as large as a row's until the backward divides it, so that a scaled loss
    (:class:`torch.amp.GradScaler`) loses nothing. On a GPU bfloat16 logits beside dense float16 targets, or
    the reverse, have no kernels of their own and take those in double precision, which are many times slower:
    convert one of them.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2. Generalised JSD:
    Agarwal et al., "On-Policy Distillation of Language Models", 2024, equation 1. z-loss: Chowdhery et al.,
    "PaLM", 2022, section 5.

    Examples
    --------
    >>> teachers = torch.tensor([[[2.0, 0.0, -1.0]], [[1.0, 1.0, -2.0]]])  # K=2, N=1, C=3
    >>> student = torch.zeros(1, 3, requires_grad=True)
    >>> loss = distillation_loss(student, teachers, temperature=2.0)
    >>> loss.backward()
    >>> loss.item(), student.grad
    (0.5757..., tensor([[-0.4117, -0.0144,  0.4261]]))

    A feature map of 3 classes, and how far the two members disagree on each of its pixels:

    >>> maps = torch.randn(2, 4, 3, 8, 8)  # K=2, N=4, C=3, H=8, W=8
    >>> student, jsd = torch.zeros(4, 3, 8, 8), dict(divergence="jsd", statistics=True)
    >>> loss, rows = distillation_loss(student, maps, class_dim=1, **jsd)
    >>> rows.disagreement.shape
    torch.Size([4, 8, 8])
    """
    settings = settings_of(settings, keywords)
    found = None
    usual = impl == "fused" and statistics is False and type(class_dim) is int and class_dim == -1
    if usual and not torch.compiler.is_compiling():
        found = prepared.signature(
            student_logits, targets, labels, settings, weights, class_weights, sample_weights
        )
        if found is not None and (earlier := prepared.find(found[0])) is not None:
            with_gradient = student_logits.requires_grad and torch.is_grad_enabled()
            if (small := earlier.run(found[1], with_gradient)) is not None:
                return small
    check_floats("student_logits", student_logits, "")
    shape = tuple(student_logits.shape)
    if not shape:
        raise ValueError("student_logits: expected [..., C]; got shape []")
    class_dim = check_class_dim(class_dim, "student_logits", shape)
    if shape[class_dim] < 1:
        raise ValueError(f"student_logits: expected at least one class; got shape {list(shape)}")
    problem = make_problem(
        shape,
        class_dim,
        student_logits.dtype,
        student_logits.device,
        targets,
        labels,
        settings,
        weights=weights,
        class_weights=class_weights,
        sample_weights=sample_weights,
        statistics=statistics,
        impl=impl,
    )
    if impl == "fused":
        check_kernels("student_logits", student_logits.device)
    rows, dense = collapse(student_logits, problem.values if problem.dense else None, class_dim)
    values = (problem.values if dense is None else dense).detach()
    if impl == "fused":
        # The op has no forward-mode rule, and torch would take that for a tangent of zero.
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(student_logits).tangent is not None:
            raise NotImplementedError(
                "student_logits: carries a forward-mode tangent (torch.func.jvp, jacfwd), which "
                "impl='fused' can't propagate; "
                "use impl='reference'"
            )
        with_gradient = student_logits.requires_grad and torch.is_grad_enabled() and not settings.recompute
        given = problem.given
        held = None if given is None else (given, class_dim + given.dim() - len(shape))
        loss, by_products = _fused(rows, values, held, problem, settings.reduction, with_gradient, statistics)
    else:
        function: Any = reference.distill_loss if impl == "reference" else _compiled_reference()
        loss, by_products = function(
            rows,
            values,
            **problem.tensors._asdict(),
            **problem.settings._asdict(),
            with_statistics=statistics,
        )
    explain_nan(problem, targets, shape[class_dim], class_dim, loss)
    if found is not None:
        call = op_call(rows, values, problem.tensors, problem.settings)
        prepared.remember(found, settings, call, held and held[1])
    if settings.reduction == "none":
        loss = loss.reshape(problem.lead)
    return (loss, RowStatistics.from_rows(by_products, problem.lead)) if statistics else loss


def _fused(
    student: Tensor,
    values: Tensor,
    held: tuple[Tensor, int] | None,
    problem: Problem,
    reduction: str,
    with_gradient: bool,
    statistics: bool,
) -> tuple[Tensor, Tensor]:
    tensors, settings, factor = problem.tensors, problem.settings, None
    half = student.dtype == torch.float16
    if (half and reduction == "mean") or (
        reduction == "batchmean" and (half or torch.compiler.is_compiling())
    ):
        tensors, settings, factor = _divided_outside(problem, student.shape[-1])
    by_products = None
    if settings.alpha == 0:
        if statistics:  # they compare with the teachers all the same
            call = op_call(student.detach(), values, tensors, settings, with_statistics=True)
            by_products = ops.differentiable_loss(call)[2]
        values, tensors, settings = ops.without_divergence(student, values, tensors, settings)
        held, statistics = None, False
    call = op_call(
        student, values, tensors, settings, with_gradient=with_gradient, with_statistics=statistics
    )
    loss, _, found = ops.differentiable_loss(call, held=held)
    return loss if factor is None else (loss * factor).to(
        loss.dtype
    ), found if by_products is None else by_products


def _divided_outside(problem: Problem, classes: int) -> tuple[Any, Any, float | Tensor]:
    """Tensors and settings for a gradient as large as one row's, and the factor of the loss that is left.

    A mean's gradient over many rows is below float16's range, and a scaled loss (torch.amp.GradScaler) can't
    bring back digits that were rounded to 0. The op divides by less than 2; the factor that is left is a
    power of two, which rounds nothing, unless labels are missing. In a compiled graph, which is for any
    number of rows, the op divides by nothing.
    """
    settings = problem.settings
    mean = settings.reduction == "mean"
    rows = max(product(problem.lead), 1) if mean else settings.divisor
    power = rows if torch.compiler.is_compiling() else 2.0 ** math.floor(math.log2(rows))
    tensors, factor = (
        ops.mean_as_sum(problem.tensors, settings, rows, classes) if mean else (problem.tensors, 1.0)
    )
    return tensors, settings._replace(reduction="sum", divisor=rows / power), factor / power


@lru_cache(maxsize=1)
def _compiled_reference() -> Any:
    return torch.compile(reference.distill_loss, dynamic=False)
