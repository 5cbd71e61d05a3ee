"""How much each member adds to an ensemble, from a cache of targets alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.cache import TargetCache
from ensdistill.common.shapley import ORDERS, shapley
from ensdistill.common.tasks import task_of
from ensdistill.data import UNLABELLED
from ensdistill.data.tasks import UNKNOWN
from ensdistill.teachers.fitting.calibration import log_mixture
from ensdistill.teachers.fitting.gaussian import LEAST, mixture_moments
from ensdistill.teachers.fitting.multilabel import mixture_of_labels

ROWS = 20_000  # of the cache at most: seconds for ten members
FLOOR = 2.2e-16  # a probability


@dataclass(frozen=True)
class Contributions:
    """The result of :func:`member_contributions`.

    Parameters
    ----------
    names : tuple of str
        The K members.
    weights : ndarray [K]
    metrics : tuple of str
        ``divergence``: how much closer, in nats of KL, the mixture comes to that of all members. With labels
        also ``accuracy`` and ``nll``. Of a regression ``distance``, the RMSE from the mean of all members,
        with labels ``rmse``, both in units of the numbers' deviations, and with variances ``nll`` in nats.
        Positive is better for all.
    leave_one_out : ndarray [K, M]
        By how much the mixture is better with the member than without it, the others' weights in the same
        proportions; NaN where no other has weight.
    shapley, errors : ndarray [K, M]
        The member's mean gain over the members before it, over all orders, and its standard error, which is 0
        where all subsets were tried.
    rows, labelled : int
        Rows of the cache (positions, of sequences), and those with a label.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    metrics: tuple[str, ...]
    leave_one_out: np.ndarray
    shapley: np.ndarray
    errors: np.ndarray
    rows: int
    labelled: int


def member_contributions(
    cache: TargetCache,
    labels: np.ndarray | None = None,
    *,
    rows: int = ROWS,
    orders: int = ORDERS,
    seed: int = 0,
) -> Contributions:
    """Each member's leave-one-out and Shapley value in the mixture, from the stored targets; no model is run.

    A mixture of no member is the uniform distribution; with labels, the shares of the classes. Of numbers it
    is their mean and variance over the rows. Up to ten members with weight all subsets are tried; beyond that
    orders are sampled.

    Parameters
    ----------
    cache : TargetCache
        With the targets of every member.
    labels : ndarray [N] int64, [N, C] int8, or [N] or [N, D] of numbers, optional
        Of the cache's rows in the order of ``cache.uids``; -100 (of several labels -1, of numbers NaN) where
        unknown. They should be of rows that the members did not learn from: on their own rows members look
        alike.
    rows : int
        At most so many rows, at equal distances, of the first version.
    orders, seed : int
        Of the sampling; see :func:`ensdistill.common.shapley.shapley`.

    Raises
    ------
    ValueError
        The cache holds the mixture alone, or the labels do not fit.

    Examples
    --------
    >>> import tempfile, torch
    >>> from ensdistill import Ensemble, Rows, cache_targets
    >>> x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    >>> ensemble = Ensemble.from_members([torch.nn.Linear(4, 3) for _ in range(3)])
    >>> cache = cache_targets(ensemble, Rows(x, np.arange(50), np.full(50, -100)), tempfile.mkdtemp() + "/t")
    >>> found = member_contributions(cache)
    >>> found.shapley.shape, found.metrics
    ((3, 1), ('divergence',))
    """
    task = task_of(cache)
    if cache.temperature is not None:
        raise ValueError(
            f"cache: expected the targets of every member; {cache.path} holds their mixture at temperature "
            f"{cache.temperature:g} alone: build it again without mixture_at"
        )
    uids = np.asarray(cache.uids)
    if labels is not None:
        labels = _checked(np.asarray(labels), len(uids), len(cache.classes), task, cache)
    chosen = np.unique(np.linspace(0, len(uids) - 1, min(rows, len(uids))).astype(int))
    labels = None if labels is None else labels[chosen]
    weights = np.asarray(cache.weights, np.float64)
    worth: _Worth | _WorthOfNumbers
    if task == "regression":
        mean, variance = cache.gather_moments(uids[chosen])
        worth = _WorthOfNumbers(mean, variance, weights, labels)
    else:
        logits = cache.gather_logits(uids[chosen]).astype(np.float64)
        worth = _Worth(logits, weights, cache.combiner, task, labels)
    used = np.flatnonzero(weights > 0)

    def of_subset(subset: np.ndarray) -> np.ndarray:
        mask = np.zeros(len(weights), bool)
        mask[used[subset]] = True
        return worth(mask)

    found = shapley(of_subset, len(used), orders=orders, seed=seed)
    whole, count = worth(weights > 0), len(worth.metrics)
    shares, errors, left = (np.zeros((len(weights), count)) for _ in range(3))
    shares[used], errors[used] = found.values, found.errors
    for k in used:
        rest = (weights > 0) & (np.arange(len(weights)) != k)
        left[k] = whole - worth(rest) if rest.any() else np.nan
    known = 0 if labels is None else int(worth.known.sum())
    return Contributions(
        tuple(cache.names), weights, worth.metrics, left, shares, errors, len(worth.whole), known
    )


