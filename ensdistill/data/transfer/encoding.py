"""Rows as points, so that near points are similar rows."""

from __future__ import annotations

import numpy as np

from ensdistill.common.random import random_generator
from ensdistill.data.transfer.arrays import ArrayTable
from ensdistill.data.transfer.columns import Columns
from ensdistill.data.transfer.tables import Table

_ONE_HOT = 8  # more different values are told apart by random unit vectors of this length


def encoded(table: Table, columns: Columns, standardise: bool | None = None) -> np.ndarray:
    """The rows of a table as points [N, E], for Euclidean distances.

    A number is standardised, so that two rows differ by sqrt(2) in the root mean square. A nominal column
    counts the same: two rows with different values have the distance sqrt(2) in it, by one coordinate for
    each value, or by random unit vectors where there are more than 8 values. The columns of a one-hot code
    are taken as they are, which is the same distance. A missing number is the mean, with a coordinate of its
    own that is 1 where the number is missing. Values that are only exchanged but have an order (booleans,
    few whole numbers, times) count as numbers.

    Parameters
    ----------
    table : ArrayTable or FrameTable
    columns : Columns
    standardise : bool, optional
        False leaves numbers as they are. By default they are standardised, except for an array of nothing but
        continuous numbers (images among them), which has no unit to compare with.
    """
    raw = columns.continuous if standardise is None else not standardise
    if raw and isinstance(table, ArrayTable) and columns.continuous and np.isfinite(table.flat).all():
        return table.flat
    grouped = np.zeros(len(table.names), bool)
    for group in columns.groups:
        grouped[group] = True
    parts: list[np.ndarray] = []
    for place in range(len(table.names)):
        values = table.column(place)
        missing = np.isnan(values)
        if columns.nominal[place]:
            parts.append(_vectors(np.where(missing, -1, values)))
            continue
        present = values[~missing]
        mean, scale = (present.mean(), present.std()) if len(present) else (0.0, 0.0)
        if not (raw or grouped[place]):
            values = (values - mean) / (scale or 1.0)
            mean = 0.0
        parts.append(np.where(missing, mean, values).astype(np.float32)[:, None])
        if missing.any():
            parts.append(missing.astype(np.float32)[:, None])
    return np.concatenate(parts, axis=1)


def _vectors(codes: np.ndarray) -> np.ndarray:
    """A unit vector for each different code, float32 [N, at most 8]."""
    different, place = np.unique(codes, return_inverse=True)
    if len(different) <= _ONE_HOT:
        return np.eye(len(different), dtype=np.float32)[place]
    vectors = random_generator("unit vectors").standard_normal((len(different), _ONE_HOT))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)[place]
