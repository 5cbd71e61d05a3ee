"""Means and variances of an ensemble of regressors: their mixture, and what is fitted to held-out rows.

The variance of a mixture is that within its members plus that between their means (the law of total
variance). Losses are NLLs of a Gaussian in nats for each row, so units of the targets don't matter. Priors
are worth rows, as in :mod:`ensdistill.teachers.fitting.calibration`: ``PRIOR_ROWS`` further rows are drawn
from the mixture of equal weights, and each member is worth ``prior_rows`` rows that it alone explains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import softmax

from ensdistill.teachers.fitting.calibration import (
    NEGLIGIBLE,
    PRIOR_ROWS,
    PRIOR_ROWS_PER_MEMBER,
    check_prior_rows,
    relative_weights,
)

LEAST = 1e-12  # of the target's variance: a smaller one is taken to be this
Loss = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Variances:
    """Of each row and number, float64 [N, D], in squared units; ``total = aleatoric + epistemic``.

    Parameters
    ----------
    total : ndarray
        Of the mixture.
    aleatoric : ndarray
        The mean variance within the members (0 where none gives one), and the fitted noise.
    epistemic : ndarray
        Between the members' means.
    """

    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray


def mixture_moments(
    mean: np.ndarray, variance: np.ndarray | None, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mixture's mean, the variance within its members, and that between their means: [N, D] each.

    Parameters
    ----------
    mean : ndarray [K, N, D]
    variance : ndarray [K, N, D], optional
        0 by default.
    weights : ndarray [K]
        Non-negative, of sum one.

    Examples
    --------
    >>> mean, within, between = mixture_moments(np.array([[[0.0]], [[2.0]]]), None, np.array([0.5, 0.5]))
    >>> mean.tolist(), within.tolist(), between.tolist()
    ([[1.0]], [[0.0]], [[1.0]])
    """
    middle = np.einsum("k,knd->nd", weights, mean)
    between = np.einsum("k,knd->nd", weights, np.square(mean - middle))
    within = np.zeros_like(middle) if variance is None else np.einsum("k,knd->nd", weights, variance)
    return middle, within, between


def gaussian_nll(
    mean: np.ndarray, variance: np.ndarray, targets: np.ndarray, share: np.ndarray | None = None
) -> float:
    """Mean over rows of the NLL of Gaussians, all [N, D], in nats; ``share`` [N] are relative weights."""
    values = 0.5 * (np.log(2 * np.pi * variance) + np.square(targets - mean) / variance).sum(1)
    return float((values if share is None else values * share).mean())


def fit_noise(errors: np.ndarray, variance: np.ndarray, share: np.ndarray | None = None) -> np.ndarray:
    """A constant for each number, [D], which added to ``variance`` gives ``errors`` the least NLL.

    Parameters
    ----------
    errors, variance : ndarray [N, D]
        Errors of the mixture's mean, and the variance that is predicted already, which may be 0.
    share : ndarray [N], optional
        Relative weights.
    """
    found = []
    for error, known in zip(np.square(errors).T, variance.T, strict=True):
        mean = float((error if share is None else error * share).mean())
        if mean == 0:
            found.append(0.0)
            continue
        e, v = error / mean, known / mean

        def loss(log_noise: float, e: np.ndarray = e, v: np.ndarray = v) -> float:
            total = v + np.exp(log_noise)
            values = np.log(total) + e / total
            return float((values if share is None else values * share).mean())

        best = minimize_scalar(loss, bounds=(-12.0, 3.0), method="bounded", options={"xatol": 1e-8})
        found.append(float(np.exp(best.x)) * mean)
    return np.array(found)


def fit_factor(
    errors: np.ndarray,
    variance: np.ndarray,
    share: np.ndarray | None = None,
    prior_rows: float = PRIOR_ROWS,
) -> float:
    """The factor of ``variance`` with the least NLL of ``errors``, both [N, D]; with a prior for 1 that is
    worth ``prior_rows`` rows.

    Examples
    --------
    >>> fit_factor(np.full((100, 1), 2.0), np.ones((100, 1)), prior_rows=0)
    4.0
    """
    check_prior_rows(prior_rows)
    each = (np.square(errors) / variance).mean(1)
    total = float((each if share is None else each * share).sum())
    return (total + prior_rows) / (len(errors) + prior_rows)


