"""Dirichlet distributions over a row's probabilities: what a student predicts of an ensemble's spread."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMOOTHING = 1e-4  # the uniform distribution's share of each member's


def smoothed(log_p: Tensor, share: float = SMOOTHING) -> Tensor:
    """Log-probabilities with a share of the uniform distribution, so that no class has mass 0; float64."""
    return ((1 - share) * log_p.double().exp() + share / log_p.shape[-1]).log()


def mean_log(alpha: Tensor) -> Tensor:
    """E[ln π_c] of Dirichlet distributions with parameters [..., C]."""
    return torch.digamma(alpha) - torch.digamma(alpha.sum(-1, keepdim=True))


def log_normaliser(alpha: Tensor) -> Tensor:
    """ln Γ(α_0) - Σ ln Γ(α_c)."""
    return torch.lgamma(alpha.sum(-1)) - torch.lgamma(alpha).sum(-1)


def density(alpha: Tensor, log_p: Tensor) -> Tensor:
    """The logarithm of the density [K, B] of members' probabilities [K, B, C], of parameters [B, C]."""
    return log_normaliser(alpha) + ((alpha - 1) * log_p).sum(-1)


def from_flat(alpha: Tensor) -> Tensor:
    """KL(Dir(α)‖Dir(1)) of each row."""
    return log_normaliser(alpha) - math.lgamma(alpha.shape[-1]) + ((alpha - 1) * mean_log(alpha)).sum(-1)


def proxy_precision(log_p: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The members' mean [B, C], and the precision β_0 [B] of the Dirichlet distribution that stands for them.

    β_0 = (C - 1) / (2 Σ_c π̄_c (ln π̄_c - mean_k ln π_kc)): Stirling's approximation of the most likely one.
    """
    w = weights.double()[:, None, None]
    mean = (w * log_p.exp()).sum(0)
    disagreement = (mean * (mean.log() - (w * log_p).sum(0))).sum(-1)
    return mean, (log_p.shape[-1] - 1) / (2 * disagreement.clamp(min=1e-8))


def uncertainties(alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Total, data and knowledge uncertainty [N], in nats, of Dirichlet distributions.

    The entropy of the mean, the mean entropy, and their difference, the mutual information of class and
    distribution.

    Parameters
    ----------
    alpha : Tensor [N, C]
        Above 0.

    Examples
    --------
    >>> total, data, knowledge = uncertainties(torch.tensor([[1e6, 1e6], [1.0, 1.0]]))
    >>> [round(x, 3) for x in knowledge.tolist()]
    [0.0, 0.193]
    """
    a = alpha.double()
    mean = a / a.sum(-1, keepdim=True)
    total = -torch.special.xlogy(mean, mean).sum(-1)
    data = -(mean * (torch.digamma(a + 1) - torch.digamma(a.sum(-1, keepdim=True) + 1))).sum(-1)
    return total, data, total - data
