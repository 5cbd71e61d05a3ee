"""Weights of the teachers in each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensdistill.cache import TargetCache
from ensdistill.common.scalars import check_temperature
from ensdistill.data import Rows
from ensdistill.student.methods.method import Method, check_number
from ensdistill.student.methods.protocol import Start
from ensdistill.student.methods.teachers import classes_of, kl_rows, log_mixture, mean_of, member_log_p

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource

By = Literal["uniform", "given", "confidence", "minimum_ce", "learned"]
LARGEST = 50.0  # nats: a member that rules a row's class out has this cross entropy


@dataclass(frozen=True)
class WeightedTeachers(Method):
    """T² KL from a mixture in which the members have other weights in each row.

    With CE_k the cross entropy of member k for the row's class y (its label, or the mixture's most probable
    class where it has none):

    - ``uniform``: 1 / K in each row;
    - ``given``: the numbers in ``weights``, in each row;
    - ``confidence``: (1 - exp(CE_k) / Σ_j exp(CE_j)) / (K - 1), so that no member has more than 1 / (K - 1);
    - ``minimum_ce``: the member of the least CE alone;
    - ``learned``: softmax_k(vᵀ(a_k ∘ h)), with h the student's own probabilities of the row, and parameters a
      and v that train along. They also minimise the weighted mixture's cross entropy for y in the rows that
      have a label: the divergence alone would prefer the teacher that is easiest to imitate.

    Parameters
    ----------
    by : {"uniform", "given", "confidence", "minimum_ce", "learned"}
    weights : sequence of float, optional
        K numbers of at least 0, for ``given``.
    temperature : float

    References
    ----------
    Zhang et al., "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022; Liu et
    al., "Adaptive Multi-Teacher Multi-level Knowledge Distillation", Neurocomputing 2020, for the
    learned weights, there of features.

    Examples
    --------
    >>> WeightedTeachers("given", weights=[2.0, 1.0, 1.0]).weights
    (2.0, 1.0, 1.0)
    """

    by: By = "confidence"
    weights: Sequence[float] | None = None
    temperature: float = 1.0
    takes_mixture = False

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise ValueError(f"by: expected one of {', '.join(get_args(By))}; got {self.by!r}")
        check_temperature("temperature", self.temperature)
        if (self.weights is None) == (self.by == "given"):
            wanted = "the members' numbers beside" if self.by == "given" else "none beside"
            raise ValueError(f"weights: expected {wanted} by={self.by!r}; got {self.weights!r}")
        if self.weights is not None:
            if isinstance(self.weights, str) or not isinstance(self.weights, Sequence):
                raise ValueError(f"weights: expected a list of numbers; got {self.weights!r}")
            found = tuple(check_number("weights", one) for one in self.weights)
            if not any(found):
                raise ValueError(f"weights: expected a number above 0; got {self.weights!r}")
            object.__setattr__(self, "weights", found)

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        super().check(rows, classes, cache)
        if self.weights is not None and cache is not None and len(self.weights) != len(cache.names):
            raise ValueError(
                f"weights: expected a number for each of {len(cache.names)} members, "
                f"{', '.join(cache.names)}; got {len(self.weights)}"
            )
        if self.by == "learned" and not rows.known.any():
            raise ValueError(
                f"by: learned weights need rows with labels, by which the mixture is judged; none of the "
                f"{len(rows)} rows has one: pass labels, or choose 'uniform'"
            )

    @property
    def has_companion(self) -> bool:
        return self.by == "learned"

    def companion(self, start: Start) -> nn.Module | None:
        return Gate(start.members, start.classes) if self.by == "learned" else None

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        each = member_log_p(targets, self.temperature)
        log_q = F.log_softmax(outputs / self.temperature, -1)
        if self.by == "learned":
            assert batch.own is not None
            log_w = batch.own(F.softmax(outputs.detach(), -1))
            divergence = kl_rows(torch.logsumexp(each + log_w.unsqueeze(-1), 0), log_q)
            return mean_of(self.temperature**2 * divergence, batch.weights) + self.judged(
                log_w, targets, labels, batch
            )
        weights = self.weights_of(targets, labels, len(each))
        log_p = torch.logsumexp(each + weights.log().unsqueeze(-1), 0)
        return mean_of(self.temperature**2 * kl_rows(log_p, log_q), batch.weights)

    def weights_of(self, targets: Any, labels: Tensor, count: int) -> Tensor:
        """The members' weights [K, B], which sum to one in each row."""
        if self.weights is not None:
            given = torch.tensor(self.weights, device=labels.device)
            return (given / given.sum()).unsqueeze(-1).expand(-1, len(labels))
        if self.by == "uniform" or count == 1:
            return torch.full((count, len(labels)), 1 / count, device=labels.device)
        classes = classes_of(labels, log_mixture(targets, 1.0))
        losses = cross_entropies(member_log_p(targets, 1.0), classes)
        if self.by == "confidence":
            return (1 - losses.softmax(0)) / (count - 1)
        best = (losses == losses.amin(0)).float()
        return best / best.sum(0)

    def judged(self, log_w: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        """The weighted mixture's cross entropy of the labels, over the rows that have one."""
        known = labels >= 0
        own = log_w - cross_entropies(member_log_p(targets, 1.0), labels.clamp(min=0))
        losses = -torch.logsumexp(own, 0).masked_fill(~known, 0)
        factor = 1.0 if batch.label_factor is None else batch.label_factor
        weighted = losses if batch.weights is None else losses * batch.weights
        return factor * weighted.sum() / known.sum().clamp(min=1)


class Gate(nn.Module):
    """The logarithms of the members' weights [K, B] for rows of probabilities [B, C]; even at the start."""

    def __init__(self, members: int, classes: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.zeros(members, classes))
        self.direction = nn.Parameter(torch.ones(classes))

    def forward(self, probabilities: Tensor) -> Tensor:
        scores = probabilities @ (self.factors * self.direction).T
        return scores.log_softmax(-1).T


def cross_entropies(log_p: Tensor, classes: Tensor) -> Tensor:
    """Each member's cross entropy [K, B] for the rows' classes [B], 50 nats at most."""
    index = classes.expand(len(log_p), -1).unsqueeze(-1)
    return -log_p.gather(-1, index).squeeze(-1).clamp(min=-LARGEST)
