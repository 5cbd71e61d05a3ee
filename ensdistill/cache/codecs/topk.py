"""``topk-N``: the N likeliest classes of the mixture, and the exact log-mass of all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache.codecs.base import Batch, Codec, Encoded, Fields, FieldShapes, tensor
from ensdistill.cache.codecs.comparison import Comparison, Tolerance
from ensdistill.cache.codecs.floats import HALF
from ensdistill.cache.codecs.ids import pack_ids, packed_bytes, unpack_ids

if TYPE_CHECKING:
    from ensdistill.loss.targets import Targets


class TopK(Codec):
    """The k likeliest classes.

    Parameters
    ----------
    k : int
    """

    mixture_only = True
    lossy_advice = "A topk-N with a larger N costs less"

    def __init__(self, k: int) -> None:
        self.k, self.built_in_name = k, f"topk-{k}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k}

    def fields(self, members: int, classes: int) -> FieldShapes:
        if self.k > classes:
            raise ValueError(f"codec: {self.name} needs at least {self.k} classes; got {classes}")
        packed = packed_bytes(self.k, classes)
        return {"tail_log_mass": ("<f4", ()), "log_probs": ("<f2", (self.k,)), "ids": ("|u1", (packed,))}

    def encode(self, batch: Batch) -> Encoded:
        stored, kl = self.likeliest(batch)
        fields = {
            "tail_log_mass": stored.tail_log_mass.cpu().numpy(),
            "log_probs": stored.log_probs.half().cpu().numpy(),
            "ids": pack_ids(stored.ids.cpu().numpy(), batch.logits.shape[-1]),
        }
        return Encoded(fields, self.cost(fields, stored.log_probs.double().cpu().numpy(), kl, batch))

    def likeliest(self, batch: Batch) -> tuple[Any, np.ndarray]:
        """The mixture's k likeliest classes as the loss's ``TopK``, in float32, and the KL [N] to them."""
        from ensdistill.loss import encoders

        stored, kl = encoders.top_k_targets(
            batch.logits,
            self.k,
            temperature=batch.temperature or 1.0,
            weights=batch.weights,
            combiner=batch.combiner,
            impl=batch.impl,
        )
        return stored, kl.cpu().numpy()

    def cost(self, fields: Fields, log_p: np.ndarray, kl: np.ndarray, batch: Batch) -> np.ndarray:
        """The KL [1, N] to the stored rows, from that to the rows in float32: only listed classes differ.

        ``log_p`` [N, k] are their exact log-probabilities. Decoding whole rows takes longer than encoding
        them.
        """
        log_q = self.listed(fields, batch.logits.shape[-1])[1].astype(np.float64)
        p = np.exp(log_p)
        with np.errstate(invalid="ignore"):
            moved = np.where(p == 0, 0.0, p * (log_p - log_q))
        whole = np.exp(log_q).sum(1) + np.exp(fields["tail_log_mass"].astype(np.float64))
        return np.maximum(kl + moved.sum(1) + np.log(whole), 0.0)[None]

    def decode(self, fields: Fields, classes: int) -> np.ndarray:
        """The tail's mass is spread evenly over the classes that are not listed."""
        rest = classes - self.k
        with np.errstate(divide="ignore"):
            out = np.repeat(
                fields["tail_log_mass"][:, None] - np.log(np.float32(max(rest, 1))), classes, axis=1
            )
        np.put_along_axis(out, *self.listed(fields, classes), axis=1)
        return out[:, None]

    def target(
        self, fields: Fields, classes: int, weights: np.ndarray, combiner: Any, temperature: float | None
    ) -> Targets:
        from ensdistill.loss.targets import TopK as Target

        assert temperature is not None
        ids, log_probs = map(tensor, self.listed(fields, classes))
        return Target(ids, log_probs, tensor(fields["tail_log_mass"]), temperature, classes)

    def columns(self, fields: Fields, classes: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        ids, log_probs = self.listed(fields, classes)
        return {
            "ids": ids,
            "log_probs": log_probs.astype(np.float32),
            "tail_log_mass": fields["tail_log_mass"],
        }

    def compare(self, batch: Batch, fields: Fields, stored: Fields, tolerance: Tolerance) -> Comparison:
        """The largest difference of a listed class's log-probability, or of the tail's, which a KL hides."""
        log_p = self._log_probs(batch)
        ids, entries = self.entries(stored, log_p.shape[-1])
        then = np.maximum(entries.astype(np.float64), -HALF)
        now, rest = np.take_along_axis(log_p, ids, 1), log_p.copy()
        np.put_along_axis(rest, ids, -np.inf, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            off_listed = np.abs(np.maximum(now, -HALF) - then) - self.rounding(stored, then)
            tail, stored_tail = np.logaddexp.reduce(rest, axis=1), stored["tail_log_mass"]
            off_tail = np.where(tail == stored_tail, 0.0, np.abs(tail - stored_tail)) - 2.0**-22 * np.abs(
                tail
            )
            off_tail[np.isneginf(tail) & np.isneginf(stored_tail)] = 0.0
            # No class that is not listed may be likelier than one that is.
            unlisted = np.where(np.isneginf(rest.max(1)), 0.0, rest.max(1) - now.min(1))
        distance = np.maximum(np.maximum(off_listed.max(1), off_tail), unlisted)
        return Comparison(
            "log-probabilities apart by", np.maximum(distance, 0.0)[:, None], tolerance.moved[:, None]
        )

    def _log_probs(self, batch: Batch) -> np.ndarray:
        """Of the batch's mixture, float64 [N, C]."""
        return batch.mixture.numpy()

    def listed(self, fields: Fields, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """The listed classes' ids int32 [N, k] and their log-probabilities [N, k], float16 or float32."""
        return self.entries(fields, classes)

    def entries(self, fields: Fields, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """The same as they were rounded, one by one."""
        return unpack_ids(fields["ids"], self.k, classes), fields["log_probs"]

    def rounding(self, stored: Fields, entries: np.ndarray) -> np.ndarray:
        """How far storing moves each log-probability at most; float16 rounds by 2^-11 of it."""
        return 2.0**-11 * np.abs(entries)
