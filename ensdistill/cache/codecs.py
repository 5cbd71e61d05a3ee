"""How a member's logits become bytes of a record, and what that costs.

A record holds one sample: the hash of its input, then the fields of the codec, all members side by side, padded to a
multiple of 8 bytes. Every field is a strided view of the gathered records, so reading never copies a target.

=======  =====================================  =======================================================================
codec    fields (K members, C classes)          error
=======  =====================================  =======================================================================
uint8    scale f32 [K], offset f32 [K],         half a step: KL <= R^2 / (520200 T^2) where R is the row's range
         codes u8 [K, C]                        (its 255 steps; with masked classes 254 steps)
fp16     logits f16 [K, C], row maximum at 0    2^-11 relative, and below -65504 clamped, where softmax is 0
fp32     logits f32 [K, C]                      none
=======  =====================================  =======================================================================

KL bound: if all logits of a row are within e, up to a shift, then KL(p || p~) <= e^2 / (2 T^2); half a step is R/510.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from ensdistill.targets import EnsembleLogits, QuantizedLogits

Fields = dict[str, np.ndarray]
"""A codec's fields of N records by name, each ``[N, *shape]``."""


@dataclass(frozen=True)
class Layout:
    """Where each field lies in a record.

    Parameters
    ----------
    fields : dict of str to (offset in bytes, dtype, shape)
    bytes : int
        Bytes of one record, a multiple of 8.
    """

    fields: dict[str, tuple[int, str, tuple[int, ...]]]
    bytes: int

    def views(self, records: np.ndarray) -> Fields:
        """The fields of ``records`` (uint8 [N, bytes]) as views [N, *shape], nothing copied."""
        views = {}
        for name, (offset, dtype, shape) in self.fields.items():
            size = math.prod(shape) * np.dtype(dtype).itemsize
            views[name] = records[:, offset : offset + size].view(dtype).reshape(len(records), *shape)
        return views

    def describe(self) -> dict[str, Any]:
        """The layout as JSON, as it stands in the manifest and in each shard's header."""
        fields = [{"name": n, "dtype": d, "offset": o, "shape": list(s)} for n, (o, d, s) in self.fields.items()]
        return {"bytes": self.bytes, "fields": fields}


class Codec(Protocol):
    """One way to store logits. All arrays are member-major inside a record: [N, K, ...]."""

    name: str

    def fields(self, k: int, c: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name to (dtype, shape) of each field of a record."""

    def encode(self, logits: np.ndarray) -> Fields:
        """Fields of checked float32 logits [N, K, C]."""

    def decode(self, fields: Fields) -> np.ndarray:
        """The logits as float32 [N, K, C], up to a shift of each row."""

    def target(self, fields: Fields, weights: np.ndarray) -> QuantizedLogits | EnsembleLogits:
        """The fields as stored, as torch views [K, N, ...] that the loss reads."""


class Uint8:
    """One byte for a logit and one affine map for a row and member: ``logit = offset + |scale| * code``.

    A negative scale says that code 0 of the row means ``-inf``; the finite logits of such a row use the codes 1 to 255.
    """

    name = "uint8"

    def fields(self, k: int, c: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"scale": ("<f4", (k,)), "offset": ("<f4", (k,)), "codes": ("|u1", (k, c))}

    def encode(self, logits: np.ndarray) -> Fields:
        finite = np.isfinite(logits)
        masked = ~finite.all(-1)
        low = np.min(logits, -1, where=finite, initial=np.inf).astype(np.float64)
        high = np.max(logits, -1, where=finite, initial=-np.inf).astype(np.float64)
        # 255 steps lie between 256 codes; a masked row gives code 0 away. A step below the smallest normal float32 could be
        # flushed to zero by a kernel, and a zero step has no sign to flag the mask with: such a row counts as constant.
        step = ((high - low) / np.where(masked, 254, 255)).astype(np.float32)
        step = np.where(step < np.finfo(np.float32).tiny, masked.astype(np.float32), step)
        offset = (low - np.where(masked, step, 0)).astype(np.float32)
        # The codes are chosen for the rounded step and offset, which are what the reader has.
        divisor = np.where(step == 0, 1, step).astype(np.float64)[..., None]
        codes = np.rint((np.where(finite, logits, low[..., None]) - offset.astype(np.float64)[..., None]) / divisor)
        codes = np.where(finite, np.clip(codes, masked[..., None].astype(np.float64), 255), 0).astype(np.uint8)
        return {"scale": np.where(masked, -step, step), "offset": offset, "codes": codes}

    def decode(self, fields: Fields) -> np.ndarray:
        scale, offset, codes = fields["scale"][..., None], fields["offset"][..., None], fields["codes"]
        return np.where((scale < 0) & (codes == 0), np.float32(-np.inf), offset + np.abs(scale) * codes.astype(np.float32))

    def target(self, fields: Fields, weights: np.ndarray) -> QuantizedLogits:
        from ensdistill.targets import QuantizedLogits

        codes, scale, offset = (_member_major(fields[name]) for name in ("codes", "scale", "offset"))
        return QuantizedLogits(codes, scale, offset, _tensor(weights))


class Float:
    """The logits themselves, in half (each row shifted so that its maximum is 0, which softmax does not see) or in full."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype

    def fields(self, k: int, c: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"logits": (self.dtype, (k, c))}

    def encode(self, logits: np.ndarray) -> Fields:
        if self.dtype == "<f4":
            return {"logits": logits}
        # Clamped, so that -inf keeps its one meaning: a class that the member rules out.
        shifted = np.maximum(logits - logits.max(-1, keepdims=True), -65504.0)
        return {"logits": np.where(np.isneginf(logits), -np.inf, shifted).astype(self.dtype)}

    def decode(self, fields: Fields) -> np.ndarray:
        return fields["logits"].astype(np.float32)

    def target(self, fields: Fields, weights: np.ndarray) -> EnsembleLogits:
        from ensdistill.targets import EnsembleLogits

        return EnsembleLogits(_member_major(fields["logits"]), _tensor(weights))


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Uint8(), Float("fp16", "<f2"), Float("fp32", "<f4"))}


def layout(codec: str, k: int, c: int) -> Layout:
    """The record of ``codec`` for K members and C classes.

    Examples
    --------
    >>> layout("uint8", k=3, c=10).bytes  # 8 + 3 * (4 + 4 + 10), padded
    64
    """
    offset = 8
    fields: dict[str, tuple[int, str, tuple[int, ...]]] = {"input_hash": (0, "<u8", ())}
    for name, (dtype, shape) in CODECS[codec].fields(k, c).items():
        fields[name] = (offset, dtype, shape)
        offset += math.prod(shape) * np.dtype(dtype).itemsize
    return Layout(fields, -(-offset // 8) * 8)


def kl_divergence(logits: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """KL(softmax(logits) || softmax(decoded)) over the last axis at T = 1, in float64 and in nats."""
    log_p, log_q = _log_softmax(logits), _log_softmax(decoded)
    p = np.exp(log_p)
    # A masked class has p = 0 and log p - log q = nan: it adds nothing, whatever is stored for it.
    terms = np.multiply(p, np.subtract(log_p, log_q, where=p > 0, out=np.zeros_like(p)))
    return np.maximum(terms.sum(-1), 0.0)  # rounding can leave -1e-17


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _member_major(field: np.ndarray) -> Any:
    return _tensor(field.swapaxes(0, 1))


def _tensor(array: np.ndarray) -> Any:
    import torch  # here, so that a cache can be opened and read without torch

    return torch.from_numpy(array)
