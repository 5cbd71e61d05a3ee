"""Distillation losses as functions. ``import ensdistill.functional`` costs little on top of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ensdistill import ops, reference
from ensdistill.arguments import Problem, explain_nan, make_problem
from ensdistill.checks import Combiner, Divergence, Impl, LossSettings, Reduction, Tail, check_class_dim, check_floats, check_kernels
from ensdistill.layout import collapse, product
from ensdistill.targets import Targets

__all__ = ["Combiner", "Divergence", "Impl", "Reduction", "RowStatistics", "Tail", "distillation_loss"]

_ALPHA = 4  # among the op's settings


@dataclass(frozen=True)
class RowStatistics:
    """By-products of the loss, one number for each row, in the shape of the leading dimensions and the loss's dtype.

    No gradient flows through them. Rows that don't count (ignored, or of sample weight 0) are NaN.

    Parameters
    ----------
    student_entropy : Tensor [...]
        H(q), nats, of the student at the loss's temperature.
    mixture_entropy : Tensor [...]
        H(p), nats; over what the divergence compares: with ``tail="tail"`` the listed classes and the bucket.
    agreement : Tensor [...]
        1 where student and mixture have the same most probable class, else 0.
    disagreement : Tensor [...]
        H(p) - sum of w_k H(p_k), nats: what the members don't agree on. NaN where they aren't known one by one. For the combiner
        ``prob`` it is the members' generalised Jensen-Shannon divergence (Lin, "Divergence measures based on the Shannon entropy",
        1991, section IV), which isn't negative; a difference of rounded entropies, it can be -1e-6 where they agree.

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
    class_dim: int = -1,
    statistics: Literal[False] = False,
    impl: Impl = "fused",
    **settings: Unpack[LossSettings],
) -> Tensor: ...


@overload
def distillation_loss(
    student_logits: Tensor,
    targets: Tensor | Targets,
    labels: Tensor | None = None,
    *,
    class_dim: int = -1,
    statistics: Literal[True],
    impl: Impl = "fused",
    **settings: Unpack[LossSettings],
) -> tuple[Tensor, RowStatistics]: ...


