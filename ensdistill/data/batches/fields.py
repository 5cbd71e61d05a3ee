"""Mappings of names to batches of equal length: token ids with their mask, an image and a table row, two
sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from ensdistill.data.batches import kind as b
from ensdistill.data.batches.row_hashes import row_hashes


class Fields:
    """Dicts of ``str`` to a batch of any kind, all of one length."""

    name = "mapping"

    def holds(self, value: Any) -> bool:
        if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
            return False
        sizes = {name: b.kind_of(part, f"inputs[{name!r}]").count(part) for name, part in value.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"inputs: expected as many samples in each field; got {sizes}")
        return True

    def count(self, batch: Mapping[str, Any]) -> int:
        first = next(iter(batch.values()))
        return len(first) if isinstance(first, list) else b.count(first)  # an empty list has no kind

    def take(self, batch: Mapping[str, Any], index: np.ndarray | slice) -> dict[str, Any]:
        return {name: b.take(part, index) for name, part in batch.items()}

    def join(self, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {name: b.join([batch[name] for batch in batches]) for name in batches[0]}

    def hashes(self, batch: Mapping[str, Any]) -> np.ndarray:
        names = sorted(batch)
        if not self.count(batch):
            return np.zeros(0, "<u8")
        seed = xxhash.xxh3_64_intdigest("\0".join(names).encode())
        return row_hashes(np.stack([b.hashes(batch[name]) for name in names], 1), seed)

    def describe(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {"fields": {name: b.describe(batch[name]) for name in sorted(batch)}}


b.register(Fields())
