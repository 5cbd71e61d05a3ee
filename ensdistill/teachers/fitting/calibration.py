"""Temperatures, mixture weights and the combination itself, on arrays of member logits. All sums are float64.

Every number is fitted with a prior that is worth a few rows, because few rows mislead: if all of them are
right, the least NLL is at temperature 0, and a class that happens to be absent would be ruled out. The prior
of a temperature has three parts.

- Five further rows have the unfitted model's probabilities for the held-out rows as targets (Huang, Stein,
  Rubin and Kou, 2020, "Catalytic prior distributions with application to generalized linear models").
- The logarithm of the temperature has Student's t distribution with 3 degrees of freedom around 0. Its tails
  are heavy, so a temperature of 1e6 is found where the logits need it (Gelman, Jakulin, Pittau and Su, 2008,
  "A Weakly Informative Default Prior Distribution for Logistic and Other Regression Models").
- A temperature below 1 has to pay for half a row that is wrong, as Krichevsky and Trofimov (1981, "The
  Performance of Universal Encoding") count half an occurrence of a symbol that never occurred. Otherwise rows
  that are all right would sharpen logits that are too sharp already.

No part grows with the rows: at some hundred rows the fitted numbers are nearly those of the least NLL. And
none can make the NLL of the held-out rows worse than unfitted, since each part alone is best at the unfitted
numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

from ensdistill.common.combiners import Combiner

# Measured on 1000 draws of 5 to 50 rows of the kinds in tests/test_few_rows.py: the NLL of other rows is at
# most 0.08 worse than at temperature 1. Without the further rows single draws of 100 classes are 0.3 worse,
# without the half row logits of 1e3 are 0.2 worse.
PRIOR_ROWS = 5.0
PRIOR_SPREAD = 0.35
PRIOR_ERRORS = 0.5
PRIOR_ROWS_PER_MEMBER = 3.0
COARSE = 16  # temperatures that are looked at before the search
NEGLIGIBLE = 1e-3  # a smaller weight becomes zero, if it is also below a tenth of an equal one


def log_mixture(
    logits: np.ndarray, weights: np.ndarray, combiner: Combiner = "prob", temperature: float = 1.0
) -> np.ndarray:
    """Log-probabilities of the mixture.

    Parameters
    ----------
    logits : ndarray [K, N, C]
        ``-inf`` for a class that a member rules out.
    weights : ndarray [K]
        Non-negative, of sum one. Members of weight zero are left out.
    combiner : {"prob", "logit", "log_prob"}
        ``prob``: the weighted mean of softmaxes. ``logit`` and ``log_prob`` (geometric mean): the softmax of
        the weighted mean of the logits; the two differ only in a constant per row, which normalisation
        removes.
    temperature : float
        Divides every member's logits before they are combined.

    Returns
    -------
    ndarray [N, C], float64

    Raises
    ------
    ValueError
        The members together rule out every class of a row.

    Examples
    --------
    >>> z = np.array([[[0.0, 0.0]], [[0.0, np.log(3.0)]]])
    >>> np.exp(log_mixture(z, np.array([0.5, 0.5]))).round(3).tolist()
    [[0.375, 0.625]]
    """
    used = weights > 0
    z, w = np.asarray(logits, np.float64)[used] / temperature, weights[used, None, None]
    if combiner == "prob":
        return logsumexp(log_softmax(z, axis=-1), axis=0, b=w)
    mean = (w * z).sum(0)
    empty = np.flatnonzero(np.isneginf(mean).all(-1))
    if len(empty):
        row = f"every class of row {empty[0]}"
        raise ValueError(f"logits: the members together rule out {row}; the combiner {combiner!r} needs one")
    return log_softmax(mean, axis=-1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """softmax(logits) over the last axis, float64."""
    values: np.ndarray = softmax(np.asarray(logits, np.float64), axis=-1)
    return values


def negative_log_likelihood(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over rows of -log p(label), in nats; log_probabilities [N, C], labels [N]."""
    return float(-np.take_along_axis(log_probabilities, labels[:, None], -1).mean())


