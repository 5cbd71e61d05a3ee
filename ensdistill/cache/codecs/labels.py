"""The codecs of multi-label members: log-odds, each label by itself.

They differ from those of softmax logits by one fact: a row's shift means something. So half precision keeps
the log-odds as they are, and log-odds beyond the floor are stored at the floor, on both sides of 0.
"""

from __future__ import annotations

import numpy as np

from ensdistill.cache.codecs.base import (
    Batch,
    Encoded,
    Fields,
    beyond_floor,
    log_sigmoid,
    records,
)
from ensdistill.cache.codecs.floats import HALF, BFloat16, Float16, Float32
from ensdistill.cache.codecs.ids import pack_ids
from ensdistill.cache.codecs.topk import TopK
from ensdistill.cache.codecs.uint8 import Uint8
from ensdistill.common.tasks import Task

_LARGEST_LISTED = -(2.0**-24)
"""The logarithm of the largest probability below one that float16 holds: a listed label stays uncertain."""


class LabelFloat32(Float32):
    """Log-odds in full precision."""

    task: Task = "multilabel"


class LabelFloat16(Float16):
    """Log-odds in IEEE half precision, clamped at -65504 and 65504."""

    task: Task = "multilabel"
    shifts_rows = False


class LabelBFloat16(BFloat16):
    """Log-odds in bfloat16."""

    task: Task = "multilabel"
    shifts_rows = False


class LabelUint8(Uint8):
    """One byte for a log-odds, and one affine map for each row and member, as :class:`Uint8` describes."""

    task: Task = "multilabel"

    def encode(self, batch: Batch) -> Encoded:
        import torch

        from ensdistill.loss import encoders

        values, floor = batch.values, batch.floor
        floored = beyond_floor(values, floor).any(-1).sum(-1).tolist()
        if floor is not None:
            values = torch.where(values.isneginf(), values, values.clamp(-floor, floor))
        # A row without any finite log-odds has no range: it gets one here, and the code of -inf below.
        empty = values.isneginf().all(-1)
        stored, _ = encoders.quantize_logits(values.masked_fill(empty[..., None], 0.0), impl=batch.impl)
        scale = stored.scale.masked_fill(empty, -1.0)
        fields = {"scale": records(scale), "offset": records(stored.offset), "codes": records(stored.codes)}
        return Encoded(fields, None, floored)


class LabelTopK(TopK):
    """The k likeliest labels of the mixture, and the sum of the probabilities of all others.

    Labels that are not listed are read as equally likely. None of them exceeds the least likely listed one.
    """

    task: Task = "multilabel"

    def encode(self, batch: Batch) -> Encoded:
        import torch

        log_odds = batch.mixture
        _, ids = log_odds.sort(dim=-1, descending=True, stable=True)  # stable: ties by the lower id
        log_p = log_sigmoid(log_odds).gather(-1, ids)
        listed, others = log_p[:, : self.k], log_p[:, self.k :]
        tail = others.logsumexp(-1) if others.shape[-1] else torch.full_like(log_p[:, 0], -torch.inf)
        held = torch.where(listed.isneginf(), listed, listed.clamp(-HALF, _LARGEST_LISTED))
        return Encoded(
            {
                "tail_log_mass": tail.float().cpu().numpy(),
                "log_probs": held.half().cpu().numpy(),
                "ids": pack_ids(ids[:, : self.k].int().cpu().numpy(), log_odds.shape[-1]),
            }
        )

    def decode(self, fields: Fields, classes: int) -> np.ndarray:
        """Log-odds; the labels that are not listed share the tail's sum evenly."""
        log_p = np.minimum(super().decode(fields, classes).astype(np.float64), _LARGEST_LISTED)
        return (log_p - np.log(-np.expm1(log_p))).astype(np.float32)

    def _log_probs(self, batch: Batch) -> np.ndarray:
        return log_sigmoid(batch.mixture).numpy()
