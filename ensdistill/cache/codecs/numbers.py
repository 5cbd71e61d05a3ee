"""The codecs of regression: standardised means, and after them standardised deviations where there are any.

A deviation is the root of a variance. It has the unit of the means, so one error bounds both, and half
precision holds variances of twelve orders of magnitude.
"""

from __future__ import annotations

import numpy as np

from ensdistill.cache.codecs.base import Batch, Codec, Encoded, Fields, FieldShapes, records
from ensdistill.cache.codecs.floats import HALF, Float16, Float32
from ensdistill.common.tasks import Task
from ensdistill.data import BadRows


class NumberFloat32(Float32):
    """Standardised numbers in single precision."""

    task: Task = "regression"


class NumberFloat16(Float16):
    """Standardised numbers in IEEE half precision: within 2^-11 of themselves."""

    task: Task = "regression"
    shifts_rows = False
    lossy_advice = "fp32 is exact"

    def encode(self, batch: Batch) -> Encoded:
        values = batch.values
        large = (values.abs() > HALF).any(-1).any(0)
        if bool(large.any()):
            uids = batch.uids[large.cpu().numpy()]
            raise BadRows(
                f"codec: fp16 holds numbers up to {HALF:g} times the spread of the predictions; those for "
                f"uid {int(uids[0])} are larger ({len(uids)} such rows): use codec fp32",
                uids,
            )
        return Encoded({"logits": records(values.half())})

    def floor(self, classes: int, combiner: str, mixture: bool, max_temperature: float) -> float | None:
        return None


class Affine16(Codec):
    """Codes of 16 bits, with one affine map for each row and member: ``offset + scale * code``.

    An error is half a step, so at most 1 / 131070 of the row's range. A row of one number is exact. Records
    are shorter than those of fp32 from five numbers on.
    """

    task: Task = "regression"
    built_in_name, dtype = "affine16", "<u2"
    step = 2 / 65535  # a row's range is up to twice its largest number
    lossy_advice = "fp32 is exact"

    def fields(self, members: int, classes: int) -> FieldShapes:
        return {
            "scale": ("<f4", (members,)),
            "offset": ("<f4", (members,)),
            "codes": (self.dtype, (members, classes)),
        }

    def encode(self, batch: Batch) -> Encoded:
        values, largest = records(batch.values).astype(np.float64), np.iinfo(self.dtype).max
        low, high = values.min(-1), values.max(-1)
        offset, scale = low.astype(np.float32), ((high - low) / largest).astype(np.float32)
        step = np.where(scale > 0, scale, 1).astype(np.float64)[..., None]
        codes = np.rint((values - offset[..., None]) / step).clip(0, largest)
        codes = np.where(scale[..., None] > 0, codes, 0).astype(self.dtype)
        return Encoded({"scale": scale, "offset": offset, "codes": codes})

    def decode(self, fields: Fields, classes: int) -> np.ndarray:
        codes = fields["codes"].astype(np.float32)
        return fields["offset"][..., None] + fields["scale"][..., None] * codes


class NumberUint8(Affine16):
    """The same with codes of 8 bits: an error is at most 1 / 510 of the row's range."""

    built_in_name, dtype = "uint8", "|u1"
    step = 2 / 255
