"""How what was said of a sample becomes bytes of a record, and what that costs.

A record holds one sample (one position of a sequence): the hash of its input, then the fields of the codec, all members side by
side, padded to a multiple of 8 bytes. Every field is a strided view of the gathered records; only packed ids are taken apart.

==========  =========================================  =================================================================
codec       fields (K members, C classes)              error
==========  =========================================  =================================================================
uint8       scale f32 [K], offset f32 [K],             half a step: KL <= R^2 / (520200 T^2) where R is the row's range
            codes u8 [K, C]                            (its 255 steps; with masked classes 254 steps)
fp16        logits f16 [K, C], row maximum at 0        2^-11 relative, and below -65504 clamped, where softmax is 0
bf16        logits bf16 [K, C], row maximum at 0       2^-8 relative
fp32        logits f32 [K, C]                          none
topk-N      tail_log_mass f32, log_probs f16 [N],      the tail's shape: its mass is exact. N ids of ceil(log2 C) bits
            ids u8 [ceil(N bits / 8)]
counts-N    counts u8 [M], ids u8 [ceil(M bits / 8)]   none on average: E|p~ - p|^2 = (1 - |p|^2) / N; M = min(N, C)
==========  =========================================  =================================================================

The first four hold each member's logits, or (K = 1) the log-probabilities of their mixture at one temperature; the last two
always the mixture's. KL bound: if all logits of a row are within e, up to a shift, then KL(p || p~) <= e^2 / (2 T^2).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ensdistill.cache.native import shards

if TYPE_CHECKING:
    from ensdistill.loss.targets import Targets

Fields = dict[str, np.ndarray]
"""A codec's fields of N records by name, each ``[N, *shape]``."""
CODECS = ("uint8", "fp16", "bf16", "fp32", "topk-N", "counts-N")
SHIFTED = frozenset({"fp16", "bf16"})
"""Codecs that keep each row up to a shift only."""
LARGEST_DRAWS = 255


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
        """The fields of ``records`` (contiguous uint8 [N, bytes]) as views [N, *shape], nothing copied."""
        if not (n := len(records)):
            return {name: np.empty((0, *shape), dtype) for name, _, dtype, shape, _ in self._places}
        # By one call for each: this runs for every batch.
        return {name: np.ndarray((n, *shape), dtype, records, offset, strides) for name, offset, dtype, shape, strides in self._places}

    @cached_property
    def _places(self) -> list[tuple[str, int, np.dtype[Any], tuple[int, ...], tuple[int, ...]]]:
        """Of each field: name, offset, dtype, shape in a record, and strides among records."""
        places = []
        for name, (offset, text, shape) in self.fields.items():
            dtype = np.dtype(text)
            inner = tuple(dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))
            places.append((name, offset, dtype, shape, (self.bytes, *inner)))
        return places

    def describe(self) -> dict[str, Any]:
        """The layout as JSON, as it stands in the manifest and in each shard's header."""
        fields = [{"name": n, "dtype": d, "offset": o, "shape": list(s)} for n, (o, d, s) in self.fields.items()]
        return {"bytes": self.bytes, "fields": fields}


