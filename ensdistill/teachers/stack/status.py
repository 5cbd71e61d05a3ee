"""The state of a training, for its watchers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Status:
    """How far some models are.

    Parameters
    ----------
    names : tuple of str [M]
    step, steps : int
        Done, and in all, of each of them.
    losses : ndarray [M], float64
        Mean training loss since the last status; NaN where it isn't known.
    accuracies : ndarray [M], float64
        Likewise, of the training rows seen, in [0, 1].
    """

    names: tuple[str, ...]
    step: int
    steps: int
    losses: np.ndarray
    accuracies: np.ndarray


Watch = Callable[[Status], None]
