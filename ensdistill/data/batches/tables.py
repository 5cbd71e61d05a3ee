"""Frames of pandas, polars and pyarrow, through narwhals: rows are samples, columns have names and types."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from ensdistill.data.batches.kind import register
from ensdistill.data.batches.row_hashes import row_hashes

_LIBRARIES = ("pandas", "polars", "pyarrow", "modin", "cudf")
_MISSING = np.uint64(xxhash.xxh3_64_intdigest(b"missing"))


class Tables:
    """Frames that are in memory. A missing value is None, NaN, NA or NaT."""

    name = "table"

    def holds(self, value: Any) -> bool:
        # A frame's library has been imported by whoever made the frame: nothing is imported to find out.
        if not any(library in sys.modules for library in _LIBRARIES):
            return False
        import narwhals.stable.v2 as nw

        return isinstance(nw.from_native(value, pass_through=True), nw.DataFrame)

    def count(self, batch: Any) -> int:
        return len(_frame(batch))

    def take(self, batch: Any, index: np.ndarray | slice) -> Any:
        return _frame(batch)[index if isinstance(index, slice) else np.asarray(index)].to_native()

    def join(self, batches: Sequence[Any]) -> Any:
        import narwhals.stable.v2 as nw

        frames = [_frame(batch) for batch in batches]
        return nw.concat([frame.select(frames[0].columns) for frame in frames], how="vertical").to_native()

    def hashes(self, batch: Any) -> np.ndarray:
        frame, plain = _frame(batch), _plain_columns(batch)
        types = _types(frame, plain)
        names = sorted(types)
        seed = xxhash.xxh3_64_intdigest("\0".join(f"{name}\1{types[name]}" for name in names).encode())
        if plain and next(iter(plain.values())) == names:  # the usual table of numbers needs no second copy
            return row_hashes(_bits(batch.to_numpy(), types[names[0]], False), seed)
        rows = np.empty((len(frame), len(names)), np.uint64)
        places = {name: place for place, name in enumerate(names)}
        for several in plain.values():
            values = batch[several].to_numpy()
            rows[:, [places.pop(name) for name in several]] = _bits(values, types[several[0]], False)
        for name, place in places.items():
            rows[:, place] = _column_hashes(frame[name], name, types[name])
        return row_hashes(rows, seed)

    def describe(self, batch: Any) -> dict[str, Any]:
        return {"columns": _types(_frame(batch), _plain_columns(batch))}


def _types(frame: Any, plain: dict[np.dtype[Any], list[str]]) -> dict[str, str]:
    """Column -> type, in the frame's order; ``plain`` as :func:`_plain_columns` returns it."""
    known = {name: _PLAIN[dtype.kind] for dtype, names in plain.items() for name in names}
    return {name: known[name] if name in known else column_type(frame[name], name) for name in frame.columns}


def _frame(batch: Any) -> Any:
    import narwhals.stable.v2 as nw

    return nw.from_native(batch, eager_only=True)


_PLAIN = {"f": "float", "i": "integer", "u": "integer", "b": "boolean"}


def _plain_columns(batch: Any) -> dict[np.dtype[Any], list[str]]:
    """Of each dtype, the columns of a pandas frame that are plain NumPy numbers: most columns of most tables.
    They are read together, a hundred times faster than by way of narwhals. Empty for frames of other
    libraries."""
    pandas = sys.modules.get("pandas")
    columns: dict[np.dtype[Any], list[str]] = {}
    if pandas is not None and isinstance(batch, pandas.DataFrame):
        for name, dtype in zip(batch.columns.tolist(), batch.dtypes.tolist(), strict=True):
            if isinstance(name, str) and isinstance(dtype, np.dtype) and dtype.kind in _PLAIN:
                columns.setdefault(dtype, []).append(name)
    return columns


