"""Class ids in as few bits as they need."""

from __future__ import annotations

import numpy as np

from ensdistill.cache.native import shards


def id_bits(classes: int) -> int:
    """Bits of a class id: ceil(log2 C), at least 1."""
    return max(1, (classes - 1).bit_length())


def packed_bytes(count: int, classes: int) -> int:
    """Bytes that ``count`` packed ids take."""
    return (count * id_bits(classes) + 7) // 8


def pack_ids(ids: np.ndarray, classes: int) -> np.ndarray:
    """Ids int32 [N, k] in as few bits as C classes need, uint8 [N, ceil(k bits / 8)]."""
    return shards.pack(np.ascontiguousarray(ids, np.int32), id_bits(classes))


def unpack_ids(packed: np.ndarray, count: int, classes: int) -> np.ndarray:
    """The ids int32 [N, count] that `pack_ids` packed."""
    if not len(packed):
        return np.empty((0, count), np.int32)
    return shards.unpack(packed, count, id_bits(classes))
