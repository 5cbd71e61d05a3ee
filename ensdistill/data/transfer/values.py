"""Types of columns, and what tables of all kinds share."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Type = Literal["float", "integer", "boolean", "value", "time"]
# New rows; for each of their values the row of the base that it is taken from, int64 [M, D]; and the numbers
# that numeric columns get in its place [M, D].
Part = tuple[slice, np.ndarray, np.ndarray]
EXACT = 2**53  # beyond, float64 does not hold every integer


def ranks(values: list[Any], missing: np.ndarray) -> np.ndarray:
    """Of each value its place among the different ones, sorted as strings: float64 [N], NaN where missing."""
    texts = [None if gap else str(value) for value, gap in zip(values, missing.tolist(), strict=True)]
    place = {text: i for i, text in enumerate(sorted({text for text in texts if text is not None}))}
    return np.array([np.nan if text is None else place[text] for text in texts], np.float64)