def fit_temperature(
    logits: np.ndarray,
    labels: np.ndarray,
    prior_rows: float = PRIOR_ROWS,
    sample_weight: np.ndarray | None = None,
) -> float:
    """The temperature T that minimises the NLL of softmax(logits / T).

    See Guo et al., 2017, "On Calibration of Modern Neural Networks". With a prior, so that few rows can't
    mislead it; see the top of this module. Never worse than T = 1 on these rows.

    Parameters
    ----------
    logits : ndarray [N, C]
        Of any scale: the temperature is searched for in the range that their spread allows.
    labels : ndarray [N], int64
    prior_rows : float
        Rows that the prior for T = 1 is worth; 0 trusts the held-out rows alone.
    sample_weight : ndarray [N], optional
        How much each row counts; see :func:`relative_weights`.

    Raises
    ------
    ValueError
        The true class of a row is ruled out: its loss is infinite at every temperature.

    Examples
    --------
    >>> z, labels = np.array([[9.0, 0.0]] * 4), np.array([0, 0, 0, 1])
    >>> round(fit_temperature(z, labels, prior_rows=0), 2)  # 9 / log 3
    8.19
    >>> round(fit_temperature(np.tile(z, (100, 1)), np.tile(labels, 100)), 2)
    7.92
    """
    return fit_mixture_temperature(
        np.asarray(logits)[None], np.ones(1), labels, prior_rows=prior_rows, sample_weight=sample_weight
    )


def fit_mixture_temperature(
    logits: np.ndarray,
    weights: np.ndarray,
    labels: np.ndarray,
    combiner: Combiner = "prob",
    prior_rows: float = PRIOR_ROWS,
    sample_weight: np.ndarray | None = None,
) -> float:
    """The members' common temperature that calibrates their mixture; never worse than 1 on these rows.

    A mean of calibrated members is less sure than it is right (Rahaman and Thiery, 2021, "Uncertainty
    Quantification and Deep Ensembles"), so this is below 1 where the members differ.

    Parameters
    ----------
    logits : ndarray [K, N, C]
    weights : ndarray [K]
    labels : ndarray [N], int64
    combiner : {"prob", "logit", "log_prob"}
    prior_rows, sample_weight
        As for :func:`fit_temperature`.
    """
    z = np.asarray(logits, np.float64)
    true = np.take_along_axis(log_mixture(z, weights, combiner), labels[:, None], -1)[:, 0]
    ruled_out = np.flatnonzero(np.isneginf(true))
    if len(ruled_out):
        raise ValueError(
            f"logits: the true class {labels[ruled_out[0]]} of row {ruled_out[0]} is ruled out; no "
            "temperature helps"
        )
    targets = weighted_targets(labels, z.shape[-1], sample_weight)
    return closest_temperature(z, weights, targets, combiner, prior_rows)


def weighted_targets(labels: np.ndarray, classes: int, sample_weight: np.ndarray | None) -> np.ndarray:
    """One-hot rows [N, C], each multiplied by its relative weight: their cross entropy is the weighted
    NLL."""
    targets: np.ndarray = np.eye(classes)[labels]
    return targets if sample_weight is None else targets * relative_weights(sample_weight)[:, None]


def relative_weights(sample_weight: np.ndarray) -> np.ndarray:
    """Weights [N] over their mean, float64: N rows stay N rows beside a prior, and equal weights change
    nothing.

    Raises
    ------
    ValueError
        All are 0.
    """
    values = np.asarray(sample_weight, np.float64)
    if not (values > 0).any():
        raise ValueError(f"sample_weight: expected a weight above 0 among {len(values)} rows; got none")
    relative: np.ndarray = values / values.mean()
    return relative


def closest_temperature(
    logits: np.ndarray,
    weights: np.ndarray,
    targets: np.ndarray,
    combiner: Combiner = "prob",
    prior_rows: float = PRIOR_ROWS,
) -> float:
    """The temperature of ``logits`` [K, N, C] with the least cross entropy to ``targets`` [N, C].

    Never worse than 1 on these rows. ``prior_rows`` as for :func:`fit_temperature`.
    """
    check_prior_rows(prior_rows)
    z = np.asarray(logits, np.float64)[np.asarray(weights) > 0]
    used = np.asarray(weights)[np.asarray(weights) > 0]
    spans = _spans(z)
    if not len(spans):  # every row has equal logits: they are the same at every temperature
        return 1.0
    unfitted = log_mixture(z, used, combiner)
    wanted, strength = with_prior(targets, unfitted, prior_rows), prior_rows / PRIOR_ROWS / len(targets)
    runner_up = np.argsort(unfitted, axis=-1)[:, -2]
    least_surprise = nll_if_wrong(unfitted, runner_up)

    def loss(log_temperature: float) -> float:
        fitted = log_mixture(z, used, combiner, float(np.exp(log_temperature)))
        prior = student_t(log_temperature) + PRIOR_ERRORS * max(
            0.0, nll_if_wrong(fitted, runner_up) - least_surprise
        )
        return cross_entropy(wanted, fitted) + strength * prior

    # Beyond these the rows are decided entirely, or the classes are all alike. The prior may add a minimum
    # near 1 to the one of the NLL.
    places = np.linspace(min(0.0, np.log(np.median(spans)) - 10), max(0.0, np.log(spans.max()) + 8), COARSE)
    return float(np.exp(_least(loss, places)))


