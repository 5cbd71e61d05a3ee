"""Random changes of inputs that keep the class. The draws are separate from their application, so that many
models' batches, each with draws from its own generator, are changed in one call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ensdistill.common.scalars import plain_fields
from ensdistill.data.augmentation.chain import Chain
from ensdistill.data.augmentation.colour import JitterColours
from ensdistill.data.augmentation.geometry import CropImages, FlipImages
from ensdistill.data.augmentation.on_batches import apply_to, changed_variants
from ensdistill.data.augmentation.protocol import Augmentation, Versioned

__all__ = [
    "Augmentation",
    "Chain",
    "CropImages",
    "FlipImages",
    "JitterColours",
    "ShiftImages",
    "Versioned",
    "apply_to",
    "changed_variants",
]

# Caches name the augmentation that they were made with by its class path and code, so ShiftImages stays here.


@dataclass(frozen=True)
class ShiftImages:
    """Shift each image by up to ``pixels`` in each direction; pixels from outside are zero, nothing is
    wrapped around.

    Parameters
    ----------
    pixels : int
        The largest shift, at least 1.
    diagonal : bool
        Whether an image may shift in both directions at once.

    Examples
    --------
    >>> to_the_right = torch.tensor([[0, 1]])
    >>> ShiftImages(1).apply(torch.ones(1, 1, 2, 2), to_the_right).tolist()
    [[[[0.0, 1.0], [0.0, 1.0]]]]
    """

    pixels: int = 1
    diagonal: bool = True

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.pixels < 1:
            raise ValueError(f"augment.pixels: expected at least 1; got {self.pixels}")

    def _offsets(self) -> np.ndarray:
        reach = range(-self.pixels, self.pixels + 1)
        pairs = [(y, x) for y in reach for x in reach if self.diagonal or y == 0 or x == 0]
        return np.array(
            sorted(pairs, key=lambda pair: pair != (0, 0)), np.int64
        )  # (0, 0) first; the sort is stable

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Offsets (down, right) in pixels: int64 [count, 2]."""
        offsets = self._offsets()
        return offsets[generator.integers(len(offsets), size=count)]

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Shift ``inputs`` [N, channels, height, width] by ``draws`` [N, 2].

        Raises
        ------
        ValueError
            The inputs are not images.
        """
        if inputs.ndim != 4:
            raise ValueError(
                f"inputs: ShiftImages expects images [N, channels, height, width]; got {list(inputs.shape)}"
            )
        p, (height, width) = self.pixels, inputs.shape[2:]
        padded = F.pad(inputs, (p, p, p, p))
        # One flat index per output pixel and sample: a single gather instead of one slice per sample.
        rows = torch.arange(height, device=inputs.device) + p - draws[:, :1]
        columns = torch.arange(width, device=inputs.device) + p - draws[:, 1:]
        index = (rows[:, :, None] * (width + 2 * p) + columns[:, None, :]).flatten(1)
        index = index[:, None].expand(-1, inputs.shape[1], -1)
        return padded.flatten(2).gather(2, index).view(inputs.shape)

    def variants(self, inputs: np.ndarray) -> list[np.ndarray]:
        count = len(inputs)
        return [
            self.apply(
                torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(offset).expand(count, 2)
            ).numpy()
            for offset in self._offsets()
        ]
