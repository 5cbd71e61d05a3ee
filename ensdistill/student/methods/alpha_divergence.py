"""The α-divergence, between the two KLs and beyond."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from ensdistill.common.scalars import check_temperature, real
from ensdistill.student.methods.method import Method
from ensdistill.student.methods.teachers import kl_rows, log_mixture, mean_of

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch


@dataclass(frozen=True)
class AlphaDivergence(Method):
    """T² D_α(p‖q), D_α = (Σ_c p_c^α q_c^(1-α) - 1) / (α (α - 1)), of the mixture p and the student q at T.

    Near 1 it is KL(p‖q), near 0 KL(q‖p), at 0.5 four times the squared Hellinger distance. Larger values cost
    more where the student has too little mass, smaller ones where it has too much.

    Parameters
    ----------
    order : float
        α, from -5 to 5. Where it is 0 or less, classes without mass in the targets would cost an infinite
        amount, so they are left out.
    temperature : float

    References
    ----------
    Minka, "Divergence measures and message passing", 2005; Wang et al., "AlphaNet", ICML 2021.

    Examples
    --------
    >>> AlphaDivergence(order=0.5).temperature
    1.0
    """

    order: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature)
        if not (real(self.order) and -5 <= float(self.order) <= 5):
            raise ValueError(f"order: expected a number from -5 to 5; got {self.order!r}")

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        log_p = log_mixture(targets, self.temperature)
        log_q = F.log_softmax(outputs / self.temperature, -1)
        return mean_of(self.temperature**2 * self.rows(log_p, log_q), batch.weights)

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The divergence of each row [B]."""
        a = float(self.order)
        if abs(a - 1) < 1e-3:
            return kl_rows(log_p, log_q)
        if abs(a) < 1e-3:
            kept = log_p.isfinite()
            return (log_q.exp() * (log_q - log_p.masked_fill(~kept, 0))).masked_fill(~kept, 0).sum(-1)
        kept = log_p.isfinite()
        product = (a * log_p.masked_fill(~kept, 0) + (1 - a) * log_q).exp().masked_fill(~kept, 0)
        return (product.sum(-1) - 1) / (a * (a - 1))
