"""The distillation loss of regression models that predict a mean and a variance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ensdistill.common.scalars import real
from ensdistill.loss.checks import check_device, check_floats, check_one_of, member_weights, numbers, visible

__all__ = ["gaussian_distillation_loss", "gaussian_moments"]

_REDUCTIONS = ("mean", "sum", "none")


def gaussian_moments(
    means: Tensor,
    variances: Tensor | None = None,
    *,
    weights: Tensor | Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a mixture of Gaussian predictions, for each of D outputs.

    The law of total variance: μ̄ = Σₖ wₖ μₖ and σ̄² = Σₖ wₖ (σₖ² + (μₖ − μ̄)²), whose second part is the
    members' disagreement.

    Parameters
    ----------
    means : Tensor [K, ..., D], floating-point
    variances : Tensor [K, ..., D], optional
        At least 0, in squared units of the means; by default 0, of members that predict a mean only.
    weights : Tensor or sequence [K], optional
        Non-negative; normalised to sum to one. Uniform by default. A member of weight 0 has no share,
        even if it holds NaN.

    Returns
    -------
    mean, variance : Tensor [..., D]
        float64 if an input is, else float32.

    Raises
    ------
    ValueError, TypeError
        Names the argument, the value and the expectation.

    Examples
    --------
    >>> gaussian_moments(torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[[0.5]], [[0.5]]]))
    (tensor([[2.]]), tensor([[1.5000]]))
    """
    check_floats("means", means, " [K, ..., D]")
    if means.dim() < 2 or len(means) < 1:
        raise ValueError(f"means: expected [K, ..., D] with K >= 1; got shape {list(means.shape)}")
    dtype = torch.promote_types(means.dtype, torch.float32)
    if variances is not None:
        check_floats("variances", variances, " [K, ..., D]")
        check_like("variances", variances, means, "means")
        check_variance("variances", variances)
        dtype = torch.promote_types(dtype, variances.dtype)
    means = means.detach().to(dtype)
    w = torch.ones(len(means), dtype=dtype, device=means.device)
    if weights is not None:
        w = member_weights(weights, len(means), means.device).to(dtype)
    w = (w / w.sum()).reshape(-1, *(1,) * (means.dim() - 1))
    used = w > 0
    means = means.where(used, 0)
    mean = (w * means).sum(0)
    spread = (means - mean) ** 2
    if variances is not None:
        spread = spread + variances.detach().to(dtype).where(used, 0)
    return mean, (w * spread).sum(0)


