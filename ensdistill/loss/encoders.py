"""Encoders: an ensemble's outputs in a small form, with the loss of information for each row.

Each encoder returns the targets and the KL divergence of every row from its input, in nats and float64. The
native ops read logits or codes as stored. They hold a few rows for each thread, or on a GPU for each block,
never [N, C]. CPU and GPU write the same codes and use the same random numbers. They choose the same classes,
unless probabilities differ by no more than the rounding of doubles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ensdistill.common.combiners import Combiner
from ensdistill.common.scalars import check_temperature
from ensdistill.loss import encoders_reference
from ensdistill.loss.checks import (
    check_combiner,
    check_device,
    check_int,
    check_kernels,
    check_one_of,
    member_weights,
    visible,
)
from ensdistill.loss.target_arguments import (
    affine_maps,
    check_reach,
    check_target_temperature,
    combiner_of,
    typed_values,
)
from ensdistill.loss.targets import Counts, EnsembleLogits, QuantizedLogits, TopK

__all__ = ["quantize_logits", "sample_counts", "top_k_targets"]

Impl = Literal["fused", "reference"]

_LARGEST = 1e38
_INT32 = 2**31 - 1


def quantize_logits(
    logits: Tensor | EnsembleLogits, *, impl: Impl = "fused"
) -> tuple[QuantizedLogits, Tensor]:
    r"""One byte for a logit, and one affine map for a row and member: ``logit = offset + |scale| * code``.

    The 256 codes span a row's finite logits in 255 steps. Where a class is masked, code 0 means ``-inf``, the
    scale is negative and 254 steps are left. These are the bits that the target cache's ``uint8`` codec
    writes. A class that is masked by a large finite number widens the steps of all others: mask it with
    ``-inf``, as the cache does for classes that no temperature in use can see.

    Parameters
    ----------
    logits : Tensor [K, ..., C] or EnsembleLogits, float64, float32, bfloat16 or float16
        ``-inf`` masks a class. All others have to be within 1e38 of zero, which float32 arithmetic bears.
    impl : {"fused", "reference"}
        The native op (CPU, CUDA); or the plain torch code that specifies it, on any device.

    Returns
    -------
    QuantizedLogits
        codes [K, ..., C] uint8, scale and offset [K, ...] float32, and the weights of ``logits``.
    kl : Tensor [K, ...], float64
        KL(softmax(z) ‖ softmax(decoded)) of each member's row at T = 1. At most R²/520200 for a row of range
        R without masked classes: logits within e of each other, up to a shift, give a KL of at most e²/2, and
        e is half a step, R/510.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, and the member and row of a NaN, ``+inf``, a logit beyond 1e38, or a row of
        ``-inf`` only. Values on a GPU or while compiling aren't looked at: such a row has NaN for scale,
        offset and KL.
    NotImplementedError
        ``impl="fused"`` on a device that has no kernels: CUDA kernels that weren't built, or not for that
        GPU.

    Examples
    --------
    >>> codes, kl = quantize_logits(torch.tensor([[[0.0, 1.0, 2.55]]]))
    >>> codes.codes, codes.scale
    (tensor([[[  0, 100, 255]]], dtype=torch.uint8), tensor([[0.0100]]))
    >>> bool(kl < 1e-5)
    True
    """
    given = EnsembleLogits(logits) if isinstance(logits, Tensor) else logits
    if not isinstance(given, EnsembleLogits):
        raise TypeError(
            f"logits: expected a Tensor [K, ..., C] or EnsembleLogits; got {type(logits).__name__}"
        )
    values = _checked_values("logits", given)
    function = _implementation(
        impl, values, "logits", torch.ops.ensdistill.encode_uint8, encoders_reference.encode_uint8
    )
    rows = _rows(values)
    codes, scale, offset, kl = function(rows)
    if visible(kl) and bool(kl.isnan().any()):
        k, n = (int(i) for i in kl.isnan().nonzero()[0])
        fault = (
            _fault(rows[k, n])
            or f"expected logits within 1e38 of zero, or -inf for a masked class; got {_beyond(rows[k, n])}"
        )
        raise ValueError(f"logits: member {k}, row {_place(n, values)}: {fault}")
    lead = values.shape[:-1]
    return QuantizedLogits(
        codes.view(values.shape), scale.view(lead), offset.view(lead), given.weights, combiner=given.combiner
    ), kl.view(lead)


def top_k_targets(
    targets: Tensor | EnsembleLogits | QuantizedLogits,
    k: int,
    *,
    temperature: float = 1.0,
    weights: Tensor | Sequence[float] | None = None,
    combiner: Combiner | None = None,
    impl: Impl = "fused",
) -> tuple[TopK, Tensor]:
    """The k likeliest classes of the mixture, and the exact log-mass of all others.

    The tail is a sum over the other classes, in double precision: 1 minus the listed mass would be rounding
    noise where the tail is small. Logarithms keep probabilities apart that lie far below the smallest float.

    Parameters
    ----------
    targets : Tensor [K, ..., C], EnsembleLogits or QuantizedLogits
        The K members' outputs; a bare tensor is logits (of one teacher: ``logits[None]``). ``-inf`` masks a
        class.
    k : int
        From 1 to C.
    temperature : float
        T from 1e-4 to 1e4: the mixture is that of softmax(z_k / T). It stays with the targets.
    weights : Tensor or sequence [K], optional
        Non-negative; normalised to sum to one. By default those of ``targets``, else uniform. A member of
        weight 0 is not read.
    combiner : {"prob", "logit", "log_prob"}, optional
        By default the one that ``targets`` carries, else ``prob``. ``prob``: mean of the members' softmaxes.
        ``logit`` and ``log_prob``: the softmax of their mean logits.
    impl : {"fused", "reference"}
        The native op (CPU, CUDA); or the plain torch code that specifies it, on any device.

    Returns
    -------
    TopK
        ids [..., k] int32 (int64 where C needs it) by falling probability, ties by the lower id; log_probs
        [..., k] float32, ``-inf`` for classes without mass; tail_log_mass [...] float32, ``-inf`` where
        nothing is left outside.
    kl : Tensor [...], float64
        KL(mixture ‖ reconstruction) at T, where the reconstruction spreads the tail's mass uniformly over the
        C - k other classes.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, and the member and row of a NaN, ``+inf`` or a row of ``-inf`` only. Values on a
        GPU or while compiling aren't looked at: such a row has NaN for its numbers.
    NotImplementedError
        ``impl="fused"`` on a device that has no kernels: CUDA kernels that weren't built, or not for that
        GPU.

    Examples
    --------
    >>> probabilities = torch.tensor([[[0.5, 0.1, 0.3, 0.1]]])  # K=1, N=1, C=4
    >>> top, kl = top_k_targets(probabilities.log(), 2)
    >>> top.ids, top.log_probs.exp(), top.tail_log_mass.exp()
    (tensor([[0, 2]], dtype=torch.int32), tensor([[0.5000, 0.3000]]), tensor([0.2000]))
    >>> bool(kl < 1e-12)  # the tail is uniform
    True
    """
    values, arguments = _mixture_arguments(targets, weights, temperature, combiner)
    check_int("k", k, 1, values.shape[-1], "the number of classes")
    function = _implementation(
        impl, values, "targets", torch.ops.ensdistill.encode_top_k, encoders_reference.encode_top_k
    )
    ids, log_probs, tail, kl = function(*arguments, k)
    _look(kl, values, arguments)
    lead = values.shape[1:-1]
    return TopK(ids.view(*lead, k), log_probs.view(*lead, k), tail.view(lead), float(temperature)), kl.view(
        lead
    )


def sample_counts(
    targets: Tensor | EnsembleLogits | QuantizedLogits,
    draws: int,
    *,
    seed: int,
    row_ids: Tensor | None = None,
    temperature: float = 1.0,
    weights: Tensor | Sequence[float] | None = None,
    combiner: Combiner | None = None,
    impl: Impl = "fused",
) -> tuple[Counts, Tensor]:
    """Draw classes from the mixture, with replacement, and count them: an unbiased target whose size the
    caller chooses.

    A row's draws are a function of the seed and the row's id (Philox4x32-10), so neither threads nor the way
    rows are cut into batches change them. Sorted uniform numbers, each made from the one before, walk over
    the row once. A GPU follows the same numbers and repeats itself bit by bit, but adds in another order, and
    its exp and log differ from the CPU's in the last bit: a draw that lies within about 1e-15 of the edge
    between two classes may fall into the other one there.

    Parameters
    ----------
    targets, temperature, weights, combiner, impl
        As for :func:`top_k_targets`.
    draws : int
        Of each row, from 1 to 2³¹ - 1.
    seed : int
        From 0 to 2⁶³ - 1.
    row_ids : Tensor [...], int64, optional
        Stable ids of the rows, such as their uids. By default 0, 1, ... in the order of the rows; pass them
        when encoding in chunks.

    Returns
    -------
    Counts
        ids [..., S] int32 (int64 where C needs it), rising, and counts [..., S] int32 that sum to ``draws``;
        S = min(draws, C). Unused entries are at the end, with id 0 and count 0.
    kl : Tensor [...], float64
        KL(counts / draws ‖ mixture).

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As :func:`top_k_targets`. While compiling, a row without a distribution has counts 0 and a NaN for its
        KL.

    Notes
    -----
    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Bentley, Saxe,
    "Generating sorted lists of random numbers", ACM TOMS 6 (1980).

    Examples
    --------
    >>> logits = torch.tensor([[[0.0, -torch.inf, 0.0]]])
    >>> counts, kl = sample_counts(logits, 100, seed=7)
    >>> counts.ids, counts.counts.sum()
    (tensor([[0, 2, 0]], dtype=torch.int32), tensor(100))
    """
    values, arguments = _mixture_arguments(targets, weights, temperature, combiner)
    check_int("draws", draws, 1, _INT32, "what int32 counts")
    check_int("seed", seed, 0, 2**63 - 1, "what int64 holds")
    lead, entries = values.shape[1:-1], min(draws, values.shape[-1])
    if row_ids is not None:
        if not isinstance(row_ids, Tensor) or row_ids.dtype != torch.int64:
            raise TypeError(
                "row_ids: expected a torch.int64 Tensor; got "
                f"{getattr(row_ids, 'dtype', type(row_ids).__name__)}"
            )
        if row_ids.shape != lead:
            raise ValueError(
                f"row_ids: expected one for each row, {list(lead)}; got shape {list(row_ids.shape)}"
            )
        check_device("row_ids", row_ids, values.device, "the logits are")
        row_ids = row_ids.reshape(-1).contiguous()
    function = _implementation(
        impl, values, "targets", torch.ops.ensdistill.encode_counts, encoders_reference.encode_counts
    )
    ids, counts, kl = function(*arguments, draws, seed, row_ids)
    _look(kl, values, arguments)
    return Counts(ids.view(*lead, entries), counts.view(*lead, entries), float(temperature)), kl.view(lead)


# Arguments
# ------------------------------------------------------------------------------------------------------------


def _mixture_arguments(
    targets: Any, weights: Any, temperature: Any, combiner: Any
) -> tuple[Tensor, list[Any]]:
    """The members' values as given [K, ..., C], and the arguments that the ops of a mixture begin with."""
    given = EnsembleLogits(targets) if isinstance(targets, Tensor) else targets
    if not isinstance(given, EnsembleLogits | QuantizedLogits):
        raise TypeError(
            "targets: expected a Tensor of logits [K, ..., C], EnsembleLogits or QuantizedLogits; got "
            f"{type(targets).__name__}"
        )
    values = _checked_values("targets", given)
    affine: tuple[Tensor | None, Tensor | None] = (None, None)
    if isinstance(given, QuantizedLogits):
        scale, offset = affine_maps(given, tuple(values.shape[:-1]), values.device, "the logits are")
        affine = scale.detach(), offset.detach()
    check_temperature("temperature", temperature)
    if isinstance(given, QuantizedLogits) and given.temperature is not None:
        check_target_temperature(given, float(temperature))
    check_combiner("combiner", combiner)
    combiner = combiner or combiner_of(given) or "prob"
    check_reach(given, float(temperature), combiner)
    weights = given.weights if weights is None else weights
    weights = None if weights is None else member_weights(weights, len(values), values.device)
    return values, [_rows(values), *affine, weights, float(temperature), combiner]


