"""One hash for each row of bytes, by the compiled extension."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import xxhash

try:
    _native: Any = importlib.import_module("ensdistill._shards").row_hashes
except (ImportError, AttributeError):  # not compiled, or compiled before it had the function
    _native = None


def row_hashes(rows: np.ndarray, seed: int) -> np.ndarray:
    """XXH3 (64 bits, seeded) of each row's bytes; other threads run meanwhile.

    Parameters
    ----------
    rows : ndarray [N, ...]
        Of any dtype without Python objects; copied unless it is contiguous.
    seed : int
        From 0 to 2**64 - 1.

    Returns
    -------
    ndarray [N], little-endian uint64

    Examples
    --------
    >>> row_hashes(np.array([[1, 2], [3, 4]], np.uint8), 7)[1] == xxhash.xxh3_64_intdigest(bytes([3, 4]), 7)
    np.True_
    """
    raw = np.ascontiguousarray(rows).reshape(len(rows), -1 if rows.size else 0).view(np.uint8)
    return one_by_one(raw, seed) if _native is None else _native(raw, seed).astype("<u8", copy=False)


def one_by_one(raw: np.ndarray, seed: int) -> np.ndarray:
    """The same of uint8 [N, bytes], by the package xxhash."""
    return np.fromiter((xxhash.xxh3_64_intdigest(row.data, seed) for row in raw), "<u8", count=len(raw))
