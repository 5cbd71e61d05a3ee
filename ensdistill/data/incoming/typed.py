"""Columns of new rows with the types of the training's columns, and the values that have another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ensdistill.data.table_files import NONE

ALIKE = (("integer", "float"), ("text", "category"))
EXPECTED = {
    "integer": "a number",
    "float": "a number",
    "boolean": "True or False",
    "text": "a text",
    "category": "a text",
}
STRINGS = ("string", "empty")
BOOLEANS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
BOOLEANS |= {"1": True, "0": False}  # as other programs write a boolean column


def check_types(types: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise ValueError where a column has another type than in the training, by the schema of a file."""
    for name, wanted in types.items():
        kind = found.get(name, wanted)
        if kind != wanted and not any({kind, wanted} <= {*names} for names in ALIKE):
            raise ValueError(
                f"samples: column {name!r}: expected {EXPECTED.get(wanted, wanted)} in each row; its type is "
                f"{kind}: write it as {wanted}"
            )


def typed(
    frame: Any, types: Mapping[str, str], *, parse: bool
) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """Columns by name, and (position, text) of each row with a value of another type: the first such column.

    Parameters
    ----------
    frame : pandas frame
    types : mapping of str to str
        Column -> type, as :func:`ensdistill.data.batches.describe` names them.
    parse : bool
        Whether texts are fields of a text table, in which ``1.5`` is a number.
    """
    columns: dict[str, Any] = {}
    faults: dict[int, str] = {}
    for name, kind in types.items():
        convert: Callable[[Any, bool], tuple[Any, np.ndarray]] = _CONVERTED.get(kind, _texts)
        column, bad = convert(frame[name], parse)
        columns[name] = column
        one_or_zero = parse and kind == "boolean"
        for position in np.flatnonzero(bad).tolist():
            value = frame[name].iloc[position]
            shown = value.item() if isinstance(value, np.generic) else value
            faults.setdefault(
                position,
                f"column {name!r}: expected {EXPECTED.get(kind, kind)}{' (or 1 or 0)' * one_or_zero}; got "
                f"{shown!r}",
            )
    return columns, sorted(faults.items())


def _numbers(column: Any, parse: bool) -> tuple[Any, np.ndarray]:
    import pandas as pd

    if pd.api.types.is_bool_dtype(column.dtype):
        return column.astype(float), column.notna().to_numpy()
    if not pd.api.types.is_numeric_dtype(column.dtype):
        gaps = column.isna().to_numpy()
        if parse:
            gaps = gaps | (column == NONE).to_numpy(bool, na_value=False)
        numbers = np.full(len(column), np.nan)
        bad = np.zeros(len(column), bool)
        values = column.tolist()
        for place in np.flatnonzero(~gaps).tolist():
            number = _number(values[place], parse)
            bad[place] = number is None
            numbers[place] = np.nan if number is None else number
        return pd.Series(numbers, column.index), bad | np.isinf(numbers)
    if column.dtype.kind == "f":
        return column, np.isinf(column.to_numpy(np.float64, na_value=np.nan))
    return column, np.zeros(len(column), bool)


def _number(value: Any, parse: bool) -> float | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (int, float, np.number)):
        return float(value)
    if not parse or not isinstance(value, str) or "_" in value:  # to Python, 1_000 is a number
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _booleans(column: Any, parse: bool) -> tuple[Any, np.ndarray]:
    import pandas as pd

    if column.dtype == bool or column.dtype == "boolean":
        return column, np.zeros(len(column), bool)
    gaps = column.isna().to_numpy()
    values = [BOOLEANS.get(v, v) if parse and isinstance(v, str) else v for v in column.tolist()]
    bad = ~gaps & np.array([not isinstance(v, (bool, np.bool_)) for v in values], bool)
    if not len(values):
        return column.astype(bool), bad.astype(bool)
    if not gaps.any() and not bad.any():
        return pd.Series(np.array(values, bool), column.index), bad
    held = [None if gap or wrong else v for v, gap, wrong in zip(values, gaps, bad, strict=True)]
    return pd.Series(held, column.index, object), bad


def _texts(column: Any, parse: bool) -> tuple[Any, np.ndarray]:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.infer_dtype(column) in STRINGS:
        return column, np.zeros(len(column), bool)
    gaps = column.isna().to_numpy()
    bad = ~gaps & np.array([not isinstance(v, str) for v in column.tolist()], bool)
    held = [None if gap or wrong else v for v, gap, wrong in zip(column.tolist(), gaps, bad, strict=True)]
    return pd.Series(held, column.index, object), bad


_CONVERTED = {"integer": _numbers, "float": _numbers, "boolean": _booleans}
