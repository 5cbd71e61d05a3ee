"""Single samples of a lazy data set, put together to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensdistill.data import batches as b
from ensdistill.data.batches.arrays import is_tensor
from ensdistill.data.batches.images import IMAGES


def collate(items: Sequence[Any]) -> Any:
    """One batch of single samples: arrays are stacked, dicts taken key by key, strings and images listed.

    An image is a uint8 array [H, W] or [H, W, 1 to 4 channels] of NumPy, or one of Pillow.

    Raises
    ------
    TypeError, ValueError
        The samples are not all of one kind and shape, or of none that is known; names the first two that
        differ.

    Examples
    --------
    >>> collate([{"ids": np.array([1, 2])}, {"ids": np.array([3, 4])}])
    {'ids': array([[1, 2],
           [3, 4]])}
    """
    if not items:
        raise ValueError("items: expected at least one sample; got none")
    first = items[0]
    if isinstance(first, Mapping):
        for i, item in enumerate(items):
            if not isinstance(item, Mapping) or set(item) != set(first):
                got = sorted(item) if isinstance(item, Mapping) else type(item).__name__
                raise ValueError(
                    f"items: expected dicts with the keys {sorted(first)}; item {i} of the batch is {got}"
                )
        return {name: collate([item[name] for item in items]) for name in first}
    tensors = is_tensor(first)
    # Images may differ in size: were they stacked where they don't, the kind of a batch would depend on which
    # samples stand in it.
    if IMAGES.holds(list(items)):
        return list(items)
    if isinstance(first, (np.ndarray, np.generic)) or tensors:
        for i, item in enumerate(items):
            if type(item) is not type(first) or item.shape != first.shape or item.dtype != first.dtype:
                got = f"{item.dtype} {list(item.shape)}" if hasattr(item, "dtype") else type(item).__name__
                raise ValueError(
                    f"items: expected {first.dtype} {list(first.shape)} like the first; item {i} of the "
                    f"batch is {got}: "
                    "pad or crop them to one shape"
                )
        if tensors:
            import torch

            return torch.stack(list(items))
        return np.stack(items)
    if isinstance(first, (int, float, bool)):
        return np.asarray(items)
    b.kind_of(list(items), "items")
    return list(items)
