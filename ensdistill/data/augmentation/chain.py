"""Several augmentations one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ensdistill.data.augmentation.protocol import Augmentation, Drawn


@dataclass(frozen=True)
class Chain(Drawn):
    """Augmentations one after the other.

    Parameters
    ----------
    steps : sequence of Augmentation
        Each draws one row of numbers for a sample.
    versions : int
        Versions of each sample for learners that take no batches, the unchanged one among them.

    Examples
    --------
    >>> from ensdistill.data.augmentation import FlipImages, ShiftImages
    >>> chain = Chain([ShiftImages(2), FlipImages()])
    >>> chain.draw(5, np.random.default_rng(0)).shape
    (5, 4)
    """

    steps: Sequence[Augmentation]
    versions: int = 4

    def __post_init__(self) -> None:
        if not len(self.steps) or self.versions < 2:
            raise ValueError(
                f"augment: expected at least one step and 2 versions; got {len(self.steps)} and "
                f"{self.versions}"
            )

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """The draws of all steps side by side: float64 [count, numbers]."""
        drawn = [step.draw(count, generator).reshape(count, -1) for step in self.steps]
        return np.concatenate([one.astype(np.float64) for one in drawn], axis=1)

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        first = 0
        for step in self.steps:
            example = torch.from_numpy(step.draw(1, np.random.default_rng(0)))
            width = example.numel()
            own = draws[:, first : first + width].to(example.dtype).reshape(-1, *example.shape[1:])
            inputs, first = step.apply(inputs, own), first + width
        return inputs
