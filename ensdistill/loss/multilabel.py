"""The distillation loss of multi-label models: C sigmoids instead of one softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ensdistill.loss import multilabel_op, multilabel_reference
from ensdistill.loss.checks import check_class_dim, check_floats, check_kernels
from ensdistill.loss.layout import collapse, product
from ensdistill.loss.multilabel_arguments import MultilabelProblem, explain_nan, make_problem
from ensdistill.loss.settings import Impl, LossKeywords, LossSettings, settings_of
from ensdistill.loss.targets import Targets

__all__ = ["multilabel_distillation_loss"]

# In float16 the cross entropy of few labelled rows among many would be scaled out of range.
_LARGEST_SCALE = 4096.0


def multilabel_distillation_loss(
    student_logits: Tensor,
    targets: Tensor | Targets,
    labels: Tensor | None = None,
    *,
    settings: LossSettings | None = None,
    weights: Tensor | Sequence[float] | None = None,
    class_weights: Tensor | Sequence[float] | None = None,
    pos_weight: Tensor | Sequence[float] | None = None,
    sample_weights: Tensor | Sequence[float] | None = None,
    mask: Tensor | None = None,
    class_dim: int = -1,
    impl: Impl = "fused",
    **keywords: Unpack[LossKeywords],
) -> Tensor:
    """Distil teachers into a student of which each row may have any number of the C classes.

    For each row and class, with q = sigmoid(s/T), the teachers' mixture p at T, the label y, the row's
    weight u and the class's weight w, a row's loss is

        u Σ_c w_c [α T² (p_c log(p_c / q_c) + (1 − p_c) log((1 − p_c) / (1 − q_c))) + (1 − α) BCE(y_c, s_c)]

    The teachers' entropy is part of it, so the loss is 0 where the student equals the mixture (alpha = 1),
    and never negative. Loss and gradient are made in one pass, without any intermediate of size [K, N, C] or
    [N, C].

    Parameters
    ----------
    student_logits : Tensor [..., C], float32, bfloat16, float16 or float64
        Any leading dimensions, N rows altogether; N = 0 is legal. The gradient is laid out like it.
    targets : Tensor [..., C] or [K, ..., C], or one of :mod:`ensdistill.loss.targets`
        The teachers' outputs. A bare tensor is logits. LogProbs and Probs hold sigmoids: each class from 0
        to 1 (to within 1e-3), with no sum to keep. TopK lists each row's k largest sigmoids of the mixture;
        see Notes. Counts are an error. Dense targets are read as stored, with any strides. No gradient
        flows to them.
    labels : Tensor [..., C], bool, integers or floating-point numbers, optional
        From 0 to 1, and -1 where unknown: such a label has no cross entropy, and its class keeps its
        divergence. (A uint8 label of 255 is -1.) NaN is an error. bool, int8, uint8 and floats are read as
        stored.
    settings, **keywords
        A :class:`~ensdistill.loss.settings.LossSettings`, or its fields as keywords, ``temperature=2.0,
        alpha=0.9``. ``label_smoothing`` e takes y(1 - e) + e/2 for y. ``combiner`` ``prob`` averages the
        members' sigmoids at T; ``logit`` and ``log_prob`` average their logits. ``reduction="mean"``
        averages the divergence over all rows and the cross entropy over the rows with a known label; both
        are sums over the classes. ``tail`` is of TopK. ``divergence``, ``beta``, ``z_loss`` and
        ``ignore_index`` are of a softmax, and anything but their default is an error.
    weights : Tensor or sequence [K], optional
        Of the members: non-negative; normalised to sum to one. A member of weight 0 is not read.
    class_weights : Tensor or sequence [C], optional
        Non-negative factor w of each class, of divergence and cross entropy. A class of weight 0 is left out.
    pos_weight : Tensor or sequence [C], optional
        As in :func:`torch.nn.functional.binary_cross_entropy_with_logits`: factor of the positive part of
        the cross entropy. It needs labels.
    sample_weights : Tensor or sequence [...], optional
        Non-negative factor u of each row. A row of weight 0 is not read. The mean divides by all rows.
    mask : Tensor [..., C], bool, optional
        False leaves a row's class out, labelled or not: the tensors' values there have no effect.
    class_dim : int
        The class dimension of ``student_logits``, ``labels``, ``mask`` and (after K) of dense targets: 1 for
        feature maps [N, C, H, W].
    impl : {"fused", "reference", "compile"}
        The native kernel; the plain torch code that specifies it; the same through ``torch.compile``.

    Returns
    -------
    Tensor [], or [...] for ``reduction="none"``
        In natural units (nats). float64 if student or targets are float64, else float32.

    Raises
    ------
    ValueError, TypeError
        Names the argument, the value and the expectation. Values on a GPU are not looked at: a label or
        probability out of range makes its row's loss and gradient NaN there.
    NotImplementedError
        ``impl="fused"`` on a device without kernels, in forward mode, or in torch.func.grad under
        torch.compile(fullgraph=True).
    RuntimeError
        Differentiated twice when the targets are gone, or inputs were changed in place.

    Notes
    -----
    The gradient is u w [α T (q − p) + (1 − α) ((1 − y) σ(s) − ``pos_weight`` y σ(−s))] and the reduction's
    factor, formed in float32 (float64 for float64 and above T = 32) and
    rounded once.

    TopK of sigmoids: ``log_probs`` are logarithms of the k largest probabilities, and ``tail_log_mass`` the
    logarithm of the sum of all others, which may be above 0. With ``tail="tail"`` each class that isn't
    listed has their mean, m. No unlisted probability exceeds the smallest listed one, r, so a class's
    gradient is off by at most T·max(m, r - m), and the errors of a row's gradient sum to 0. With
    ``tail="zero"`` it has none, and its gradient is off by at most T·r.

    NaN logits of the student or of a member that is used aren't an error: the row's loss is NaN, so that a
    diverged model is seen. ``-inf`` is a class that is ruled out.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2, applied to each
    of C Bernoulli distributions. Label smoothing: Müller, Kornblith, Hinton, "When Does Label Smoothing
    Help?", 2019.

    Examples
    --------
    >>> teachers = torch.tensor([[[2.0, 0.0, -1.0]], [[1.0, 1.0, -2.0]]])  # K=2, N=1, C=3
    >>> student = torch.zeros(1, 3, requires_grad=True)
    >>> loss = multilabel_distillation_loss(student, teachers, temperature=2.0)
    >>> loss.backward()
    >>> loss.item(), student.grad
    (0.5409..., tensor([[-0.3535, -0.1225,  0.3535]]))

    Labels of which some are unknown, and a class that counts for half of the rows:

    >>> labels = torch.tensor([[1, 0, -1], [-1, -1, -1]])
    >>> mask = torch.tensor([[True, True, True], [True, True, False]])
    >>> student, teachers = torch.zeros(2, 3), torch.randn(4, 2, 3)
    >>> multilabel_distillation_loss(student, teachers, labels, alpha=0.7, mask=mask).shape
    torch.Size([])
    """
    settings = settings_of(settings, dict(keywords))
    check_floats("student_logits", student_logits, "")
    shape = tuple(student_logits.shape)
    if not shape:
        raise ValueError("student_logits: expected [..., C]; got shape []")
    class_dim = check_class_dim(class_dim, "student_logits", shape)
    if shape[class_dim] < 1:
        raise ValueError(f"student_logits: expected at least one class; got shape {list(shape)}")
    problem = make_problem(
        student_logits,
        class_dim,
        targets,
        labels,
        mask,
        settings,
        impl,
        weights=weights,
        class_weights=class_weights,
        pos_weight=pos_weight,
        sample_weights=sample_weights,
    )
    rows, dense, marks, present = collapse(
        student_logits, problem.values if problem.dense else None, class_dim, problem.labels, problem.mask
    )
    values = (problem.values if dense is None else dense).detach()
    tensors = problem.tensors._replace(labels=marks, mask=present)
    if impl == "fused":
        check_kernels("student_logits", student_logits.device)
        # The op has no forward-mode rule, and torch would take that for a tangent of zero.
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(student_logits).tangent is not None:
            raise NotImplementedError(
                "student_logits: carries a forward-mode tangent (torch.func.jvp, jacfwd), which "
                "impl='fused' can't propagate; use impl='reference'"
            )
        with_gradient = student_logits.requires_grad and torch.is_grad_enabled() and not settings.recompute
        op_settings, factor = _divided_outside(problem, rows.dtype, settings.reduction)
        call = multilabel_op.SIGNATURE.call(rows, values, *tensors, *op_settings, with_gradient)
        given = problem.given
        held = None if given is None else (given, class_dim + given.dim() - len(shape))
        loss = multilabel_op.differentiable_loss(call, held=held)[0]
        loss = loss if factor is None else (loss * factor).to(loss.dtype)
    else:
        function: Any = multilabel_reference.multilabel_loss if impl == "reference" else _compiled_reference()
        loss = function(rows, values, **tensors._asdict(), **problem.settings._asdict())
    explain_nan(problem, loss)
    return loss.reshape(problem.lead) if settings.reduction == "none" else loss


def _divided_outside(
    problem: MultilabelProblem, dtype: torch.dtype, reduction: str
) -> tuple[Any, float | None]:
    """Settings for a float16 gradient as large as one row's, and the factor of the loss that is left.

    A mean's gradient over many rows is below float16's range, and a scaled loss (torch.amp.GradScaler) can't
    bring back digits that were rounded to 0. The factor is a power of two, which rounds nothing. In a
    compiled graph, which is for any number of rows, all of the division is left.
    """
    settings, compiled = problem.settings, torch.compiler.is_compiling()
    if dtype != torch.float16 or reduction not in ("mean", "batchmean"):
        return settings, None
    rows = max(product(problem.lead), 1) if reduction == "mean" else settings.divisor
    power = rows if compiled else 2.0 ** math.floor(math.log2(rows))
    if settings.alpha < 1 and not compiled:
        power = min(power, _LARGEST_SCALE)
    return settings._replace(divisor=settings.divisor / power), 1.0 / power


@lru_cache(maxsize=1)
def _compiled_reference() -> Any:
    return torch.compile(multilabel_reference.multilabel_loss, dynamic=False)
