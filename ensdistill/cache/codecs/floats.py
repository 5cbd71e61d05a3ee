"""``fp32``, ``fp16`` and ``bf16``: the logits themselves; in half precision with each row's maximum at 0.

Softmax does not change with the shift, and half precision is finest near 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache.codecs.base import (
    Batch,
    Codec,
    Encoded,
    Fields,
    FieldShapes,
    beyond_floor,
    dense_target,
    member_major,
    records,
    shifted_to_zero,
)
from ensdistill.data import BadRows

if TYPE_CHECKING:
    from torch import Tensor

    from ensdistill.loss.targets import Targets

HALF = 65504.0
"""The largest float16."""


class Float32(Codec):
    """Logits in full precision."""

    built_in_name, dtype = "fp32", "<f4"

    def fields(self, members: int, classes: int) -> FieldShapes:
        return {"logits": (self.dtype, (members, classes))}

    def encode(self, batch: Batch) -> Encoded:
        values = batch.values
        return Encoded({"logits": records(values)}, np.zeros(values.shape[:2]))

    def decode(self, fields: Fields, classes: int) -> np.ndarray:
        return fields["logits"].astype(np.float32)

    def target(
        self, fields: Fields, classes: int, weights: np.ndarray, combiner: Any, temperature: float | None
    ) -> Targets:
        return dense_target(self.tensor(fields), weights, combiner, temperature, self.task)

    def tensor(self, fields: Fields) -> Tensor:
        """The stored logits [K, N, C] as a view in their own dtype."""
        return member_major(fields["logits"])


class Float16(Float32):
    """Logits in IEEE half precision, row maximum at 0, clamped at -65504."""

    built_in_name, dtype = "fp16", "<f2"
    shifts_rows = True
    step = 2 * 2.0**-10

    def encode(self, batch: Batch) -> Encoded:
        import torch

        values = batch.values
        shifted = shifted_to_zero(values) if self.shifts_rows else values
        deep = beyond_floor(shifted, batch.floor)
        if batch.temperature is None and batch.combiner != "prob":
            _refuse_deep(deep, batch)
        # Clamped, so that -inf keeps its one meaning: a class that the member rules out.
        half = torch.where(values.isneginf(), -torch.inf, shifted.clamp(-HALF, HALF)).half()
        kl = _kl(values, half) if self.shifts_rows else None
        return Encoded({"logits": records(half)}, kl, deep.any(-1).sum(-1).tolist())

    def floor(self, classes: int, combiner: str, mixture: bool, max_temperature: float) -> float | None:
        return HALF


class BFloat16(Float32):
    """Logits in bfloat16, row maximum at 0."""

    built_in_name, dtype = "bf16", "<u2"  # NumPy has no bfloat16: its 16 bits are the upper half of a float32
    shifts_rows = True
    step = 2 * 2.0**-7

    def encode(self, batch: Batch) -> Encoded:
        import torch

        # The largest float32 below 2^128 would round up to infinity; differences of logits within 1e38 are
        # smaller.
        values = batch.values
        half = (shifted_to_zero(values) if self.shifts_rows else values).bfloat16()
        kl = _kl(values, half) if self.shifts_rows else None
        return Encoded({"logits": records(half.view(torch.int16)).view("<u2")}, kl)

    def decode(self, fields: Fields, classes: int) -> np.ndarray:
        return (fields["logits"].astype("<u4") << 16).view("<f4")

    def tensor(self, fields: Fields) -> Tensor:
        import torch

        return member_major(fields["logits"]).view(torch.bfloat16)


def _kl(values: Tensor, half: Tensor) -> np.ndarray:
    """KL [K, N] of rows to their stored form, one member at a time, because each takes copies in float64."""
    import torch

    from ensdistill.cache.codecs.measures import row_cost

    rows = [
        row_cost("classification", torch.log_softmax(z.double(), -1), h)
        for z, h in zip(values, half, strict=True)
    ]
    return torch.stack(rows).cpu().numpy()


def _refuse_deep(deep: Tensor, batch: Batch) -> None:
    if bool(deep.any()):
        k, n, c = deep.nonzero()[0].tolist()
        raise BadRows(
            f"codec: fp16 holds logits down to {-HALF:g} below the row's largest, and with combiner "
            f"{batch.combiner!r} a lower one may decide; member {batch.names[k]!r} gave a lower one for uid "
            f"{int(batch.uids[n])}, class {c}: use "
            "codec bf16 or fp32, or mask the class with -inf",
            batch.uids[[n]],
        )
