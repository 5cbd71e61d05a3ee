"""From the members' rows (logits, or standardised moments) to the fields of records, on their device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.cache.codecs import Batch, Codec, Fields, measured_cost
from ensdistill.cache.manifest import Manifest, targets_of, task_of_plan, width_of
from ensdistill.cache.statistics import Cost
from ensdistill.data import BadRows
from ensdistill.loss import encoders
from ensdistill.loss._native import why_no_kernels

# Sums and differences of logits within it stay finite in float32. A larger one is meant as a mask, which -inf
# is.
_LARGEST = 1e38
# Bits of a position within a sequence: enough for 16 million positions.
_POSITION_BITS = 24


class Encoder:
    """Encodes batches for the cache that a plan describes.

    Parameters
    ----------
    plan : dict
        The manifest's fields that are set before any record is written.
    codec : Codec
        The plan's codec.
    uids : ndarray [N], int64, optional
        Of the cache's rows, for errors; a row's own number by default.
    """

    def __init__(self, plan: Manifest, codec: Codec, uids: np.ndarray | None = None) -> None:
        self.uids, self.codec = uids, codec
        self.names, self.classes = plan["members"], width_of(plan)
        self.task = task_of_plan(plan)
        self.numbers: int | None = None
        self.source = "ensemble.predict_logits"
        if self.task == "regression":
            self.numbers, self.source = len(plan["classes"]), "ensemble.predict_moments"
        self.weights = torch.tensor(plan["weights"], dtype=torch.float64)
        self.combiner, self.seed, self.rows = plan["combiner"], plan["seed"], plan["rows"]
        self.temperature = None if plan["temperature"] == "any" else float(plan["temperature"])
        self.floor, self.targets = plan.get("floor"), targets_of(plan)
        self.expected = codec.fields(len(self.targets), self.classes)

    def __call__(
        self, value: Any, view: int | np.ndarray, rows: np.ndarray, lengths: np.ndarray | None
    ) -> tuple[Fields, dict[str, Cost]]:
        """The fields of the batch's records, and the cost of storing each member, or the mixture.

        Raises as `batch` and `encode` do.
        """
        return self.encode(self.batch(value, view, rows, lengths))

    def batch(
        self, value: Any, view: int | np.ndarray, rows: np.ndarray, lengths: np.ndarray | None
    ) -> Batch:
        """The members' rows, checked, with all that a codec needs.

        Parameters
        ----------
        value : ndarray or Tensor, float32 [K, N, C]; of sequences [K, N, L, C]
            Logits; of regression a cache's numbers, which `Standard` makes of moments.
        view : int, or ndarray [N]
        rows : ndarray [N]
            Rows of the cache.
        lengths : ndarray [N], of sequences
            How many of the L positions count.

        Raises
        ------
        TypeError, ValueError
            Another dtype or shape.
        BadRows
            NaN, ``+inf``, beyond 1e38, or where a task has no use for it a row of ``-inf`` only, or any
            ``-inf``; names member and uid, and has the uids as its rows.
        """
        return self._batch(self._shaped(value, len(rows), lengths), *self._records(view, rows, lengths))

    def parts(
        self, parts: Iterable[Any], view: int, rows: np.ndarray, lengths: np.ndarray
    ) -> tuple[Fields, dict[str, Cost]]:
        """As a call, of sequences whose logits come in parts, so that they are never held as a whole.

        ``parts`` are float32 [K, M, C], the positions that count of all sequences, in order.
        """
        draw_ids, uids = self._records(view, rows, lengths)
        done, found = 0, list[tuple[Fields, dict[str, Cost]]]()
        for value in parts:
            logits = value.detach() if isinstance(value, Tensor) else _as_tensor(np.asarray(value))
            shape = (len(self.names), self.classes)
            if logits.dim() != 3 or (logits.shape[0], logits.shape[2]) != shape:
                raise ValueError(
                    f"ensemble.predict_parts: expected [members, records, classes] = [{shape[0]}, M, "
                    f"{shape[1]}]; got {list(logits.shape)}"
                )
            part = slice(done, done + logits.shape[1])
            done += logits.shape[1]
            if done <= len(uids):
                self._check_dtype(logits)
                found.append(self.encode(self._batch(logits, draw_ids[part], uids[part])))
        if done != len(uids):
            raise ValueError(
                f"ensemble.predict_parts: expected {len(uids)} records, the positions of these sequences; "
                f"got {done}"
            )
        fields = {name: np.concatenate([one[name] for one, _ in found]) for name in self.expected}
        costs = {
            name: Cost(
                np.concatenate([cost[name].kl for _, cost in found]),
                sum(cost[name].floored for _, cost in found),
            )
            for name in self.targets
        }
        return fields, costs

    def _records(
        self, view: int | np.ndarray, rows: np.ndarray, lengths: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The number that draws of each record begin with, and its sample's uid."""
        draw_ids = view * self.rows + rows
        if lengths is not None:
            positions = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            draw_ids = (np.repeat(draw_ids, lengths) << _POSITION_BITS) + positions
            rows = np.repeat(rows, lengths)
        return draw_ids, rows if self.uids is None else self.uids[rows]

    def _batch(self, logits: Tensor, draw_ids: np.ndarray, uids: np.ndarray) -> Batch:
        self._check(logits, uids)
        return Batch(
            logits=logits,
            names=self.names,
            weights=self.weights,
            combiner=self.combiner,
            temperature=self.temperature,
            uids=uids,
            draw_ids=draw_ids,
            impl=_impl(logits.device),
            seed=self.seed,
            floor=self.floor,
            task=self.task,
            numbers=self.numbers,
        )

    def encode(self, batch: Batch) -> tuple[Fields, dict[str, Cost]]:
        """The fields of the batch's records, and the cost of storing each member, or the mixture.

        Raises
        ------
        ValueError
            The codec returned other fields than it described, or rows at an infinite KL from the batch's.
        """
        encoded = self.codec.encode(batch)
        self._check_fields(encoded.fields, len(batch.uids))
        kl = measured_cost(self.codec, encoded.fields, batch) if encoded.kl is None else encoded.kl
        self._check_kl(kl, batch)
        floored = [0] * len(self.targets) if encoded.floored is None else encoded.floored
        costs = {name: Cost(row, count) for name, row, count in zip(self.targets, kl, floored, strict=True)}
        return encoded.fields, costs

    def _shaped(self, value: Any, count: int, lengths: np.ndarray | None) -> Tensor:
        """The logits of so many samples as [K, records, C]."""
        source = self.source
        logits = value.detach() if isinstance(value, Tensor) else _as_tensor(np.asarray(value))
        shape = (len(self.names), count, self.classes)
        if lengths is None:
            if tuple(logits.shape) != shape:
                more = ": of sequences pass lengths=, the positions of each" if logits.dim() == 4 else ""
                raise ValueError(
                    f"{source}: expected [members, samples, classes] = {list(shape)}; got "
                    f"{list(logits.shape)}{more}"
                )
        elif (
            logits.dim() != 4
            or (*logits.shape[:2], logits.shape[3]) != shape
            or logits.shape[2] < lengths.max()
        ):
            wanted = f"[{shape[0]}, {shape[1]}, at least {lengths.max()}, {shape[2]}]"
            raise ValueError(
                f"{source}: expected [members, samples, positions, classes] = {wanted}; got "
                f"{list(logits.shape)}"
            )
        self._check_dtype(logits)
        if lengths is not None:
            used = torch.arange(logits.shape[2]) < torch.from_numpy(lengths)[:, None]
            logits = logits[:, used.to(logits.device)]
        return logits

    def _check_dtype(self, logits: Tensor) -> None:
        if logits.dtype != torch.float32:
            raise TypeError(
                f"{self.source}: expected float32 logits; got {str(logits.dtype).removeprefix('torch.')}"
            )

    def _check(self, logits: Tensor, uids: np.ndarray) -> None:
        low, high = torch.aminmax(logits)  # NaN if one is
        if bool((low >= -_LARGEST) & (high <= _LARGEST)):
            return
        bad = logits.isnan() | (logits.abs() > _LARGEST)
        if self.task != "regression":
            bad &= ~logits.isneginf()
        if count := int(bad.sum()):
            k, n, c = bad.nonzero()[0].tolist()
            if self.task == "regression":
                raise BadRows(
                    f"{self.source}: expected numbers within 1e38 times the spread of the predictions; "
                    f"member {self.names[k]!r} gave {logits[k, n, c].item():g} times it for uid "
                    f"{int(uids[n])} ({count} such values in this batch)",
                    uids[[n]],
                )
            raise BadRows(
                "ensemble.predict_logits: expected logits within 1e38 of zero, or -inf for a masked class; "
                f"member {self.names[k]!r} gave {logits[k, n, c].item():g} for uid {int(uids[n])}, class {c} "
                f"({count} such "
                "values in this batch)",
                uids[[n]],
            )
        masked = logits.isneginf().all(-1)
        if self.task == "classification" and bool(masked.any()):
            k, n = masked.nonzero()[0].tolist()
            at = f"member {self.names[k]!r} gave -inf for every class of uid {int(uids[n])}"
            raise BadRows(f"ensemble.predict_logits: {at}; expected at least one finite logit", uids[[n]])

    def _check_fields(self, fields: Fields, count: int) -> None:
        wanted = {name: (np.dtype(dtype), (count, *shape)) for name, (dtype, shape) in self.expected.items()}
        found = {name: (getattr(f, "dtype", None), getattr(f, "shape", None)) for name, f in fields.items()}
        if found != wanted:
            raise ValueError(
                f"codec: {self.codec.name}: expected encode to return the fields that the codec describes, "
                f"{_shown(wanted)}; got {_shown(found)}"
            )

    def _check_kl(self, kl: np.ndarray, batch: Batch) -> None:
        shape = (len(self.targets), len(batch.uids))
        if np.shape(kl) != shape:
            raise ValueError(
                f"codec: {self.codec.name}: expected a KL {list(shape)}; got {list(np.shape(kl))}"
            )
        if not (kl < np.inf).all():  # NaN neither
            k, n = np.argwhere(~(kl < np.inf))[0]
            raise ValueError(
                f"codec: {self.codec.name}: expected stored rows at a finite KL from the given ones; uid "
                f"{int(batch.uids[n])} of {self.targets[k]!r} has {kl[k, n]:g}: decode returns NaN or +inf, "
                "or -inf for a class that has a share"
            )


def padded(packed: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[K, sum of lengths, C] as [K, N, L, C]; positions beyond a length are 0."""
    out = np.zeros((len(packed), len(lengths), lengths.max(), packed.shape[-1]), np.float32)
    out[:, np.arange(lengths.max()) < lengths[:, None]] = packed
    return out


def _impl(device: torch.device) -> encoders.Impl:
    """Kernels where there are some for the members' device, plain torch on any other."""
    return "fused" if why_no_kernels(device.type, device.index) is None else "reference"


def _as_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _shown(fields: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in fields.items()) or "none"
