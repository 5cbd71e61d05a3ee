"""``counts-N``: how often each class came up in N draws from the mixture; unbiased."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache.codecs.base import Batch, Codec, Encoded, Fields, FieldShapes, tensor
from ensdistill.cache.codecs.comparison import Comparison, Tolerance
from ensdistill.cache.codecs.ids import pack_ids, packed_bytes, unpack_ids

if TYPE_CHECKING:
    from ensdistill.loss.targets import Counts as Target
    from ensdistill.loss.targets import Targets

LARGEST_DRAWS = 255
"""What a count of one byte holds."""


class Counts(Codec):
    """Counts of the drawn classes.

    Parameters
    ----------
    draws : int
        At most 255.
    """

    mixture_only = seeded = True
    lossy_advice = None  # the distance from the mixture is chance, and none on average

    def __init__(self, draws: int) -> None:
        if draws > LARGEST_DRAWS:
            raise ValueError(f"draws: expected at most {LARGEST_DRAWS}; got {draws}")
        self.draws, self.built_in_name = draws, f"counts-{draws}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"draws": self.draws}

    def fields(self, members: int, classes: int) -> FieldShapes:
        entries = min(self.draws, classes)
        return {"counts": ("|u1", (entries,)), "ids": ("|u1", (packed_bytes(entries, classes),))}

    def encode(self, batch: Batch) -> Encoded:
        import torch

        stored, kl = self.sample(batch)
        ids = pack_ids(stored.ids.cpu().numpy(), batch.logits.shape[-1])
        return Encoded({"counts": stored.counts.to(torch.uint8).cpu().numpy(), "ids": ids}, kl)

    def sample(self, batch: Batch) -> tuple[Target, np.ndarray]:
        """The batch's draws, and the KL [1, N] from the mixture to each row's."""
        import torch

        from ensdistill.loss import encoders

        assert batch.seed is not None
        stored, kl = encoders.sample_counts(
            batch.logits,
            self.draws,
            seed=batch.seed,
            row_ids=torch.from_numpy(batch.draw_ids).to(batch.logits.device),
            temperature=batch.temperature or 1.0,
            weights=batch.weights,
            combiner=batch.combiner,
            impl=batch.impl,
        )
        return stored, kl[None].cpu().numpy()

    def decode(self, fields: Fields, classes: int) -> np.ndarray:
        ids, counts = self.drawn(fields, classes)
        shares = np.zeros((len(counts), classes), np.float32)
        rows, entries = np.nonzero(counts)
        shares[rows, ids[rows, entries]] = counts[rows, entries] / np.float32(self.draws)
        with np.errstate(divide="ignore"):
            return np.log(shares)[:, None]

    def target(
        self, fields: Fields, classes: int, weights: np.ndarray, combiner: Any, temperature: float | None
    ) -> Targets:
        from ensdistill.loss.targets import Counts as Target

        assert temperature is not None
        ids, counts = map(tensor, self.drawn(fields, classes))
        return Target(ids, counts, temperature, classes)

    def columns(self, fields: Fields, classes: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        ids, counts = self.drawn(fields, classes)
        return {"ids": ids, "counts": counts}

    def compare(self, batch: Batch, fields: Fields, stored: Fields, tolerance: Tolerance) -> Comparison:
        """The number of draws that differ.

        The draws are the same, except where noise moved a cumulative probability across one: that happens to
        one draw in many, so to at most two of a record, and to few in all.
        """
        classes = batch.logits.shape[-1]
        both = [
            {name: np.ascontiguousarray(field) for name, field in part.items()} for part in (fields, stored)
        ]
        now, then = (np.exp(self.decode(part, classes)) for part in both)
        moved = np.abs(now - then).sum(-1) * self.draws / 2
        allowed = 2 + self.draws * tolerance.moved[:, None]
        if moved.sum() > 2 + self.draws * tolerance.moved_by_noise.sum():
            allowed = np.zeros_like(allowed)  # too many: each record that differs is of other teachers
        return Comparison("draws that turn out otherwise:", moved, allowed)

    def drawn(self, fields: Fields, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [N, S] and counts uint8 [N, S]; an entry without a draw has the count 0."""
        return unpack_ids(fields["ids"], fields["counts"].shape[1], classes), fields["counts"]
