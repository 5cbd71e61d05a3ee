"""Arrays, tensors and images as columns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ensdistill.data.batches.arrays import is_tensor
from ensdistill.data.transfer.values import EXACT, Part, Type, ranks


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
        large = (
            kind == "integer"
            and array.dtype.itemsize == 8
            and bool(((array > EXACT) | (array < -EXACT)).any())
        )
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

    def cells(self, origin: np.ndarray) -> np.ndarray:
        """The numbers of some cells, floating-point [M, D]: in column d of the rows ``origin[:, d]``."""
        taken = np.take_along_axis(self.flat, origin, 0)
        if taken.dtype.kind == "f":
            return taken
        return taken.astype(np.float64) if taken.dtype.kind in "iub" else np.zeros(taken.shape)

    def build(self, rows: int, parts: Iterable[Part], numeric: np.ndarray, whole: np.ndarray) -> Any:
        """New rows, whose values are those of rows of the table, or numbers.

        Parameters
        ----------
        rows : int
        parts : iterable of Part
            A number that is NaN leaves the value as it is.
        numeric, whole : ndarray [D], bool
            Columns that take the numbers, and those of them that are rounded.
        """
        made = np.empty((rows, len(self.names)), self.array.dtype)
        plain = bool(numeric.all()) and not whole.any()
        for part, origin, numbers in parts:
            gaps = np.isnan(numbers) if numbers.dtype.kind == "f" else np.zeros(1, bool)
            if plain and not gaps.any():
                made[part] = numbers
                continue
            made[part] = np.take_along_axis(self.flat, origin, 0)
            if numeric.any():
                rounded = np.where(whole, np.rint(numbers), numbers)
                np.copyto(made[part], rounded, where=numeric & ~gaps, casting="unsafe")
        return self._restore(made.reshape(rows, *self.array.shape[1:]))


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