def column_type(series: Any, name: str) -> str:
    """``integer``, ``float``, ``boolean``, ``text``, ``category``, ``time`` or ``duration``, whichever
    library holds the column.

    Parameters
    ----------
    series : narwhals Series
    name : str

    Raises
    ------
    TypeError
        Lists, structures, bytes or Python objects of several kinds; names the column and the remedy.
    """
    import narwhals.stable.v2 as nw

    dtype = series.dtype
    if dtype.is_integer():
        return "integer"
    if dtype.is_float() or dtype.is_decimal():
        return "float"
    for kind, name_of in (
        (nw.Boolean, "boolean"),
        (nw.String, "text"),
        (nw.Categorical, "category"),
        (nw.Enum, "category"),
        (nw.Datetime, "time"),
        (nw.Date, "time"),
        (nw.Duration, "duration"),
    ):
        if dtype == kind:
            return name_of
    if dtype == nw.Object or dtype == nw.Unknown:
        present = [v for v in series.to_list() if not is_gap(v)]
        kinds = {
            bool
            if isinstance(v, (bool, np.bool_))
            else str
            if isinstance(v, str)
            else float
            if _number(v)
            else type(v)
            for v in present
        }
        if kinds <= {str}:
            return "text"
        if kinds == {bool}:
            return "boolean"
        if kinds == {float}:
            return "float"
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        if kinds & {list, tuple, set, dict, np.ndarray}:
            raise TypeError(
                f"column {name!r}: expected numbers, booleans, strings, categories or times; got {found}: "
                "leave the column out, or make one column for each entry"
            )
        raise TypeError(
            f"column {name!r}: expected values of one type; got {found}: make them alike, for example by "
            "astype(str)"
        )
    raise TypeError(
        f"column {name!r}: expected numbers, booleans, strings, categories or times; got {dtype}: leave the "
        "column out, or make "
        "numbers or strings of it (a list: one column for each entry)"
    )


def is_gap(value: Any) -> bool:
    """Whether a value of a column of Python objects is None, NaN, NA or NaT; lists and arrays are none."""
    if isinstance(value, (list, tuple, set, dict, np.ndarray)):
        return False
    pandas = sys.modules.get("pandas")
    return value is None or (pandas is not None and value is pandas.NA) or bool(value != value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating))


def _column_hashes(series: Any, name: str, kind: str) -> np.ndarray:
    """uint64 [N]: of numbers their own bits as float64 or int64, of strings a hash; one value for all that is
    missing."""
    import narwhals.stable.v2 as nw

    missing = np.asarray(series.is_null().to_numpy(), bool)
    if kind in ("text", "category"):
        values = series.to_list()
        known = {
            value: xxhash.xxh3_64_intdigest(str(value).encode())
            for value in {v for v, gap in zip(values, missing, strict=True) if not gap}
        }
        return np.fromiter(
            (_MISSING if gap else known[v] for v, gap in zip(values, missing, strict=True)),
            np.uint64,
            count=len(values),
        )
    if kind in ("time", "duration"):
        series = series.cast(nw.Datetime("ns") if kind == "time" else nw.Duration("ns"))
        values = (
            np.asarray(series.to_numpy())
            .astype("datetime64[ns]" if kind == "time" else "timedelta64[ns]")
            .view(np.int64)
        )
        return np.where(missing, _MISSING, values.view(np.uint64))
    nothing: Any = False if kind == "boolean" else 0
    values = series.fill_null(nothing).to_list() if missing.any() else series.to_numpy()
    # Of integers beyond int64 NumPy alone would make floats, which round them.
    exact = None if kind != "integer" else np.uint64 if series.dtype.is_unsigned_integer() else np.int64
    numbers = np.array(values, exact)
    return _bits(numbers, kind, missing)


def _bits(numbers: np.ndarray, kind: str, missing: Any) -> np.ndarray:
    """The bits of numbers as float64 or int64, uint64 of the same shape; one value for all that is
    missing."""
    if kind == "float":
        numbers = numbers.astype(np.float64, order="C")
        missing = missing | np.isnan(numbers)
    elif kind == "boolean" or numbers.dtype != np.uint64:
        numbers = numbers.astype(np.int64, order="C")
    bits = np.ascontiguousarray(numbers).view(np.uint64)
    return np.where(missing, _MISSING, bits) if np.any(missing) else bits


register(Tables())
