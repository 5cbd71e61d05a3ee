"""Flips and crops of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ensdistill.common.scalars import plain_fields
from ensdistill.data.augmentation.protocol import Drawn, as_before, check_images, to_float


@dataclass(frozen=True)
class FlipImages:
    """Mirror half of the images, left to right, top to bottom, or both.

    Parameters
    ----------
    horizontal, vertical : bool
        The directions in which an image may be mirrored, each with a probability of one half.

    Examples
    --------
    >>> FlipImages().apply(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[True, False]])).tolist()
    [[[[2.0, 1.0]]]]
    """

    horizontal: bool = True
    vertical: bool = False

    def __post_init__(self) -> None:
        plain_fields(self)
        if not (self.horizontal or self.vertical):
            raise ValueError("augment: horizontal, vertical: expected at least one of them to be true")

    def _flips(self) -> np.ndarray:
        across, down = (
            ([False, True] if allowed else [False]) for allowed in (self.horizontal, self.vertical)
        )
        return np.array([(x, y) for y in down for x in across])

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Whether to mirror left to right, and top to bottom: bool [count, 2]."""
        flips = self._flips()
        return flips[generator.integers(len(flips), size=count)]

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Mirror ``inputs`` [N, channels, height, width] by ``draws`` [N, 2]."""
        check_images("FlipImages", inputs)
        across, down = (draws[:, i].bool()[:, None, None, None] for i in (0, 1))
        made = torch.where(across, inputs.flip(3), inputs)
        return torch.where(down, made.flip(2), made)

    def variants(self, inputs: np.ndarray) -> list[np.ndarray]:
        tensor = torch.from_numpy(np.ascontiguousarray(inputs))
        return [
            self.apply(tensor, torch.from_numpy(flip).expand(len(inputs), 2)).numpy()
            for flip in self._flips()
        ]


@dataclass(frozen=True)
class CropImages(Drawn):
    """Cut a random part out of each image and enlarge it to the image's size (Szegedy et al., 2015, "Going
    Deeper with Convolutions").

    Parameters
    ----------
    area : (float, float)
        The least and the largest share of the image's area, in (0, 1]; drawn uniformly.
    ratio : (float, float)
        The least and the largest ratio of width to height, relative to that of the image; its logarithm is
        drawn uniformly. A part that would be wider or higher than the image is cut at the image's edge.
    versions : int
        Versions of each image for learners that take no batches, the unchanged one among them.

    Notes
    -----
    The part is resized bilinearly, its pixels' centres as those of the image.

    Examples
    --------
    >>> whole_image = torch.tensor([[1.0, 1.0, 0.5, 0.5]])
    >>> CropImages().apply(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), whole_image).tolist()
    [[[[1.0, 2.0], [3.0, 4.0]]]]
    """

    area: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    versions: int = 4

    def __post_init__(self) -> None:
        plain_fields(self)
        for name, (low, high), most in (("area", self.area, 1.0), ("ratio", self.ratio, np.inf)):
            object.__setattr__(self, name, (low, high))
            if not (0 < low <= high <= most):
                raise ValueError(
                    f"augment.{name}: expected 0 < least <= largest <= {most:g}; got {low}, {high}"
                )
        if self.versions < 2:
            raise ValueError(f"augment.versions: expected at least 2; got {self.versions}")

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Height and width of the part as shares of the image's, and its place among all places from top to
        bottom and from left to right, 0 to 1: float64 [count, 4]."""
        area = generator.uniform(*self.area, count)
        ratio = np.exp(generator.uniform(np.log(self.ratio[0]), np.log(self.ratio[1]), count))
        sides = np.minimum(1.0, np.sqrt([area / ratio, area * ratio])).T
        return np.concatenate([sides, generator.random((count, 2))], axis=1)

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Crop ``inputs`` [N, channels, height, width] by ``draws`` [N, 4]; integers are rounded."""
        check_images("CropImages", inputs)
        images = to_float(inputs)
        height, width, down, right = draws.to(images.dtype).unbind(1)
        # Coordinates run from -1 to 1: the part's centre may move by what the part leaves free on each side.
        zero = torch.zeros_like(height)
        across = torch.stack([width, zero, (1 - width) * (2 * right - 1)], 1)
        along = torch.stack([zero, height, (1 - height) * (2 * down - 1)], 1)
        grid = F.affine_grid(torch.stack([across, along], 1), list(images.shape), align_corners=False)
        made = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return as_before(made, inputs)
