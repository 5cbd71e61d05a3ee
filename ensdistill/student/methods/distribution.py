"""Ensemble distribution distillation, with a guard against its collapse."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensdistill.common.processes import Processes
from ensdistill.student.methods.dirichlet import SMOOTHING, density, smoothed
from ensdistill.student.methods.method import Method
from ensdistill.student.methods.protocol import Start
from ensdistill.student.methods.proxy_dirichlet import LARGEST, check_share, proxy_loss
from ensdistill.student.methods.teachers import kl_rows, mean_of, member_log_p, weights_of

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch

ALONE = Processes()
WARM_UP, MEMORY = 100, 0.95  # steps before the first verdict; the share of the past in the running mean


@dataclass(frozen=True)
class DistributionDistillation(Method):
    """The negative logarithm of the members' density in the student's Dirichlet distribution, α_c = exp(z_c).

    The softmax of the student's logits z is the distribution's mean, and the sum of exp(z_c) its precision.
    Where members hardly differ, or classes are many, the likelihood grows without bound with the precision,
    and the mean is no longer learned. So the loss watches itself. It has collapsed where it is not finite,
    where a logit passes 30, or where the student's mean is farther from the members' than a constant
    prediction is (KL, a running mean from step 100 on). A warning names the step, and the training goes on
    with :class:`~ensdistill.student.methods.proxy_dirichlet.ProxyDirichlet`.

    Parameters
    ----------
    smoothing : float
        The uniform distribution's share of each member's probabilities, in (0, 1).

    References
    ----------
    Malinin, Mlodozeniec and Gales, "Ensemble Distribution Distillation", ICLR 2020.

    Examples
    --------
    >>> DistributionDistillation(smoothing=0.01).least_members
    2
    """

    smoothing: float = SMOOTHING
    takes_mixture = False
    least_members = 2

    def __post_init__(self) -> None:
        check_share("smoothing", self.smoothing)

    def companion(self, start: Start) -> nn.Module:
        return Guard()

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        guard = batch.own
        assert isinstance(guard, Guard)
        log_p = smoothed(member_log_p(targets, 1.0), self.smoothing)
        weights = weights_of(targets, log_p)
        if not guard.collapsed:
            alpha = outputs.double().exp()
            rows = -(weights.double()[:, None] * density(alpha, log_p)).sum(0)
            mean = torch.logsumexp(log_p + weights.double().log()[:, None, None], 0)
            guard.watch(outputs, rows, mean, batch.step, batch.group)
        if guard.collapsed:
            rows = proxy_loss(outputs, log_p, weights)
        return mean_of(rows.to(outputs.dtype), batch.weights)


class Guard(nn.Module):
    """Whether a training has collapsed; its state is in the checkpoints.

    Attributes
    ----------
    distance : Tensor []
        The running mean of the KL from the members' mean, over that of a constant prediction.
    collapsed : Tensor [], bool
    at : Tensor [], int64
        The step of the collapse.
    """

    distance: Tensor
    collapsed: Tensor
    at: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("distance", torch.zeros(()))
        self.register_buffer("collapsed", torch.zeros((), dtype=torch.bool))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))

    @property
    def note(self) -> str:
        """What a report says of the training; empty where nothing happened."""
        if not self.collapsed and self.distance <= 1:
            return ""
        if not self.collapsed:  # a training too short for a verdict
            return (
                f"endd ended {self.distance.item():.2g} times as far from the members' mean as a constant "
                "prediction: train for more steps, or by proxy_dirichlet"
            )
        return f"endd collapsed at step {int(self.at)}; trained on by proxy_dirichlet"

    @torch.no_grad()
    def watch(
        self, outputs: Tensor, rows: Tensor, log_mean: Tensor, step: int, group: Processes = ALONE
    ) -> None:
        """Take a batch into the running mean, and decide. Each process has a share of the batch, and all
        decide by the whole, so that none goes on with another loss."""
        constant = group.mean(log_mean.exp().mean(0)).log().expand_as(log_mean)
        own = kl_rows(log_mean, F.log_softmax(outputs.double(), -1)).mean()
        other = kl_rows(log_mean, constant).mean()
        broken = (~rows.isfinite()).any().to(own)
        shares = group.by_rank(torch.stack([own, other, broken, outputs.max().to(own)]))
        own, other, broken, _ = shares.mean(0)
        largest = float(shares[:, 3].max())
        self.distance.lerp_(
            (own / other.clamp(min=1e-6)).to(self.distance.dtype), 1 - MEMORY if step else 1.0
        )
        reason = ""
        if broken > 0:
            reason = "its loss is not finite"
        elif largest > LARGEST:
            reason = f"a logit is {largest:.0f}, so the precision grows without bound"
        elif step >= WARM_UP and self.distance > 1:
            reason = (
                f"the student's mean is {self.distance.item():.2g} times as far from the members' as a "
                "constant prediction"
            )
        if reason:
            self.collapsed.fill_(True)
            self.at.fill_(step)
            if group.rank == 0:
                warnings.warn(
                    f"method: endd collapsed at step {step}: {reason}. The training goes on with "
                    "proxy_dirichlet",
                    stacklevel=2,
                )
