"""The losses in plain torch: slow, obviously right, differentiable to any order. The specification, and the tests' oracle."""

from __future__ import annotations

import torch
from torch import Tensor


def mixture_log_probs(logits: Tensor, weights: Tensor | None, temperature: float, combiner: str) -> Tensor:
    """Log-probabilities [N, C] of the combined distribution of K members' ``logits`` [K, N, C].

    ``prob`` averages softmax(z_k / T); ``logit`` averages logits and ``log_prob`` log-probabilities, which is the same
    distribution once normalised (the geometric mean). A member of weight 0 has no say, whatever it holds.
    """
    k = logits.shape[0]
    weights = logits.new_ones(k) if weights is None else weights.to(logits)
    logits, weights = logits[weights > 0], weights[weights > 0]
    weights = (weights / weights.sum())[:, None, None]
    if combiner == "prob":
        return torch.logsumexp(torch.log_softmax(logits / temperature, -1) + weights.log(), 0)
    return torch.log_softmax((weights * logits).sum(0) / temperature, -1)


def distillation_loss(
    student_logits: Tensor,
    target_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    weights: Tensor | None = None,
    combiner: str = "prob",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Specification of :func:`ensdistill.functional.distillation_loss`; ``target_logits`` is [K, N, C].

    Computes in float64 where an input is float64, else in float32, and returns that dtype.

    Examples
    --------
    >>> z = torch.randn(3, 4, 5)
    >>> distillation_loss(z[0], z[:1]).abs() < 1e-6
    tensor(True)
    """
    dtype = torch.float64 if torch.float64 in (student_logits.dtype, target_logits.dtype) else torch.float32
    s, z = student_logits.to(dtype), target_logits.to(dtype)
    log_p = mixture_log_probs(z, weights, temperature, combiner)
    p = log_p.exp()
    # Where the teacher has no mass the term is 0. Masking the factors, not the product, keeps NaN out of the gradient.
    empty = p == 0
    log_q = torch.log_softmax(s / temperature, -1).masked_fill(empty, 0)
    loss = alpha * temperature**2 * (p * (log_p.masked_fill(empty, 0) - log_q)).sum(-1)
    if labels is None:
        counted = torch.ones_like(loss, dtype=torch.bool)
    else:
        counted = labels != ignore_index
        if alpha < 1:
            safe = labels.where(counted, 0)
            loss = loss + (1 - alpha) * torch.nn.functional.cross_entropy(s, safe, reduction="none", label_smoothing=label_smoothing)
        loss = loss.where(counted, 0)
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / counted.sum().clamp(min=1)
