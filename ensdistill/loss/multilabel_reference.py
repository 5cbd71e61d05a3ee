"""The multi-label op in plain torch: slow, obviously right, differentiable to any order. The specification,
and the tests' oracle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ensdistill.loss.reference import decoded, normalized
from ensdistill.loss.settings import DEFAULTS

# Probabilities come from sums and from stores of few bits, so one may be a little above 1.
PROBABILITY_TOLERANCE = 1e-3


def multilabel_loss(
    student: Tensor,
    targets: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    ids: Tensor | None = None,
    tail: Tensor | None = None,
    weights: Tensor | None = None,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    class_weights: Tensor | None = None,
    pos_weight: Tensor | None = None,
    sample_weights: Tensor | None = None,
    kind: str = "logits",
    temperature: float = DEFAULTS.temperature,
    alpha: float = DEFAULTS.alpha,
    combiner: str = "prob",
    tail_mode: str = DEFAULTS.tail,
    label_smoothing: float = DEFAULTS.label_smoothing,
    reduction: str = DEFAULTS.reduction,
    divisor: float = 1.0,
) -> Tensor:
    """Specification of the op ``ensdistill::multilabel_loss``, whose arguments csrc/schema.cpp describes, by
    the same names.

    Computes in float64 where ``student`` or ``targets`` is float64, else in float32, and returns that: the
    loss [] or [N]. Elements of mask 0 or weight 0 may hold anything.

    Examples
    --------
    >>> z = torch.randn(3, 4, 5)
    >>> multilabel_loss(z[0], z[:1]).abs() < 1e-6
    tensor(True)
    """
    dtype = torch.float64 if torch.float64 in (student.dtype, targets.dtype) else torch.float32
    classes = student.shape[-1]
    s = student.reshape(-1, classes).to(dtype)
    used = s.new_ones(s.shape, dtype=torch.bool)
    if sample_weights is not None:
        used = used & (sample_weights != 0)[:, None]
    if class_weights is not None:
        used = used & (class_weights != 0)
    present = used.new_ones(s.shape) if mask is None else mask.reshape(-1, classes) != 0
    used = used & present
    # 0 times NaN is NaN, so unused values are replaced before anything is computed from them.
    s = s.masked_fill(~used, 0)
    loss = torch.zeros_like(s)
    if alpha > 0:
        if kind == "topk":
            assert ids is not None
            yes, no = listed_probabilities(targets.to(dtype), ids, tail, classes, tail_mode)
        else:
            values = targets.reshape(len(targets), -1, classes)
            values = (
                decoded(values, scale, offset, dtype)
                if scale is not None and offset is not None
                else values.to(dtype)
            )
            yes, no = mixture(values, normalized(weights, len(values), values), kind, combiner, temperature)
        yes, no = yes.masked_fill(~used, 0.5), no.masked_fill(~used, 0.5)
        loss = loss + alpha * temperature**2 * bernoulli_kl(yes, no, s / temperature)
    if labels is not None and alpha < 1:
        y = labels.reshape(-1, classes).to(dtype)
        unknown = y == (255 if labels.dtype == torch.uint8 else -1)
        y = y.where((y >= 0) & (y <= 1), torch.nan).masked_fill(unknown | ~used, 0)
        y = y + label_smoothing * (0.5 - y)
        positive = 1.0 if pos_weight is None else pos_weight.to(dtype)
        hard = positive * times(y, F.softplus(-s)) + times(1 - y, F.softplus(s))
        if reduction == "mean":  # over the rows with a known label; the mean below divides by all rows
            rows = (~unknown & present).any(-1).sum()
            hard = hard * (len(s) / rows.clamp(min=1).to(dtype))
        loss = loss + (1 - alpha) * hard.masked_fill(unknown, 0)
    if class_weights is not None:
        loss = loss * class_weights.to(dtype)
    if sample_weights is not None:
        loss = loss * sample_weights.to(dtype)[:, None]
    loss = loss.where(used, 0).sum(-1)
    if reduction == "none":
        return loss
    return loss.sum() / (max(len(s), 1) if reduction == "mean" else 1) / divisor


# The probabilities of presence and absence, each made on its own: 1 - p has no digits where p is near 1.


def mixture(
    values: Tensor, weights: Tensor, kind: str, combiner: str, temperature: float
) -> tuple[Tensor, Tensor]:
    """The combined probabilities [N, C] of members' ``values`` [K, N, C]; a member of weight 0 has no share.

    ``prob`` averages probabilities; ``logit`` and ``log_prob`` average the logits at T, which is the
    normalised geometric mean of the probabilities.
    """
    values = values.where(weights[:, None, None] != 0, 0.0)
    weights = weights[:, None, None]
    if combiner == "prob":
        yes, no = probabilities(values, kind, temperature)
        return (weights * yes).sum(0), (weights * no).sum(0)
    if kind == "logits":
        logits = values / temperature
    else:
        yes, no = probabilities(values, kind, temperature)
        logits = (values.clamp(max=0) if kind == "log_probs" else yes.log()) - no.log()
    mean = (weights * logits).masked_fill(weights == 0, 0).sum(0)
    return torch.sigmoid(mean), torch.sigmoid(-mean)


def probabilities(values: Tensor, kind: str, temperature: float) -> tuple[Tensor, Tensor]:
    if kind == "logits":
        return torch.sigmoid(values / temperature), torch.sigmoid(-values / temperature)
    yes = values.exp() if kind == "log_probs" else values
    legal = (yes >= 0) & (yes <= 1 + PROBABILITY_TOLERANCE)
    yes = yes.where(legal, torch.nan).clamp(max=1)
    no = -torch.expm1(values.clamp(max=0)) if kind == "log_probs" else 1 - yes
    return yes, no.where(legal, torch.nan)


def listed_probabilities(
    listed: Tensor, ids: Tensor, tail: Tensor | None, classes: int, tail_mode: str
) -> tuple[Tensor, Tensor]:
    """From log-probabilities ``listed`` [N, k] of ``ids``; all other classes share exp(tail) [N] equally, or
    have probability 0. A listed -inf is padding."""
    padding = listed == -torch.inf
    yes, no = probabilities(listed.masked_fill(padding, 0), "log_probs", 1.0)
    others = (classes - (~padding).sum(-1)).clamp(min=1)
    rest = torch.zeros_like(listed[:, 0]) if tail_mode == "zero" or tail is None else tail.to(listed).exp()
    rest, _ = probabilities(rest / others, "probs", 1.0)
    at = ids.masked_fill(padding, classes)  # padding goes to a column that is left out
    both = [x[:, None].repeat(1, classes + 1) for x in (rest, 1 - rest)]
    return both[0].scatter(-1, at, yes)[:, :classes], both[1].scatter(-1, at, no)[:, :classes]


# The divergence of the student from the mixture. Where a factor is 0 the term is 0.


def bernoulli_kl(yes: Tensor, no: Tensor, x: Tensor) -> Tensor:
    """KL of the probabilities ``yes`` and ``no`` = 1 - ``yes`` from sigmoid(x), for each class."""
    return side(yes, F.logsigmoid(x)) + side(no, F.logsigmoid(-x))


def side(p: Tensor, log_q: Tensor) -> Tensor:
    return p * (p.masked_fill(p == 0, 1).log() - log_q.masked_fill(p == 0, 0))


def times(factor: Tensor, value: Tensor) -> Tensor:
    """The product, 0 where the factor is."""
    return factor * value.masked_fill(factor == 0, 0)
