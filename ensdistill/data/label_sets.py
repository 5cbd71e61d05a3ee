"""Divisions of rows with several labels, in which each part has its share of the rows of each label.

After K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011: the
rarest label is dealt out first, each part by the rows of that label that it still lacks. Here the rows of a
label are dealt out at once, and rows that stay together (equal ones, or those of one group) as a whole.
"""

from __future__ import annotations

import numpy as np

CANDIDATES = 1024  # sets of rows that are compared when a part is filled or thinned out


def divide(labels: np.ndarray, groups: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """The part of each row, int64 [N].

    Parameters
    ----------
    labels : ndarray [N, C], int8
        1 for a label that applies. Unknown labels (-1) count as those that don't.
    groups : ndarray [N], int64
        Rows with one number are in one part.
    sizes : ndarray [P]
        Rows wanted in each part; parts have nearly as many.
    seed : int

    Examples
    --------
    >>> labels = np.array([[1, 0], [1, 0], [1, 1], [0, 1]], np.int8)
    >>> part = divide(labels, np.arange(4), np.array([2, 2]), seed=0)
    >>> labels[part == 0].sum(0).tolist()
    [2, 1]
    """
    return _Units(labels, groups).divided(np.asarray(sizes, np.float64), seed)


def draw(
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``size`` of the rows, or a few less where rows stay together, and return them and the others.

    Parameters
    ----------
    rows : ndarray [M], int64
        Positions in ``labels`` and ``groups``.
    labels : ndarray [N, C], int8
    groups : ndarray [N], int64
    size, seed : int
    """
    units = _Units(labels[rows], groups[rows])
    part = units.divided(np.array([size, len(rows) - size], np.float64), seed)
    drawn = units.resized(part == 0, size, seed)
    return rows[drawn], rows[~drawn]


def folds(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """The rows [.] of each fold, in growing order, for labels [N, C] and groups [N]."""
    part = divide(labels, groups, np.full(count, len(labels) / count), seed)
    return [np.flatnonzero(part == fold) for fold in range(count)]


class _Units:
    """The sets of rows that stay together: their numbers of rows, and of rows of each label."""

    def __init__(self, labels: np.ndarray, groups: np.ndarray) -> None:
        _, self.of_row = np.unique(groups, return_inverse=True)
        self.table = np.zeros((int(self.of_row.max(initial=-1)) + 1, labels.shape[1]))  # [U, C]
        np.add.at(self.table, self.of_row, labels == 1)
        self.counts = np.bincount(self.of_row, minlength=len(self.table)).astype(np.float64)  # [U]

    def divided(self, sizes: np.ndarray, seed: int) -> np.ndarray:
        generator = np.random.default_rng(seed % 2**32)
        part = np.full(len(self.counts), -1)
        lacking = np.outer(sizes / sizes.sum(), self.table.sum(0))  # [P, C]
        room, left = sizes.copy(), self.table.sum(0)
        while (left > 0).any():
            label = int(np.where(left > 0, left, np.inf).argmin())
            units = generator.permutation(np.flatnonzero((part < 0) & (self.table[:, label] > 0)))
            part[units] = _dealt(self.table[units, label], lacking[:, label], room, generator)
            np.subtract.at(lacking, part[units], self.table[units])
            np.subtract.at(room, part[units], self.counts[units])
            left -= self.table[units].sum(0)
        units = generator.permutation(np.flatnonzero(part < 0))
        part[units] = _dealt(self.counts[units], room, room, generator)
        return part[self.of_row]

    def resized(self, chosen: np.ndarray, size: int, seed: int) -> np.ndarray:
        """The rows bool [N] without some, or with others, so that there are ``size``; those whose change
        does the labels' shares least harm."""
        generator = np.random.default_rng([seed % 2**32, 1])
        taken = np.zeros(len(self.counts), bool)
        taken[self.of_row[chosen]] = True
        wanted = self.table.sum(0) * size / max(len(self.of_row), 1)
        scale = 1 / np.maximum(self.table.sum(0), 1)
        while (missing := size - int(self.counts[taken].sum())) != 0:
            fits = ~taken & (self.counts <= missing) if missing > 0 else taken
            if not fits.any():
                break
            some = generator.permutation(np.flatnonzero(fits))[:CANDIDATES]
            after = self.table[taken].sum(0) + np.sign(missing) * self.table[some]
            unit = some[int((np.abs(after - wanted) * scale).sum(1).argmin())]
            taken[unit] = not taken[unit]
        return taken[self.of_row]


def _dealt(
    weights: np.ndarray, lacking: np.ndarray, room: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """The part of each unit [U], whose weights in each part come near to what is lacking [P]; fractions go
    to the parts with most room."""
    want = np.maximum(lacking, 0)
    if not want.any():
        want = np.maximum(room, 0) if (room > 0).any() else np.ones(len(room))
    want = want / want.sum() * weights.sum()
    quota = np.floor(want)
    order = np.lexsort((generator.random(len(room)), -room, np.round(quota - want, 9)))
    quota[order[: round(weights.sum() - quota.sum())]] += 1
    part = np.searchsorted(np.cumsum(quota), np.cumsum(weights) - weights / 2, side="right")
    return np.minimum(part, len(room) - 1)
