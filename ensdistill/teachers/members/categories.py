"""Columns of categories in arrays of numbers, in the form in which CatBoost takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensdistill.data import BadRows


def with_categories(inputs: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """Features [N, F] whose columns of categories are integers; CatBoost refuses floating-point codes.

    An array of integers has them already. Of a floating-point array a copy with dtype object is returned.

    Raises
    ------
    BadRows
        A code is no whole number.

    Examples
    --------
    >>> with_categories(np.array([[0.5, 2.0]]), [1]).tolist()
    [[0.5, 2]]
    """
    if len(columns) == 0 or inputs.dtype.kind != "f":
        return inputs
    table = inputs.astype(object)
    for column in columns:
        codes = inputs[:, column]
        bad = np.flatnonzero(~np.isfinite(codes) | (codes != np.floor(codes)))
        if len(bad):
            raise BadRows(
                f"cat_features: column {column}: expected codes of categories, which are whole numbers; row "
                f"{bad[0]} has "
                f"{codes[bad[0]]} ({len(bad)} such rows)",
                bad,
            )
        table[:, column] = codes.astype(np.int64)
    return table
