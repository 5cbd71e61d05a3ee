"""How good predictions of D numbers are: errors of the mean, and of its variance or interval where there is
one.

Errors and widths are in units of the test labels' standard deviation, averaged over the D numbers, so that
numbers of unlike units count alike. The NLL is that of a row's labels in the data's units: its differences do
not depend on the units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensdistill.report.metrics import check_dtype, mean_of

INTERVAL = 0.9  # the probability that a row's label lies in its interval
LEAST_VARIANCE = 1e-12  # of the labels' variance: a smaller one is taken to be this


@dataclass(frozen=True, eq=False)
class Forecasts:
    """A regression model's prediction, in the data's units.

    Parameters
    ----------
    mean : ndarray [N, D], float64
    variance : ndarray [N, D], float64, optional
        At least 0.
    interval : pair of ndarray [N, D], float64, optional
        The lower and upper ends of intervals that hold 90 % of the labels, as conformal ones; by default
        those of a Gaussian with this mean and variance.
    """

    mean: np.ndarray
    variance: np.ndarray | None = None
    interval: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The ends of the intervals of 90 %, [N, D] each; None without a variance and an interval."""
        from scipy.special import ndtri

        if self.interval is not None or self.variance is None:
            return self.interval
        half = ndtri((1 + INTERVAL) / 2) * np.sqrt(self.variance)
        return self.mean - half, self.mean + half

    def take(self, rows: np.ndarray) -> Forecasts:
        """Those of some rows, by a mask or by positions."""
        variance = None if self.variance is None else self.variance[rows]
        interval = None if self.interval is None else (self.interval[0][rows], self.interval[1][rows])
        return Forecasts(self.mean[rows], variance, interval)


def check(prediction: Forecasts, labels: np.ndarray, name: str = "predictions") -> None:
    """Refuse predictions and labels that do not fit each other.

    Parameters
    ----------
    prediction : Forecasts
    labels : ndarray [N, D], float64
    name : str
        The name of ``prediction`` in messages.

    Raises
    ------
    TypeError
        An array is of another dtype.
    ValueError
        A shape is wrong, a number is not finite, a variance is negative, or the ends of an interval are
        exchanged; the message names the first bad row.
    """
    arrays = {f"mean of {name}": prediction.mean, "labels": labels}
    if prediction.variance is not None:
        arrays[f"variance of {name}"] = prediction.variance
    if prediction.interval is not None:
        arrays[f"lower ends of {name}"], arrays[f"upper ends of {name}"] = prediction.interval
    shape = np.shape(prediction.mean)
    for label, value in arrays.items():
        check_dtype(label, value, np.float64)
        if value.ndim != 2 or not value.size or value.shape != shape:
            expected = "[N, D] with N and D at least 1" if label.startswith("mean") else f"{list(shape)}"
            raise ValueError(f"{label}: expected {expected}; got {list(value.shape)}")
        _refuse(label, "finite numbers", ~np.isfinite(value), value)
    if prediction.variance is not None:
        _refuse(f"variance of {name}", "numbers of at least 0", prediction.variance < 0, prediction.variance)
    if prediction.interval is not None:
        low, high = prediction.interval
        _refuse(f"upper ends of {name}", "none below the lower end", high < low, high)


def deviations(labels: np.ndarray) -> np.ndarray:
    """The standard deviation of each number of the test labels [D], the unit of errors; 1 for a constant."""
    spread: np.ndarray = labels.std(0)
    return np.where(spread > 1e-12 * np.abs(labels).max(0), spread, 1.0)


def errors(prediction: Forecasts, labels: np.ndarray) -> np.ndarray:
    """Label minus mean in the units of :func:`deviations`, [N, D]."""
    check(prediction, labels)
    apart: np.ndarray = (labels - prediction.mean) / deviations(labels)
    return apart


def squared_rows(prediction: Forecasts, labels: np.ndarray) -> np.ndarray:
    """The squared error of each row, the mean over its numbers, [N]."""
    each: np.ndarray = np.square(errors(prediction, labels)).mean(1)
    return each


def absolute_rows(prediction: Forecasts, labels: np.ndarray) -> np.ndarray:
    """The absolute error of each row, the mean over its numbers, [N]."""
    each: np.ndarray = np.abs(errors(prediction, labels)).mean(1)
    return each


