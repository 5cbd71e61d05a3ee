"""Weights as integers: symmetric codes with a scale for each row, or for each group of a row."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32  # weights of a row that share a scale of four-bit codes


def most_of(bits: int) -> int:
    """The largest code: 127 of eight bits, 7 of four."""
    return 2 ** (bits - 1) - 1


def groups_of(columns: int, bits: int) -> int:
    """Scales for each row of so many columns."""
    return 1 if bits == 8 else -(-columns // GROUP)


def _spread(scale: Tensor, columns: int, bits: int) -> Tensor:
    """Scales [rows, groups] for each of the columns, [rows, columns]."""
    return scale.repeat_interleave(columns if bits == 8 else GROUP, 1)[:, :columns]


def scales_of(weight: Tensor, bits: int) -> Tensor:
    """The scales [rows, groups] at which the largest magnitude has the largest code.

    Parameters
    ----------
    weight : Tensor [rows, ...]
    bits : {8, 4}
    """
    rows = weight.detach().flatten(1).abs()
    if bits != 8:
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
        largest = rows.amax(2)
    else:
        largest = rows.amax(1, keepdim=True)
    # A row of zeros has any scale; the smallest normal number keeps the division finite.
    return (largest / most_of(bits)).clamp(min=torch.finfo(weight.dtype).tiny)


def codes_of(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest codes, int8, in the shape of the weight; half is rounded to even."""
    rows = weight.detach().flatten(1)
    codes = (rows / _spread(scale, rows.shape[1], bits)).round().clamp(-most_of(bits), most_of(bits))
    return codes.to(torch.int8).view(weight.shape)


def weight_of(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The weights that codes stand for, in the dtype of the scales.

    Examples
    --------
    >>> weight = torch.tensor([[0.5, -1.0], [0.0, 0.0]])
    >>> scale = scales_of(weight, 8)
    >>> codes = codes_of(weight, scale, 8)
    >>> codes.tolist(), weight_of(codes, scale, 8)[0, 1].item()
    ([[64, -127], [0, 0]], -1.0)
    """
    rows = codes.flatten(1)
    return (rows.to(scale.dtype) * _spread(scale, rows.shape[1], bits)).view(codes.shape)


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes int8 [n] as stored: themselves, or two of four bits in each byte, uint8 [ceil(n / 2)]."""
    if bits == 8:
        return codes
    low = (torch.nn.functional.pad(codes, (0, len(codes) % 2)) & 15).to(torch.uint8)
    return low[0::2] | (low[1::2] << 4)


def unpacked(stored: Tensor, count: int, bits: int) -> Tensor:
    """The codes int8 [count] of stored ones.

    Examples
    --------
    >>> unpacked(packed(torch.tensor([-7, 3, 5], dtype=torch.int8), 4), 3, 4).tolist()
    [-7, 3, 5]
    """
    if bits == 8:
        return stored
    halves = torch.stack([stored & 15, stored >> 4], 1).flatten()[:count].to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves)


def packed_bits(mask: Tensor) -> Tensor:
    """A mask, bool [n], as uint8 [ceil(n / 8)], the first in the lowest bit."""
    places = torch.nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (places * powers).sum(1, dtype=torch.uint8)


def unpacked_bits(stored: Tensor, count: int) -> Tensor:
    """The mask, bool [count], of a stored one.

    Examples
    --------
    >>> unpacked_bits(packed_bits(torch.tensor([True, False, True])), 3).tolist()
    [True, False, True]
    """
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=stored.device)
    return ((stored[:, None] & powers) > 0).flatten()[:count]
