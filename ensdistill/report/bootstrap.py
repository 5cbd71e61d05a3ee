"""A paired bootstrap with two levels, seeds and test rows, and the intervals read off it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ensdistill.common.scalars import whole

RESAMPLES = 4000
LEVEL = 0.95
_CELLS = 2**22  # count matrices of at most 32 MB at a time
Statistic = Callable[[np.ndarray], np.ndarray]  # from row weights [R, N] to values [R, M]


def resampled_means(
    values: Sequence[np.ndarray],
    *,
    weights: Sequence[np.ndarray] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Means over seeds and test rows, recomputed on resampled seeds and, within each, resampled rows.

    Every resample draws as many seeds as there are, with replacement, and for each drawn seed as many of its
    rows as it has, with replacement (Davison & Hinkley 1997, section 3.8). All columns see the same draws, so
    differences between columns are paired: effects that two models share (an easy row, a lucky split) cancel.

    Parameters
    ----------
    values : list of ndarray [N_s, M], float64
        One array for each seed: M quantities of each test row.
    weights : list of ndarray [N_s], optional
        Of the rows, one array for each seed: means are weighted, those of a resample by its own rows'
        weights.
    resamples : int
        At least 2000; below that the ends of a 95 % interval are themselves noise.
    seed : int
        Of the random generator: same arguments, same draws.

    Returns
    -------
    ndarray [resamples, M], float64
        Seeds have equal weights, also with unlike numbers of rows.

    Examples
    --------
    >>> rows = np.array([[1.0, 3.0], [0.0, 2.0]])
    >>> draws = resampled_means([rows, rows])
    >>> bool(np.allclose(draws[:, 1] - draws[:, 0], 2))
    True
    """
    statistics = [weighted_means(rows) for rows in values]
    return resampled(
        statistics, [len(rows) for rows in values], weights=weights, resamples=resamples, seed=seed
    )


def weighted_means(rows: np.ndarray) -> Statistic:
    """The means of the columns of rows [N, M] for sets of row weights."""

    def values(weights: np.ndarray) -> np.ndarray:
        means: np.ndarray = weights @ rows / np.maximum(weights.sum(1, keepdims=True), 1e-300)
        return means

    return values


def resampled(
    statistics: Sequence[Statistic],
    sizes: Sequence[int],
    *,
    weights: Sequence[np.ndarray] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """As :func:`resampled_means`, for any statistics of a seed's rows.

    Parameters
    ----------
    statistics : list of callable
        One for each seed: from row weights [R, N_s], which are how often each row was drawn, times its own
        weight, to the statistics [R, M] of each of the R draws.
    sizes : list of int
        The number of rows N_s of each seed.

    Returns
    -------
    ndarray [resamples, M], float64
        Means over the drawn seeds.

    Examples
    --------
    >>> roots = weighted_means(np.array([[1.0], [9.0]]))
    >>> draws = resampled([lambda weights: np.sqrt(roots(weights))], [2])
    >>> [round(float(value), 3) for value in np.unique(draws)]
    [1.0, 2.236, 3.0]
    """
    if not whole(resamples) or resamples < 2000:
        raise ValueError(f"resamples: expected an integer of at least 2000; got {resamples!r}")
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(sizes), size=(resamples, len(sizes)))
    sums: np.ndarray | None = None
    for index, (statistic, n) in enumerate(zip(statistics, sizes, strict=True)):
        # A resample stands here as often as it drew this seed, each time with new rows.
        targets = np.nonzero(chosen == index)[0]
        for start in range(0, len(targets), step := max(1, _CELLS // n)):
            part = targets[start : start + step]
            drawn = rng.integers(n, size=(len(part), n)) + n * np.arange(len(part))[:, None]
            counts = np.bincount(drawn.ravel(), minlength=n * len(part)).reshape(len(part), n).astype(float)
            found = statistic(counts * weights[index] if len(weights) else counts)
            if sums is None:
                sums = np.zeros((resamples, found.shape[1]))
            np.add.at(sums, part, found)
    assert sums is not None  # each resample has drawn a seed
    return sums / len(sizes)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The percentile interval at `LEVEL`: two order statistics, the same distance from either end."""
    ordered = np.sort(draws)
    tail = _tail(len(draws))
    return float(ordered[tail]), float(ordered[-1 - tail])


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float] | None:
    """The percentile interval of a ratio whose denominator should be positive, or None where it can't be
    bounded.

    A resample with a denominator of zero or below leaves the ratio undetermined, so it counts as unbounded on
    both sides: it can only widen the interval. When the denominator's own `interval` lies above zero, there
    are too few of them to make it infinite; else the result is None.

    Examples
    --------
    >>> ratio_interval(np.full(2000, 0.9), np.ones(2000))
    (0.9, 0.9)
    >>> ratio_interval(np.ones(2000), np.linspace(-1, 1, 2000)) is None
    True
    """
    if interval(denominator)[0] <= 0:
        return None
    positive = denominator > 0
    ratio = np.divide(numerator, denominator, out=np.zeros_like(denominator), where=positive)
    return interval(np.where(positive, ratio, -np.inf))[0], interval(np.where(positive, ratio, np.inf))[1]


def _tail(count: int) -> int:
    return int((1 - LEVEL) / 2 * (count - 1))
