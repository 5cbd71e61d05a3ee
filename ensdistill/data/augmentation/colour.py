"""Changes of brightness, contrast, saturation and hue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ensdistill.common.scalars import plain_fields
from ensdistill.data.augmentation.protocol import Drawn, as_before, check_images, to_float

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601: the weights of red, green and blue in brightness


@dataclass(frozen=True)
class JitterColours(Drawn):
    """Change brightness, contrast, saturation and hue of each image, in this order.

    Parameters
    ----------
    brightness, contrast, saturation : float
        A factor is drawn uniformly from 1 - x to 1 + x; in 0..1. Contrast is that to the image's mean grey,
        saturation that to each pixel's own grey. One that is 0 is left as it is.
    hue : float
        The largest turn of the colours around the grey axis, as a share of the full circle, in 0..0.5.
    maximum : float
        The largest value of floating-point images, whose least value is 0. Integers have that of their dtype.
    versions : int
        Versions of each image for learners that take no batches, the unchanged one among them.

    Notes
    -----
    Saturation and hue change images of 3 or 4 channels (red, green, blue, and an opacity that stays). Values
    beyond 0 and the maximum are cut off.

    Examples
    --------
    >>> twice_as_bright = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    >>> JitterColours().apply(torch.tensor([[[[0.25, 0.75]]]]), twice_as_bright).tolist()
    [[[[0.5, 1.0]]]]
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.0
    maximum: float = 1.0
    versions: int = 4

    def __post_init__(self) -> None:
        plain_fields(self)
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not (0 <= (value := getattr(self, name)) <= most):
                raise ValueError(f"augment.{name}: expected a number from 0 to {most}; got {value}")
        if self.maximum <= 0 or self.versions < 2:
            raise ValueError(
                f"augment: expected a positive maximum and at least 2 versions; got {self.maximum} and "
                f"{self.versions}"
            )

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Factors of brightness, contrast and saturation, and the turn of the hue: float64 [count, 4]."""
        reach = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        return np.array([1.0, 1.0, 1.0, 0.0]) + generator.uniform(-1, 1, (count, 4)) * reach

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Change ``inputs`` [N, channels, height, width] by ``draws`` [N, 4]; integers are rounded.

        Raises
        ------
        ValueError
            Not images, or floating-point values outside 0..maximum.
        """
        check_images("JitterColours", inputs)
        images, channels = to_float(inputs), inputs.shape[1]
        top = self.maximum if inputs.is_floating_point() else torch.iinfo(inputs.dtype).max
        if inputs.numel() and (images.amin() < 0 or images.amax() > top):
            raise ValueError(
                f"inputs: JitterColours expects values in 0..{top:g} (maximum); got {images.amin():g} to "
                f"{images.amax():g}. Augment before images are normalised"
            )
        factors = draws.to(images.dtype)[:, :, None, None, None]
        colours = images[:, :3] if channels >= 3 else images[:, :1]
        weights = torch.tensor(_GREY if channels >= 3 else (1.0,), dtype=images.dtype, device=images.device)
        made = (colours * factors[:, 0]).clamp(0, top)
        grey = self._grey(made, weights).mean((2, 3), keepdim=True)
        made = (grey + (made - grey) * factors[:, 1]).clamp(0, top)
        if channels >= 3:
            grey = self._grey(made, weights)
            made = (grey + (made - grey) * factors[:, 2]).clamp(0, top)
            if self.hue:
                made = torch.einsum("nij,njhw->nihw", _turns(factors[:, 3, 0, 0, 0]), made).clamp(0, top)
        made = torch.cat([made, images[:, made.shape[1] :]], 1)
        return as_before(made, inputs)

    @staticmethod
    def _grey(images: Tensor, weights: Tensor) -> Tensor:
        return (images * weights[:, None, None]).sum(1, keepdim=True)


def _turns(shares: Tensor) -> Tensor:
    """Rotations of colours around the grey axis by shares [N] of the circle: [N, 3, 3] (Rodrigues)."""
    angle = 2 * math.pi * shares[:, None, None]
    third = torch.full((3, 3), 1 / 3, dtype=shares.dtype, device=shares.device)
    # The cross product with (1, 1, 1) / sqrt(3).
    cross = (
        torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=shares.dtype, device=shares.device) / 3**0.5
    )
    eye = torch.eye(3, dtype=shares.dtype, device=shares.device)
    return eye * angle.cos() + third * (1 - angle.cos()) + cross * angle.sin()