def gaussian_distillation_loss(
    mean: Tensor,
    log_variance: Tensor,
    teacher_means: Tensor,
    teacher_variances: Tensor | None = None,
    *,
    weights: Tensor | Sequence[float] | None = None,
    sample_weights: Tensor | Sequence[float] | None = None,
    min_variance: float = 1e-6,
    beta: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Distil Gaussian regressors: KL(N(μ̄, σ̄²) ‖ N(μ, σ²)) from the mixture's moments.

    For each row the sum over D outputs of

        ½ [log σ² − log σ̄² + (σ̄² + (μ̄ − μ)²) / σ² − 1]

    which is least, 0, where the student has the mixture's mean and its total variance: the members' own
    variance, and their disagreement. A mixture of Gaussians is no Gaussian; among all Gaussians the one with
    its moments is nearest to it in this divergence, so nothing else about it could be learnt.

    Parameters
    ----------
    mean, log_variance : Tensor [..., D], floating-point
        The student's. The logarithm keeps the variance positive; natural logarithm of squared units.
    teacher_means : Tensor [K, ..., D]
    teacher_variances : Tensor [K, ..., D], optional
        At least 0; by default members have none of their own, and the variance is their disagreement. No
        gradient flows to the teachers.
    weights : Tensor or sequence [K], optional
        Of the members; see :func:`gaussian_moments`.
    sample_weights : Tensor or sequence [...], optional
        Non-negative factor of each row. A row of weight 0 has neither loss nor gradient, even if it is NaN.
    min_variance : float
        The mixture's variance is at least this, above 0: members that agree on every digit would otherwise
        give an infinite precision.
    beta : float
        0 to 1. The gradient of ``mean`` is multiplied by σ^(2 beta); the loss's value, and the gradient
        of ``log_variance``, stay as they are. At 0 rows of a large variance hardly count for the
        mean, which learns slowly there; at 1 it learns as by the squared error.
    reduction : {"mean", "sum", "none"}
        Over the rows. The mean divides by all of them, weighted or not.

    Returns
    -------
    Tensor [], or [...] for ``reduction="none"``
        In natural units (nats). float64 if an input is, else float32.

    Raises
    ------
    ValueError, TypeError
        Names the argument, the value and the expectation. Values on a GPU are not looked at.

    Notes
    -----
    Plain torch: D is small, and with ``beta`` 0 the loss is differentiable to any order. Moment matching of
    deep ensembles: Lakshminarayanan, Pritzel, Blundell, "Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles", 2017, section 2.4. ``beta`` of the mean: Stirn et al., "Faithful
    Heteroscedastic Regression with Neural Networks", AISTATS 2023 (1); after Seitzer et al., "On the Pitfalls
    of Heteroscedastic Uncertainty Estimation with Probabilistic Neural Networks", ICLR 2022, who weigh both.

    Examples
    --------
    >>> means = torch.tensor([[[1.0]], [[3.0]]])  # K=2, N=1, D=1
    >>> mean, log_variance = torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1)
    >>> loss = gaussian_distillation_loss(mean, log_variance, means)
    >>> loss.backward()
    >>> loss.item(), mean.grad
    (2.0, tensor([[-2.]]))
    """
    check_floats("mean", mean, " [..., D]")
    if mean.dim() < 1 or mean.shape[-1] < 1:
        raise ValueError(f"mean: expected [..., D] with D >= 1; got shape {list(mean.shape)}")
    check_floats("log_variance", log_variance, " [..., D]")
    check_like("log_variance", log_variance, mean, "mean")
    check_floats("teacher_means", teacher_means, " [K, ..., D]")
    if teacher_means.shape[1:] != mean.shape or len(teacher_means) < 1:
        wanted = str(["K", *mean.shape]).replace("'", "")
        raise ValueError(
            f"teacher_means: expected {wanted} with K >= 1, for the student's {list(mean.shape)}; got shape "
            f"{list(teacher_means.shape)}"
        )
    check_device("teacher_means", teacher_means, mean.device)
    if teacher_variances is not None:
        check_floats("teacher_variances", teacher_variances, " [K, ..., D]")
        check_like("teacher_variances", teacher_variances, teacher_means, "teacher_means")
        check_variance("teacher_variances", teacher_variances)
    if not (real(min_variance) and 0 < float(min_variance) < float("inf")):
        raise ValueError(f"min_variance: expected a finite number above 0; got {min_variance!r}")
    check_beta(beta)
    check_one_of("reduction", reduction, _REDUCTIONS)
    lead = tuple(mean.shape[:-1])
    target_mean, target_variance = gaussian_moments(teacher_means, teacher_variances, weights=weights)
    dtype = torch.promote_types(torch.promote_types(mean.dtype, log_variance.dtype), target_mean.dtype)
    target_mean = target_mean.to(dtype)
    target_variance = target_variance.to(dtype).clamp(min=float(min_variance))
    m, log_v = mean.to(dtype), log_variance.to(dtype)
    factor = None
    if sample_weights is not None:
        factor = (
            numbers("sample_weights", sample_weights, lead, "of the student's rows", mean.device)
            .to(dtype)
            .reshape(lead)
        )
        unused = (factor == 0).unsqueeze(-1)  # harmless: 0 times its NaN would still be NaN
        m, log_v = m.masked_fill(unused, 0), log_v.masked_fill(unused, 0)
        target_mean = target_mean.masked_fill(unused, 0)
        target_variance = target_variance.masked_fill(unused, 1)
    # exp(d) - 1 - d in one: the loss of the variance alone has no digits left where d is small otherwise.
    d = target_variance.log() - log_v
    loss = (torch.expm1(d) - d + relative_error(target_mean - m, log_v, float(beta))).sum(-1) / 2
    if factor is not None:
        loss = loss * factor
    if reduction == "none":
        return loss
    return loss.sum() / (max(loss.numel(), 1) if reduction == "mean" else 1)


def relative_error(error: Tensor, log_variance: Tensor, beta: float) -> Tensor:
    """The squared error over the variance; the gradient of ``error`` is multiplied by the variance to the
    power ``beta``."""
    squared = error.square()
    if beta == 0:
        return squared * torch.exp(-log_variance)
    own = squared - squared.detach()  # 0, with the gradient of the squared error
    return squared.detach() * torch.exp(-log_variance) + own * torch.exp((beta - 1) * log_variance.detach())


def check_beta(beta: float) -> None:
    """Raise ValueError for a power outside of 0 to 1."""
    if not (real(beta) and 0 <= float(beta) <= 1):
        raise ValueError(f"beta: expected a number from 0 to 1; got {beta!r}")


def check_like(name: str, value: Tensor, other: Tensor, other_name: str) -> None:
    if value.shape != other.shape:
        raise ValueError(
            f"{name}: expected the shape of {other_name}, {list(other.shape)}; got shape {list(value.shape)}"
        )
    check_device(name, value, other.device, f"{other_name} is")


def check_variance(name: str, value: Tensor) -> None:
    """Check that variances aren't negative; NaN is of a diverged member, and shows in the loss."""
    if visible(value) and bool((value < 0).any()):
        raise ValueError(f"{name}: expected numbers of at least 0; got {float(value.min()):.4g}")
