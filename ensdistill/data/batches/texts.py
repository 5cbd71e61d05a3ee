"""Lists of strings: one text a sample."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import xxhash

from ensdistill.data.batches.kind import register

_SEED = xxhash.xxh3_64_intdigest(b"text")


class Texts:
    """Lists (or tuples) of ``str``, none of them missing."""

    name = "text"

    def holds(self, value: Any) -> bool:
        return (
            isinstance(value, (list, tuple))
            and all(isinstance(text, str) for text in value)
            and len(value) > 0
        )

    def count(self, batch: Sequence[str]) -> int:
        return len(batch)

    def take(self, batch: Sequence[str], index: np.ndarray | slice) -> list[str]:
        if isinstance(index, slice):
            return list(batch[index])
        return [batch[i] for i in index.tolist()]

    def join(self, batches: Sequence[Sequence[str]]) -> list[str]:
        return list(chain.from_iterable(batches))

    def hashes(self, batch: Sequence[str]) -> np.ndarray:
        values = (xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), _SEED) for text in batch)
        return np.fromiter(values, "<u8", count=len(batch))

    def describe(self, batch: Sequence[str]) -> dict[str, Any]:
        return {}


register(Texts())
