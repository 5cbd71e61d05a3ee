"""Targets as distributions: what most methods compare a student with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensdistill.loss.reference import forward_kl, member_log_probs, mixture, normalized
from ensdistill.loss.targets import Counts, LogProbs, Probs, TopK


def weights_of(targets: Any, like: Tensor) -> Tensor:
    """The members' weights [K], which sum to one."""
    return normalized(getattr(targets, "weights", None), len(like), like)


def logits_of_members(targets: Any) -> Tensor:
    """The members' logits, float32 [K, B, C]; log-probabilities where the targets are distributions."""
    if isinstance(targets, Probs):
        probs = targets.probs.float()
        return (probs if targets.weights is not None else probs.unsqueeze(0)).log()
    found: Tensor = targets.to_logits()
    return found


def member_log_p(targets: Any, temperature: float) -> Tensor:
    """The members' log-probabilities [K, B, C] at a temperature; distributions have their own already."""
    logits = logits_of_members(targets)
    kind = "log_probs" if isinstance(targets, LogProbs | Probs | TopK | Counts) else "logits"
    return member_log_probs(logits, weights_of(targets, logits), kind, temperature)


def log_mixture(targets: Any, temperature: float) -> Tensor:
    """The log-probabilities [B, C] of the members' mixture at a temperature."""
    each = member_log_p(targets, temperature)
    return mixture(each, weights_of(targets, each), getattr(targets, "combiner", None) or "prob")


def mean_logits(targets: Any) -> tuple[Tensor, Tensor]:
    """The weighted mean of the members' logits, float32 [B, C], each row of mean 0, and where it is finite.

    A cache may keep a row of logits up to a constant, so only centred rows can be compared. A class that a
    member rules out (``-inf``) is 0 in the result.
    """
    logits = logits_of_members(targets)
    weights = weights_of(targets, logits)[:, None, None]
    mean = (weights * logits).masked_fill(weights == 0, 0).sum(0)
    finite = mean.isfinite()
    return centred(mean, finite), finite


def centred(logits: Tensor, finite: Tensor) -> Tensor:
    """Logits [B, C], less their mean over the classes that ``finite`` marks; 0 at all others."""
    kept = logits.masked_fill(~finite, 0)
    mean = kept.sum(-1, keepdim=True) / finite.sum(-1, keepdim=True).clamp(min=1)
    return (kept - mean).masked_fill(~finite, 0)


def kl_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) of each row, in nats."""
    return forward_kl(log_p, log_q, 0.0)


def classes_of(labels: Tensor, log_p: Tensor) -> Tensor:
    """Each row's class: its label, or the teachers' most probable class where it has none."""
    return torch.where(labels >= 0, labels, log_p.argmax(-1))


def mean_of(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of the rows' losses [B], each times its weight."""
    return (losses if weights is None else losses * weights).mean()
