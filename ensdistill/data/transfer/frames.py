"""Frames of pandas, polars and pyarrow as columns, through narwhals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ensdistill.data.batches.tables import column_type
from ensdistill.data.transfer.values import EXACT, Part, Type, ranks


class FrameTable:
    """A frame of pandas, polars or pyarrow; columns in the order of their names, so that their order in the
    frame decides nothing."""

    tabular = True

    def __init__(self, frame: Any) -> None:
        import narwhals.stable.v2 as nw

        self.frame = nw.maybe_reset_index(nw.from_native(frame, eager_only=True))
        self.names = sorted(self.frame.columns)
        self.types: list[Type] = [self._type(name) for name in self.names]
        self._numbers = np.zeros((len(self.frame), len(self.names)))
        for place, kind in enumerate(self.types):
            if kind != "value":
                self._numbers[:, place] = self.column(place)

    def _type(self, name: str) -> Type:
        series = self.frame[name]
        kind = column_type(series, name)
        if kind in ("time", "duration"):
            return "time"
        if kind == "boolean":
            return "boolean"
        if kind == "integer":
            top = max((abs(int(v)) for v in (series.min(), series.max()) if v is not None), default=0)
            return "integer" if top <= EXACT else "value"
        return "float" if kind == "float" and series.dtype.is_float() else "value"

    def __len__(self) -> int:
        return len(self.frame)

    def column(self, place: int) -> np.ndarray:
        """One column as float64 [N], NaN where it is missing; of values their number in sorted order."""

        name, kind = self.names[place], self.types[place]
        series = self.frame[name]
        missing = np.asarray(series.is_null().to_numpy(), bool)
        if kind == "value":
            return ranks(series.to_list(), missing)
        if kind == "time":
            lasts = column_type(series, name) == "duration"
            series = series.dt.total_microseconds() if lasts else series.dt.timestamp("us")
        present = series.fill_null(False if kind == "boolean" else 0) if missing.any() else series
        return np.where(missing, np.nan, np.asarray(present.to_numpy()).astype(np.float64))

    def numbers(self, rows: np.ndarray | slice) -> np.ndarray:
        return self._numbers[rows]

    def span(self) -> tuple[np.ndarray, np.ndarray]:
        return np.fmin.reduce(self._numbers), np.fmax.reduce(self._numbers)

    def cells(self, origin: np.ndarray) -> np.ndarray:
        return np.take_along_axis(self._numbers, origin, 0)

    def build(self, rows: int, parts: Iterable[Part], numeric: np.ndarray, whole: np.ndarray) -> Any:
        """See :meth:`ensdistill.data.transfer.arrays.ArrayTable.build`. Dtypes and categories stay."""
        import narwhals.stable.v2 as nw

        shape = rows, len(self.names)
        origin, mixed = np.zeros(shape, np.int64), np.zeros(shape)
        for part, taken, numbers in parts:
            origin[part], mixed[part] = taken, numbers
        columns = {}
        for place, name in enumerate(self.names):
            series = self.frame[name][origin[:, place]]
            values = mixed[:, place]
            changed = np.flatnonzero(~np.isnan(values)) if numeric[place] else np.zeros(0, np.int64)
            if len(changed):
                values = np.rint(values[changed]).astype(np.int64) if whole[place] else values[changed]
                series = series.scatter(changed, _as_stored(series, values))
            columns[name] = series
        made = nw.maybe_reset_index(self.frame[np.zeros(rows, np.int64)])
        return made.with_columns(*(columns[name] for name in self.frame.columns)).to_native()


def _as_stored(series: Any, values: np.ndarray) -> Any:
    """Values that a series takes without a change of its dtype."""
    import narwhals.stable.v2 as nw

    made = nw.new_series("", values, backend=series.implementation)
    return made.cast(series.dtype)
