"""How good the probabilities of C independent labels are: average precision, cross entropy, F1, ranking and
calibration. Unknown labels (-1) are left out.

scikit-learn computes average precision. The resamplers compute mAP and F1 for many sets of row weights at
once, as a bootstrap needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ensdistill.data.tasks import UNKNOWN
from ensdistill.report.metrics import (
    BINS,
    PROBABILITY_FLOOR,
    Reliability,
    binned,
    check_dtype,
    check_unit,
    mean_of,
)

THRESHOLD = 0.5
Resampler = Callable[[np.ndarray], np.ndarray]  # from row weights [R, N] to values [R]


@dataclass(frozen=True, eq=False)
class LabelProbabilities:
    """A multi-label model's prediction.

    Parameters
    ----------
    values : ndarray [N, C], float64
        The probability of each label.
    thresholds : ndarray [C], optional
        A label is predicted where its probability is at least this; 0.5 by default. Tuned on rows that are
        not test rows (see :func:`tuned_thresholds`).
    """

    values: np.ndarray
    thresholds: np.ndarray | None = None

    @property
    def predicted(self) -> np.ndarray:
        """Whether each label is predicted: bool [N, C]."""
        chosen: np.ndarray = self.values >= (THRESHOLD if self.thresholds is None else self.thresholds)
        return chosen


def check(prediction: LabelProbabilities, labels: np.ndarray, name: str = "probabilities") -> None:
    """Refuse probabilities, thresholds and labels that do not fit each other.

    Parameters
    ----------
    prediction : LabelProbabilities
    labels : ndarray [N, C], int8
        1, 0, or -1 for an unknown label. Each row has a known one.
    name : str
        The name of ``prediction`` in messages.

    Raises
    ------
    TypeError
        An array is of another dtype.
    ValueError
        A shape or a value is wrong; the message names the first bad row.
    """
    p, thresholds = prediction.values, prediction.thresholds
    check_dtype(name, p, np.float64)
    check_dtype("labels", labels, np.int8)
    if p.ndim != 2 or not p.size:
        raise ValueError(f"{name}: expected [N, C] with N and C at least 1; got {list(p.shape)}")
    if labels.shape != p.shape:
        raise ValueError(f"labels: expected {list(p.shape)}, as {name}; got {list(labels.shape)}")
    for wrong, expected in (
        ((labels < UNKNOWN) | (labels > 1), "0, 1, or -1 for an unknown label"),
        (np.broadcast_to((labels == UNKNOWN).all(1)[:, None], labels.shape), "at least one known label"),
    ):
        if wrong.any():
            row = int(wrong.any(1).argmax())
            raise ValueError(f"labels: expected {expected}; row {row} has {labels[row][wrong[row]][0]}")
    check_unit(name, p, hint=" (log-odds?)")
    if thresholds is not None and (thresholds.shape != p.shape[1:] or not np.isfinite(thresholds).all()):
        raise ValueError(
            f"thresholds of {name}: expected {p.shape[1]} finite numbers, one for each label; got "
            f"{list(thresholds.shape)}"
        )


def tuned_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The threshold with the largest F1 of each label, [C]; to be tuned on rows that are not test rows.

    A threshold lies halfway between two probabilities that occur. A label without a known positive row keeps
    0.5.

    Parameters
    ----------
    probabilities : ndarray [N, C], float64
    labels : ndarray [N, C], int8
        1, 0, or -1 for an unknown label.

    Examples
    --------
    >>> p, y = np.array([[0.1], [0.2], [0.4], [0.3]]), np.array([[0], [0], [1], [1]], np.int8)
    >>> tuned_thresholds(p, y).tolist()
    [0.25]
    """
    from sklearn.metrics import precision_recall_curve

    check(LabelProbabilities(probabilities), labels)
    found = np.full(labels.shape[1], THRESHOLD)
    for c, (known, y, p) in enumerate(_columns(labels, probabilities)):
        if not (y == 1).any():
            continue
        precision, recall, scores = precision_recall_curve(y[known] == 1, p[known])
        total = np.maximum(precision + recall, 1e-300)
        best = int((2 * precision * recall / total)[:-1].argmax())
        below = scores[best - 1] if best else 0.0
        found[c] = (below + scores[best]) / 2
    return found


