"""``topk4-N`` to ``topk8-N``: as ``topk-N`` in about half the bytes; ids in ascending order, quantised
log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.cache.codecs.base import Batch, Encoded, Fields, FieldShapes
from ensdistill.cache.codecs.floats import HALF
from ensdistill.cache.codecs.topk import TopK
from ensdistill.cache.native import shards

WIDTHS = (4, 5, 6, 8)
"""Bits of a log-probability."""
_NEARLY_ALL = -1e-3  # a tail of more log-mass leaves too little for the listed classes to be normalised by


class CodedTopK(TopK):
    """The k likeliest classes: ids in Elias's and Fano's form, log-probabilities in a few bits.

    A log-probability is ``top - |step| * code``. A negative step means that the largest code is ``-inf``.
    The listed probabilities are then divided by a factor, so that with the exact mass of the rest they sum to
    one.

    Parameters
    ----------
    k : int
    bits : int
        Of a log-probability: 4, 5, 6 or 8.

    References
    ----------
    Elias, "Efficient Storage and Retrieval by Content and Address of Static Files", JACM 1974.
    """

    lossy_advice = "A coded topk-N with a larger N, or with more bits, costs less"

    def __init__(self, k: int, bits: int) -> None:
        super().__init__(k)
        self.bits, self.built_in_name = bits, f"topk{bits}-{k}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "bits": self.bits}

    def fields(self, members: int, classes: int) -> FieldShapes:
        if self.k > classes:
            raise ValueError(f"codec: {self.name} needs at least {self.k} classes; got {classes}")
        packed = shards.sorted_bytes(self.k, classes, self.bits)
        return {
            "tail_log_mass": ("<f4", ()),
            "top": ("<f2", ()),
            "step": ("<f2", ()),
            "entries": ("|u1", (packed,)),
        }

    def encode(self, batch: Batch) -> Encoded:
        stored, kl = self.likeliest(batch)
        ids, log_p = stored.ids.cpu().numpy().astype(np.int32), stored.log_probs.double().cpu().numpy()
        order = np.argsort(ids, 1)
        ids, log_p = np.take_along_axis(ids, order, 1), np.take_along_axis(log_p, order, 1)
        absent = np.isneginf(log_p)
        top = np.maximum(log_p.max(1), -HALF).astype(np.float16)
        below = np.where(absent, 0.0, top.astype(np.float64)[:, None] - np.maximum(log_p, -HALF))
        largest = np.where(absent.any(1), 2**self.bits - 2, 2**self.bits - 1)
        step = (np.minimum(below.max(1), HALF) / largest).astype(np.float16)
        codes = np.rint(below / np.where(step > 0, step.astype(np.float64), 1.0)[:, None])
        codes = np.where(absent, 2**self.bits - 1, np.clip(codes, 0, largest[:, None])).astype(np.int32)
        fields = {
            "tail_log_mass": stored.tail_log_mass.cpu().numpy(),
            "top": top,
            # Not below the smallest float16: a step of 0 has no sign to mark an absent class by.
            "step": np.where(absent.any(1), -np.maximum(step, np.float16(6e-8)), step),
            "entries": shards.pack_sorted(ids, codes, batch.logits.shape[-1], self.bits),
        }
        return Encoded(fields, self.cost(fields, log_p, kl, batch))

    def listed(self, fields: Fields, classes: int) -> tuple[np.ndarray, np.ndarray]:
        ids, log_p = self.entries(fields, classes)
        tail = fields["tail_log_mass"].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.log(-np.expm1(tail)) - np.log(np.exp(log_p).sum(1, dtype=np.float64))
        factor = np.where(np.isfinite(factor) & (tail < _NEARLY_ALL), factor, 0.0)
        return ids, np.minimum(log_p + factor[:, None].astype(np.float32), 0.0)

    def entries(self, fields: Fields, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """The same, before the division by the factor."""
        ids, codes = shards.unpack_sorted(fields["entries"], self.k, classes, self.bits)
        step = fields["step"].astype(np.float32)[:, None]
        log_p = fields["top"].astype(np.float32)[:, None] - np.abs(step) * codes.astype(np.float32)
        np.putmask(log_p, (step < 0) & (codes == 2**self.bits - 1), -np.inf)
        return ids, log_p

    def rounding(self, stored: Fields, entries: np.ndarray) -> np.ndarray:
        """Half a step, and the rounding of ``top`` and ``step`` to float16."""
        return 0.5 * np.abs(stored["step"].astype(np.float64))[:, None] + 2.0**-10 * np.abs(entries)
