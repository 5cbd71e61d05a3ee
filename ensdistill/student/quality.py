"""How good a model is on labelled rows by the two goals of its task, with what intervals need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax

from ensdistill.common.tasks import Task
from ensdistill.report import regression_metrics
from ensdistill.report.bootstrap import Statistic, resampled, weighted_means
from ensdistill.report.multilabel_metrics import LabelProbabilities, bce_rows, map_resampler

RESAMPLES, OF_LABELS = 4000, 2000  # fewer of several labels, whose average precision is slow


@dataclass(frozen=True, eq=False)
class Quality:
    """The values of a task's two goals, likelihood first, on some rows; larger ones are better.

    Parameters
    ----------
    statistic : callable
        From row weights [R, M] to values [R, 2].
    rows, resamples : int
    influence : tuple of ndarray [M] or None
        Of each goal the rows whose mean varies as the goal does over draws of rows; None where there are no
        such rows.
    """

    statistic: Statistic
    rows: int
    influence: tuple[np.ndarray | None, np.ndarray | None]
    resamples: int = RESAMPLES

    @cached_property
    def values(self) -> np.ndarray:
        """[2]; on all rows."""
        found: np.ndarray = self.statistic(np.ones((1, self.rows)))[0]
        return found

    @cached_property
    def draws(self) -> np.ndarray:
        """[R, 2]; on resampled rows, which are the same ones for all models."""
        return resampled([self.statistic], [self.rows], resamples=self.resamples)

    def error_over(self, other: Quality, place: int) -> float:
        """The standard error of the difference from another model's, in the goal at a place; infinite for
        one row."""
        own, others = self.influence[place], other.influence[place]
        if self.rows < 2:
            return np.inf
        if own is None or others is None:
            return float((self.draws - other.draws)[:, place].std())
        return float((own - others).std(ddof=1)) / np.sqrt(self.rows)


def by_labels(task: Task, outputs: Any, labels: np.ndarray) -> Quality:
    """A model's quality by labels: NLL and accuracy, BCE and mAP, or NLL and RMSE.

    Parameters
    ----------
    task : {"classification", "multilabel", "regression"}
    outputs : ndarray [N, C], or Moments [N, D]
        Calibrated logits, log-odds, or means and variances. Log-probabilities are logits, too.
    labels : ndarray
        In the task's form; each row has a known one.
    """
    found: Quality = _BY_LABELS[task](outputs, labels)
    return found


def of_rows(first: np.ndarray, second: np.ndarray) -> Quality:
    """Means of both."""
    return Quality(weighted_means(np.stack([first, second], 1)), len(first), (first, second))


def of_labels(first: np.ndarray, second: Statistic) -> Quality:
    """Means of the first, and another statistic."""
    means = weighted_means(first[:, None])

    def values(weights: np.ndarray) -> np.ndarray:
        return np.stack([means(weights)[:, 0], second(weights)], 1)

    return Quality(values, len(first), (first, None), OF_LABELS)


def of_numbers(first: np.ndarray, squared: np.ndarray) -> Quality:
    """Means of the first, and the negative root of the other's mean."""
    means = weighted_means(np.stack([first, squared], 1))

    def values(weights: np.ndarray) -> np.ndarray:
        found = means(weights)
        return np.stack([found[:, 0], -np.sqrt(found[:, 1])], 1)

    root = np.sqrt(squared.mean())
    return Quality(values, len(first), (first, -squared / (2 * root) if root > 0 else -squared))


def _classes(logits: np.ndarray, labels: np.ndarray) -> Quality:
    log_q = log_softmax(np.asarray(logits, np.float64), axis=1)
    right = (log_q.argmax(1) == labels).astype(np.float64)
    return of_rows(log_q[np.arange(len(labels)), labels], right)


def _labels(odds: np.ndarray, labels: np.ndarray) -> Quality:
    prediction = LabelProbabilities(expit(np.asarray(odds, np.float64)))
    return of_labels(-bce_rows(prediction, labels), map_resampler(prediction, labels))


def _numbers(moments: Any, labels: np.ndarray) -> Quality:
    found = regression_metrics.Forecasts(*moments)
    nll = regression_metrics.nll_rows(found, labels)
    return of_numbers(-nll, regression_metrics.squared_rows(found, labels))


_BY_LABELS: Any = {"classification": _classes, "multilabel": _labels, "regression": _numbers}
