"""The encoders in plain torch, in float64: slow, obviously right, on any device. The specification, and the
tests' oracle.

The functions take the arguments of the ops of the same names in csrc/schema.cpp. A row without a distribution
gets a NaN for its KL.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ensdistill.loss import reference

_LARGEST = 1e38


def encode_uint8(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rule of ensdistill/cache/codecs/uint8.py; see :func:`ensdistill.loss.encoders.quantize_logits`.

    Examples
    --------
    >>> [x.tolist() for x in encode_uint8(torch.tensor([[[0.0, -torch.inf, 254.0]]]))]
    [[[[1, 0, 255]]], [[-1.0]], [[-1.0]], [[0.0]]]
    """
    z = logits.double()
    out = z.isneginf()
    masked = out.any(-1)
    storable = (out | (z.abs() <= _LARGEST)).all(-1) & ~out.all(-1)
    low = z.masked_fill(out, torch.inf).amin(-1)
    high = z.amax(-1)
    step = ((high - low) / torch.where(masked, 254, 255)).float()
    step = torch.where(step < torch.finfo(torch.float32).tiny, masked.float(), step)
    offset = (low - torch.where(masked, step, 0)).float()
    codes = ((z - offset.double()[..., None]) / torch.where(step == 0, 1, step).double()[..., None]).round()
    codes = (
        codes.maximum(masked[..., None].double())
        .clamp(max=255)
        .masked_fill(out | ~storable[..., None], 0)
        .to(torch.uint8)
    )
    scale, offset = (x.masked_fill(~storable, torch.nan) for x in (torch.where(masked, -step, step), offset))
    decoded = reference.decoded(codes, scale, offset, torch.float32).double()
    kl = reference.forward_kl(torch.log_softmax(z, -1), torch.log_softmax(decoded, -1), 0.0).clamp(min=0)
    return codes, scale, offset, kl


def mixture_log_probs(
    targets: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    combiner: str,
) -> Tensor:
    """Log-probabilities [N, C] of the mixture of K members' logits or codes [K, N, C], in float64.

    Examples
    --------
    >>> mixture_log_probs(torch.zeros(3, 1, 4), None, None, None, 2.0, "prob").exp()
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]], dtype=torch.float64)
    """
    coded = scale is not None and offset is not None
    # Decoded in float32, as by all readers.
    z = (reference.decoded(targets, scale, offset, torch.float32) if coded else targets).double()  # type: ignore[arg-type]
    w = reference.normalized(weights, len(z), z)
    return reference.mixture(reference.member_log_probs(z, w, "logits", temperature), w, combiner)


def encode_top_k(
    targets: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    combiner: str,
    k: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`ensdistill.loss.encoders.top_k_targets`.

    Examples
    --------
    >>> encode_top_k(torch.tensor([[[1.0, 2.0, 2.0]]]), None, None, None, 1.0, "prob", 2)[0]
    tensor([[1, 2]], dtype=torch.int32)
    """
    log_p = mixture_log_probs(targets, scale, offset, weights, temperature, combiner)
    classes = log_p.shape[-1]
    values, ids = log_p.clamp(max=0).sort(
        dim=-1, descending=True, stable=True
    )  # stable: ties by the lower id
    outside = values[:, k:]
    tail = _logsumexp(outside)
    # Listed classes are exact, so only the tail differs: KL = sum of p log p outside - P (log P - log(C -
    # k)).
    p = outside.exp()
    kl = (p * outside.masked_fill(p == 0, 0)).sum(-1)
    if k < classes:
        kl = kl - (tail.exp() * (tail.masked_fill(tail.isneginf(), 0) - math.log(classes - k)))
    kl = kl.clamp(min=0).where(~log_p.isnan().any(-1), torch.nan)
    id_type = torch.int32 if classes - 1 <= torch.iinfo(torch.int32).max else torch.int64
    return ids[:, :k].to(id_type), values[:, :k].float(), tail.float(), kl


def encode_counts(
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
    """See :func:`ensdistill.loss.encoders.sample_counts`.

    Examples
    --------
    >>> encode_counts(torch.tensor([[[0.0, -99.0]]]), None, None, None, 1.0, "prob", 5, 0, None)[1]
    tensor([[5, 0]], dtype=torch.int32)
    """
    log_p = mixture_log_probs(targets, scale, offset, weights, temperature, combiner)
    rows, classes = log_p.shape
    row_ids = torch.arange(rows, device=log_p.device) if row_ids is None else row_ids
    fine = ~log_p.isnan().any(-1)
    p = log_p.exp().where(fine[:, None], 1 / classes)
    below = p.cumsum(-1)
    points = sorted_uniforms(seed, row_ids, draws) * below[:, -1:]
    last = torch.arange(classes, device=p.device).where(p > 0, -1).amax(-1, keepdim=True)
    drawn = torch.searchsorted(below, points, right=True).minimum(last)
    times = torch.zeros(rows, classes, dtype=torch.int64, device=p.device)
    times.scatter_add_(-1, drawn, torch.ones_like(drawn)).masked_fill_(~fine[:, None], 0)
    share = times.double() / draws
    kl = (
        (share * (share.log() - log_p).masked_fill(share == 0, 0))
        .sum(-1)
        .clamp(min=0)
        .masked_fill(~fine, torch.nan)
    )
    # Drawn classes first, by id; the rest is padding with id 0.
    order = (times == 0).to(torch.int8).sort(dim=-1, stable=True).indices[:, : min(draws, classes)]
    counts = times.gather(-1, order)
    id_type = torch.int32 if classes - 1 <= torch.iinfo(torch.int32).max else torch.int64
    return order.masked_fill(counts == 0, 0).to(id_type), counts.to(torch.int32), kl


def sorted_uniforms(seed: int, row_ids: Tensor, draws: int) -> Tensor:
    """``draws`` uniform numbers for each row [N, draws], rising: the part above falls by U^(1/n), n being the
    number still to come.

    Examples
    --------
    >>> bool((sorted_uniforms(3, torch.tensor([5]), 9).diff() > 0).all())
    True
    """
    numbers = torch.arange((draws + 1) // 2, device=row_ids.device).expand(len(row_ids), -1)
    words = philox(seed, row_ids[:, None].expand_as(numbers), numbers).flatten(1)[:, :draws]
    u = ((words >> 12 & (1 << 52) - 1).double() + 0.5) * 2.0**-52
    return -torch.expm1((u.log() / torch.arange(draws, 0, -1, device=u.device)).cumsum(-1))


def philox(seed: int, row: Tensor, block: Tensor) -> Tensor:
    """Philox4x32-10 with key ``seed`` and counter (row, block), int64 [...]: two words of 64 random bits,
    [..., 2].

    Examples
    --------
    >>> zero = torch.tensor(0)
    >>> [f"{int(x) & (1 << 64) - 1:016x}" for x in philox(0, zero, zero)]  # the published answer for zeros
    ['e169c58d6627e8d5', '9b00dbd8bc57ac4c']
    """
    mask = 0xFFFFFFFF
    key = [seed & mask, seed >> 32 & mask]
    c0, c1, c2, c3 = row & mask, row >> 32 & mask, block & mask, block >> 32 & mask
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # wrap, with the right bits
        c0, c1, c2, c3 = (b >> 32 & mask) ^ c1 ^ key[0], b & mask, (a >> 32 & mask) ^ c3 ^ key[1], a & mask
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return torch.stack([c1 << 32 | c0, c3 << 32 | c2], -1)


def _logsumexp(x: Tensor) -> Tensor:
    return torch.logsumexp(x, -1) if x.shape[-1] else x.new_full(x.shape[:-1], -torch.inf)
