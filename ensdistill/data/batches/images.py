"""Lists of images that may differ in size: uint8 arrays [H, W] or [H, W, channels], or Pillow's images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from ensdistill.data.batches.arrays import ARRAYS
from ensdistill.data.batches.kind import register


class Images:
    """Lists (or tuples) of uint8 arrays [H, W] or [H, W, 1 to 4 channels], or of ``PIL.Image.Image``."""

    name = "images"

    def holds(self, value: Any) -> bool:
        return (
            isinstance(value, (list, tuple)) and len(value) > 0 and all(_is_image(image) for image in value)
        )

    def count(self, batch: Sequence[Any]) -> int:
        return len(batch)

    def take(self, batch: Sequence[Any], index: np.ndarray | slice) -> list[Any]:
        return list(batch[index]) if isinstance(index, slice) else [batch[i] for i in index.tolist()]

    def join(self, batches: Sequence[Sequence[Any]]) -> list[Any]:
        return list(chain.from_iterable(batches))

    def hashes(self, batch: Sequence[Any]) -> np.ndarray:
        # Those of the same pixels in an array, so that equal images have one hash in a list and in an array.
        values = (ARRAYS.hashes(np.asarray(image)[None])[0] for image in batch)
        return np.fromiter(values, "<u8", count=len(batch))

    def describe(self, batch: Sequence[Any]) -> dict[str, Any]:
        channels = {1 if (a := np.asarray(image)).ndim == 2 else a.shape[2] for image in batch}
        if not channels:
            return {}
        if len(channels) > 1:
            raise ValueError(
                f"inputs: expected images that all have as many channels; got {sorted(channels)}: convert "
                "them, for example by "
                'image.convert("RGB")'
            )
        return {"channels": channels.pop()}


def _is_image(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and (value.ndim == 2 or (value.ndim == 3 and 1 <= value.shape[2] <= 4))
    # A Pillow image exists only where Pillow has been imported: nothing is imported to find out.
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image) and value.mode in ("L", "RGB", "RGBA", "LA")


IMAGES = Images()
register(IMAGES)