def distillation_loss(
    student_logits: Tensor,
    targets: Tensor | Targets,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    weights: Tensor | Sequence[float] | None = None,
    combiner: Combiner | None = None,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    tail: Tail = "tail",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    class_weights: Tensor | Sequence[float] | None = None,
    sample_weights: Tensor | Sequence[float] | None = None,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    class_dim: int = -1,
    recompute: bool = False,
    statistics: bool = False,
    impl: Impl = "fused",
) -> Tensor | tuple[Tensor, RowStatistics]:
    r"""Distil what teachers say into a student's logits: a divergence from their mixture, mixed with cross entropy.

    For each row, with q = softmax(s/T), the teachers' mixture p at T, and the row's sample weight u,

    .. math:: u \, [\alpha T^2 \, D(p, q) + (1 - \alpha) \, CE(y, softmax(s)) + z \, (\log \textstyle\sum_j e^{s_j})^2]

    The teacher's entropy is part of a KL, so the loss is 0 where the student equals the mixture (alpha = 1). T² keeps the gradient's
    size independent of T. Loss and gradient are made in one pass, without any intermediate of size [K, N, C] or [N, C].

    Parameters
    ----------
    student_logits : Tensor [..., C], float32, bfloat16, float16 or float64
        Any leading dimensions, N rows altogether; N = 0 is legal. ``-inf`` marks a masked class. Read in place if the classes are
        contiguous, or if they come first as in a feature map (see ``class_dim``); the gradient is laid out like it.
    targets : Tensor [..., C] or [K, ..., C], or one of :mod:`ensdistill.targets`
        What the teachers said. A bare tensor is logits, in any of the dtypes above, not necessarily the student's. Dense targets are
        read as stored; of TopK and Counts the loss makes copies of N·k numbers, unless they are int64 ids and float32 or float64
        log-probabilities. No gradient flows to it. It may be made under :func:`torch.inference_mode`.
    labels : Tensor [...], int64, optional
        Hard labels. Rows equal to ``ignore_index`` don't count at all: neither for the divergence, nor in the mean. With alpha = 1 that
        is all they say: a mask.
    temperature : float
        T from 1e-4 to 1e4, for the divergence. LogProbs, Probs, TopK and Counts must have been made at it, to 1e-6 of it. Above 32 all
        arithmetic is in double precision, which is slower: probabilities are nearly equal there, and T² magnifies what a float has lost
        of their difference.
    alpha : float
        Share of the divergence, 0 to 1. Below 1, ``labels`` is needed. At 0 what the targets hold doesn't matter, not even if it is NaN.
    weights : Tensor or sequence [K], optional
        Of the members: non-negative; normalised to sum to one. By default those that ``targets`` carries, else uniform. A member
        of weight 0 is not read. Where the logits are on a GPU, weights of all kinds should be tensors there: others are copied, which
        waits for the device.
    combiner : {"prob", "logit", "log_prob"}, optional
        By default the one that ``targets`` carries, as those of a cache do, else ``prob``. ``prob``: mean of the members' probabilities
        at T. ``logit`` and ``log_prob``: the softmax of the mean logits, which is the normalised geometric mean of their probabilities.
        TopK and Counts have no members, so only ``prob`` is legal there.
    divergence : {"forward_kl", "reverse_kl", "jsd", "tvd"}
        D = KL(p‖q); KL(q‖p); beta·KL(p‖m) + (1 - beta)·KL(q‖m) with m = beta·p + (1 - beta)·q; half of Σ|p - q|, whose gradient
        is taken as 0 where p = q.
    beta : float
        Between 0 and 1, for ``jsd``. Towards 0 it is beta times the forward KL, towards 1 it is 1 - beta times the reverse.
    tail : {"tail", "renormalize", "zero"}
        For :class:`~ensdistill.targets.TopK`. ``tail``: all classes that aren't listed are one bucket with the mass that the target
        states. ``renormalize``: the listed ones share all mass. ``zero``: they keep theirs, and the rest is missing. Counts are always
        renormalised, whatever is said here but ``zero``, which is refused.
    ignore_index, label_smoothing
        As in :func:`torch.nn.functional.cross_entropy`. Smoothing needs labels; they have a share where alpha is below 1.
    class_weights : Tensor or sequence [C], optional
        As ``weight`` in :func:`torch.nn.functional.cross_entropy`: for the cross entropy of each row. The mean doesn't divide by them.
        They need labels, as smoothing does.
    sample_weights : Tensor or sequence [...], optional
        Non-negative factor u of each row. A row of weight 0 is not read, but counts in the mean. No gradient flows to weights of any kind.
    z_loss : float
        Factor of the squared log-sum-exp of the logits (at T = 1), which keeps them from drifting.
    reduction : {"mean", "sum", "batchmean", "none"}
        ``mean`` divides by the number of rows that count; if none does, the loss is 0 with zero gradients. ``batchmean`` divides by the
        size of the first leading dimension.
    class_dim : int
        The class dimension of ``student_logits`` and (after K) of dense targets: 1 for feature maps [N, C, H, W]. The ids of TopK and
        Counts are last anyway: [N, H, W, k]. It can't be guessed: by default the columns of a feature map are taken for its classes,
        and only labels, whose shape then doesn't fit, give that away.
    recompute : bool
        Keep no gradient between forward and backward: the backward reads the inputs again, which autograd saves for that (they stay
        alive, and must not be changed in place). More time, and less memory where the targets are small or kept anyway.
    statistics : bool
        Return a :class:`RowStatistics` too. On a GPU they are a launch of their own, which reads student and dense targets again.
    impl : {"fused", "reference", "compile"}
        The native kernel; the plain torch code that specifies it; the same through ``torch.compile``.

    Returns
    -------
    Tensor [], or [...] for ``reduction="none"``; with ``statistics=True`` a pair of it and a RowStatistics
        In natural units (nats). float64 if student or targets are float64, else float32, also for half-precision logits.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, what came and what was expected. A GPU takes at most 1024 members (of feature maps about 100), 2^30
        classes, and so many entries as :class:`~ensdistill.targets.TopK` says. Values on a GPU can't be looked at without waiting for
        it: a label out of range makes its row's loss and gradient NaN there, invalid weights every row's.
    NotImplementedError
        ``impl="fused"`` on a device that has no kernels: CUDA kernels that weren't built, or not for that GPU; in forward mode
        (torch.func.jvp, jacfwd, hessian); in torch.func.grad under torch.compile(fullgraph=True), which wraps it in an error of its own.
    RuntimeError
        Differentiated twice when the targets are gone, or inputs were changed in place.

    Notes
    -----
    Between forward and backward the gradient is kept, and the student's logits; not the targets, which may be freed or written over. A
    second derivative (``create_graph=True``) needs them once more: keep them until then, or pass ``recompute=True``.

    Logits that are NaN, or ``-inf`` in all classes, of the student or of a member that is used, aren't an error: the row's loss and
    gradient are NaN, so that a diverged model is seen and what it said is never hidden.

    All arithmetic is in float32 (float64 for float64), and the gradient is rounded to the student's dtype once; a float16 mean's is kept
    as large as a row's until the backward divides it, so that a scaled loss (:class:`torch.amp.GradScaler`) loses nothing. On a GPU
    bfloat16 logits beside dense float16 targets, or the reverse, have no kernels of their own and take those in double precision,
    which are many times slower: convert one of them.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2. Generalised JSD: Agarwal et al.,
    "On-Policy Distillation of Language Models", 2024, equation 1. z-loss: Chowdhery et al., "PaLM", 2022, section 5.

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
    >>> loss, rows = distillation_loss(torch.zeros(4, 3, 8, 8), maps, class_dim=1, divergence="jsd", statistics=True)
    >>> rows.disagreement.shape
    torch.Size([4, 8, 8])
    """
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
        temperature=temperature,
        alpha=alpha,
        weights=weights,
        combiner=combiner,
        divergence=divergence,
        beta=beta,
        tail=tail,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        sample_weights=sample_weights,
        z_loss=z_loss,
        reduction=reduction,
        recompute=recompute,
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
                "student_logits: carries a forward-mode tangent (torch.func.jvp, jacfwd), which impl='fused' can't propagate; "
                "use impl='reference'"
            )
        with_gradient = student_logits.requires_grad and torch.is_grad_enabled() and not recompute
        given = problem.given
        held = None if given is None else (given, class_dim + given.dim() - len(shape))
        loss, by_products = _fused(rows, values, held, problem, with_gradient, statistics, reduction, ignore_index)
    else:
        function: Any = reference.distill_loss if impl == "reference" else _compiled_reference()
        loss, by_products = function(rows, values, *problem.tensors, *problem.settings, with_statistics=statistics)
    explain_nan(problem, targets, shape[class_dim], class_dim, loss, ignore_index)
    if reduction == "none":
        loss = loss.reshape(problem.lead)
    return (loss, RowStatistics.from_rows(by_products, problem.lead)) if statistics else loss


