"""The types a teacher's word can have. Each names what it holds, so that a loss never has to guess logits from probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EnsembleLogits:
    """Raw logits of K members.

    Parameters
    ----------
    logits : Tensor [K, N, C], float64, float32, bfloat16 or float16
        Only C has to be contiguous. ``-inf`` marks a class that the member rules out.
    weights : Tensor [K], optional
        Non-negative mixture weights; they are normalised to sum to one. Uniform by default.

    Examples
    --------
    >>> EnsembleLogits(torch.zeros(3, 5, 10)).shape
    (3, 5, 10)
    """

    logits: Tensor
    weights: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        k, n, c = self.logits.shape
        return k, n, c

    def to_logits(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The members' logits as [K, N, C]."""
        return self.logits.to(dtype)

    def rows(self, start: int, stop: int) -> EnsembleLogits:
        """Rows ``start`` to ``stop`` as a view."""
        return EnsembleLogits(self.logits[:, start:stop], self.weights)


@dataclass(frozen=True)
class QuantizedLogits:
    """Logits of K members as uint8 codes with one affine map per row and member, as the target cache stores them.

    ``logit = offset + |scale| * code``; a negative ``scale`` says that code 0 of that row means ``-inf`` (a masked class).

    Parameters
    ----------
    codes : Tensor [K, N, C], uint8
        Only C has to be contiguous, so a view of the cache's records does.
    scale, offset : Tensor [K, N], float32
    weights : Tensor [K], optional
        Non-negative mixture weights; they are normalised to sum to one. Uniform by default.

    Examples
    --------
    >>> q = QuantizedLogits(torch.tensor([[[0, 255]]], dtype=torch.uint8), torch.tensor([[0.5]]), torch.tensor([[-1.0]]))
    >>> q.to_logits()
    tensor([[[ -1.0000, 126.5000]]])
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor
    weights: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        k, n, c = self.codes.shape
        return k, n, c

    def to_logits(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The logits [K, N, C], decoded in ``dtype``."""
        scale, offset = self.scale.to(dtype).unsqueeze(-1), self.offset.to(dtype).unsqueeze(-1)
        logits = offset + scale.abs() * self.codes
        return logits.masked_fill((scale < 0) & (self.codes == 0), -torch.inf)

    def rows(self, start: int, stop: int) -> QuantizedLogits:
        """Rows ``start`` to ``stop`` as a view."""
        part = slice(start, stop)
        return QuantizedLogits(self.codes[:, part], self.scale[:, part], self.offset[:, part], self.weights)


Targets = EnsembleLogits | QuantizedLogits
