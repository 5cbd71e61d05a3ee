"""From the teachers' logits to the bytes of records, on the device where the teachers run; only the small form is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.cache.codecs import Codec, Counts, Fields, TopK, codec_of, pack_ids
from ensdistill.cache.floors import HALF
from ensdistill.cache.manifest import Manifest, targets_of
from ensdistill.cache.statistics import Cost
from ensdistill.data import BadRows
from ensdistill.loss import encoders, reference
from ensdistill.loss._native import why_no_kernels
from ensdistill.loss.encoders_reference import mixture_log_probs

# Sums and differences of logits within it stay finite in float32. A larger one is a mask in disguise: -inf says that exactly.
_LARGEST = 1e38
# A row's place among the draws: enough for a sequence of 16 million positions.
_POSITION_BITS = 24
_Encoded = tuple[Fields, np.ndarray, list[int]]
"""The fields, each record's KL [K or 1, records], and how many records of each member had logits below the floor."""


class Encoder:
    """Encodes batches for the cache that a plan describes.

    Parameters
    ----------
    plan : dict
        The manifest's fields that are known beforehand.
    uids : ndarray [N], int64, optional
        Of the cache's rows, by which errors name them; a row's own number by default.
    """

    def __init__(self, plan: Manifest, uids: np.ndarray | None = None) -> None:
        self.uids = uids
        self.names, self.classes = plan["members"], len(plan["classes"])
        self.codec: Codec = codec_of(plan["codec"])
        self.weights = torch.tensor(plan["weights"], dtype=torch.float64)
        self.combiner, self.seed, self.rows = plan["combiner"], plan["seed"], plan["rows"]
        self.temperature = None if plan["temperature"] == "any" else float(plan["temperature"])
        self.floor, self.targets = plan.get("floor"), targets_of(plan)

    def __call__(self, value: Any, view: int, rows: np.ndarray, lengths: np.ndarray | None) -> tuple[Fields, dict[str, Cost]]:
        """Fields of the batch's records, and what storing cost each member, or the mixture.

        Parameters
        ----------
        value : ndarray or Tensor, float32 [K, N, C]; of sequences [K, N, L, C]
        view : int
        rows : ndarray [N]
            Places in the cache.
        lengths : ndarray [N], of sequences
            How many of the L positions count.

        Raises
        ------
        TypeError, ValueError
            Another dtype or shape.
        BadRows
            NaN, ``+inf``, beyond 1e38, or a row of ``-inf`` only; names member and uid, and has the uids as its rows.
        """
        fields, kl, floored = self._encoded(value, view, rows, lengths)
        return fields, {name: Cost(row, count) for name, row, count in zip(self.targets, kl, floored, strict=True)}

    def _encoded(self, value: Any, view: int, rows: np.ndarray, lengths: np.ndarray | None) -> _Encoded:
        logits = self.shaped(value, len(rows), lengths)
        rows = rows if lengths is None else np.repeat(rows, lengths)
        owners = rows if self.uids is None else self.uids[rows]
        self._check(logits, owners)
        if self.temperature is None:
            return self._dense(logits, owners)
        if isinstance(self.codec, TopK):
            return self._top_k(logits, self.codec)
        if isinstance(self.codec, Counts):
            ids = view * self.rows + rows
            if lengths is not None:
                ids = (ids << _POSITION_BITS) + np.concatenate([np.arange(n) for n in lengths])
            return self._counts(logits, self.codec, torch.from_numpy(ids).to(logits.device))
        # float32 holds a log-probability to 6e-8 of itself, which is what a codec of logits starts from.
        return self._dense(self.mixture(logits).float()[None], owners)

    def shaped(self, value: Any, count: int, lengths: np.ndarray | None) -> Tensor:
        """The logits of so many samples as [K, records, C]."""
        what = "ensemble.predict_logits"
        logits = value.detach() if isinstance(value, Tensor) else _as_tensor(np.asarray(value))
        shape = (len(self.names), count, self.classes)
        if lengths is None:
            if tuple(logits.shape) != shape:
                raise ValueError(f"{what}: expected [members, samples, classes] = {list(shape)}; got {list(logits.shape)}")
        elif logits.dim() != 4 or (*logits.shape[:2], logits.shape[3]) != shape or logits.shape[2] < lengths.max():
            wanted = f"[{shape[0]}, {shape[1]}, at least {lengths.max()}, {shape[2]}]"
            raise ValueError(f"{what}: expected [members, samples, positions, classes] = {wanted}; got {list(logits.shape)}")
        if logits.dtype != torch.float32:
            raise TypeError(f"{what}: expected float32 logits; got {str(logits.dtype).removeprefix('torch.')}")
        if lengths is not None:
            used = torch.arange(logits.shape[2]) < torch.from_numpy(lengths)[:, None]
            logits = logits[:, used.to(logits.device)]
        return logits

    def _check(self, logits: Tensor, owners: np.ndarray) -> None:
        low, high = torch.aminmax(logits)  # NaN if one is
        if bool((low >= -_LARGEST) & (high <= _LARGEST)):
            return
        bad = logits.isnan() | (logits > _LARGEST) | ((logits < -_LARGEST) & ~logits.isneginf())
        if count := int(bad.sum()):
            k, n, c = bad.nonzero()[0].tolist()
            raise BadRows(
                f"ensemble.predict_logits: expected logits within 1e38 of zero, or -inf for a masked class; member {self.names[k]!r} gave "
                f"{logits[k, n, c].item():g} for uid {int(owners[n])}, class {c} ({count} such values in this batch)",
                owners[[n]],
            )
        masked = logits.isneginf().all(-1)
        if bool(masked.any()):
            k, n = masked.nonzero()[0].tolist()
            at = f"member {self.names[k]!r} gave -inf for every class of uid {int(owners[n])}"
            raise BadRows(f"ensemble.predict_logits: {at}; expected at least one finite logit", owners[[n]])

    def mixture(self, logits: Tensor) -> Tensor:
        """log p at T, float64 [records, C]."""
        return mixture_log_probs(logits, None, None, self.weights.to(logits.device), self.temperature or 1.0, self.combiner)

    def _refuse_wide(self, deep: Tensor, owners: np.ndarray) -> None:
        if bool(deep.any()):
            k, n, c = deep.nonzero()[0].tolist()
            raise BadRows(
                f"codec: fp16 holds logits down to {-HALF:g} below the row's largest, and with combiner {self.combiner!r} a lower one may "
                f"decide; member {self.names[k]!r} gave a lower one for uid {int(owners[n])}, class {c}: use codec bf16 or fp32, or "
                "mask the class with -inf",
                owners[[n]],
            )

    def _dense(self, logits: Tensor, owners: np.ndarray) -> _Encoded:
        if self.codec.name == "fp32":
            return {"logits": _records(logits)}, np.zeros(logits.shape[:2]), [0] * len(logits)
        shifted = logits - logits.amax(-1, keepdim=True)
        deep = (shifted < -(self.floor or torch.inf)) & ~logits.isneginf()
        floored = deep.any(-1).sum(-1).tolist()
        if self.codec.name == "uint8":
            if any(floored):
                logits = logits.masked_fill(deep, -torch.inf)
            stored, kl = encoders.quantize_logits(logits, impl=_impl(logits.device))
            return {n: _records(getattr(stored, n)) for n in ("scale", "offset", "codes")}, kl.cpu().numpy(), floored
        if self.codec.name == "fp16":
            if self.temperature is None and self.combiner != "prob":
                self._refuse_wide(deep, owners)
            # Clamped, so that -inf keeps its one meaning: a class that the member rules out.
            half = torch.where(logits.isneginf(), -torch.inf, shifted.clamp(min=-HALF)).half()
            fields = {"logits": _records(half)}
        else:
            # The largest float32 below 2^128 would round up to infinity; a difference of two logits within 1e38 does not come near.
            half = shifted.bfloat16()
            fields = {"logits": _records(half.view(torch.int16)).view("<u2")}
        # One member at a time, for the float64 copies' sake.
        rows = [_kl(torch.log_softmax(z.double(), -1), h) for z, h in zip(logits, half, strict=True)]
        return fields, torch.stack(rows).cpu().numpy(), floored

    def _top_k(self, logits: Tensor, codec: TopK) -> _Encoded:
        stored, _ = encoders.top_k_targets(
            logits,
            codec.k,
            temperature=self.temperature or 1.0,
            weights=self.weights,
            combiner=self.combiner,
            impl=_impl(logits.device),
        )
        assert stored.tail_log_mass is not None
        fields = {
            "tail_log_mass": stored.tail_log_mass.cpu().numpy(),
            "log_probs": stored.log_probs.half().cpu().numpy(),
            "ids": pack_ids(stored.ids.cpu().numpy(), self.classes),
        }
        decoded = torch.from_numpy(codec.decode(fields, self.classes))[:, 0]  # from the bytes: what is certified is what a reader gets
        return fields, _kl(self.mixture(logits), decoded.to(logits.device))[None].cpu().numpy(), [0]

    def _counts(self, logits: Tensor, codec: Counts, ids: Tensor) -> _Encoded:
        stored, kl = encoders.sample_counts(
            logits,
            codec.draws,
            seed=self.seed,
            row_ids=ids,
            temperature=self.temperature or 1.0,
            weights=self.weights,
            combiner=self.combiner,
            impl=_impl(logits.device),
        )
        fields = {"counts": stored.counts.to(torch.uint8).cpu().numpy(), "ids": pack_ids(stored.ids.cpu().numpy(), self.classes)}
        return fields, kl[None].cpu().numpy(), [0]


def padded(packed: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[K, sum of lengths, C] as [K, N, L, C]; what is beyond a length is 0."""
    out = np.zeros((len(packed), len(lengths), lengths.max(), packed.shape[-1]), np.float32)
    out[:, np.arange(lengths.max()) < lengths[:, None]] = packed
    return out


def _impl(device: torch.device) -> encoders.Impl:
    """Kernels where there are some for the teachers' device, plain torch on any other."""
    return "fused" if why_no_kernels(device.type, device.index) is None else "reference"


def _kl(log_p: Tensor, decoded: Tensor) -> Tensor:
    """KL(p || softmax(decoded)) of each row, float64."""
    return reference.forward_kl(log_p, torch.log_softmax(decoded.double(), -1), 0.0).clamp(min=0)


def _records(field: Tensor) -> np.ndarray:
    """[K, N, ...] on any device as [N, K, ...] in NumPy."""
    return field.cpu().numpy().swapaxes(0, 1)


def _as_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())