def cautious_temperature(
    logits: np.ndarray,
    weights: np.ndarray,
    labels: np.ndarray,
    combiner: Combiner = "prob",
    errors: float = PRIOR_ERRORS,
) -> float:
    """The temperature of at least 1 with the least NLL of the rows and of ``errors`` wrong ones beside them.

    Leaving members out takes away the safety of their disagreement, and rows that are all right don't show
    its worth. A wrong row is one of the second likeliest class. With many rows, or with logits that are not
    saturated, the result is 1.

    Parameters
    ----------
    logits : ndarray [K, N, C]
    weights : ndarray [K]
    labels : ndarray [N], int64
    combiner : {"prob", "logit", "log_prob"}
    errors : float
        0 returns 1.

    Examples
    --------
    >>> z, labels = 1e3 * np.eye(4)[None], np.arange(4)
    >>> round(1e3 / cautious_temperature(z, np.ones(1), labels), 1)  # half an error beside four rows: p = 8/9
    3.2
    >>> cautious_temperature(z / 500, np.ones(1), labels)
    1.0
    """
    z = np.asarray(logits, np.float64)
    spans = _spans(z[np.asarray(weights) > 0])
    unfitted = log_mixture(z, weights, combiner)
    true = labels[:, None]
    if not errors or not len(spans) or np.isneginf(np.take_along_axis(unfitted, true, -1)).any():
        return 1.0
    runner_up = np.argsort(unfitted, axis=-1)[:, -2]

    def loss(log_temperature: float) -> float:
        fitted = log_mixture(z, weights, combiner, float(np.exp(log_temperature)))
        wrong = errors / len(labels) * nll_if_wrong(fitted, runner_up)
        return negative_log_likelihood(fitted, labels) + wrong

    found = _least(loss, np.linspace(0.0, max(0.1, np.log(spans.max()) + 3), COARSE))
    return float(np.exp(found))


def nll_if_wrong(log_probabilities: np.ndarray, runner_up: np.ndarray) -> float:
    """NLL of rows [N, C] whose class is ``runner_up`` [N]; classes that are ruled out add nothing."""
    second = np.take_along_axis(log_probabilities, runner_up[:, None], -1)
    return -float(np.where(np.isneginf(second), 0.0, second).mean())


def _least(loss: Callable[[float], float], places: np.ndarray) -> float:
    """The log-temperature with the least loss, near the best of ``places``; 0 unless it is better."""
    best = int(np.argmin([loss(place) for place in places]))
    bounds = (places[max(best - 1, 0)], places[min(best + 1, len(places) - 1)])
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(found.x) if found.fun < loss(0.0) else 0.0


def with_prior(targets: np.ndarray, log_unfitted: np.ndarray, prior_rows: float) -> np.ndarray:
    """Targets [N, C] plus ``prior_rows`` rows with the unfitted model's probabilities: sums above 1."""
    return targets + prior_rows / len(targets) * np.exp(log_unfitted)


def student_t(values: float | np.ndarray, spread: float = PRIOR_SPREAD) -> float:
    """Minus the log-density of ``values`` under the prior of logarithms and biases, less that of zeros."""
    return float(2 * np.log1p((np.asarray(values) / spread) ** 2 / 3).sum())


def cross_entropy(targets: np.ndarray, log_probabilities: np.ndarray) -> float:
    """Mean over rows of -sum of targets · log p, both [N, C]; a class of target 0 adds nothing, even at p =
    0."""
    return float(-(targets * np.maximum(log_probabilities, -1e300)).sum(-1).mean())


