"""Vector scaling: a scale and a bias for the logit of each class."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from ensdistill.calibration import LOG_TEMPERATURE, fit_temperature, negative_log_likelihood

BIAS = 30.0  # nats; where the classes can be told apart without error the best bias has no bound


def fit_vector(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scale and bias of each class that minimise the NLL of softmax(scale · logits + bias) (Guo et al., 2017, section 4.2).

    Convex; solved by L-BFGS-B from the best temperature, with positive scales, so that a larger logit stays a larger one of its class.
    Never worse than the logits as they are, or than their best temperature, on these rows. It has 2 C numbers to fit: with fewer than
    some hundred rows for each class a temperature serves better.

    Parameters
    ----------
    logits : ndarray [N, C]
        ``-inf`` for a class that is ruled out, which it stays.
    labels : ndarray [N], int64

    Returns
    -------
    ndarray [2, C], float64
        The scales, and the biases (of mean zero).

    Raises
    ------
    ValueError
        The true class of a row is ruled out: its loss is infinite whatever the scales.

    Examples
    --------
    >>> z = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    >>> scale, bias = fit_vector(z, np.array([0, 0, 0, 1, 0, 0]))  # class 0 is more frequent than the logits say
    >>> bool(bias[0] > bias[1])
    True
    """
    z = np.asarray(logits, np.float64)
    classes = z.shape[1]
    out = np.isneginf(z)
    finite, target = np.where(out, 0.0, z), np.eye(classes)[labels]
    start = np.concatenate([np.full(classes, 1 / fit_temperature(z, labels)), np.zeros(classes)])

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = log_softmax(np.where(out, -np.inf, finite * x[:classes] + x[classes:]), axis=-1)
        slope = (np.exp(scaled) - target) / len(z)
        return negative_log_likelihood(scaled, labels), np.concatenate([(slope * finite).sum(0), slope.sum(0)])

    lowest, highest = np.exp(LOG_TEMPERATURE)
    bounds = [(lowest, highest)] * classes + [(-BIAS, BIAS)] * classes
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-9})
    best = found.x if np.isfinite(found.x).all() and loss(found.x)[0] <= loss(start)[0] else start
    scale, bias = best.reshape(2, classes)
    return np.stack([scale, bias - bias.mean()])