def nll_rows(prediction: Forecasts, labels: np.ndarray) -> np.ndarray:
    """The negative log density of each row's labels under Gaussians in nats, the sum over its numbers, [N].

    The labels are in the data's units. A variance below 1e-12 of the labels' counts as that;
    :func:`floored_rows` counts the rows.

    Raises
    ------
    ValueError
        The prediction has no variance, or as in :func:`check`.
    """
    scale, variance = deviations(labels), _variances(prediction, labels)
    density = np.square(errors(prediction, labels)) / variance + np.log(2 * np.pi * variance)
    each: np.ndarray = (0.5 * density + np.log(scale)).sum(1)
    return each


def floored_rows(prediction: Forecasts, labels: np.ndarray) -> int:
    """How many rows have a variance below the floor that :func:`nll_rows` puts under it."""
    check(prediction, labels)
    if prediction.variance is None:
        return 0
    return int((prediction.variance / deviations(labels) ** 2 < LEAST_VARIANCE).any(1).sum())


def crps_rows(prediction: Forecasts, labels: np.ndarray) -> np.ndarray:
    """The continuous ranked probability score of each row, the mean over its numbers, [N].

    In closed form for Gaussians (Gneiting et al., 2005, equation 5); without a variance the absolute error,
    to which it is equal for a point.
    """
    from scipy.special import ndtr

    z = errors(prediction, labels)
    if prediction.variance is None:
        return absolute_rows(prediction, labels)
    deviation = np.sqrt(_variances(prediction, labels))
    z = z / deviation
    density = np.exp(-0.5 * np.square(z)) / np.sqrt(2 * np.pi)
    each: np.ndarray = (deviation * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))).mean(1)
    return each


def covered_rows(prediction: Forecasts, labels: np.ndarray) -> np.ndarray:
    """The share of each row's labels that lie in their intervals of 90 %, [N]."""
    low, high = _bounds(prediction, labels)
    each: np.ndarray = ((low <= labels) & (labels <= high)).mean(1)
    return each


def width_rows(prediction: Forecasts, labels: np.ndarray) -> np.ndarray:
    """The width of each row's intervals of 90 %, the mean over its numbers, [N]."""
    low, high = _bounds(prediction, labels)
    each: np.ndarray = ((high - low) / deviations(labels)).mean(1)
    return each


def rmse(prediction: Forecasts, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The root of the mean squared error over rows and numbers, in the labels' standard deviations.

    Examples
    --------
    >>> rmse(Forecasts(np.array([[1.0], [2.0]])), np.array([[1.0], [5.0]]))
    1.0606601717798212
    """
    return float(np.sqrt(mean_of(squared_rows(prediction, labels), weights)))


def r2(prediction: Forecasts, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The coefficient of determination, the mean over the numbers; of one row or a constant label as in
    scikit-learn.

    Examples
    --------
    >>> r2(Forecasts(np.array([[1.0], [2.0], [3.0]])), np.array([[1.0], [2.0], [4.0]]))
    0.7857142857142857
    """
    from sklearn.metrics import r2_score

    check(prediction, labels)
    if len(labels) < 2:
        return 0.0
    return float(r2_score(labels, prediction.mean, sample_weight=weights))


def rmse_each(prediction: Forecasts, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The RMSE of each number in the data's units, [D]."""
    check(prediction, labels)
    roots: np.ndarray = np.sqrt(np.average(np.square(labels - prediction.mean), axis=0, weights=weights))
    return roots


def coverage_curve(
    prediction: Forecasts, labels: np.ndarray, levels: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """The share of labels within the central interval of each level, of Gaussians with the prediction's
    variance, [L]."""
    from scipy.special import ndtr

    z = np.abs(errors(prediction, labels)) / np.sqrt(_variances(prediction, labels))
    inside = 2 * ndtr(z) - 1
    return np.array([mean_of((inside <= level).mean(1), weights) for level in levels])


def _variances(prediction: Forecasts, labels: np.ndarray) -> np.ndarray:
    """In units of the labels' variance, [N, D]."""
    check(prediction, labels)
    if prediction.variance is None:
        raise ValueError("predictions: expected a variance; got None: give one, or use a metric of the mean")
    scaled: np.ndarray = np.maximum(prediction.variance / deviations(labels) ** 2, LEAST_VARIANCE)
    return scaled


def _bounds(prediction: Forecasts, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    check(prediction, labels)
    bounds = prediction.bounds
    if bounds is None:
        raise ValueError("predictions: expected a variance or an interval; got neither")
    return bounds


def _refuse(label: str, expected: str, wrong: np.ndarray, values: np.ndarray) -> None:
    if wrong.any():
        row = int(wrong.any(1).argmax())
        raise ValueError(f"{label}: expected {expected}; row {row} has {values[row][wrong[row]][0]}")
