"""A base of samples as columns of numbers and of values: arrays, tensors and images by position, frames by
name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np

from ensdistill.data import batches as b
from ensdistill.data.batches.arrays import is_tensor
from ensdistill.data.batches.tables import column_type

Type = Literal["float", "integer", "boolean", "value", "time"]
# Rows, which of their columns take the other parent's value [M, D], and the mixed numbers [M, D].
Part = tuple[slice, np.ndarray, np.ndarray]
_EXACT = 2**53  # beyond, float64 does not hold every integer


class ArrayTable:
    """An array [N, ...] whose flattened rows are the columns.

    Attributes
    ----------
    names : range
    types : list of str [D]
        By the dtype: ``float``, ``integer``, ``boolean`` or ``value``.
    tabular : bool
        Whether the columns are attributes (an array [N, D]), and not pixels.
    """

    def __init__(self, array: np.ndarray, restore: Callable[[np.ndarray], Any] = lambda made: made) -> None:
        self.array, self.flat, self._restore = array, array.reshape(len(array), -1), restore
        kind: Type = {"f": "float", "i": "integer", "u": "integer", "b": "boolean"}.get(
            array.dtype.kind, "value"
        )  # type: ignore[assignment]
        large = kind == "integer" and bool(((array > _EXACT) | (array < -_EXACT)).any())
        self.names, self.tabular = range(self.flat.shape[1]), array.ndim == 2
        self.types: list[Type] = ["value" if large else kind] * len(self.names)

    def __len__(self) -> int:
        return len(self.flat)

    def column(self, place: int) -> np.ndarray:
        """One column as float64 [N], NaN where it is missing; of values their number in sorted order."""
        values = self.flat[:, place]
        if self.types[place] == "value":
            return ranks(values.tolist(), np.zeros(len(values), bool))
        return values.astype(np.float64)

    def numbers(self, rows: np.ndarray | slice) -> np.ndarray:
        """The columns of some rows, floating-point [M, D]."""
        taken = self.flat[rows]
        if taken.dtype.kind == "f":
            return taken
        return taken.astype(np.float64) if taken.dtype.kind in "iub" else np.zeros(taken.shape)

    def span(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the largest number of each column [D]; NaN where all are missing."""
        if self.flat.dtype.kind not in "fiu":
            return np.zeros(len(self.names)), np.zeros(len(self.names))
        return np.fmin.reduce(self.flat), np.fmax.reduce(self.flat)

    def build(
        self,
        own: np.ndarray,
        other: np.ndarray,
        parts: Iterable[Part],
        numeric: np.ndarray,
        whole: np.ndarray,
    ) -> Any:
        """The rows that two parents give.

        Parameters
        ----------
        own, other : ndarray [M], int64
            Positions of the parents.
        parts : iterable of Part
        numeric, whole : ndarray [D], bool
            Columns that take the mixed numbers, and those of them that are rounded.
        """
        made = np.empty((len(own), len(self.names)), self.array.dtype)
        plain = bool(numeric.all()) and not whole.any()
        for part, mask, mixed in parts:
            gaps = np.isnan(mixed) if mixed.dtype.kind == "f" else np.zeros(1, bool)
            if plain and not gaps.any():
                made[part] = mixed
                continue
            made[part] = np.where(mask, self.flat[other[part]], self.flat[own[part]])
            rounded = np.where(whole, np.rint(mixed), mixed)
            np.copyto(made[part], rounded, where=numeric & ~gaps, casting="unsafe")
        return self._restore(made.reshape(len(own), *self.array.shape[1:]))


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
            return "integer" if top <= _EXACT else "value"
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

    def build(
        self,
        own: np.ndarray,
        other: np.ndarray,
        parts: Iterable[Part],
        numeric: np.ndarray,
        whole: np.ndarray,
    ) -> Any:
        """See :meth:`ArrayTable.build`. Each column keeps its dtype, and its categories."""
        import narwhals.stable.v2 as nw

        shape = len(own), len(self.names)
        mask, mixed = np.zeros(shape, bool), np.zeros(shape)
        for part, taken, numbers in parts:
            mask[part], mixed[part] = taken, numbers
        columns = {}
        for place, name in enumerate(self.names):
            series = self.frame[name][np.where(mask[:, place], other, own)]
            values = mixed[:, place]
            changed = np.flatnonzero(~np.isnan(values)) if numeric[place] else np.zeros(0, np.int64)
            if len(changed):
                values = np.rint(values[changed]).astype(np.int64) if whole[place] else values[changed]
                series = series.scatter(changed, _as_stored(series, values))
            columns[name] = series
        made = nw.maybe_reset_index(self.frame[own])
        return made.with_columns(*(columns[name] for name in self.frame.columns)).to_native()


def as_table(name: str, base: Any) -> ArrayTable | FrameTable:
    """The base as columns.

    Raises
    ------
    TypeError, ValueError
        It is neither numbers, nor a frame, nor images of one size.
    """
    kind = b.kind_of(base, name).name
    if kind == "table":
        return FrameTable(base)
    if kind in ("array", "tensor", "images"):
        return ArrayTable(*as_array(name, base))
    raise TypeError(
        f"{name}: expected an array, a frame, or images; got {kind}. For strings there are DropTokens, "
        "ReplaceTokens and NGrams"
    )


def as_array(name: str, base: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    """An array [N, ...] of an array, a tensor or a list of images, and the function that turns such an array
    into the container of the base."""
    if isinstance(base, np.ndarray):
        return base, lambda made: made
    if is_tensor(base):
        import torch

        dtype, plain = base.dtype, base.detach().cpu()
        plain = plain.float() if dtype == torch.bfloat16 else plain
        return plain.numpy(), lambda made: torch.from_numpy(made).to(dtype)
    pixels = [np.asarray(image) for image in base]
    if unlike := [(i, one.shape) for i, one in enumerate(pixels) if one.shape != pixels[0].shape]:
        raise ValueError(
            f"{name}: expected images of one size, which can be mixed pixel by pixel; image 0 has "
            f"{list(pixels[0].shape)} and image {unlike[0][0]} {list(unlike[0][1])}. Resize them first, or "
            "use Augmented, which changes one image at a time"
        )
    return np.stack(pixels), lambda made: as_images(made, base[0])


def as_images(pixels: Iterable[np.ndarray], like: Any) -> list[Any]:
    """Images of the class of ``like``, an array or a Pillow image."""
    if isinstance(like, np.ndarray):
        return list(pixels)
    return [sys.modules["PIL.Image"].fromarray(one, like.mode) for one in pixels]


def ranks(values: list[Any], missing: np.ndarray) -> np.ndarray:
    """Of each value its place among the different ones, sorted as strings: float64 [N], NaN where missing."""
    texts = [None if gap else str(value) for value, gap in zip(values, missing.tolist(), strict=True)]
    place = {text: i for i, text in enumerate(sorted({text for text in texts if text is not None}))}
    return np.array([np.nan if text is None else place[text] for text in texts], np.float64)


def _as_stored(series: Any, values: np.ndarray) -> Any:
    """Values that a series takes without a change of its dtype."""
    import narwhals.stable.v2 as nw

    made = nw.new_series("", values, backend=series.implementation)
    return made.cast(series.dtype)
