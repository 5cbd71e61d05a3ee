"""NumPy arrays and torch tensors [N, ...] of numbers, of any dtype."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from ensdistill.data.batches.kind import register
from ensdistill.data.batches.row_hashes import row_hashes

if TYPE_CHECKING:
    from torch import Tensor


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of torch, which is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


class Arrays:
    """NumPy arrays [N, ...] of numbers, booleans or strings of fixed width."""

    name = "array"

    def holds(self, value: Any) -> bool:
        return isinstance(value, np.ndarray) and value.ndim > 0 and not value.dtype.hasobject

    def count(self, batch: np.ndarray) -> int:
        return len(batch)

    def take(self, batch: np.ndarray, index: np.ndarray | slice) -> np.ndarray:
        taken: np.ndarray = batch[index]
        return taken

    def join(self, batches: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(batches)

    def hashes(self, batch: np.ndarray) -> np.ndarray:
        shape = batch.shape[1:]
        seed = xxhash.xxh3_64_intdigest(f"{batch.dtype.str}:{list(shape)}".encode())
        return row_hashes(batch, seed)

    def describe(self, batch: np.ndarray) -> dict[str, Any]:
        return {"dtype": str(batch.dtype), "shape": list(batch.shape[1:])}


class Tensors:
    """Torch tensors [N, ...], of dtypes that NumPy has not (bfloat16) too."""

    name = "tensor"

    def holds(self, value: Any) -> bool:
        return is_tensor(value) and value.ndim > 0 and str(value.layout) == "torch.strided"

    def count(self, batch: Tensor) -> int:
        return len(batch)

    def take(self, batch: Tensor, index: np.ndarray | slice) -> Tensor:
        import torch

        return batch[index if isinstance(index, slice) else torch.from_numpy(np.asarray(index))]

    def join(self, batches: Sequence[Tensor]) -> Tensor:
        import torch

        return torch.cat(list(batches))

    def hashes(self, batch: Tensor) -> np.ndarray:
        batch = batch.detach().cpu().contiguous()
        # The bits of the same values in float32, so that the hash tells nothing of the container.
        if str(batch.dtype) == "torch.bfloat16":
            raw = batch.float().numpy()
            return ARRAYS.hashes(raw)
        return ARRAYS.hashes(batch.numpy())

    def describe(self, batch: Tensor) -> dict[str, Any]:
        return {"dtype": str(batch.dtype).removeprefix("torch."), "shape": list(batch.shape[1:])}


ARRAYS = Arrays()
register(Tensors())
register(ARRAYS)
