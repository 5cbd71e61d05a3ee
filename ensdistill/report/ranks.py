"""Ranks of values, and statistics of them."""

from __future__ import annotations

import numpy as np


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation, with mean ranks for equal values; 0 where one side is constant.

    Examples
    --------
    >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([10.0, 20.0, 21.0]))
    1.0
    """
    parts = [values - values.mean() for values in map(ranks, (one, other))]
    scale = float(np.sqrt(np.square(parts[0]).sum() * np.square(parts[1]).sum()))
    return round(float(parts[0] @ parts[1]) / scale, 12) if scale > 0 else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """The ranks of values [N], from 1; equal values have their mean rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: np.ndarray = (last - (counts - 1) / 2)[group]
    return found


def auroc(known: np.ndarray, strange: np.ndarray) -> float:
    """The probability that a strange row has a larger value than a known one; a half of equal ones counts.

    Examples
    --------
    >>> auroc(np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.4]))
    0.9166666666666666
    """
    both = ranks(np.concatenate([known, strange]))[len(known) :]
    n, m = len(known), len(strange)
    # Mean ranks from 1: the least possible sum of m ranks is m (m + 1) / 2.
    return float((both.sum() - m * (m + 1) / 2) / (n * m))
