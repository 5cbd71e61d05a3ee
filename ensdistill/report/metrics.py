"""How good a predicted distribution is: accuracy, NLL, Brier score, calibration error, each from the same two
arrays.

Accuracy, NLL and Brier are means of one value per row, and the row functions are public because a paired
bootstrap needs them; scikit-learn has the means only. The means agree with its ``accuracy_score``,
``log_loss`` and ``brier_score_loss(scale_by_half=False)``. The calibration errors, which scikit-learn lacks,
belong to a set of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.common.scalars import whole

BINS = 15
# scikit-learn's log_loss floors there too: one impossible event costs 36.04 nats, not infinity.
PROBABILITY_FLOOR = float(np.finfo(np.float64).eps)
# float32 softmax rows are off by about 1e-7 times a few; anything larger is not a distribution.
SUM_TOLERANCE = 1e-5


def check(probabilities: np.ndarray, labels: np.ndarray, name: str = "probabilities") -> None:
    """Refuse arrays that do not hold a distribution for each row, and labels out of range.

    Parameters
    ----------
    probabilities : ndarray [N, C], float64
        Rows sum to one within 1e-5.
    labels : ndarray [N], int64
        Class indices in [0, C).
    name : str
        The name of ``probabilities`` in messages.

    Raises
    ------
    TypeError
        An argument is not an array of the dtype above: float32 is refused because a tail of 1e-9 may already
        be lost.
    ValueError
        A shape, a value, the sum of a row or a label is wrong, or there are no rows; the message names the
        first bad row.
    """
    check_dtype(name, probabilities, np.float64)
    check_dtype("labels", labels, np.int64)
    if probabilities.ndim != 2 or not probabilities.size:
        raise ValueError(f"{name}: expected [N, C] with N and C at least 1; got {list(probabilities.shape)}")
    n, c = probabilities.shape
    if labels.shape != (n,):
        raise ValueError(f"labels: expected [{n}], one for each row of {name}; got {list(labels.shape)}")
    outside = (labels < 0) | (labels >= c)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"labels: expected class indices in [0, {c}); row {row} has {labels[row]}")
    check_unit(name, probabilities, 1 + SUM_TOLERANCE)
    sums = probabilities.sum(axis=1)
    off = np.abs(sums - 1) > SUM_TOLERANCE
    if off.any():
        row = int(off.argmax())
        raise ValueError(
            f"{name}: expected rows that sum to 1 within {SUM_TOLERANCE}; row {row} sums to {sums[row]} "
            "(logits?)"
        )


def check_dtype(name: str, value: Any, dtype: type) -> None:
    """Raise TypeError for anything but an array of this dtype."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name}: expected a {np.dtype(dtype)} array; got {got}")


def check_unit(name: str, values: np.ndarray, most: float = 1.0, hint: str = "") -> None:
    """Raise ValueError for the first row [N, C] with a value outside of [0, ``most``], or NaN."""
    wrong = ~((values >= 0) & (values <= most)).all(axis=1)  # the negation catches NaN
    if wrong.any():
        row = int(wrong.argmax())
        least, largest = values[row].min(), values[row].max()
        raise ValueError(f"{name}: expected values in [0, 1]; row {row} has {least} to {largest}{hint}")


