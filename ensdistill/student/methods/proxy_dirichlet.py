"""Distribution distillation by a proxy Dirichlet distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ensdistill.student.methods.dirichlet import SMOOTHING, from_flat, mean_log, proxy_precision, smoothed
from ensdistill.student.methods.method import Method, check_number
from ensdistill.student.methods.teachers import mean_of, member_log_p, weights_of

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch

LARGEST = 30.0  # a logit: beyond it the Dirichlet distribution is a point


@dataclass(frozen=True)
class ProxyDirichlet(Method):
    """The reverse KL of a Dirichlet distribution from one that stands for the members, over its precision.

    The student's logits z stand for the parameters α_c = exp(z_c) + 1. The softmax of z predicts as ever, and
    the sum of exp(z_c) is the precision, small where the members disagree. The proxy has the parameters
    β_0 π̄_c + 1, with the members' mean π̄ and the precision β_0 of
    :func:`~ensdistill.student.methods.dirichlet.proxy_precision`. The loss is
    E_α[-Σ_c π̄_c ln π_c] + KL(Dir(α)‖Dir(1)) / β_0. At the optimum the student's softmax is π̄.

    Parameters
    ----------
    smoothing : float
        The uniform distribution's share of each member's probabilities, in (0, 1).

    References
    ----------
    Ryabinin, Malinin and Gales, "Scaling Ensemble Distribution Distillation to Many Classes with Proxy
    Targets", NeurIPS 2021.

    Examples
    --------
    >>> ProxyDirichlet().least_members
    2
    """

    smoothing: float = SMOOTHING
    takes_mixture = False
    least_members = 2

    def __post_init__(self) -> None:
        check_share("smoothing", self.smoothing)

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        log_p = smoothed(member_log_p(targets, 1.0), self.smoothing)
        return mean_of(proxy_loss(outputs, log_p, weights_of(targets, log_p)), batch.weights)


def proxy_loss(outputs: Tensor, log_p: Tensor, weights: Tensor) -> Tensor:
    """The loss of each row [B], of members' smoothed log-probabilities [K, B, C]; float64 within."""
    mean, precision = proxy_precision(log_p, weights)
    alpha = outputs.double().clamp(max=LARGEST).exp() + 1
    rows = -(mean * mean_log(alpha)).sum(-1) + from_flat(alpha) / precision
    return rows.to(outputs.dtype)


def check_share(name: str, value: float) -> None:
    """Raise ValueError for a share that is not in (0, 1)."""
    if not 0 < check_number(name, value) < 1:
        raise ValueError(f"{name}: expected a share in (0, 1); got {value!r}")
