"""Each member's share of the ensemble's gain, by Shapley values over mixtures of some members."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.common.shapley import EXACT, ORDERS, shapley
from ensdistill.common.tasks import Task
from ensdistill.data.tasks import UNKNOWN
from ensdistill.job.predictions import Mixed
from ensdistill.report.measures import MEASURES
from ensdistill.report.multilabel_metrics import LabelProbabilities
from ensdistill.report.regression_metrics import Forecasts

MOST = 5e8  # numbers of the members' predictions that are mixed, for all subsets together: some seconds

Shares = dict[str, np.ndarray]
"""By metric the values and their standard errors, [K, 2]; of members without weight 0."""


def shares_of(
    mixed: Mixed, members: np.ndarray, task: Task, labels: np.ndarray, weights: np.ndarray | None = None
) -> Shares:
    """The Shapley values of an ensemble's members in its gain over no member.

    No member stands for the shares of the classes or labels, or for mean and variance of the numbers. The
    metrics are the deciding ones that are means over rows. Where the subsets are too many for all rows, rows
    at equal distances stand for all.

    Parameters
    ----------
    mixed : Mixed
        Of the rows of the labels.
    members : ndarray [K]
        The members' weights.
    task : Task
    labels : ndarray [N] or [N, C]
    weights : ndarray [N], optional
        Of the rows.
    """
    used = np.flatnonzero(members > 0)
    subsets = 2 ** len(used) if len(used) <= EXACT else ORDERS * len(used)
    width = 1 if task == "classification" and labels.ndim == 1 else labels.shape[1]
    if task == "classification":
        width = mixed.mixture.values.shape[1]
    rows = max(100, int(MOST / (subsets * len(used) * width)))
    some = np.unique(np.linspace(0, len(labels) - 1, min(rows, len(labels))).astype(int))
    labels, weights = labels[some], None if weights is None else weights[some]
    none = _none(task, labels, width)
    metrics = [m for m in MEASURES[task].deciding if m.rows is not None]
    alone = [mixed.subset(np.arange(len(members)) == k).values for k in used]
    metrics = [metric for metric in metrics if metric.defined([*alone, none])]

    def worth(subset: np.ndarray) -> np.ndarray:
        chosen = np.zeros(len(members), bool)
        chosen[used[subset]] = True
        values = _rows(mixed.subset(chosen).values, some) if subset.any() else none
        return np.array([metric.sign * metric.of(values, labels, weights) for metric in metrics])

    found = shapley(worth, len(used))
    shares = {metric.name: np.zeros((len(members), 2)) for metric in metrics}
    for place, own in enumerate(shares.values()):
        own[used] = np.stack([found.values[:, place], found.errors[:, place]], 1)
    return shares


def _rows(values: Any, some: np.ndarray) -> Any:
    if isinstance(values, LabelProbabilities):
        return LabelProbabilities(values.values[some])
    return values.take(some) if isinstance(values, Forecasts) else values[some]


def _none(task: Task, labels: np.ndarray, width: int) -> Any:
    """The prediction without any member."""
    shape = (len(labels), width)
    if task == "regression":
        variance = np.maximum(labels.var(0), np.finfo(np.float64).tiny)
        return Forecasts(np.broadcast_to(labels.mean(0), shape), np.broadcast_to(variance, shape))
    if task == "multilabel":
        known = labels != UNKNOWN
        shares = (labels * known).sum(0) / np.maximum(known.sum(0), 1)
        return LabelProbabilities(np.broadcast_to(shares, shape).copy())
    counts = np.bincount(labels, minlength=width)
    return np.broadcast_to(counts / counts.sum(), shape).copy()