def check_prior_rows(prior_rows: float) -> None:
    if not (0 <= prior_rows < np.inf):
        raise ValueError(f"prior_rows: expected a number of at least 0; got {prior_rows}")


def _spans(z: np.ndarray) -> np.ndarray:
    """Highest less lowest finite logit of each member's rows [K, N, C], without rows of equal logits."""
    spans = z.max(-1) - np.where(np.isneginf(z), np.inf, z).min(-1)
    positive: np.ndarray = spans[spans > 0]
    return positive


def fit_weights(
    logits: np.ndarray,
    labels: np.ndarray,
    combiner: Combiner = "prob",
    prior_rows: float = PRIOR_ROWS_PER_MEMBER,
    sample_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Mixture weights that minimise the NLL of the combination, on the simplex.

    Convex for every combiner; solved by SLSQP from equal weights, so the result is deterministic. Weights
    below 1e-3 (and below 0.1/K) are set to zero and the rest is normalised; not where that would rule out the
    true class of a row.

    Parameters
    ----------
    logits : ndarray [K, N, C]
        Calibrated, and of rows that no member was trained on.
    labels : ndarray [N], int64
    combiner : {"prob", "logit", "log_prob"}
    prior_rows : float
        How strongly the weights are drawn to equal ones: ``prior_rows`` further rows for each member that it
        alone explains (the posterior mode under a symmetric Dirichlet prior). Few rows otherwise leave out a
        member that other rows need. 0 trusts the held-out rows alone.
    sample_weight : ndarray [N], optional
        How much each row counts; see :func:`relative_weights`.

    Returns
    -------
    ndarray [K], float64
        Non-negative, of sum one.

    Examples
    --------
    >>> good, bad = [[2.0, 0.0], [0.0, 2.0]], [[0.0, 2.0], [2.0, 0.0]]
    >>> fit_weights(np.array([good, bad]), np.array([0, 1]), prior_rows=0).tolist()
    [1.0, 0.0]
    """
    members, rows = len(logits), len(labels)
    check_prior_rows(prior_rows)
    equal = np.full(members, 1 / members)
    if members == 1:
        return equal
    z = log_softmax(np.asarray(logits, np.float64), axis=-1)
    true = np.take_along_axis(z, np.broadcast_to(labels[None, :, None], (members, rows, 1)), -1)[
        ..., 0
    ]  # [K, N]
    hopeless = np.flatnonzero(np.isneginf(true).all(0) if combiner == "prob" else np.isneginf(true).any(0))
    if len(hopeless):
        raise ValueError(
            f"logits: the true class of row {hopeless[0]} is ruled out; no weights make its loss finite"
        )
    z, strength = np.maximum(z, -1e30), prior_rows / rows  # a finite stand-in for -inf: zero times it is zero
    share = None if sample_weight is None else relative_weights(sample_weight)

    def mean(values: np.ndarray) -> np.ndarray:
        """Over the rows, the last axis."""
        found: np.ndarray = (values if share is None else values * share).mean(-1)
        return found

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        prior = strength * np.log(w).sum() if strength else 0.0
        slope = strength / w if strength else 0.0
        if combiner == "prob":
            mixture = logsumexp(true, axis=0, b=w[:, None])
            return float(-mean(mixture) - prior), -mean(np.exp(true - mixture)) - slope
        middle = np.einsum("k,knc->nc", w, z)
        expected = np.einsum("nc,knc->kn", softmax(middle, axis=-1), z)
        value = mean(logsumexp(middle, axis=-1) - w @ true)
        return float(value - prior), mean(expected - true) - slope

    found = minimize(
        loss,
        equal,
        jac=True,
        method="SLSQP",
        bounds=[(1e-12, 1.0)] * members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": lambda w: np.ones(members)},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    weights = np.clip(found.x, 1e-12, 1.0)
    weights = weights / weights.sum()
    if not np.isfinite(weights).all() or loss(weights)[0] > loss(equal)[0]:
        weights = equal
    kept = weights >= min(NEGLIGIBLE, 0.1 / members)
    if combiner == "prob" and np.isneginf(true[kept]).all(0).any():  # a row would lose its class
        return weights / weights.sum()
    weights = np.where(kept, weights, 0.0)
    return weights / weights.sum()
