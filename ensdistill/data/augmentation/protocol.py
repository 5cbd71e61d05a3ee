"""The interface of augmentations, and parts that they share."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ensdistill.common.random import random_generator


@runtime_checkable
class Augmentation(Protocol):
    """A random change of inputs; a config names its class by ``augment.class_path``."""

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draw the change of each of ``count`` samples: an array [count, ...]."""
        ...

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """``inputs`` [N, ...] changed by ``draws`` [N, ...]; new memory, same shape and dtype."""
        ...

    def variants(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Every version of ``inputs`` [N, ...] that can be drawn, the unchanged one first, for learners that
        take no batches."""
        ...


@runtime_checkable
class Versioned(Augmentation, Protocol):
    """An augmentation that makes versions of rows by their uids, and not by draws.
    :class:`ensdistill.data.transfer.Rounds` is one."""

    def version(self, inputs: Any, uids: np.ndarray, view: int, seed: int) -> Any:
        """Version ``view`` of the rows; the same for the same arguments in any process and order."""
        ...


class Drawn:
    """Base of an augmentation with more versions than can be listed.

    ``variants`` then returns the unchanged inputs and ``versions - 1`` drawn versions of each, the same at
    every call; :class:`~ensdistill.data.transfer.Augmented` draws as many as it needs.
    """

    versions: int
    finite = False

    def variants(self: Any, inputs: np.ndarray) -> list[np.ndarray]:
        tensor, made = torch.from_numpy(np.ascontiguousarray(inputs)), [inputs]
        for version in range(1, self.versions):
            draws = self.draw(len(inputs), random_generator("variants", repr(self), version))
            made.append(self.apply(tensor, torch.from_numpy(draws)).numpy())
        return made


def check_images(name: str, inputs: Tensor) -> None:
    """Raise ValueError for other inputs than images [N, channels, height, width]."""
    last = inputs.ndim == 4 and inputs.shape[1] > 4 and inputs.shape[3] <= 4
    if inputs.ndim != 4 or last:
        hint = "; these seem to have their channels last: permute them first" if last else ""
        raise ValueError(
            f"inputs: {name} expects images [N, channels, height, width]; got {list(inputs.shape)}{hint}"
        )


def to_float(inputs: Tensor) -> Tensor:
    """Images in a dtype to compute in: float32 for integers and half precision."""
    return inputs if inputs.dtype in (torch.float32, torch.float64) else inputs.float()


def as_before(made: Tensor, inputs: Tensor) -> Tensor:
    """Computed images in the dtype that they had before, rounded for integers; always new memory."""
    if not inputs.is_floating_point():
        info = torch.iinfo(inputs.dtype)
        made = made.round().clamp(info.min, info.max)
    return made.to(inputs.dtype)
