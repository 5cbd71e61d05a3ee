"""Augmentations of batches of any kind that hold images: arrays, tensors, and lists of images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ensdistill.data import batches as b
from ensdistill.data.augmentation.protocol import Augmentation


def apply_to(augment: Augmentation, batch: Any, draws: np.ndarray) -> Any:
    """A batch changed by ``draws`` [N, ...], in a container of its kind.

    Parameters
    ----------
    augment : Augmentation
    batch : ndarray or Tensor [N, ...], or list of N images
        Images in a list, uint8 [height, width] or [height, width, channels] or Pillow's, may differ in size.
    draws : ndarray [N, ...]

    Raises
    ------
    TypeError
        Samples of another kind: an augmentation changes numbers.

    Examples
    --------
    >>> from ensdistill.data.augmentation import ShiftImages
    >>> images = [np.ones((2, 2), np.uint8), np.ones((1, 3, 3), np.uint8)]
    >>> [image.tolist() for image in apply_to(ShiftImages(), images, np.array([[0, 1], [0, -1]]))]
    [[[0, 1], [0, 1]], [[[1, 1, 1], [1, 1, 1], [0, 0, 0]]]]
    """
    kind = b.kind_of(batch).name
    if kind == "array":
        return augment.apply(torch.from_numpy(np.ascontiguousarray(batch)), torch.from_numpy(draws)).numpy()
    if kind == "tensor":
        return augment.apply(batch, torch.from_numpy(draws).to(batch.device))
    if kind != "images":
        raise _refused(augment, kind)
    return _on_images(
        batch,
        lambda pixels, places: [
            augment.apply(torch.from_numpy(pixels), torch.from_numpy(draws[places])).numpy()
        ],
    )[0]


def changed_variants(augment: Augmentation, batch: Any) -> list[Any]:
    """All variants of a batch but the first, which is the batch itself; see ``Augmentation.variants``."""
    kind = b.kind_of(batch).name
    if kind == "array":
        return augment.variants(batch)[1:]
    if kind == "tensor":
        return [torch.from_numpy(made).to(batch.dtype) for made in augment.variants(_as_numpy(batch))[1:]]
    if kind != "images":
        raise _refused(augment, kind)
    return _on_images(batch, lambda pixels, _: augment.variants(pixels)[1:])


def _on_images(images: Any, change: Callable[[np.ndarray, np.ndarray], list[np.ndarray]]) -> list[list[Any]]:
    """Versions of images, made for those of one size at a time as an array [n, channels, height, width]."""
    shapes: dict[Any, list[int]] = {}
    for place, image in enumerate(images):
        shapes.setdefault((np.asarray(image).shape, getattr(image, "mode", None)), []).append(place)
    made: list[list[Any]] = []
    for shape_and_mode, places in shapes.items():
        shape = shape_and_mode[0]
        pixels = np.stack([np.asarray(images[place]) for place in places])
        first = pixels[:, None] if len(shape) == 2 else np.moveaxis(pixels, -1, 1)
        for version, changed in enumerate(change(np.ascontiguousarray(first), np.array(places))):
            back = changed[:, 0] if len(shape) == 2 else np.moveaxis(changed, 1, -1)
            made += [[None] * len(images)] * (version == len(made))
            for place, one in zip(places, np.ascontiguousarray(back), strict=True):
                like = images[place]
                plain = isinstance(like, np.ndarray)
                made[version][place] = one if plain else sys.modules["PIL.Image"].fromarray(one, like.mode)
    return made


def _refused(augment: Augmentation, kind: str) -> TypeError:
    name = type(augment).__name__
    return TypeError(f"inputs: expected arrays, tensors or images, which {name} can change; got {kind}")


def _as_numpy(batch: torch.Tensor) -> np.ndarray:
    plain = batch.detach().cpu()
    array: np.ndarray = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array
