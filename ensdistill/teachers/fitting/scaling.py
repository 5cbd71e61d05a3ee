"""The calibration of a finished model by one number, for each task: a student's to its ensemble, or a model's
to labels of rows that it did not learn from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.data.tasks import known_rows
from ensdistill.teachers.fitting.calibration import (
    PRIOR_ROWS,
    closest_temperature,
    fit_temperature,
    relative_weights,
)
from ensdistill.teachers.fitting.gaussian import LEAST, fit_factor, fit_noise
from ensdistill.teachers.fitting.multilabel import fitted_rows, two_way
from ensdistill.teachers.members.moments import Moments


@dataclass(frozen=True)
class Scaling:
    """The numbers that calibrate a model.

    Parameters
    ----------
    temperature : float
        By which logits, or log-odds, are divided.
    variance_factor : float
        Of a regression whose model predicts variances: their factor.
    noise : tuple of float [D], or None
        Of a regression whose model predicts means alone: the variance of each number, in squared units.

    Examples
    --------
    >>> Scaling(noise=(0.25,)).moments(Moments(np.array([[3.0], [4.0]]), None)).variance.tolist()
    [[0.25], [0.25]]
    """

    temperature: float = 1.0
    variance_factor: float = 1.0
    noise: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "variance_factor"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive number; got {value}")
        if self.noise is not None:
            noise = tuple(map(float, self.noise))
            if not all(np.isfinite(one) and one >= 0 for one in noise):
                raise ValueError(f"noise: expected finite numbers of at least 0; got {list(noise)}")
            object.__setattr__(self, "noise", noise)

    def logits(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits, or log-odds."""
        return logits if self.temperature == 1 else logits / self.temperature

    def moments(self, moments: Moments) -> Moments:
        """Calibrated means and variances [N, D] of a regression."""
        mean, variance = moments
        if variance is not None:
            return Moments(mean, variance * self.variance_factor)
        noise = None if self.noise is None else np.broadcast_to(np.array(self.noise), mean.shape).copy()
        return Moments(mean, noise)

    def record(self) -> dict[str, Any]:
        """The numbers that are not their defaults, as plain JSON."""
        found = {name: value for name, value in asdict(self).items() if value != getattr(Scaling(), name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def closest_scaling(
    task: Task, outputs: Any, targets: Any, prior_rows: float = PRIOR_ROWS, error: np.ndarray | None = None
) -> Scaling:
    """The numbers that bring a model nearest to the ensemble on some rows, without a label.

    Parameters
    ----------
    task : {"classification", "multilabel", "regression"}
    outputs : ndarray [M, C], or Moments [M, D]
        The model's logits, log-odds, or means and variances.
    targets : ndarray [M, C], or Moments [M, D]
        The mixture's probabilities, or its mean and variance. Without a variance there is nothing to
        calibrate a regression to.
    prior_rows : float
        Rows that the prior for 1 is worth; see
        :func:`ensdistill.teachers.fitting.calibration.fit_temperature`.
    error : ndarray [D], optional
        The mean squared error of the mixture's means on labelled rows that its members did not learn from.
        It stands for the mixture's mean variance where the model predicts means alone: a mixture that knows
        how unsure it is of most rows may be far too sure of a few, and these decide a mean square.

    Returns
    -------
    Scaling
        Of the least divergence from the mixture; nothing is changed where there are no rows.

    Examples
    --------
    >>> z = np.array([[2.0, -1.0], [0.5, 3.0]] * 50)
    >>> p = 1 / (1 + np.exp(-z))
    >>> round(closest_scaling("multilabel", 3 * z, p, prior_rows=0).temperature, 3)
    3.0
    >>> mean = np.zeros((100, 1))
    >>> closest_scaling("regression", Moments(mean, None), Moments(mean + 2, mean + 1)).noise
    (5.0,)
    >>> closest_scaling("regression", Moments(mean, None), Moments(mean + 2, None), error=np.full(1, 3)).noise
    (7.0,)
    """
    if not len(targets[0] if task == "regression" else targets):
        return Scaling()
    if task == "classification":
        z = np.asarray(outputs)[None]
        return Scaling(closest_temperature(z, np.ones(1), targets, prior_rows=prior_rows))
    if task == "multilabel":
        p = np.asarray(targets, np.float64).reshape(-1)
        z, count = two_way(np.asarray(outputs).reshape(-1)), np.shape(targets)[1]
        both = np.stack([1 - p, p], axis=1)
        return Scaling(closest_temperature(z[None], np.ones(1), both, prior_rows=prior_rows * count))
    (mean, variance), (middle, wanted) = outputs, targets
    apart = np.square(middle - mean)
    if variance is None and error is not None:
        return Scaling(noise=tuple((apart.mean(0) + error).tolist()))
    if wanted is None:
        return Scaling()
    # The divergence of Gaussians has its least value where the variance is this mean square.
    square = apart + wanted
    if variance is None:
        return Scaling(noise=tuple(square.mean(0).tolist()))
    return Scaling(variance_factor=fit_factor(np.sqrt(square), floored(variance, square), None, prior_rows))


def scaling_by_labels(
    task: Task,
    outputs: Any,
    labels: np.ndarray,
    sample_weight: np.ndarray | None = None,
    prior_rows: float = PRIOR_ROWS,
) -> Scaling:
    """The numbers of the least NLL on labelled rows that a model did not learn from.

    Parameters
    ----------
    task, outputs, prior_rows
        See :func:`closest_scaling`.
    labels : ndarray
        In the task's form; see :mod:`ensdistill.data.tasks`. Unknown ones are left out.
    sample_weight : ndarray [M], optional

    Examples
    --------
    >>> mean, labels = np.zeros((4, 1)), np.array([[1.0], [-1.0], [3.0], [np.nan]])
    >>> found = scaling_by_labels("regression", Moments(mean, mean + 1), labels, prior_rows=0)
    >>> round(found.variance_factor, 3)  # (1 + 1 + 9) / 3
    3.667
    """
    known = known_rows(labels)
    weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
    if not known.any() or (weights is not None and not weights[known].any()):
        return Scaling()
    weights = None if weights is None else weights[known]
    if task == "regression":
        mean, variance = (None if part is None else np.asarray(part)[known] for part in outputs)
        errors, share = labels[known] - mean, None if weights is None else relative_weights(weights)
        if variance is None:
            return Scaling(noise=tuple(fit_noise(errors, np.zeros_like(errors), share).tolist()))
        floor = floored(variance, np.square(errors))
        return Scaling(variance_factor=fit_factor(errors, floor, share, prior_rows))
    rows = fitted_rows(task, np.asarray(outputs)[None, known], labels[known], weights)
    return Scaling(fit_temperature(rows.logits[0], **rows.options(prior_rows)))


def floored(variance: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Variances that are not 0, which no factor could make larger."""
    return np.maximum(variance, LEAST * np.maximum(square.mean(0), 1e-300))
