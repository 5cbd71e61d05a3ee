"""The losses of regressors, on targets and on labels: errors of means, and the NLL of Gaussians."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ensdistill.common.scalars import real
from ensdistill.loss.gaussian import check_beta, relative_error
from ensdistill.loss.settings import DEFAULTS, LossSettings

ErrorLoss = Literal["mse", "huber"]
LEAST_VARIANCE = 1e-6  # of a student, in squared units of the numbers' spread
BETA = 0.5  # of networks that are trained to predict variances: diamonds had the least RMSE and NLL with it


@dataclass(frozen=True)
class RegressionSettings:
    """How a regression student is compared with the ensemble. Numbers are in units of the targets' spread.

    Parameters
    ----------
    loss : {"mse", "huber"}
        Of a student that predicts means alone: the squared error, or Huber's loss, which is linear beyond
        ``delta``. A student with variances has the divergence of Gaussians, and ``mse``.
    delta : float
        Above 0; of ``huber``.
    alpha : float
        Share of the ensemble's targets, 0 to 1; the same loss of the labels (with variances their NLL) has
        the rest.
    beta : float
        0 to 1, of a student with variances: see :func:`ensdistill.loss.gaussian.gaussian_distillation_loss`.

    Raises
    ------
    ValueError
        A value outside of these ranges.

    Examples
    --------
    >>> RegressionSettings("huber", delta=0.5).alpha
    1.0
    """

    loss: ErrorLoss = "mse"
    delta: float = 1.0
    alpha: float = 1.0
    beta: float = BETA

    def __post_init__(self) -> None:
        if self.loss not in get_args(ErrorLoss):
            raise ValueError(f"loss: expected one of {', '.join(get_args(ErrorLoss))}; got {self.loss!r}")
        if not (real(self.delta) and 0 < float(self.delta) < math.inf):
            raise ValueError(f"delta: expected a finite number above 0; got {self.delta!r}")
        if not (real(self.alpha) and 0 <= float(self.alpha) <= 1):
            raise ValueError(f"alpha: expected a number from 0 to 1; got {self.alpha!r}")
        check_beta(self.beta)

    @classmethod
    def of(cls, settings: LossSettings) -> RegressionSettings:
        """The squared error with the same alpha.

        Raises
        ------
        ValueError
            A setting that concerns probabilities is not its default.
        """
        for name, value in asdict(settings).items():
            if name not in ("alpha", "recompute") and value != getattr(DEFAULTS, name):
                raise ValueError(
                    f"{name}: is of probabilities, which the task regression does not have; got {value!r}: "
                    "leave it out, or pass loss=RegressionSettings(...)"
                )
        return cls(alpha=settings.alpha)


SQUARED_ERROR = RegressionSettings()


def error_of(outputs: Tensor, numbers: Tensor, settings: RegressionSettings = SQUARED_ERROR) -> Tensor:
    """The squared error, or Huber's, of each row: [...], the mean over its D numbers.

    Parameters
    ----------
    outputs, numbers : Tensor [..., D], floating-point
        Of a model, and the wanted ones. A row of NaN is unknown: it has neither error nor gradient.

    Examples
    --------
    >>> error_of(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [torch.nan, torch.nan]]))
    tensor([2., 0.])
    """
    unknown = numbers.isnan()
    wanted = torch.where(unknown, 0, numbers).to(outputs.dtype)
    found = outputs.masked_fill(unknown, 0)
    if settings.loss == "huber":
        return F.huber_loss(found, wanted, reduction="none", delta=settings.delta).mean(-1)
    return (found - wanted).square().mean(-1)


def gaussian_nll(mean: Tensor, log_variance: Tensor, numbers: Tensor, beta: float = 0.0) -> Tensor:
    """The NLL of each row in nats: [...], the sum over its D numbers of ½ [log 2πσ² + (y − μ)² / σ²].

    Parameters
    ----------
    mean, log_variance : Tensor [..., D], floating-point
        A variance below 1e-6 counts as 1e-6: a row that is fitted exactly would have an infinite density.
    numbers : Tensor [..., D], floating-point
        A row of NaN is unknown: it has neither loss nor gradient.
    beta : float
        The gradient of the mean is multiplied by the variance to this power.

    Examples
    --------
    >>> zero = torch.zeros(1, 1)
    >>> gaussian_nll(zero, zero, torch.ones(1, 1))  # (log(2 pi) + 1) / 2
    tensor([1.4189])
    """
    unknown = numbers.isnan()
    wanted = torch.where(unknown, 0, numbers).to(mean.dtype)
    error = mean.masked_fill(unknown, 0) - wanted
    log_v = log_variance.clamp(min=math.log(LEAST_VARIANCE))
    each = math.log(2 * math.pi) + log_v + relative_error(error, log_v, beta)
    return each.masked_fill(unknown, 0).sum(-1) / 2


def mean_over(losses: Tensor, known: Tensor, weights: Any = None) -> Tensor:
    """The mean [] of the losses [N] of known rows (bool [N]), 0 where there is none; ``weights`` [N] are
    factors."""
    losses = losses if weights is None else losses * weights
    return losses.where(known, 0).sum() / known.sum().clamp(min=1)