def bce_rows(prediction: LabelProbabilities, labels: np.ndarray) -> np.ndarray:
    """Binary cross entropy of each row in nats, the mean over its known labels, [N].

    A probability below 2.2e-16 of what a label is counts as 2.2e-16; `floored_labels` counts these labels.
    """
    check(prediction, labels)
    known = labels != UNKNOWN
    losses = -np.log(np.maximum(_of_label(prediction, labels), PROBABILITY_FLOOR))
    each: np.ndarray = np.where(known, losses, 0.0).sum(1) / known.sum(1)
    return each


def floored_labels(prediction: LabelProbabilities, labels: np.ndarray) -> int:
    """How many known labels have a probability below the floor that `bce_rows` puts under it."""
    check(prediction, labels)
    return int(((_of_label(prediction, labels) < PROBABILITY_FLOOR) & (labels != UNKNOWN)).sum())


def bce(prediction: LabelProbabilities, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean binary cross entropy in nats; see :func:`bce_rows`.

    Examples
    --------
    >>> p = LabelProbabilities(np.array([[0.5, 0.25]]))
    >>> round(bce(p, np.array([[1, -1]], np.int8)), 4)
    0.6931
    """
    return mean_of(bce_rows(prediction, labels), weights)


def average_precisions(
    prediction: LabelProbabilities, labels: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """The average precision of each label, [C]; NaN for a label without a positive row."""
    from sklearn.metrics import average_precision_score

    check(prediction, labels)
    found = np.full(labels.shape[1], np.nan)
    for c, (known, y, p) in enumerate(_columns(labels, prediction.values)):
        share = np.ones(known.sum()) if weights is None else weights[known]
        if share[y[known] == 1].sum() > 0:
            found[c] = average_precision_score(y[known], p[known], sample_weight=share)
    return found


def mean_average_precision(
    prediction: LabelProbabilities, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """mAP: the mean of the average precisions of the labels that have a positive row.

    Examples
    --------
    >>> p = LabelProbabilities(np.array([[0.9, 0.2], [0.8, 0.1], [0.3, 0.5]]))
    >>> mean_average_precision(p, np.array([[0, 0], [1, 0], [0, 0]], np.int8))
    0.5
    """
    found = average_precisions(prediction, labels, weights)
    return 0.0 if np.isnan(found).all() else float(np.nanmean(found))


def map_resampler(prediction: LabelProbabilities, labels: np.ndarray) -> Resampler:
    """:func:`mean_average_precision` for many sets of row weights; prepared once, since it sorts the rows."""
    check(prediction, labels)
    columns = _columns(labels, prediction.values)
    return _map_of([(p[known], (y[known] == 1) * 1.0, np.flatnonzero(known)) for known, y, p in columns])


def expected_map_resampler(prediction: LabelProbabilities, shares: np.ndarray) -> Resampler:
    """mAP for many sets of row weights, where a label applies with the probability in ``shares`` [N, C]: each
    row counts as positive with this weight, and as negative with the rest.

    Examples
    --------
    >>> p = LabelProbabilities(np.array([[0.9], [0.8], [0.3]]))
    >>> values = expected_map_resampler(p, np.array([[0.0], [1.0], [0.0]]))
    >>> values(np.ones((1, 3))).tolist()
    [0.5]
    """
    rows = np.arange(len(shares))
    columns = zip(prediction.values.T, np.asarray(shares, np.float64).T, strict=True)
    return _map_of([(p, share, rows) for p, share in columns])


def _map_of(columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Resampler:
    """mAP from scores, shares of positives and rows of each label.

    Only the scores of positive rows are steps of the recall. So rows are summed up between these, and a set
    of weights costs one pass over the rows of a label.
    """
    from scipy.sparse import csr_matrix

    sums: list[csr_matrix] = []
    for scores, share, rows in columns:
        positive = share > 0
        if not positive.any():
            continue
        steps = np.unique(-scores[positive])
        at = np.searchsorted(steps, -scores)  # the first step that includes the row
        used = at < len(steps)
        row_of = np.r_[at[used], len(steps) + at[positive]]
        counts = np.r_[np.ones(used.sum()), share[positive]].astype(np.float32)
        entries = (counts, (row_of, np.r_[rows[used], rows[positive]]))
        sums.append(csr_matrix(entries, shape=(2 * len(steps), 1 + int(rows.max()))))

    def values(weights: np.ndarray) -> np.ndarray:
        columns = np.ascontiguousarray(weights.T, np.float32)  # counts are exact in it, at half the traffic
        total, count = np.zeros(columns.shape[1]), np.zeros(columns.shape[1])
        for matrix in sums:
            found = matrix @ columns[: matrix.shape[1]]
            steps = len(found) // 2
            gained = found[steps:]
            right, everything = gained.cumsum(0), found[:steps].cumsum(0)
            precision = np.divide(right, everything, out=np.zeros_like(right), where=everything > 0)
            occurs = right[-1] > 0
            precision *= gained
            total += np.where(occurs, precision.sum(0, dtype=np.float64) / np.maximum(right[-1], 1e-30), 0.0)
            count += occurs
        mean: np.ndarray = total / np.maximum(count, 1)
        return mean

    return values


def micro_f1(prediction: LabelProbabilities, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """F1 of all labels together, at the prediction's thresholds.

    Examples
    --------
    >>> p = LabelProbabilities(np.array([[0.9, 0.2], [0.8, 0.7]]))
    >>> micro_f1(p, np.array([[1, 1], [1, -1]], np.int8))
    0.8
    """
    return _f1("micro", prediction, labels, weights)


def macro_f1(prediction: LabelProbabilities, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The mean F1 of the labels that have a positive row, at the prediction's thresholds."""
    return _f1("macro", prediction, labels, weights)


def _f1(
    average: str, prediction: LabelProbabilities, labels: np.ndarray, weights: np.ndarray | None
) -> float:
    each = np.ones(len(labels)) if weights is None else weights
    return float(f1_resampler(average)(prediction, labels)(each[None])[0])


def f1_resampler(average: str) -> Callable[[LabelProbabilities, np.ndarray], Resampler]:
    """:func:`micro_f1` or :func:`macro_f1` for many sets of row weights."""

    def of(prediction: LabelProbabilities, labels: np.ndarray) -> Resampler:
        check(prediction, labels)
        positive = (labels == 1).astype(np.float64)
        chosen = prediction.predicted & (labels != UNKNOWN)
        sums = [positive * chosen, positive + chosen, positive]  # F1 = 2 TP / (positive + predicted)
        if average == "micro":
            sums = [values.sum(1, keepdims=True) for values in sums]

        def values(weights: np.ndarray) -> np.ndarray:
            right, both, occurs = (weights @ one for one in sums)
            used = occurs > 0
            each = np.divide(2 * right, both, out=np.zeros_like(right), where=used)
            mean: np.ndarray = each.sum(1) / np.maximum(used.sum(1), 1)
            return mean

        return values

    return of


def lrap(prediction: LabelProbabilities, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Label ranking average precision: the mean over a row's positive labels of the share of positive ones
    among the labels ranked at least as high; 1 for a row without any.

    As scikit-learn's ``label_ranking_average_precision_score``, which takes half a millisecond for each row.
    """
    from scipy.stats import rankdata

    check(prediction, labels)
    positive = labels == 1
    # Below all known labels, an unknown one changes no rank of theirs.
    among_all = rankdata(np.where(labels == UNKNOWN, 1.0, -prediction.values), "max", axis=1)
    among_positive = rankdata(np.where(positive, -prediction.values, 1.0), "max", axis=1)
    count = positive.sum(1)
    shares = np.where(positive, among_positive / among_all, 0.0).sum(1)
    return mean_of(np.where(count > 0, shares / np.maximum(count, 1), 1.0), weights)


def label_ece(prediction: LabelProbabilities, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The expected calibration error of each label's probability, in 15 bins of equal width; the mean over
    labels with a known row."""
    check(prediction, labels)
    found = []
    for known, y, p in _columns(labels, prediction.values):
        share = None if weights is None else weights[known]
        if known.any() and (share is None or share.sum() > 0):
            found.append(binned(p[known], y[known] == 1, np.arange(1, BINS) / BINS, share).error)
    return float(np.mean(found))


def reliability(
    prediction: LabelProbabilities, labels: np.ndarray, *, weights: np.ndarray | None = None
) -> Reliability:
    """Known labels of all rows, grouped by their probability in 15 bins of equal width."""
    check(prediction, labels)
    known = labels != UNKNOWN
    share = None if weights is None else np.broadcast_to(weights[:, None], known.shape)[known]
    return binned(prediction.values[known], labels[known] == 1, np.arange(1, BINS) / BINS, share)


def _columns(labels: np.ndarray, values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each label: which rows know it [N], the labels [N] and the values [N]."""
    return [(y != UNKNOWN, y, v) for y, v in zip(labels.T, values.T, strict=True)]


def _of_label(prediction: LabelProbabilities, labels: np.ndarray) -> np.ndarray:
    chosen: np.ndarray = np.where(labels == 1, prediction.values, 1 - prediction.values)
    return chosen
