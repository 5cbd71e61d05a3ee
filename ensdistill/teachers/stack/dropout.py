"""Dropout whose masks belong to the model: keyed by its seed, the step and the place, not by the models
beside it.

torch draws the masks of a whole stack from one generator, so that a model's would depend on the others'.
These come from a hash of counters (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"): no
state, the same bits alone and under ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ensdistill.common.random import random_generator

# How many of the leading dimensions have draws of their own: all, or (dropout of whole channels) the first
# two.
_KINDS: dict[Any, int | None] = {F.dropout: None, F.dropout1d: 2, F.dropout2d: 2, F.dropout3d: 2}
_BITS = 24


def keys(seeds: Sequence[int], block: int, steps: int) -> np.ndarray:
    """Two words for each step of a block and each model: int32 [steps, models, 2]."""
    drawn = [random_generator("dropout", seed, block).integers(-(2**31), 2**31, (steps, 2)) for seed in seeds]
    return np.stack(drawn, axis=1).astype(np.int32)


class OwnDropout(TorchFunctionMode):
    """While it is entered, the functions of torch's dropout draw by ``key``; everything else is as it is.

    ``key``, int32 [2], is one model's; under ``vmap`` each model has its own. ``used`` is whether there was
    any dropout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used, self._calls, self._places = False, 0, dict[Any, Tensor]()
        self._key: Tensor | None = None

    def begin(self, key: Tensor) -> None:
        """The next calls are of a new step."""
        self._key, self._calls = key, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _KINDS:
            return self._drop(_KINDS[func], *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(
        self, dims: int | None, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return input
        self.used = True
        self._calls += 1
        if self._key is None or p >= 1:  # a trial, which only looks for dropout
            return input * 0 if p >= 1 else input
        shape = input.shape if dims is None else (*input.shape[:dims], *[1] * (input.dim() - dims))
        keep = self._hash(shape, input.device) >= round(p * 2**_BITS)
        return input * (keep * (1 / (1 - p))).to(input.dtype)

    def _hash(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Uniform integers below 2^24, int32 of this shape: the finaliser of Wellons' lowbias32, with half of
        the key before each multiplication."""
        at = (tuple(shape), device)
        if at not in self._places:
            count = int(np.prod(shape))
            self._places[at] = _mix(torch.arange(count, dtype=torch.int32, device=device), -1640531527).view(
                *shape
            )
        assert self._key is not None
        first, second = self._key[0] ^ _signed(self._calls * 0x9E3779B9), self._key[1]
        return (_mix(_mix(self._places[at] ^ first, 0x7FEB352D) ^ second, -2073254261) >> 8) & (2**_BITS - 1)


def _mix(x: Tensor, factor: int) -> Tensor:
    return (x ^ ((x >> 16) & 0xFFFF)) * factor  # a logical shift; products wrap


def _signed(word: int) -> int:
    return (word + 2**31) % 2**32 - 2**31
