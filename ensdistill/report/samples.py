"""Single samples of a test set for the report: a picture, a text, or a row's fields."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ensdistill.data import batches as b

LETTERS = 400  # of a text
FIELDS = 24  # of a row
PIXELS = 160  # of a picture's longer side
COARSE = 64  # pixels up to which a picture is shown as squares, and not smoothed


def shown_sample(samples: Any, row: int) -> dict[str, Any]:
    """One sample as plain JSON.

    Parameters
    ----------
    samples : array, or samples
        See :mod:`ensdistill.data.samples`; only this row is read.
    row : int

    Returns
    -------
    dict
        ``text``, or ``png`` (base64), or ``fields``: a list of [name, value]; and ``more``, the number of
        letters or fields left out.

    Examples
    --------
    >>> shown_sample(np.array([[1.0, 2.5]]), 0)
    {'fields': [['0', '1'], ['1', '2.5']], 'more': 0}
    """
    return _shown(samples[np.array([row])])


def _shown(batch: Any) -> dict[str, Any]:
    kind = b.kind_of(batch)
    if kind.name == "text":
        return _text(batch[0])
    if kind.name == "images":
        return _picture(np.asarray(batch[0]))
    if kind.name == "table":
        import narwhals.stable.v2 as nw

        return _fields(nw.from_native(batch, eager_only=True).row(0), nw.from_native(batch).columns)
    if isinstance(batch, Mapping):
        return _mapping(batch)
    array = np.asarray(batch[0].float() if kind.name == "tensor" else batch[0])
    if (pixels := _as_picture(array)) is not None:
        return _picture(pixels)
    return _fields(array.ravel().tolist(), [str(i) for i in range(array.size)])


def is_coarse(png: str) -> bool:
    """Whether a picture (base64 of a PNG file) has so few pixels that each of them is to be seen."""
    header = base64.b64decode(png[:32])  # 24 bytes: width and height are the last eight of them
    return max(int.from_bytes(header[16:20]), int.from_bytes(header[20:24])) <= COARSE


def _mapping(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The first picture or text of a mapping of names to batches, else all fields."""
    parts = {name: _shown(part) for name, part in batch.items()}
    for part in parts.values():
        if "png" in part or "text" in part:
            return part
    named = [(f"{name} {field}", value) for name, part in parts.items() for field, value in part["fields"]]
    left_out = sum(part["more"] for part in parts.values()) + max(0, len(named) - FIELDS)
    return {"fields": [list(one) for one in named[:FIELDS]], "more": left_out}


def _text(text: str) -> dict[str, Any]:
    return {"text": text[:LETTERS], "more": max(0, len(text) - LETTERS)}


def _fields(values: Any, names: Any) -> dict[str, Any]:
    pairs = [[str(name), _value(value)] for name, value in zip(names, values, strict=True)]
    return {"fields": pairs[:FIELDS], "more": max(0, len(pairs) - FIELDS)}


def _value(value: Any) -> str:
    if isinstance(value, float):
        return "-" if np.isnan(value) else f"{value:.5g}"  # pandas has NaN where a number is missing
    return "-" if value is None else str(value)


def _as_picture(array: np.ndarray) -> np.ndarray | None:
    """uint8 [H, W] or [H, W, 3 or 4] of an array of an image's shape, [H, W], [C, H, W] or [H, W, C]; None of
    other arrays. Numbers that are no bytes are scaled from their own range."""
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not image or min(array.shape[:2]) < 2 or array.dtype.kind not in "fiub":
        return None
    if array.dtype == np.uint8:
        return array
    array = np.nan_to_num(array.astype(np.float64))
    low, high = array.min(), array.max()
    scaled: np.ndarray = np.rint(255 * (array - low) / (high - low if high > low else 1.0))
    return scaled.astype(np.uint8)


def _picture(pixels: np.ndarray) -> dict[str, Any]:
    from PIL import Image  # matplotlib, which draws the report's figures, needs it too

    image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    image.thumbnail((PIXELS, PIXELS))
    image.save(buffer := io.BytesIO(), "PNG")
    return {"png": base64.b64encode(buffer.getvalue()).decode(), "more": 0}