def _checked(labels: np.ndarray, rows: int, classes: int, task: str, cache: TargetCache) -> np.ndarray:
    """Labels that fit the rows of the cache."""
    if cache.manifest["sequences"]:
        raise ValueError("labels: expected none for a cache of sequences; leave them out")
    if task == "regression":
        return _checked_numbers(labels, rows, classes)
    shape, unknown = ((rows,), UNLABELLED) if task == "classification" else ((rows, classes), UNKNOWN)
    if labels.shape != shape or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels: expected integers {list(shape)}, in the order of the cache's uids; got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    most = classes if task == "classification" else 2
    if wrong := [int(v) for v in np.unique(labels) if v != unknown and not 0 <= v < most]:
        raise ValueError(f"labels: expected 0 to {most - 1}, or {unknown} where unknown; got {wrong[0]}")
    if (labels == unknown).all():
        raise ValueError(f"labels: expected some that are known; all are {unknown}: leave them out")
    return labels


def _checked_numbers(labels: np.ndarray, rows: int, numbers: int) -> np.ndarray:
    """Numbers float64 [N, D] that fit the rows of the cache."""
    flat = labels.shape == (rows,) and numbers == 1
    if not (flat or labels.shape == (rows, numbers)) or labels.dtype.kind not in "fiu":
        raise ValueError(
            f"labels: expected numbers {[rows, numbers]}, in the order of the cache's uids; got "
            f"{labels.dtype} {list(labels.shape)}"
        )
    found = labels.astype(np.float64).reshape(rows, numbers)
    if np.isinf(found).any():
        raise ValueError("labels: expected finite numbers, or NaN where unknown; got infinity")
    if (empty := np.isnan(found).all(0)).any():
        raise ValueError(
            "labels: expected some that are known of each number; all of number "
            f"{int(empty.argmax())} are NaN"
        )
    return found


