"""Distillation from a stronger teacher: correlations in place of divergences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from ensdistill.common.scalars import check_temperature
from ensdistill.student.methods.method import Method, check_number
from ensdistill.student.methods.teachers import log_mixture

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch


@dataclass(frozen=True)
class Correlation(Method):
    """T² (β (1 - ρ of rows) + γ (1 - ρ of classes)), with Pearson's ρ of the probabilities at T.

    The first ρ is between student and mixture over the classes of each row, the second over the batch's rows
    of each class; both are means. A correlation leaves location and scale free, so the student's
    probabilities are not the ensemble's: mix ``labels`` or ``kd`` in.

    Parameters
    ----------
    beta, gamma : float
        Of at least 0.
    temperature : float

    References
    ----------
    Huang et al., "Knowledge Distillation from A Stronger Teacher" (DIST), NeurIPS 2022.

    Examples
    --------
    >>> Correlation(gamma=2.0).beta
    1.0
    """

    beta: float = 1.0
    gamma: float = 1.0
    temperature: float = 1.0
    compares_rows = True

    def __post_init__(self) -> None:
        check_number("beta", self.beta)
        check_number("gamma", self.gamma)
        check_temperature("temperature", self.temperature)

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        p = log_mixture(targets, self.temperature).exp()
        q = F.softmax(outputs / self.temperature, -1)
        inter = 1 - pearson(q, p).mean()
        intra = 1 - pearson(q.T, p.T).mean()
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two matrices; 0 where a row is constant."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (one, other))
    return F.cosine_similarity(a, b, dim=-1, eps=1e-8)
