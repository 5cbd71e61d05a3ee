"""``uint8``: one byte for a logit, and one affine map for each row and member."""

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
    largest_share_distance,
    member_major,
    records,
    shifted_to_zero,
    tensor,
)

if TYPE_CHECKING:
    from ensdistill.loss.targets import Targets

# Within a range of 71 the error is a KL of at most 71^2 / 516128 = 0.01, so a row is never made shorter than
# that.
_LEAST_FLOOR = 71.0


class Uint8(Codec):
    """``logit = offset + |scale| * code``.

    A negative scale means that code 0 of the row is ``-inf``; the finite logits of such a row use the codes 1
    to 255.
    """

    built_in_name = "uint8"
    step = 2 / 254  # a row's range is up to twice its largest logit

    def fields(self, members: int, classes: int) -> FieldShapes:
        return {
            "scale": ("<f4", (members,)),
            "offset": ("<f4", (members,)),
            "codes": ("|u1", (members, classes)),
        }

    def encode(self, batch: Batch) -> Encoded:
        import torch

        from ensdistill.loss import encoders

        values = batch.values
        deep = beyond_floor(shifted_to_zero(values), batch.floor)
        floored = deep.any(-1).sum(-1).tolist()
        if any(floored):
            values = values.masked_fill(deep, -torch.inf)
        stored, kl = encoders.quantize_logits(values, impl=batch.impl)
        fields = {name: records(getattr(stored, name)) for name in ("scale", "offset", "codes")}
        return Encoded(fields, kl.cpu().numpy(), floored)

    def decode(self, fields: Fields, classes: int) -> np.ndarray:
        scale, offset, codes = fields["scale"][..., None], fields["offset"][..., None], fields["codes"]
        logits = offset + np.abs(scale) * codes.astype(np.float32)
        return np.where((scale < 0) & (codes == 0), np.float32(-np.inf), logits)

    def target(
        self, fields: Fields, classes: int, weights: np.ndarray, combiner: Any, temperature: float | None
    ) -> Targets:
        from ensdistill.loss.targets import QuantizedLogits

        codes, scale, offset = (member_major(fields[name]) for name in ("codes", "scale", "offset"))
        if temperature is None:
            return QuantizedLogits(codes, scale, offset, tensor(weights), combiner=combiner)
        # The codes are of log p at T, and the loss divides logits by T.
        return QuantizedLogits(codes, scale * temperature, offset * temperature, temperature=temperature)

    def floor(self, classes: int, combiner: str, mixture: bool, max_temperature: float) -> float | None:
        """The depth below which a class has no share: 71 for a mixture, max(71, T (ln C + 16)) for members.

        Where members' logits are averaged (the combiners ``logit`` and ``log_prob``), a class far below one
        member's likeliest may be the likeliest of all, because another member is surer still. So there is no
        floor then, and the measured KL shows what a wide row cost.
        """
        if mixture:
            return _LEAST_FLOOR
        if combiner != "prob":
            return None
        return max(_LEAST_FLOOR, float(max_temperature) * largest_share_distance(classes))