def conformal_quantiles(scores: np.ndarray, level: float) -> np.ndarray:
    """For each column of ``scores`` [N, D] the number that a new row's score stays below with probability
    ``level`` at least, [D] (Vovk et al., 2005, "Algorithmic Learning in a Random World").

    Raises
    ------
    ValueError
        ``level`` is not in (0, 1), or there are too few rows for it.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number in (0, 1); got {level}")
    rank = int(np.ceil((len(scores) + 1) * level - 1e-9))
    if rank > len(scores):
        needed = int(np.ceil(level / (1 - level) - 1e-9))
        raise ValueError(
            f"level: expected at least {needed} rows for an interval of {level}; got {len(scores)}"
        )
    quantiles: np.ndarray = np.sort(scores, axis=0)[rank - 1]
    return quantiles


@dataclass(frozen=True)
class HeldOut:
    """Members' predictions of held-out rows, centred for exact sums.

    Parameters
    ----------
    mean : ndarray [K, N, D]
    variance : ndarray [K, N, D] or None
        Fitted noise included.
    targets : ndarray [N, D]
    share : ndarray [N]
        Relative weights, of mean 1.
    """

    mean: np.ndarray
    variance: np.ndarray | None
    targets: np.ndarray
    share: np.ndarray

    @classmethod
    def of(
        cls,
        mean: np.ndarray,
        variance: np.ndarray | None,
        targets: np.ndarray,
        sample_weight: np.ndarray | None,
    ) -> HeldOut:
        """The same, with each number in units of the targets' deviation."""
        scale = np.maximum(targets.std(0), np.abs(targets).max(0) * 1e-12 + 1e-300)
        share = np.ones(len(targets)) if sample_weight is None else relative_weights(sample_weight)
        v = None if variance is None else np.maximum(variance / scale**2, LEAST)
        return cls((mean - targets.mean(0)) / scale, v, (targets - targets.mean(0)) / scale, share)

    def votes(self, metric: str) -> np.ndarray:
        """Each member's summand [K, P, N, D]: the deviation from the mean of equal weights, and for the NLL
        the mean square of a draw's deviation."""
        apart = self.mean - self.mean.mean(0)
        if metric == "rmse":
            return apart[:, None]
        assert self.variance is not None
        return np.stack([apart, np.square(apart) + self.variance], axis=1)

    def loss(self, metric: str, further: float) -> Loss:
        """From the mean of summands [P, N, D] to the loss, and its slope in them.

        ``further`` rows are drawn from the mixture of equal weights. Of ``rmse`` the loss is the NLL of
        Gaussians with one variance for each number, the mean squared error.
        """
        middle, rows = self.mean.mean(0), len(self.targets)
        left, between = self.targets - middle, np.square(self.mean - middle).mean(0)
        own, more = self.share[:, None] / (rows + further), further / rows / (rows + further)
        plain = (self.share[:, None] * np.square(left)).mean(0)

        def by_error(vote: np.ndarray) -> tuple[float, np.ndarray]:
            error = vote[0] - left
            mse = (own * np.square(error)).sum(0) + more * (np.square(vote[0]) + plain).sum(0)
            mse = np.maximum(mse, LEAST)
            slope = (own * error + more * vote[0]) / mse
            return float(0.5 * np.log(mse).sum()), slope[None]

        def by_density(vote: np.ndarray) -> tuple[float, np.ndarray]:
            assert self.variance is not None
            error, v = vote[0] - left, np.maximum(vote[1] - np.square(vote[0]), LEAST)
            drawn = self.variance.mean(0) + between + np.square(vote[0])
            squares = own * np.square(error) + more * drawn
            value = 0.5 * ((own + more) * np.log(v) + squares / v).sum()
            by_v = 0.5 * ((own + more) / v - squares / np.square(v))
            by_mean = (own * error + more * vote[0]) / v - 2 * by_v * vote[0]
            return float(value), np.stack([by_mean, by_v])

        return by_error if metric == "rmse" else by_density


def fit_weights_of_moments(
    held_out: HeldOut, metric: str = "rmse", prior_rows: float = PRIOR_ROWS_PER_MEMBER
) -> np.ndarray:
    """Weights of a mixture of regressors, on the simplex.

    Solved by L-BFGS from equal weights, so the result is deterministic. Weights below 1e-3 (and below 0.1/K)
    are set to zero and the rest is normalised.

    Parameters
    ----------
    held_out : HeldOut
    metric : {"rmse", "nll"}
        Of the mixture's mean, or of its mean and variance.
    prior_rows : float
        As for :func:`ensdistill.teachers.fitting.calibration.fit_weights`; 0 trusts the held-out rows alone.

    Returns
    -------
    ndarray [K], float64
    """
    check_prior_rows(prior_rows)
    votes = held_out.votes(metric)
    members, rows = len(votes), len(held_out.targets)
    equal = np.full(members, 1 / members)
    if members == 1:
        return equal
    further = PRIOR_ROWS * prior_rows / PRIOR_ROWS_PER_MEMBER
    of_votes, strength = held_out.loss(metric, further), prior_rows / rows

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = of_votes(np.tensordot(w, votes, 1))
        by_weight = np.tensordot(votes, slope, votes.ndim - 1)
        if not strength:
            return value, by_weight
        return value - strength * float(np.log(w).sum()), by_weight - strength / w

    def by_logits(u: np.ndarray) -> tuple[float, np.ndarray]:
        w = softmax(u)
        value, slope = loss(w)
        return value, w * (slope - w @ slope)

    # On logits of the weights: SLSQP on the weights themselves stops before the logarithm's minimum.
    found = minimize(
        by_logits,
        np.zeros(members),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-15.0, 15.0)] * members,
        options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-10},
    )
    weights = softmax(found.x)
    if not np.isfinite(weights).all() or loss(weights)[0] > loss(equal)[0]:
        weights = equal
    weights = np.where(weights >= min(NEGLIGIBLE, 0.1 / members), weights, 0.0)
    kept: np.ndarray = weights / weights.sum()
    return kept
