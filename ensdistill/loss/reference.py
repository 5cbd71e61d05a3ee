"""The op in plain torch: slow, obviously right, differentiable to any order. The specification, and the
tests' oracle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ensdistill.loss.settings import DEFAULTS
from ensdistill.loss.targets import SUM_TOLERANCE


def distill_loss(
    student: Tensor,
    targets: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    ids: Tensor | None = None,
    tail: Tensor | None = None,
    weights: Tensor | None = None,
    labels: Tensor | None = None,
    class_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    kind: str = "logits",
    divergence: str = DEFAULTS.divergence,
    beta: float = DEFAULTS.beta,
    temperature: float = DEFAULTS.temperature,
    alpha: float = DEFAULTS.alpha,
    combiner: str = "prob",
    tail_mode: str = DEFAULTS.tail,
    ignore_index: int = DEFAULTS.ignore_index,
    label_smoothing: float = DEFAULTS.label_smoothing,
    z_loss: float = DEFAULTS.z_loss,
    reduction: str = DEFAULTS.reduction,
    divisor: float = 1.0,
    with_statistics: bool = False,
) -> tuple[Tensor, Tensor]:
    """Specification of the op ``ensdistill::distill_loss``, whose arguments csrc/schema.cpp describes, by the
    same names.

    Computes in float64 where ``student`` or ``targets`` is float64, else in float32, and returns that: the
    loss [] or [N], and the statistics [N, 4] ([0, 4] if not asked for). Rows of sample weight 0 have loss 0
    and NaN statistics, whatever they hold.

    Examples
    --------
    >>> z = torch.randn(3, 4, 5)
    >>> distill_loss(z[0], z[:1])[0].abs() < 1e-6
    tensor(True)
    """
    dtype = torch.float64 if torch.float64 in (student.dtype, targets.dtype) else torch.float32
    classes = student.shape[-1]
    s = student.reshape(-1, classes).to(dtype)
    used = s.new_ones(len(s), dtype=torch.bool) if sample_weights is None else sample_weights != 0
    # An unused row becomes a harmless one before anything is computed from it: 0 times its NaN would still be
    # NaN.
    s = s.masked_fill(~used[:, None], 0)
    log_q = torch.log_softmax(s / temperature, -1)
    if kind == "topk":
        assert ids is not None
        listed = targets.to(dtype).where(used[:, None], 0)
        log_members = None
        log_p = scattered(listed, ids, classes, renormalize=tail_mode == "renormalize")
        teacher_class = log_p.argmax(-1)
        log_q_compared = log_q
        if tail_mode == "tail":
            assert tail is not None
            log_p, log_q_compared = with_bucket(log_p, log_q, tail.to(dtype).where(used, 0))
    else:
        values = targets.reshape(len(targets), -1, classes)
        values = (
            decoded(values, scale, offset, dtype)
            if scale is not None and offset is not None
            else values.to(dtype)
        )
        values = values.where(used[:, None], 1 / classes)
        weights = normalized(weights, len(values), values)
        log_members = member_log_probs(values, weights, kind, temperature)
        log_p = mixture(log_members, weights, combiner)
        teacher_class, log_q_compared = log_p.argmax(-1), log_q
    # Without a share it isn't computed: 0 times an infinite one would be NaN.
    loss = (
        alpha * temperature**2 * DIVERGENCES[divergence](log_p, log_q_compared, beta)
        if alpha > 0
        else torch.zeros_like(s[:, 0])
    )
    if labels is not None and alpha < 1:
        labelled = labels != ignore_index
        hard = cross_entropy(s, labels.where(labelled, 0), class_weights, label_smoothing).where(labelled, 0)
        # The mean below divides by all rows; the cross entropy's is over the labelled ones.
        if reduction == "mean":
            hard = hard * (len(s) / labelled.sum().clamp(min=1).to(dtype))
        loss = loss + (1 - alpha) * hard
    if z_loss:
        loss = loss + z_loss * torch.logsumexp(s, -1) ** 2
    if sample_weights is not None:
        loss = loss * sample_weights.to(dtype)
    loss = loss.where(used, 0)
    statistics = s.new_empty(0, 4)
    if with_statistics:
        rows = row_statistics(log_q.detach(), log_p, log_members, weights, teacher_class)
        statistics = rows.where(used[:, None], torch.nan)
    if reduction == "mean":
        loss = loss.sum() / max(len(s), 1)
    elif reduction == "sum":
        loss = loss.sum() / divisor
    return loss, statistics


# The teachers' mixture
# ------------------------------------------------------------------------------------------------


def decoded(codes: Tensor, scale: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """The logits that codes [K, N, C] stand for; see :class:`ensdistill.loss.targets.QuantizedLogits`."""
    scale, offset = scale.to(dtype).reshape(len(codes), -1, 1), offset.to(dtype).reshape(len(codes), -1, 1)
    return (offset + scale.abs() * codes).masked_fill((scale < 0) & (codes == 0), -torch.inf)


def normalized(weights: Tensor | None, k: int, like: Tensor) -> Tensor:
    """Member weights [K] that sum to one."""
    weights = like.new_ones(k) if weights is None else weights.to(like)
    return weights / weights.sum()


def member_log_probs(values: Tensor, weights: Tensor, kind: str, temperature: float) -> Tensor:
    """Log-probabilities [K, N, C] of each member. A member of weight 0 has no share, whatever it holds."""
    values = values.where(weights[:, None, None] != 0, 1 / values.shape[-1])
    if kind != "probs":
        return torch.log_softmax(values / temperature if kind == "logits" else values, -1)
    total = values.sum(-1, keepdim=True)
    distribution = (values >= 0).all(-1, keepdim=True) & ((total - 1).abs() <= SUM_TOLERANCE)
    return (values.log() - total.log()).where(distribution, torch.nan)


def mixture(log_members: Tensor, weights: Tensor, combiner: str) -> Tensor:
    """Log-probabilities [N, C] of the combined distribution.

    ``prob`` averages the members' probabilities; ``logit`` averages logits and ``log_prob``
    log-probabilities, which is the same distribution once normalised (the geometric mean).
    """
    weights = weights[:, None, None]
    if combiner == "prob":
        return torch.logsumexp(log_members + weights.log(), 0)
    return torch.log_softmax((weights * log_members).masked_fill(weights == 0, 0).sum(0), -1)


def scattered(listed: Tensor, ids: Tensor, classes: int, renormalize: bool) -> Tensor:
    """Log-probabilities [N, C] from those listed for ``ids`` [N, k]: -inf elsewhere. A listed -inf is
    padding."""
    if renormalize:
        listed = torch.log_softmax(listed, -1)
    return listed.new_full((len(listed), classes), -torch.inf).scatter_reduce(-1, ids, listed, "amax")


def with_bucket(log_p: Tensor, log_q: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """Both distributions [N, C + 1] over the listed classes and one bucket for all others, which weighs
    exp(tail) in ``log_p``."""
    listed = log_p != -torch.inf
    inside = log_q.masked_fill(listed, -torch.inf)
    nothing = listed.all(-1)
    outside = torch.logsumexp(inside.where(~nothing[:, None], 0), -1).masked_fill(nothing, -torch.inf)
    return torch.cat([log_p, tail[:, None]], -1), torch.cat(
        [log_q.masked_fill(~listed, -torch.inf), outside[:, None]], -1
    )


# How far the student is from it
# --------------------------------------------------------------------------------------- Where a factor is 0
# the term is 0. Masking the factors, not the product, keeps NaN out of the gradient.


def forward_kl(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    p = log_p.exp()
    return (p * (log_p.masked_fill(p == 0, 0) - log_q.masked_fill(p == 0, 0))).sum(-1)


def reverse_kl(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    return forward_kl(log_q, log_p, beta)


def jsd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    m = beta * log_p.exp() + (1 - beta) * log_q.exp()
    log_m = m.masked_fill(m == 0, 1).log()
    return beta * forward_kl(log_p, log_m, beta) + (1 - beta) * forward_kl(log_q, log_m, beta)


def tvd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd, "tvd": tvd}


def cross_entropy(s: Tensor, labels: Tensor, class_weights: Tensor | None, label_smoothing: float) -> Tensor:
    """torch's, of each row; NaN for a label out of range."""
    inside = (labels >= 0) & (labels < s.shape[-1])
    weight = None if class_weights is None else class_weights.to(s)
    loss = F.cross_entropy(
        s, labels.where(inside, 0), weight=weight, reduction="none", label_smoothing=label_smoothing
    )
    return loss.where(inside, torch.nan)


# By-products
# ----------------------------------------------------------------------------------------------------------


def entropy(log_p: Tensor) -> Tensor:
    p = log_p.exp()
    return -(p * log_p.masked_fill(p == 0, 0)).sum(-1)


def row_statistics(
    log_q: Tensor, log_p: Tensor, log_members: Tensor | None, weights: Tensor | None, teacher_class: Tensor
) -> Tensor:
    """[N, 4]: entropy of q, entropy of p, agreement of their largest classes, disagreement H(p) - sum of w_k
    H(p_k)."""
    mixed = entropy(log_p)
    disagreement = torch.full_like(mixed, torch.nan)
    if log_members is not None and weights is not None:
        each = entropy(log_members)
        disagreement = mixed - (weights[:, None] * each).sum(0)
    agreement = (log_q.argmax(-1) == teacher_class).to(mixed.dtype)
    return torch.stack([entropy(log_q), mixed, agreement, disagreement], -1)
