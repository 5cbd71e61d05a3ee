"""Vector scaling: a scale and a bias for the logit of each class."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from ensdistill.teachers.fitting.calibration import (
    PRIOR_ROWS,
    cross_entropy,
    fit_temperature,
    student_t,
    weighted_targets,
    with_prior,
)

BIAS = 30.0  # nats; the best bias has no bound if the classes can be separated without error
# Of the prior of biases and logarithms of scales. At 0.35 single draws of 5 to 50 rows lose 0.1 nats on
# others; at 0.25 two thirds of that.
SPREAD = 0.25
LOG_SCALE = 5.0  # a class's scale is at most a factor of e⁵ from the best temperature's


def fit_vector(
    logits: np.ndarray,
    labels: np.ndarray,
    prior_rows: float = PRIOR_ROWS,
    sample_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Scale and bias of each class with the least NLL of softmax(scale · logits + bias).

    See Guo et al., 2017, section 4.2. Solved by L-BFGS-B from the best temperature, with positive scales, so
    that a larger logit stays a larger one of its class. Never worse than the logits as they are, or than
    their best temperature, on these rows.

    With few rows it is nearly that temperature, because 2 C numbers fit their noise. The prior has two parts:
    ``prior_rows`` further rows for each class are answered as at the best temperature, and every bias and
    every logarithm of a scale has the t distribution of :mod:`ensdistill.teachers.fitting.calibration` around
    0. (Kull et al., 2019, "Beyond temperature scaling", regularise intercepts for the same reason.) A class
    without any row keeps the scale of the temperature and the bias 0, and the others' biases and logarithms
    of scales have mean zero: their rows hold no information on how rare it is.

    Parameters
    ----------
    logits : ndarray [N, C]
        ``-inf`` for a class that is ruled out, which it stays.
    labels : ndarray [N], int64
    prior_rows : float
        Rows that the prior is worth for each class; 0 trusts the held-out rows alone.
    sample_weight : ndarray [N], optional
        As for :func:`ensdistill.teachers.fitting.calibration.fit_temperature`.

    Returns
    -------
    ndarray [2, C], float64
        The scales, and the biases (of mean zero).

    Raises
    ------
    ValueError
        The true class of a row is ruled out: its loss is infinite for all scales.

    Examples
    --------
    >>> z = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    >>> scale, bias = fit_vector(z, np.array([0, 0, 0, 1, 0, 0]))  # class 0 is the most frequent
    >>> bool(bias[0] > bias[1])
    True
    """
    temperature = fit_temperature(logits, labels, prior_rows, sample_weight)
    z = np.asarray(logits, np.float64) / temperature
    rows, classes = z.shape
    out, seen = np.isneginf(z), np.bincount(labels, minlength=classes) > 0
    finite = np.where(out, 0.0, z)
    targets = weighted_targets(labels, classes, sample_weight)
    wanted = with_prior(targets, log_softmax(z, axis=-1), classes * prior_rows)
    total = wanted.sum(-1, keepdims=True)
    strength = prior_rows / PRIOR_ROWS / rows

    def centred(values: np.ndarray) -> np.ndarray:
        return np.where(seen, values - values[seen].mean(), 0.0)

    def parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the scales, and biases."""
        return x[:classes] if seen.all() else centred(x[:classes]), centred(x[classes:])

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        log_scale, bias = parts(x)
        scaled_logits = finite * np.exp(log_scale)
        scaled = log_softmax(np.where(out, -np.inf, scaled_logits + bias), axis=-1)
        slope = (np.exp(scaled) * total - wanted) / rows
        fitted = np.concatenate([log_scale, bias])
        pull = strength * 4 * fitted / (3 * SPREAD**2 + fitted**2)
        by_scale, by_bias = (slope * scaled_logits).sum(0) + pull[:classes], slope.sum(0) + pull[classes:]
        value = cross_entropy(wanted, scaled) + strength * student_t(fitted, SPREAD)
        return value, np.concatenate([by_scale if seen.all() else centred(by_scale), centred(by_bias)])

    start = np.zeros(2 * classes)
    bounds = [(-LOG_SCALE, LOG_SCALE)] * classes + [(-BIAS, BIAS)] * classes
    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-9},
    )
    best = found.x if np.isfinite(found.x).all() and loss(found.x)[0] <= loss(start)[0] else start
    log_scale, bias = parts(best)
    return np.stack([np.exp(log_scale) / temperature, bias])