class _Worth:
    """How good the mixture of some members is, by each metric; positive is better."""

    def __init__(
        self, logits: np.ndarray, weights: np.ndarray, combiner: Any, task: str, labels: np.ndarray | None
    ) -> None:
        self.logits, self.weights, self.combiner, self.task = logits, weights, combiner, task
        self.metrics = ("divergence",) if labels is None else ("divergence", "accuracy", "nll")
        self.labels = labels
        self.whole = self._mixture(weights > 0)
        if labels is not None:
            self.known = labels != (UNLABELLED if task == "classification" else UNKNOWN)

    def __call__(self, chosen: np.ndarray) -> np.ndarray:
        mixture = self._mixture(chosen)
        found = [-float((self.whole * (_log(self.whole) - _log(mixture))).sum(-1).mean())]
        if self.task == "multilabel":
            found = [-float(_binary(self.whole, mixture).sum(-1).mean())]
        return np.array([*found, *([] if self.labels is None else self._of_labels(mixture))])

    def _mixture(self, chosen: np.ndarray) -> np.ndarray:
        """Probabilities [N, C] of the mixture of some members."""
        if not chosen.any():
            return self._none()
        weights = np.where(chosen, self.weights, 0.0)[chosen]
        logits = self.logits[chosen]
        if self.task == "multilabel":
            return np.asarray(mixture_of_labels(logits, weights / weights.sum(), self.combiner))
        return np.exp(log_mixture(logits, weights / weights.sum(), self.combiner))

    def _none(self) -> np.ndarray:
        shape = self.logits.shape[1:]
        if self.labels is None:
            return np.full(shape, 0.5 if self.task == "multilabel" else 1 / shape[1])
        if self.task == "multilabel":
            shares = ((self.labels == 1) & self.known).sum(0) / np.maximum(self.known.sum(0), 1)
        else:
            counts = np.bincount(self.labels[self.known], minlength=shape[1])
            shares = counts / counts.sum()
        return np.broadcast_to(shares, shape)

    def _of_labels(self, p: np.ndarray) -> list[float]:
        """Accuracy, and the negative mean log loss, of the known labels."""
        assert self.labels is not None
        if self.task == "multilabel":
            right = ((p >= 0.5) == (self.labels == 1))[self.known]
            log = np.where(self.labels == 1, _log(p), _log(1 - p))[self.known]
            return [float(right.mean()), float(log.mean())]
        own, y = p[self.known], self.labels[self.known]
        return [float((own.argmax(1) == y).mean()), float(_log(own[np.arange(len(y)), y]).mean())]


class _WorthOfNumbers:
    """The same of the mean and the variance of some members of a regression."""

    def __init__(
        self, mean: np.ndarray, variance: np.ndarray | None, weights: np.ndarray, labels: np.ndarray | None
    ) -> None:
        self.mean, self.variance, self.weights, self.labels = mean, variance, weights, labels
        self.whole = self._moments(weights > 0)[0]
        middle = self.whole if labels is None else labels
        self.none = np.nanmean(middle, 0), np.nanvar(middle, 0)
        spread = np.sqrt(self.none[1])
        self.unit = np.where(spread > 0, spread, 1.0)
        self.known = np.zeros(self.whole.shape, bool) if labels is None else ~np.isnan(labels)
        of_labels = () if labels is None else ("rmse",) if variance is None else ("rmse", "nll")
        self.metrics = ("distance", *of_labels)

    def __call__(self, chosen: np.ndarray) -> np.ndarray:
        mean, variance = self._moments(chosen)
        found = [-_rms((mean - self.whole) / self.unit)]
        if self.labels is not None:
            at = self.known
            errors, unit = np.where(at, mean - self.labels, 0.0), self.unit
            found.append(-_rms((errors / unit)[at]))
            if self.variance is not None:
                v = np.maximum(variance, LEAST * unit**2)
                rows = np.where(at, np.log(2 * np.pi * v) + np.square(errors) / v, 0.0).sum(1) / 2
                found.append(-float(rows[at.any(1)].mean()))
        return np.array(found)

    def _moments(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance [N, D] of the mixture of some members."""
        if not chosen.any():
            shape = self.mean.shape[1:]
            return np.broadcast_to(self.none[0], shape), np.broadcast_to(self.none[1], shape)
        weights = self.weights[chosen]
        variance = None if self.variance is None else self.variance[chosen]
        mean, within, between = mixture_moments(self.mean[chosen], variance, weights / weights.sum())
        return mean, within + between


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _log(p: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.log(np.maximum(p, FLOOR))
    return found


def _binary(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL of each label by itself."""
    found: np.ndarray = p * (_log(p) - _log(q)) + (1 - p) * (_log(1 - p) - _log(1 - q))
    return found
