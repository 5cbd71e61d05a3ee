"""``draws-N``: as ``counts-N`` in fewer bytes; the drawn classes in ascending order."""

from __future__ import annotations

import numpy as np

from ensdistill.cache.codecs.base import Batch, Encoded, Fields, FieldShapes
from ensdistill.cache.codecs.counts import Counts
from ensdistill.cache.native import shards


class Draws(Counts):
    """The drawn classes, with repetitions, in Elias's and Fano's form: 24 bytes for 12 draws of 152 064
    classes.

    Parameters
    ----------
    draws : int
        At most 255.

    References
    ----------
    Elias, "Efficient Storage and Retrieval by Content and Address of Static Files", JACM 1974.
    """

    def __init__(self, draws: int) -> None:
        super().__init__(draws)
        self.built_in_name = f"draws-{draws}"

    def fields(self, members: int, classes: int) -> FieldShapes:
        return {"ids": ("|u1", (shards.sorted_bytes(self.draws, classes, 0),))}

    def encode(self, batch: Batch) -> Encoded:
        found, kl = self.sample(batch)
        ids, counts = (np.ascontiguousarray(one.cpu().numpy(), np.int32) for one in (found.ids, found.counts))
        drawn = np.repeat(ids.reshape(-1), counts.reshape(-1)).reshape(len(ids), self.draws)
        drawn.sort(axis=1)
        packed = shards.pack_sorted(drawn, np.zeros_like(drawn), batch.logits.shape[-1], 0)
        return Encoded({"ids": packed}, kl)

    def drawn(self, fields: Fields, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """The drawn ids int32 [N, draws]; and uint8 [N, draws], by the first of equal ones their number, else
        0."""
        ids, _ = shards.unpack_sorted(fields["ids"], self.draws, classes, 0)
        first = np.ones(ids.shape, bool)
        first[:, 1:] = ids[:, 1:] != ids[:, :-1]
        # Where the next run begins: of the first of each run, its end.
        begins = np.where(first, np.arange(self.draws), self.draws)
        ends = np.full(ids.shape, self.draws)
        ends[:, :-1] = np.minimum.accumulate(begins[:, :0:-1], 1)[:, ::-1]
        return ids, np.where(first, ends - np.arange(self.draws), 0).astype(np.uint8)
