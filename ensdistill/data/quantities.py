"""Numbers to be predicted, as float64 [N, D]."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.data.batches.arrays import is_tensor
from ensdistill.data.rows import BadRows


def as_numbers(labels: Any, *, argument: str = "labels") -> np.ndarray:
    """A regression's labels, float64 [N, D].

    Parameters
    ----------
    labels : array-like [N] or [N, D], or a frame
        Numbers. NaN, None and NA are unknown; of several columns all of a row, or none.
    argument : str
        The argument that an error message names.

    Raises
    ------
    ValueError
        A value is no finite number, some numbers of a row are unknown, all rows are, or a column has one
        value in all rows.

    Examples
    --------
    >>> as_numbers([1, 2.5, None]).tolist()
    [[1.0], [2.5], [nan]]
    """
    values = labels.detach().cpu().double().numpy() if is_tensor(labels) else labels
    values = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"{argument}: expected numbers [N] or [N, D]; got {list(values.shape)}")
    values = values.reshape(len(values), -1)
    if values.dtype.kind in "iuf":
        numbers = values.astype(np.float64)
    else:
        import pandas as pd

        gaps = pd.isna(values)
        columns = [pd.to_numeric(pd.Series(column), errors="coerce") for column in values.T]
        numbers = np.stack([column.to_numpy(np.float64, na_value=np.nan) for column in columns], axis=1)
        texts = [isinstance(one, (str, bool)) for one in values.ravel().tolist()]
        unread = np.isnan(numbers) & ~gaps
        # One text makes a whole column of a table texts: only the rows that hold no number are named.
        wrong = unread if unread.any() else np.array(texts).reshape(values.shape) & ~gaps
        _refuse(argument, wrong, values, "a number in each row, or nothing where it is unknown")
    _refuse(argument, np.isinf(numbers), values, "finite numbers")
    gaps = np.isnan(numbers)
    _refuse(argument, gaps & ~gaps.all(1, keepdims=True), values, "all numbers of a row, or none")
    known = numbers[~gaps.all(1)]
    if not len(known):
        raise ValueError(f"{argument}: expected numbers; got {len(numbers)} rows, all without one")
    if len(constant := np.flatnonzero(np.ptp(known, axis=0) == 0)) and len(known) > 1:
        raise ValueError(
            f"{argument}: expected different numbers; column {constant[0]} has {known[0, constant[0]]:g} in "
            f"all {len(known)} rows"
        )
    return numbers


def _refuse(argument: str, wrong: np.ndarray, values: np.ndarray, expected: str) -> None:
    rows = np.flatnonzero(wrong.any(1))
    if len(rows):
        raise BadRows(
            f"{argument}: expected {expected}; row {rows[0]} has {values[rows[0]].tolist()} "
            f"({len(rows)} such rows)",
            rows,
        )