def _checked_values(name: str, given: EnsembleLogits | QuantizedLogits) -> Tensor:
    values = typed_values(name, given)
    if values.dim() < 3 or values.shape[0] < 1 or values.shape[-1] < 1:
        hint = "; of one teacher's logits [N, C] pass logits[None]" if values.dim() == 2 else ""
        raise ValueError(
            f"{name}: expected [K, ..., C] with at least one member, one row dimension and one class; got "
            f"{list(values.shape)}{hint}"
        )
    return values.detach()


def _implementation(impl: Any, values: Tensor, name: str, fused: Any, reference: Any) -> Any:
    check_one_of("impl", impl, get_args(Impl))
    if impl == "fused":
        check_kernels(name, values.device)
    return fused if impl == "fused" else reference


def _rows(values: Tensor) -> Tensor:
    """[K, N, C] with unit stride over C, as a view where that is one."""
    rows = values.reshape(len(values), math.prod(values.shape[1:-1]), values.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


# Errors that name a row
# -------------------------------------------------------------------------------------------


def _look(kl: Tensor, values: Tensor, arguments: list[Any]) -> None:
    """Find out why, where a row of a mixture came back as NaN."""
    if not visible(kl) or not bool(kl.isnan().any()):
        return
    rows, scale, offset, weights, _, combiner = arguments
    n = int(kl.isnan().nonzero()[0])
    for k in range(len(rows)):
        if weights is not None and weights[k] == 0:
            continue
        row = rows[k, n]
        if scale is not None:
            if not bool(torch.isfinite(scale[k, n]) & torch.isfinite(offset[k, n])):
                pair = f"{scale[k, n]:g} and {offset[k, n]:g}"
                raise ValueError(
                    f"targets: member {k}, row {_place(n, values)}: expected a finite scale and offset; got "
                    f"{pair}"
                )
            row = QuantizedLogits(row, scale[k, n], offset[k, n]).to_logits()
        if fault := _fault(row):
            raise ValueError(f"targets: member {k}, row {_place(n, values)}: {fault}")
    raise ValueError(
        f"targets: row {_place(n, values)}: each class is masked (-inf) by a member, so "
        f"combiner={combiner!r} leaves none"
    )


def _fault(row: Tensor) -> str | None:
    for what, wrong in (("NaN", row.isnan()), ("+inf", row.isposinf())):
        if bool(wrong.any()):
            return (
                f"expected logits that are finite, or -inf for a masked class; got {what} for class "
                f"{int(wrong.nonzero()[0])}"
            )
    return (
        "every class is masked (-inf), which leaves no distribution" if bool(row.isneginf().all()) else None
    )


def _beyond(row: Tensor) -> str:
    wrong = (row.double().abs() > _LARGEST) & ~row.isneginf()
    c = int(wrong.nonzero()[0])
    return f"{row[c].item():g} for class {c}"


def _place(n: int, values: Tensor) -> str:
    lead = values.shape[1:-1]
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(n), lead))
    return str(index[0] if len(index) == 1 else index)


# Fake kernels
# ---------------------------------------------------------------------------------------------------------


def _ids_type(classes: int) -> torch.dtype:
    return torch.int32 if classes - 1 <= _INT32 else torch.int64


@torch.library.register_fake("ensdistill::encode_uint8")
def _(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = logits.shape[:2]
    return (
        logits.new_empty(logits.shape, dtype=torch.uint8),
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.float64),
    )


@torch.library.register_fake("ensdistill::encode_top_k")
def _(
    targets: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    combiner: str,
    k: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, c = targets.shape[1:]
    return (
        targets.new_empty((n, k), dtype=_ids_type(c)),
        targets.new_empty((n, k), dtype=torch.float32),
        targets.new_empty((n,), dtype=torch.float32),
        targets.new_empty((n,), dtype=torch.float64),
    )


@torch.library.register_fake("ensdistill::encode_counts")
def _(
    targets: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    combiner: str,
    draws: int,
    seed: int,
    row_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c = targets.shape[1:]
    entries = min(draws, c)
    return (
        targets.new_empty((n, entries), dtype=_ids_type(c)),
        targets.new_empty((n, entries), dtype=torch.int32),
        targets.new_empty((n,), dtype=torch.float64),
    )
