"""Fits of multi-label members: a label by itself is a classification with two classes.

Log-odds z of a label are the two logits (-z/2, z/2), whose softmax is its sigmoid. So each known label of a
row is one row of two classes. Temperatures, weights, selections and uncertainty are those of classification:
the NLL is the mean binary cross entropy, and every combiner is the same. A prior that is worth so many rows
there is worth as many rows here, with all labels of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from ensdistill.common.combiners import Combiner
from ensdistill.common.tasks import Task
from ensdistill.data.tasks import UNKNOWN
from ensdistill.teachers.fitting.calibration import PRIOR_ROWS, fit_temperature
from ensdistill.teachers.fitting.uncertainty import Uncertainty, decompose


def two_way(log_odds: np.ndarray) -> np.ndarray:
    """The two logits [..., 2] of each log-odds [...], float64.

    >>> two_way(np.array([2.0])).tolist()
    [[-1.0, 1.0]]
    """
    half = np.asarray(log_odds, np.float64) / 2
    return np.stack([-half, half], axis=-1)


def mixture_of_labels(
    log_odds: np.ndarray, weights: np.ndarray, combiner: Combiner = "prob", temperature: float = 1.0
) -> np.ndarray:
    """The mixture's probability of each label, float64 [N, C], from log-odds [K, N, C].

    ``prob`` is the weighted mean of sigmoids; ``logit`` and ``log_prob`` the sigmoid of the weighted mean.
    """
    z = np.asarray(log_odds, np.float64) / temperature
    if combiner == "prob":
        return np.einsum("k,knc->nc", weights, expit(z))
    found: np.ndarray = expit(np.einsum("k,knc->nc", weights, z))
    return found


@dataclass(frozen=True)
class FittedRows:
    """Rows of a classification that a fit goes by.

    Parameters
    ----------
    logits : ndarray [K, M, C]
    labels : ndarray [M], int64
    sample_weight : ndarray [M], optional
    per_row : float
        Rows here for each row of the data: 1, or the known labels of a multi-label row.
    """

    logits: np.ndarray
    labels: np.ndarray
    sample_weight: np.ndarray | None
    per_row: float = 1.0

    def options(self, prior_rows: float) -> dict[str, Any]:
        """Arguments of a fit whose prior is worth so many rows of the data."""
        return {
            "labels": self.labels,
            "sample_weight": self.sample_weight,
            "prior_rows": prior_rows * self.per_row,
        }


def fitted_rows(
    task: Task, logits: np.ndarray, labels: np.ndarray, sample_weight: np.ndarray | None = None
) -> FittedRows:
    """Logits [K, N, C], labels and weights [N] as rows of a classification.

    Parameters
    ----------
    task : {"classification", "multilabel"}
        Of a classification everything stays as it is.
    labels : ndarray
        [N], int64; or [N, C] with 0, 1, and -1 for unknown labels, which are left out.

    Examples
    --------
    >>> rows = fitted_rows("multilabel", np.array([[[1.0, 2.0], [3.0, 4.0]]]), np.array([[1, -1], [0, 1]]))
    >>> rows.logits[0, :, 1].tolist(), rows.labels.tolist(), rows.per_row
    ([0.5, 1.5, 2.0], [1, 0, 1], 1.5)
    """
    if task == "classification":
        return FittedRows(logits, labels, sample_weight)
    known = labels != UNKNOWN
    rows = known.any(1).sum()
    each = None if sample_weight is None else np.broadcast_to(sample_weight[:, None], known.shape)[known]
    chosen = labels[known].astype(np.int64)
    return FittedRows(two_way(logits[:, known]), chosen, each, float(known.sum() / max(rows, 1)))


def fit_temperatures_of_labels(
    logits: np.ndarray, labels: np.ndarray, sample_weight: np.ndarray | None = None
) -> np.ndarray:
    """A temperature for each label of each member, as scales and zero biases.

    Each begins at the member's own temperature, with a prior for it that is worth five rows; a label without
    a known value keeps that.

    Parameters
    ----------
    logits : ndarray [K, N, C]
        Log-odds.
    labels : ndarray [N, C]
        0, 1, and -1 for unknown labels.
    sample_weight : ndarray [N], optional

    Returns
    -------
    ndarray [2, K, C], float64
        1 / temperature, and 0.
    """
    members, _, count = logits.shape
    scales = np.ones((members, count))
    for k, z in enumerate(logits):
        rows = fitted_rows("multilabel", z[None], labels, sample_weight)
        common = fit_temperature(rows.logits[0], **rows.options(PRIOR_ROWS))
        scales[k] /= common
        for c in np.flatnonzero((labels != UNKNOWN).any(0)):
            own = fitted_rows("multilabel", z[None, :, [c]] / common, labels[:, [c]], sample_weight)
            if own.sample_weight is None or own.sample_weight.any():
                scales[k, c] /= fit_temperature(own.logits[0], **own.options(PRIOR_ROWS))
    return np.stack([scales, np.zeros_like(scales)])


def decompose_labels(logits: np.ndarray, weights: np.ndarray) -> Uncertainty:
    """:func:`ensdistill.teachers.fitting.uncertainty.decompose` for log-odds [K, N, C]: the entropies of a
    row's labels are summed up, their disagreements averaged."""
    members, rows, count = logits.shape
    each = decompose(two_way(logits).reshape(members, rows * count, 2), weights)
    total, aleatoric, epistemic, disagreement = (
        values.reshape(rows, count)
        for values in (each.total, each.aleatoric, each.epistemic, each.disagreement)
    )
    return Uncertainty(total.sum(1), aleatoric.sum(1), epistemic.sum(1), disagreement.mean(1))
