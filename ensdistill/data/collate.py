"""Single samples of a lazy data set, put together to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensdistill.data import batches as b
from ensdistill.data.batches.arrays import is_tensor
from ensdistill.data.batches.images import IMAGES

LARGEST = 2**53  # up to here every integer is a float64


def collate(items: Sequence[Any], positions: Sequence[int] | None = None, argument: str = "items") -> Any:
    """One batch of single samples: arrays are stacked, dicts taken key by key, strings and images listed.

    Numbers of Python, int or float, become float64: by their values, the dtype would depend on the batch.
    Integers that a model needs as such are ``np.int64``. An image is a uint8 array [H, W] or [H, W, 1 to 4
    channels] of NumPy, or one of Pillow.

    Parameters
    ----------
    items : sequence
    positions : sequence of int, optional
        Of the items in their data set; messages name them. By default they count within the batch.
    argument : str
        The name of the items in messages.

    Raises
    ------
    TypeError, ValueError
        A sample is None, or the samples are not all of one kind and shape, or of none that is known; names
        the first that differs.

    Examples
    --------
    >>> collate([{"ids": np.array([1, 2])}, {"ids": np.array([3, 4])}])
    {'ids': array([[1, 2],
           [3, 4]])}
    """
    if not items:
        raise ValueError("items: expected at least one sample; got none")
    first = items[0]

    def named(i: int) -> str:
        return f"item {i} of the batch" if positions is None else f"sample {positions[i]}"

    for i, item in enumerate(items):
        if item is None:
            raise ValueError(
                f"{argument}: expected a value in each sample; that of {named(i)} is None: put a value in "
                "its place (nan for a number that is missing), or leave the sample out"
            )
    if isinstance(first, Mapping):
        for i, item in enumerate(items):
            if not isinstance(item, Mapping) or set(item) != set(first):
                got = sorted(item) if isinstance(item, Mapping) else type(item).__name__
                raise ValueError(
                    f"{argument}: expected dicts with the keys {sorted(first)}; {named(i)} is {got}"
                )
        return {
            name: collate([item[name] for item in items], positions, f"{argument}[{name!r}]")
            for name in first
        }
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
                    f"{argument}: expected {first.dtype} {list(first.shape)} like the first; {named(i)} is "
                    f"{got}: pad or crop them to one shape"
                )
        if tensors:
            import torch

            return torch.stack(list(items))
        return np.stack(items)
    if isinstance(first, (int, float)):
        kinds = bool if isinstance(first, bool) else (int, float)
        for i, item in enumerate(items):
            if not isinstance(item, kinds) or isinstance(item, bool) != isinstance(first, bool):
                raise ValueError(
                    f"{argument}: expected {'booleans' if kinds is bool else 'numbers'} like the first; "
                    f"{named(i)} is {item!r}: make them alike"
                )
            if isinstance(item, int) and abs(item) > LARGEST:
                raise ValueError(
                    f"{argument}: expected numbers that a float64 holds; {named(i)} is {item}: give "
                    "np.int64 of it"
                )
        return np.array(items, bool if kinds is bool else np.float64)
    b.kind_of(list(items), argument)
    return list(items)
