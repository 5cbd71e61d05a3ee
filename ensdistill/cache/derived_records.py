"""Records that are made from those of another cache, for the caches that `derive` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdistill.cache import manifest as m
from ensdistill.cache import statistics
from ensdistill.cache.codecs import Codec, Fields
from ensdistill.cache.codecs.layout import INPUT_HASH
from ensdistill.cache.reader import TargetCache


class Derived:
    """Records made from those of another cache."""

    batch_size = 1024

    def __init__(self, source: TargetCache) -> None:
        self.source = source
        self.uids = source.uids if "uids" in source.manifest else None
        self.spent = m.cost_before(source.manifest)

    def settle(self, plan: m.Manifest) -> m.Manifest:
        return plan

    def lengths(self, view: int, rows: np.ndarray) -> np.ndarray | None:
        return (
            self.source.lengths(self.source.uids[rows], view) if self.source.manifest["sequences"] else None
        )

    def records(self, view: int, rows: np.ndarray) -> Fields:
        """The fields of the source's records."""
        return self.source.layout.views(self.source.gather_records(self.source.uids[rows], view))

    def kept_statistics(
        self, names: Sequence[str], view: int, rows: np.ndarray
    ) -> dict[str, statistics.Part]:
        """Statistics of members whose bytes do not change: of the whole cache, so with its first record."""
        parts = self.source.manifest["statistics"]["members"]
        return {name: parts[name] for name in names} if view == 0 and rows[0] == 0 else {}


class Converted(Derived):
    """Records of every member, or of their mixture, in another codec."""

    def __init__(self, source: TargetCache, plan: m.Manifest, codec: Codec) -> None:
        from ensdistill.cache.encoding import Encoder, padded

        super().__init__(source)
        own = source.manifest["statistics"]["members"]
        self.spent = {name: before + own[name]["max"] for name, before in self.spent.items()}
        self.spent["mixture"] = max(self.spent.values())
        self.encoder, self.padded = Encoder(plan, codec, self.uids), padded

    def encode(self, view: int, rows: np.ndarray) -> tuple[Fields, dict[str, Any]]:
        lengths = self.lengths(view, rows)
        logits = self.source.decoded(self.source.uids[rows], view)
        if lengths is not None:
            logits = self.padded(logits, lengths)
        if logits.shape[-1] < self.encoder.classes:  # means alone, for a mixture that has a variance
            logits = np.concatenate([logits, np.zeros_like(logits)], -1)
        fields, costs = self.encoder(logits, view, rows, lengths)
        return {**fields, INPUT_HASH: self.records(view, rows)[INPUT_HASH]}, costs


class Added(Derived):
    """Records with one member more."""

    def __init__(self, source: TargetCache, plan: m.Manifest, values: np.ndarray) -> None:
        from ensdistill.cache.encoding import Encoder, padded

        super().__init__(source)
        self.values, self.padded = values, padded
        new = {**plan, "members": plan["members"][-1:], "weights": [1.0]}
        self.encoder = Encoder(new, source.codec, self.uids)
        ends = [np.cumsum(source.lengths(source.uids, view)) for view in range(source.views)]
        self.starts = [np.concatenate([[0], end]) for end in ends]

    def encode(self, view: int, rows: np.ndarray) -> tuple[Fields, dict[str, Any]]:
        lengths = self.lengths(view, rows)
        new = self.values[view, self.starts[view][rows[0]] : self.starts[view][rows[-1] + 1]][None]
        added, costs = self.encoder(
            new if lengths is None else self.padded(new, lengths), view, rows, lengths
        )
        fields = self.records(view, rows)
        both = {name: np.concatenate([fields[name], value], axis=1) for name, value in added.items()}
        kept = self.kept_statistics(self.source.names, view, rows)
        return {**both, INPUT_HASH: fields[INPUT_HASH]}, {**kept, **costs}


class Kept(Derived):
    """Records of some of the members."""

    def __init__(self, source: TargetCache, keep: list[int]) -> None:
        super().__init__(source)
        self.keep = keep

    def encode(self, view: int, rows: np.ndarray) -> tuple[Fields, dict[str, Any]]:
        fields = self.records(view, rows)
        kept = {name: value if name == INPUT_HASH else value[:, self.keep] for name, value in fields.items()}
        return kept, self.kept_statistics([self.source.names[k] for k in self.keep], view, rows)