def correct_rows(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1.0 where the most probable class is the label, else 0.0; among equals the lowest index counts. See
    `check` for the arguments.

    Returns
    -------
    ndarray [N], float64
    """
    check(probabilities, labels)
    return (probabilities.argmax(axis=1) == labels).astype(np.float64)


def recalls(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The accuracy on the rows of each class, [C]; NaN for a class without rows. See `check` for the
    arguments.

    Examples
    --------
    >>> recalls(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), np.array([0, 1, 1])).tolist()
    [1.0, 0.5]
    """
    right, count = correct_rows(probabilities, labels), probabilities.shape[1]
    rows = np.bincount(labels, weights, count).astype(np.float64)
    found = np.bincount(labels, right if weights is None else right * weights, count)
    return np.divide(found, rows, out=np.full(count, np.nan), where=rows > 0)


def nll_rows(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each label in nats. See `check` for the arguments.

    A probability below 2.2e-16 counts as 2.2e-16, as in scikit-learn's ``log_loss``, so a row costs at most
    36.04; `floored_rows` counts the rows that were changed.

    Returns
    -------
    ndarray [N], float64
    """
    check(probabilities, labels)
    return -np.log(np.maximum(_of_label(probabilities, labels), PROBABILITY_FLOOR))


def brier_rows(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Multi-class Brier score of each row: squared error summed over all classes, from 0 to 2 (Brier, 1950).

    For two classes that is twice the one-sided score. See `check` for the arguments.

    Returns
    -------
    ndarray [N], float64
    """
    check(probabilities, labels)
    return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)


def floored_rows(probabilities: np.ndarray, labels: np.ndarray) -> int:
    """How many labels have a probability below the floor that `nll_rows` puts under it."""
    check(probabilities, labels)
    return int((_of_label(probabilities, labels) < PROBABILITY_FLOOR).sum())


def mean_of(values: np.ndarray, weights: np.ndarray | None) -> float:
    """The mean of one value per row, float64 [N], weighted where the rows have weights [N]."""
    return float(values.mean() if weights is None else np.average(values, weights=weights))


def accuracy(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Share of rows whose most probable class is the label, in [0, 1].

    Examples
    --------
    >>> accuracy(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
    0.5
    """
    return mean_of(correct_rows(probabilities, labels), weights)


def nll(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean negative log likelihood in nats; see `nll_rows` for the cost of an exact zero.

    Examples
    --------
    >>> round(nll(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0])), 4)
    0.3466
    """
    return mean_of(nll_rows(probabilities, labels), weights)


def brier(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean multi-class Brier score (sum over classes), in [0, 2].

    Examples
    --------
    >>> brier(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]))
    0.25
    """
    return mean_of(brier_rows(probabilities, labels), weights)


@dataclass(frozen=True)
class Reliability:
    """Rows grouped by the confidence of their top label; bins without rows are left out.

    Parameters
    ----------
    confidence, accuracy : ndarray [B], float64
        Means over the bin's rows, weighted where these have weights.
    count : ndarray [B], int64
        Rows of the bin.
    share : ndarray [B], float64, optional
        The bin's weight; its rows by default.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    share: np.ndarray | None = None

    @property
    def error(self) -> float:
        """Mean over rows of ``|accuracy - confidence|`` of the row's bin: the expected calibration error."""
        share = self.count if self.share is None else self.share
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=share))


def reliability(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = BINS,
    *,
    adaptive: bool = False,
    weights: np.ndarray | None = None,
) -> Reliability:
    """Group the rows by top-label confidence.

    Parameters
    ----------
    probabilities, labels : ndarray
        As in `check`.
    bins : int
        At least 1.
    adaptive : bool
        False: ``bins`` intervals ``(b/bins, (b+1)/bins]`` of equal width. True: intervals that hold about
        equally many rows; equal confidences stay in one bin, so the result does not depend on the order of
        the rows.
    weights : ndarray [N], optional
        Of the rows, at least 0.

    Raises
    ------
    ValueError
        ``bins`` is not a positive integer, or as in `check`.
    """
    if not whole(bins) or bins < 1:
        raise ValueError(f"bins: expected a positive integer; got {bins!r}")
    hits = correct_rows(probabilities, labels)
    confidence = probabilities.max(axis=1)
    if adaptive:
        ranks = np.arange(1, bins) * len(confidence) // bins
        inner = np.unique(np.sort(confidence)[ranks[ranks > 0] - 1])
    else:
        inner = np.arange(1, bins) / bins
    return binned(confidence, hits, inner, weights)


def binned(
    confidence: np.ndarray, hits: np.ndarray, inner: np.ndarray, weights: np.ndarray | None = None
) -> Reliability:
    """Group events by the confidence in them.

    Parameters
    ----------
    confidence : ndarray [N], float64
    hits : ndarray [N]
        1 where the event came true, else 0.
    inner : ndarray [B - 1]
        The edges between the bins, ascending. A confidence on an edge belongs to the bin below it.
    weights : ndarray [N], optional
    """
    bins = len(inner) + 1
    of_row = np.searchsorted(inner, confidence, side="left")
    each = np.ones(len(of_row)) if weights is None else weights
    count, share = np.bincount(of_row, minlength=bins), np.bincount(of_row, each, bins)
    used = share > 0
    return Reliability(
        confidence=np.bincount(of_row, each * confidence, bins)[used] / share[used],
        accuracy=np.bincount(of_row, each * hits, bins)[used] / share[used],
        count=count[used],
        share=None if weights is None else share[used],
    )


def ece(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = BINS,
    *,
    weights: np.ndarray | None = None,
) -> float:
    """Expected calibration error of the top label with equal-width bins (Naeini et al., 2015; Guo et al.,
    2017), in [0, 1].

    Examples
    --------
    >>> round(ece(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])), 4)
    0.3
    """
    return reliability(probabilities, labels, bins, weights=weights).error


def adaptive_ece(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = BINS,
    *,
    weights: np.ndarray | None = None,
) -> float:
    """Expected calibration error of the top label with bins of equal mass (Nguyen & O'Connor, 2015), in [0,
    1].

    Examples
    --------
    >>> p = np.array([[0.8, 0.2], [0.9, 0.1]])
    >>> round(adaptive_ece(p, np.array([0, 1]), bins=2), 4)
    0.55
    """
    return reliability(probabilities, labels, bins, adaptive=True, weights=weights).error


def _of_label(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(labels)), labels]