class Codec(Protocol):
    """One way to store a target. All arrays are member-major inside a record: [N, K, ...]."""

    name: str
    mixture: bool
    """Whether it can hold a mixture only."""

    def fields(self, k: int, c: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name to (dtype, shape) of each field of a record, the widest first. Raises ValueError where C is too small."""

    def decode(self, fields: Fields, c: int) -> np.ndarray:
        """What a reader gets, as float32 [N, K, C] up to a shift of each row: logits, or log-probabilities of the mixture."""

    def target(self, fields: Fields, c: int, weights: np.ndarray, combiner: Any, temperature: float | None) -> Targets:
        """The fields as torch views that the loss reads; ``temperature`` is that of a mixture, None for members,
        which then have ``weights`` and ``combiner``."""


class Uint8:
    """One byte for a logit and one affine map for a row and member: ``logit = offset + |scale| * code``.

    A negative scale says that code 0 of the row means ``-inf``; the finite logits of such a row use the codes 1 to 255.
    """

    name, mixture = "uint8", False

    def fields(self, k: int, c: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"scale": ("<f4", (k,)), "offset": ("<f4", (k,)), "codes": ("|u1", (k, c))}

    def decode(self, fields: Fields, c: int) -> np.ndarray:
        scale, offset, codes = fields["scale"][..., None], fields["offset"][..., None], fields["codes"]
        return np.where((scale < 0) & (codes == 0), np.float32(-np.inf), offset + np.abs(scale) * codes.astype(np.float32))

    def target(self, fields: Fields, c: int, weights: np.ndarray, combiner: Any, temperature: float | None) -> Targets:
        from ensdistill.loss.targets import QuantizedLogits

        codes, scale, offset = (_member_major(fields[name]) for name in ("codes", "scale", "offset"))
        if temperature is None:
            return QuantizedLogits(codes, scale, offset, tensor(weights), combiner=combiner)
        # The codes are of log p at T, and whoever reads logits divides them by T.
        return QuantizedLogits(codes, scale * temperature, offset * temperature, temperature=temperature)


class Float:
    """The logits themselves, in full or in half; in half each row is shifted so that its maximum is 0, which softmax does not see."""

    mixture = False

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype

    def fields(self, k: int, c: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"logits": (self.dtype, (k, c))}

    def decode(self, fields: Fields, c: int) -> np.ndarray:
        if self.name == "bf16":  # NumPy has no such type: it is the upper half of a float32
            return (fields["logits"].astype("<u4") << 16).view("<f4")
        return fields["logits"].astype(np.float32)

    def target(self, fields: Fields, c: int, weights: np.ndarray, combiner: Any, temperature: float | None) -> Targets:
        from ensdistill.loss.targets import EnsembleLogits, LogProbs

        logits = _member_major(fields["logits"])
        if self.name == "bf16":
            import torch

            logits = logits.view(torch.bfloat16)
        if temperature is None:
            return EnsembleLogits(logits, tensor(weights), combiner)
        # Stored with their largest at 0, where few bits are finest.
        return LogProbs(logits[0].float().log_softmax(-1), temperature=temperature)


class TopK:
    """The k likeliest classes of the mixture, likeliest first, and the exact log-mass of all others."""

    mixture = True

    def __init__(self, k: int) -> None:
        self.k, self.name = k, f"topk-{k}"

    def fields(self, k: int, c: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        if self.k > c:
            raise ValueError(f"codec: {self.name} needs at least {self.k} classes; got {c}")
        packed = _packed_bytes(self.k, c)
        return {"tail_log_mass": ("<f4", ()), "log_probs": ("<f2", (self.k,)), "ids": ("|u1", (packed,))}

    def decode(self, fields: Fields, c: int) -> np.ndarray:
        """The tail's mass is spread evenly over the classes that are not listed."""
        rest = c - self.k
        with np.errstate(divide="ignore"):
            out = np.repeat(fields["tail_log_mass"][:, None] - np.log(np.float32(max(rest, 1))), c, axis=1)
        np.put_along_axis(out, unpack_ids(fields["ids"], self.k, c), fields["log_probs"].astype(np.float32), axis=1)
        return out[:, None]

    def target(self, fields: Fields, c: int, weights: np.ndarray, combiner: Any, temperature: float | None) -> Targets:
        from ensdistill.loss.targets import TopK as Target

        assert temperature is not None
        ids = tensor(unpack_ids(fields["ids"], self.k, c))
        return Target(ids, tensor(fields["log_probs"]), tensor(fields["tail_log_mass"]), temperature, c)


class Counts:
    """How often each class was drawn from the mixture: unbiased, and lossless once drawn."""

    mixture = True

    def __init__(self, draws: int) -> None:
        self.draws, self.name = draws, f"counts-{draws}"

    def fields(self, k: int, c: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        entries = min(self.draws, c)
        return {"counts": ("|u1", (entries,)), "ids": ("|u1", (_packed_bytes(entries, c),))}

    def decode(self, fields: Fields, c: int) -> np.ndarray:
        counts = fields["counts"]
        shares = np.zeros((len(counts), c), np.float32)
        rows, entries = np.nonzero(counts)
        shares[rows, unpack_ids(fields["ids"], counts.shape[1], c)[rows, entries]] = counts[rows, entries] / np.float32(self.draws)
        with np.errstate(divide="ignore"):
            return np.log(shares)[:, None]

    def target(self, fields: Fields, c: int, weights: np.ndarray, combiner: Any, temperature: float | None) -> Targets:
        from ensdistill.loss.targets import Counts as Target

        assert temperature is not None
        counts = fields["counts"]
        return Target(tensor(unpack_ids(fields["ids"], counts.shape[1], c)), tensor(counts), temperature, c)


_DENSE: dict[str, Codec] = {codec.name: codec for codec in (Uint8(), Float("fp16", "<f2"), Float("bf16", "<u2"), Float("fp32", "<f4"))}


def codec_of(name: Any) -> Codec:
    """The codec of this name.

    Raises
    ------
    ValueError
        There is none.

    Examples
    --------
    >>> codec_of("topk-32").fields(1, 1000)["ids"]  # 32 ids of 10 bits
    ('|u1', (40,))
    """
    if isinstance(name, str):
        if name in _DENSE:
            return _DENSE[name]
        if (match := re.fullmatch(r"(topk|counts)-([1-9]\d{0,6})", name)) and (match[1] == "topk" or int(match[2]) <= LARGEST_DRAWS):
            return TopK(int(match[2])) if match[1] == "topk" else Counts(int(match[2]))
    raise ValueError(f"codec: expected one of {', '.join(CODECS)} (N a number, for counts at most {LARGEST_DRAWS}); got {name!r}")


def layout(codec: str, k: int, c: int) -> Layout:
    """The record of ``codec`` for K members and C classes.

    Examples
    --------
    >>> layout("uint8", k=3, c=10).bytes  # 8 + 3 * (4 + 4 + 10), padded
    64
    """
    offset = 8
    fields: dict[str, tuple[int, str, tuple[int, ...]]] = {"input_hash": (0, "<u8", ())}
    for name, (dtype, shape) in codec_of(codec).fields(k, c).items():
        fields[name] = (offset, dtype, shape)
        offset += math.prod(shape) * np.dtype(dtype).itemsize
    return Layout(fields, -(-offset // 8) * 8)


def id_bits(c: int) -> int:
    """Bits of a class id: ceil(log2 C), at least 1."""
    return max(1, (c - 1).bit_length())


def pack_ids(ids: np.ndarray, c: int) -> np.ndarray:
    """Ids int32 [N, k] in as few bits as C classes need, uint8 [N, ceil(k bits / 8)]."""
    return shards.pack(np.ascontiguousarray(ids, np.int32), id_bits(c))


def unpack_ids(packed: np.ndarray, count: int, c: int) -> np.ndarray:
    """What `pack_ids` packed, int32 [N, count]."""
    if not len(packed):
        return np.empty((0, count), np.int32)
    return shards.unpack(packed, count, id_bits(c))


def kl_divergence(logits: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """KL(softmax(logits) || softmax(decoded)) over the last axis at T = 1, in float64 and in nats."""
    log_p, log_q = _log_softmax(logits), _log_softmax(decoded)
    p = np.exp(log_p)
    # A masked class has p = 0 and log p - log q = nan: it adds nothing, whatever is stored for it.
    terms = np.multiply(p, np.subtract(log_p, log_q, where=p > 0, out=np.zeros_like(p)))
    return np.maximum(terms.sum(-1), 0.0)  # rounding can leave -1e-17


def _packed_bytes(count: int, c: int) -> int:
    return (count * id_bits(c) + 7) // 8


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _member_major(field: np.ndarray) -> Any:
    return tensor(field.swapaxes(0, 1))


def tensor(array: np.ndarray) -> Any:
    """The array as a tensor that shares its memory."""
    import torch  # here, so that a cache can be opened and read without torch

    return torch.from_numpy(array)
