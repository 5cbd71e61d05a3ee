"""Images to the float tensor that a vision network takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ensdistill.data import batches as b
from ensdistill.data.preprocess.base import Settings


@dataclass(frozen=True)
class ImageTransform(Settings):
    """Resize, crop the centre, scale to 0..1 and normalise.

    Takes images (uint8 [H, W] or [H, W, C], sizes may differ), or an array of such images, and returns
    float32 [N, C, size, size] (or of the images' own size).

    Parameters
    ----------
    size : int, optional
        Pixels of the sides of the result. By default the images keep their size, which has to be one.
    resize : int, optional
        Pixels of the shorter side before the centre is cropped; ``size`` by default.
    mean, std : tuple of float
        Of each channel, or one for all, after scaling to 0..1.
    layout : {"channels_last", "channels_first"}
        Of an array [N, H, W, C] or [N, C, H, W]; single images and Pillow's have their channels last.

    Notes
    -----
    Resizing is bilinear with antialiasing, as torchvision's ``Resize`` does with tensors.

    Examples
    --------
    >>> images = [np.full((6, 4), 255, np.uint8), np.zeros((4, 4), np.uint8)]
    >>> ImageTransform(size=4)(images).mean((1, 2, 3)).tolist()
    [1.0, 0.0]
    """

    size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["channels_last", "channels_first"] = "channels_last"

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size: expected at least 1 pixel; got {self.size}")
        if self.resize is not None and (self.size is None or self.resize < self.size):
            raise ValueError(
                f"resize: expected at least size, {self.size}, which is cropped from it; got {self.resize}"
            )
        if not self.std or min(self.std) <= 0:
            raise ValueError(f"std: expected positive numbers; got {self.std}")
        if self.layout not in ("channels_last", "channels_first"):
            raise ValueError(f"layout: expected 'channels_last' or 'channels_first'; got {self.layout!r}")

    def __call__(self, batch: Any) -> Tensor:
        """float32 [N, C, height, width].

        Raises
        ------
        TypeError, ValueError
            Not uint8 images; images of unlike sizes without ``size``; or another number of channels than
            ``mean`` has numbers.
        """
        images = self._listed(batch) if b.kind_of(batch).name == "images" else self._array(batch)
        if self.size:
            stacked = torch.stack([self._resized(image) for image in images])
        elif isinstance(images, Tensor):
            stacked = torch.empty(images.shape).copy_(images)
        else:
            shapes = sorted({tuple(image.shape) for image in images})
            raise ValueError(
                f"size: expected a size, because the images are of {len(shapes)} sizes, {shapes[:3]} ...; "
                "got None"
            )
        channels = stacked.shape[1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise ValueError(
                    f"{name}: expected one number, or one for each of the images' {channels} channels; got "
                    f"{len(values)}"
                )
        # In place, and without the steps that change nothing: fresh memory costs more than the arithmetic.
        stacked /= 255
        if any(self.mean):
            stacked -= torch.tensor(self.mean).view(-1, 1, 1)
        if any(value != 1 for value in self.std):
            stacked /= torch.tensor(self.std).view(-1, 1, 1)
        return stacked

    def _listed(self, batch: Any) -> Tensor | list[Tensor]:
        """uint8 [N, C, height, width] of images of one shape; of others a list of [C, height, width]."""
        pixels = [array if (array := np.asarray(image)).ndim == 3 else array[..., None] for image in batch]
        if len({array.shape for array in pixels}) == 1:
            return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        return [torch.from_numpy(np.array(array)).permute(2, 0, 1) for array in pixels]

    def _array(self, batch: Any) -> Tensor:
        array = batch if isinstance(batch, Tensor) else torch.from_numpy(np.array(batch))
        if array.dtype != torch.uint8 or array.ndim not in (3, 4):
            raise TypeError(
                f"inputs: expected uint8 images [N, H, W] or [N, H, W, C]; got {array.dtype} "
                f"{list(array.shape)}"
            )
        if array.ndim == 3:
            return array[:, None]
        return array.permute(0, 3, 1, 2) if self.layout == "channels_last" else array

    def _resized(self, image: Tensor) -> Tensor:
        size, (height, width) = int(self.size or 0), image.shape[1:]
        short = self.resize or size
        scale = short / min(height, width)
        target = (max(short, round(height * scale)), max(short, round(width * scale)))
        pixels = image[None].float()
        if target != (height, width):
            pixels = F.interpolate(pixels, target, mode="bilinear", antialias=True, align_corners=False)
        top, left = (target[0] - size) // 2, (target[1] - size) // 2
        return pixels[0, :, top : top + size, left : left + size]
