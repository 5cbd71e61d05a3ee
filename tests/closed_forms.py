"""The distillation loss and its gradient from their closed forms, in any precision, and data to try them on.

In float64 it is the truth that the package is judged by; in float32 it is the naive code whose own error is the measure.
It shares nothing with ensdistill.reference, whose gradient is made by autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ensdistill.functional import distillation_loss
from ensdistill.targets import QuantizedLogits

COMBINERS = ("prob", "logit", "log_prob")
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True)
class Answer:
    loss: Tensor  # [] or [N]
    gradient: Tensor  # [N, C]
    mass: Tensor  # [N, C] the gradient's positive and negative parts added up: what its rounding errors are relative to


def closed_forms(
    student: Tensor,  # [N, C]
    logits: Tensor,  # [K, N, C]
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    weights: Tensor | None = None,
    combiner: str = "prob",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dtype: torch.dtype = torch.float64,
) -> Answer:
    s, classes, t = student.detach().to(dtype), student.shape[1], temperature
    w = torch.ones(len(logits), dtype=dtype) if weights is None else weights.to(dtype)
    members = [(float(w_k / w.sum()), z.to(dtype)) for w_k, z in zip(w, logits, strict=True) if w_k > 0]
    if combiner == "prob":
        p = sum(w_k * torch.softmax(z / t, -1) for w_k, z in members)
        log_p = p.log()
    else:
        mean = sum(w_k * z for w_k, z in members)
        p, log_p = torch.softmax(mean / t, -1), torch.log_softmax(mean / t, -1)
    q, log_q = torch.softmax(s / t, -1), torch.log_softmax(s / t, -1)
    loss = alpha * t**2 * torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)
    gradient, mass = alpha * t * (q - p), alpha * t * (q + p)
    counted = torch.ones(len(s), dtype=torch.bool) if labels is None else labels != ignore_index
    if labels is not None and alpha < 1:
        wanted = torch.zeros_like(s)
        wanted[counted, labels[counted]] = 1
        wanted = (1 - label_smoothing) * wanted + label_smoothing / classes
        loss = loss + (1 - alpha) * torch.where(wanted > 0, -wanted * torch.log_softmax(s, -1), 0).sum(-1)
        gradient, mass = gradient + (1 - alpha) * (torch.softmax(s, -1) - wanted), mass + (1 - alpha) * (torch.softmax(s, -1) + wanted)
    factor = 1 / max(int(counted.sum()), 1) if reduction == "mean" else 1.0
    loss = loss.where(counted, 0) * factor
    gradient, mass = (x.where(counted[:, None], 0) * factor for x in (gradient, mass))
    return Answer(loss if reduction == "none" else loss.sum(), gradient, mass)


def decoded(targets: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """The logits that a target stands for, [K, N, C]."""
    if not isinstance(targets, QuantizedLogits):
        return targets if targets.dim() == 3 else targets[None]
    scale, offset = targets.scale.to(dtype)[..., None], targets.offset.to(dtype)[..., None]
    return torch.where((scale < 0) & (targets.codes == 0), -torch.inf, offset + scale.abs() * targets.codes)


def make_logits(*shape: int, seed: int, dtype: torch.dtype = torch.float32, spread: float = 3.0) -> Tensor:
    return (spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def make_codes(k: int, n: int, c: int, *, seed: int, masked: bool = False) -> QuantizedLogits:
    """Codes as the cache gives them: views [K, N, C] of records [N, K, 8 + C], so the strides are not those of [K, N, C].

    With ``masked`` every other row has a negative scale, and code 0 for every fifth of its classes.
    """
    random = torch.Generator().manual_seed(seed)
    records = torch.randint(1, 256, (n, k, 8 + c), generator=random, dtype=torch.uint8)
    affine = torch.stack([0.02 + 0.06 * torch.rand(n, k, generator=random), -9 + 2 * torch.rand(n, k, generator=random)], -1)
    if masked and n:
        affine[::2, :, 0] *= -1
        records[:, :, 8::5] = 0
        records[:, :, 9] = 255  # at C = 2 a class is left
    records[..., :8] = affine.view(torch.uint8)
    records = records.transpose(0, 1)
    numbers = affine.transpose(0, 1)
    return QuantizedLogits(records[..., 8:], numbers[..., 0], numbers[..., 1])


def run(student: Tensor, targets: Any, labels: Tensor | None = None, **arguments: Any) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of its sum."""
    student = student.detach().requires_grad_()
    loss = distillation_loss(student, targets, labels, **arguments)
    loss.sum().backward()
    return loss.detach(), student.grad


def worst(found: Tensor, truth: Tensor) -> float:
    """The largest distance; infinite where one is NaN, or infinite alone."""
    distance = torch.where(found.double() == truth.double(), 0, (found.double() - truth.double()).abs())
    return distance.nan_to_num(nan=torch.inf).max().item() if distance.numel() else 0.0
