"""Decoupled knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ensdistill.common.scalars import check_temperature
from ensdistill.student.methods.method import Method, check_number
from ensdistill.student.methods.teachers import classes_of, kl_rows, log_mixture, mean_of

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch


@dataclass(frozen=True)
class Decoupled(Method):
    """T² (α TCKD + β NCKD): the KL of the target class against all others, and that among the others.

    KL(p‖q) = TCKD + (1 - p_t) NCKD, so ordinary distillation nearly drops the second part where teachers are
    certain; here it has a weight of its own. The target class t is the label, or the mixture's most probable
    class where a row has none. The paper adds the labels' cross entropy: ``{labels: 1, dkd: 1}``.

    Parameters
    ----------
    alpha, beta : float
        Of at least 0.
    temperature : float

    References
    ----------
    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.

    Examples
    --------
    >>> Decoupled(beta=2.0).alpha
    1.0
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha)
        check_number("beta", self.beta)
        check_temperature("temperature", self.temperature)

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        log_p = log_mixture(targets, self.temperature)
        log_q = F.log_softmax(outputs / self.temperature, -1)
        target = F.one_hot(classes_of(labels, log_p), log_p.shape[-1]).bool()
        binary, others = zip(*(split(one, target) for one in (log_p, log_q)), strict=True)
        first = kl_rows(*binary)
        second = kl_rows(*others)
        rows = self.temperature**2 * (self.alpha * first + self.beta * second)
        return mean_of(rows, batch.weights)


def split(log_p: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, 2] of the target class and of all others, and those among the others [B, C].

    ``target`` marks the classes, bool [B, C]. Others without mass are evenly likely.
    """
    inside = log_p.masked_fill(~target, float("-inf")).amax(-1, keepdim=True)
    without = log_p.masked_fill(target, float("-inf"))
    nothing = without.isneginf().all(-1, keepdim=True)
    even = torch.zeros_like(log_p).masked_fill(target, float("-inf"))
    others = torch.log_softmax(torch.where(nothing, even, without), -1)
    outside = torch.logsumexp(torch.where(nothing, even, without), -1, keepdim=True)
    binary = torch.cat([inside, outside.masked_fill(nothing, float("-inf"))], -1)
    return binary, others
