"""Sources for images: augmented versions, and CutMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.common.scalars import plain_fields
from ensdistill.data import batches as b
from ensdistill.data.augmentation import Augmentation, apply_to, changed_variants
from ensdistill.data.transfer.arrays import as_array
from ensdistill.data.transfer.base import check_rows

_STEP = 1024  # samples changed at once, which bounds the memory


@dataclass(frozen=True)
class Augmented:
    """Versions of the samples by an augmentation.

    Of an augmentation with a list of variants, each variant of a sample at most once, drawn at random where
    fewer are wanted than there are. Others (crops, colours, chains) draw a version of each sample in turn.

    Parameters
    ----------
    augment : Augmentation
        For example ``ShiftImages``, whose shifts are filled with zeros.
    rows : int
        Where the variants are listed, at most (variants - 1) times the rows of the base.

    Examples
    --------
    >>> from ensdistill.data.augmentation import FlipImages
    >>> images = [np.array([[1, 2]], np.uint8), np.array([[3, 4], [5, 6]], np.uint8)]
    >>> made = Augmented(FlipImages(), rows=2).make(images, np.random.default_rng(0))
    >>> sorted(image.tolist() for image in made)
    [[[2, 1]], [[4, 3], [6, 5]]]
    """

    augment: Augmentation
    rows: int

    def __post_init__(self) -> None:
        plain_fields(self)
        check_rows("augmented", self.rows)

    def make(self, base: Any, generator: np.random.Generator) -> Any:
        count = b.count(base)
        if not getattr(self.augment, "finite", True):
            own, draws = np.arange(self.rows) % count, self.augment.draw(self.rows, generator)
            steps = [slice(start, start + _STEP) for start in range(0, self.rows, _STEP)]
            return b.join([apply_to(self.augment, b.take(base, own[s]), draws[s]) for s in steps])
        versions = len(changed_variants(self.augment, b.take(base, slice(0, 1))))
        if self.rows > versions * count:
            raise ValueError(
                f"augmented: rows: expected at most {versions * count}, all variants of {count} rows; got "
                f"{self.rows}"
            )
        version, row = np.divmod(generator.permutation(versions * count)[: self.rows], count)
        parts, places = [], []
        for start in range(0, count, _STEP):
            here = np.flatnonzero((row >= start) & (row < start + _STEP))
            if not len(here):
                continue
            used, inner = np.unique(row[here], return_inverse=True)
            variants = b.join(changed_variants(self.augment, b.take(base, used)))
            parts.append(b.take(variants, version[here] * len(used) + inner))
            places.append(here)
        return b.take(b.join(parts), np.argsort(np.concatenate(places), kind="stable"))


@dataclass(frozen=True)
class CutMix:
    """Images with a rectangle from another one (Yun et al., 2019, "CutMix: Regularization Strategy to Train
    Strong Classifiers with Localizable Features"), for their inputs alone.

    Parameters
    ----------
    rows : int
    alpha : float
        The share of the image that stays is drawn from Beta(alpha, alpha). The rectangle has the image's
        proportions and a random centre, and ends at the image's edge.

    Examples
    --------
    >>> images = np.stack([np.zeros((1, 4, 4)), np.ones((1, 4, 4))])
    >>> CutMix(rows=3).make(images, np.random.default_rng(0)).shape
    (3, 1, 4, 4)
    """

    rows: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        plain_fields(self)
        check_rows("cutmix", self.rows)
        if not (0 < self.alpha < np.inf):
            raise ValueError(f"cutmix: alpha: expected a positive number; got {self.alpha}")

    def make(self, base: Any, generator: np.random.Generator) -> Any:
        """``rows`` images like those of ``base``.

        Raises
        ------
        TypeError, ValueError
            The base holds no images [N, channels, height, width], or images of different sizes.
        """
        kind = b.kind_of(base, "cutmix").name
        if kind not in ("array", "tensor", "images"):
            raise TypeError(f"cutmix: expected images; got {kind}")
        images, restore = as_array("cutmix", base)
        if kind != "images" and images.ndim != 4:
            raise ValueError(
                f"cutmix: expected images [N, channels, height, width]; got {list(images.shape)}"
            )
        # Images in a list have their channels last, or none.
        axes = (1, 2) if kind == "images" else (2, 3)
        height, width = (images.shape[axis] for axis in axes)
        first, second = generator.integers(len(images), size=(2, self.rows))
        side = np.sqrt(1 - generator.beta(self.alpha, self.alpha, self.rows))
        inside = [_within(size, side * size, generator.random(self.rows) * size) for size in (height, width)]
        made = images[first]
        for start in range(0, self.rows, _STEP):
            part = slice(start, start + _STEP)
            cut = inside[0][part, :, None] & inside[1][part, None, :]
            shape = [len(cut), *[1] * (images.ndim - 1)]
            shape[axes[0]], shape[axes[1]] = height, width
            np.copyto(made[part], images[second[part]], where=cut.reshape(shape))
        return restore(made)


def _within(size: int, length: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Which of ``size`` pixels lie in the stretch of each sample: bool [M, size]."""
    low, high = np.rint(centre - length / 2), np.rint(centre + length / 2)
    pixels = np.arange(size)
    inside: np.ndarray = (pixels >= low[:, None]) & (pixels < high[:, None])
    return inside
