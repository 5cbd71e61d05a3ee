"""Noise for the columns of a table, in each column's own units."""

from __future__ import annotations

import numpy as np

from ensdistill.data.transfer.columns import Columns
from ensdistill.data.transfer.tables import Table

_QUARTILES = 1.349  # the interquartile range of a normal distribution, in standard deviations


class Noise:
    """Normal noise.

    Parameters
    ----------
    table : ArrayTable or FrameTable
    columns : Columns
    share : float
        The noise's standard deviation, as a share of the column's; 0 for none.

    Attributes
    ----------
    ordered : ndarray [D], bool
        Columns of numbers that have an order: all but values, booleans, times, and the columns of one-hot
        codes.
    columns : ndarray [D], bool
        Those of them that get noise: none where ``share`` is 0.
    scales : ndarray [D], float64
        The noise's standard deviation.
    """

    def __init__(self, table: Table, columns: Columns, share: float) -> None:
        width = len(table.names)
        self.ordered, self.scales = columns.numeric.copy(), np.zeros(width)
        self._spikes = np.full(width, np.nan)
        self._values: dict[int, np.ndarray] = {}
        grouped = np.zeros(width, bool)
        for group in columns.groups:
            grouped[group] = True
        low, high = table.span()
        for place in np.flatnonzero(~grouped & ~columns.nominal).tolist():
            if table.types[place] not in ("float", "integer"):
                continue
            values = table.column(place)
            different, counts = np.unique(values[~np.isnan(values)], return_counts=True)
            if not columns.numeric[place]:
                if len(different) < 3:  # two values are a flag
                    continue
                self.ordered[place], self._values[place] = True, different
            if len(different) < 2:
                continue
            top = counts.argmax()
            if counts[top] * 2 >= counts.sum():
                self._spikes[place] = different[top]
                different, counts = np.delete(different, top), np.delete(counts, top)
            self.scales[place] = share * _spread(np.repeat(different, counts))
        self.columns = self.ordered if share else np.zeros(width, bool)
        self._low, self._high = low, high

    def __call__(self, numbers: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``numbers`` [M, D] with noise, float32 or float64 as they are; NaN stays. The array is changed."""
        if not self.columns.any():
            return numbers
        drawn = generator.standard_normal(numbers.shape, np.float32)
        drawn[numbers == self._spikes.astype(numbers.dtype)] = 0
        numbers += drawn * self.scales.astype(numbers.dtype)
        np.clip(numbers, self._low, self._high, out=numbers)
        for place, values in self._values.items():
            middle = (values[1:] + values[:-1]) / 2
            own, present = numbers[:, place], ~np.isnan(numbers[:, place])
            own[present] = values[np.searchsorted(middle, own[present])]
        return numbers


def _spread(values: np.ndarray) -> float:
    """A standard deviation that outliers do not move; the usual one where half of the values are equal."""
    low, high = np.percentile(values, [25, 75])
    return float((high - low) / _QUARTILES or values.std())