def _fused(
    student: Tensor,
    values: Tensor,
    held: tuple[Tensor, int] | None,
    problem: Problem,
    with_gradient: bool,
    statistics: bool,
    reduction: str,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    settings, factor, tensors = problem.settings, 1.0, problem.tensors
    divisor: int | Tensor = 1
    half = student.dtype == torch.float16
    outside = (half and reduction == "mean") or (reduction == "batchmean" and (half or torch.compiler.is_compiling()))
    if outside:
        settings, factor, divisor = _divided_outside(problem, ignore_index)
    by_products = None
    if settings[_ALPHA] == 0:
        if statistics:  # which are of the teachers all the same
            by_products = ops.differentiable_loss(student.detach(), values, *tensors, *settings, False, True)[2]
        values, tensors, settings = ops.without_divergence(student, values, tensors, settings)
        held, statistics = None, False
    loss, _, found = ops.differentiable_loss(student, values, *tensors, *settings, with_gradient, statistics, held=held)
    return loss * factor / divisor if outside else loss, found if by_products is None else by_products


def _divided_outside(problem: Problem, ignore_index: int) -> tuple[tuple[Any, ...], float, int | Tensor]:
    """Settings for a gradient as large as one row's; and the factor and the divisor of the loss that are left.

    A mean's gradient over many rows is below what float16 holds, and a scaled loss (torch.amp.GradScaler) can't bring back what was
    rounded to 0. The op divides by less than 2; what is left is a power of two, which rounds nothing, if all rows count. In a compiled
    graph, which is for any number of rows, the op divides by nothing.
    """
    *settings, mode, divisor = problem.settings
    rows = max(product(problem.lead), 1) if mode == "mean" else divisor
    power = rows if torch.compiler.is_compiling() else 2.0 ** math.floor(math.log2(rows))
    settings += ["sum", rows / power]
    if mode == "mean" and problem.labels is not None:
        return tuple(settings), rows / power, (problem.labels != ignore_index).sum().clamp(min=1)
    return tuple(settings), 1 / power, 1


@lru_cache(maxsize=1)
def _compiled_reference() -> Any:
    return torch.compile(reference.distill_loss, dynamic=False)
