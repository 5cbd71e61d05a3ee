"""The multi-label loss and its gradient from closed forms, in any precision, and data to try it on.

In float64 it is the truth that the package is judged by; in float32 it is the naive code whose own error is the
measure. It shares nothing with ensdistill.loss.multilabel_reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from closed_forms import UNIT, decoded, largest_logit, make_codes, make_logits, values_of, worst
from torch import Tensor

from ensdistill.loss.multilabel import multilabel_distillation_loss
from ensdistill.loss.targets import LogProbs, Probs, TopK

KINDS = ("logits", "codes", "log_probs", "probs", "topk-tail", "topk-zero")


@dataclass(frozen=True)
class Answer:
    loss: Tensor  # [] or [N]
    gradient: Tensor  # [N, C]
    mass: Tensor  # [N, C] the sizes of the gradient's summands, to which its rounding errors are relative


def closed_forms(
    student: Tensor,  # [N, C]
    targets: Any,  # [K, N, C], [N, C], or one of ensdistill.loss.targets
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    weights: Any = None,
    combiner: str = "prob",
    tail: str = "tail",
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    pos_weight: Tensor | None = None,
    sample_weights: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
    dtype: torch.dtype = torch.float64,
) -> Answer:
    s, (n, c), t = student.detach().to(dtype), student.shape, temperature
    yes, no = teacher(targets, c, t, weights, combiner, tail, dtype)
    x = s / t
    q, not_q = 1 / (1 + (-x).exp()), 1 / (1 + x.exp())
    log_q, log_not_q = -torch.logaddexp(-x, torch.zeros_like(x)), -torch.logaddexp(x, torch.zeros_like(x))
    cross = -torch.where(yes > 0, yes * log_q, 0) - torch.where(no > 0, no * log_not_q, 0)
    factor = torch.ones(n, c, dtype=dtype)
    for weight, dim in ((class_weights, 0), (sample_weights, 1)):
        if weight is not None:
            factor = factor * weight.to(dtype).unsqueeze(dim)
    if mask is not None:
        factor = factor * mask
    divisor = max(n, 1) if reduction in ("mean", "batchmean") else 1
    value = alpha * t**2 * (torch.special.xlogy(yes, yes) + torch.special.xlogy(no, no) + cross)
    gradient, mass = alpha * t * torch.where(yes < 0.5, q - yes, no - not_q), alpha * t * (q + yes)
    if labels is not None and alpha < 1:
        known = (labels != -1) & (labels != 255)
        y = torch.where(known, labels.to(dtype), 0)
        y = y * (1 - label_smoothing) + label_smoothing / 2
        positive = torch.ones(c, dtype=dtype) if pos_weight is None else pos_weight.to(dtype)
        rows = n
        if reduction == "mean":
            rows = int((known if mask is None else known & mask).any(-1).sum())
        share = (1 - alpha) * n / max(rows, 1)
        one = torch.zeros_like(s)
        minus_log, minus_log_not = torch.logaddexp(-s, one), torch.logaddexp(s, one)
        hard = torch.where(y > 0, positive * y * minus_log, 0) + torch.where(
            y < 1, (1 - y) * minus_log_not, 0
        )
        slope = (1 - y) / (1 + (-s).exp()), positive * y / (1 + s.exp())
        value = value + share * torch.where(known, hard, 0)
        gradient = gradient + share * torch.where(known, slope[0] - slope[1], 0)
        mass = mass + share * torch.where(known, slope[0] + slope[1], 0)
    on = factor != 0
    loss = torch.where(on, value * factor / divisor, 0).sum(-1)
    gradient, mass = (torch.where(on, g * factor / divisor, 0) for g in (gradient, mass))
    return Answer(loss if reduction == "none" else loss.sum(), gradient, mass)


def teacher(
    targets: Any, c: int, t: float, weights: Any, combiner: str, tail: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The probabilities [N, C] of presence and absence."""
    if isinstance(targets, TopK):
        p, n = targets.log_probs.to(dtype).exp(), len(targets.ids)
        others = c - (p > 0).sum(-1)
        rest = targets.tail_log_mass.to(dtype).exp() / others.clamp(min=1)
        yes = (rest if tail == "tail" else torch.zeros(n, dtype=dtype))[:, None].repeat(1, c)
        for row in range(n):
            at = p[row] > 0
            yes[row, targets.ids[row, at].long()] = p[row, at]
        return yes, 1 - yes
    weights = getattr(targets, "weights", None) if weights is None else weights
    if isinstance(targets, LogProbs | Probs):
        values = targets.log_probs if isinstance(targets, LogProbs) else targets.probs
        values = (values if values.dim() == 3 else values[None]).to(dtype)
        each = values.exp() if isinstance(targets, LogProbs) else values
        logits = each.log() - (-each).log1p()
    else:
        logits = decoded(targets, dtype).to(dtype) / t
        each = 1 / (1 + (-logits).exp())
    w = torch.ones(len(logits), dtype=dtype) if weights is None else torch.as_tensor(weights).to(dtype)
    members = [(w_k / w.sum(), k) for k, w_k in enumerate(w) if w_k > 0]
    if combiner != "prob":
        mean = sum(w_k * logits[k] for w_k, k in members)
        return 1 / (1 + (-mean).exp()), 1 / (1 + mean.exp())
    if isinstance(targets, LogProbs | Probs):
        return sum(w_k * each[k] for w_k, k in members), sum(w_k * (1 - each[k]) for w_k, k in members)
    return sum(w_k * each[k] for w_k, k in members), sum(w_k / (1 + logits[k].exp()) for w_k, k in members)


# Data
# ------------------------------------------------------------------------------------------------------------


def make_targets(kind: str, k: int, n: int, c: int, *, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """Targets of one kind at T = 2, and the loss's arguments that belong to them."""
    z = make_logits(k, n, c, seed=seed, dtype=torch.float64)
    if kind == "codes":
        return make_codes(k, n, c, seed=seed), {}
    if kind == "logits":
        return z.to(dtype), {}
    if kind == "log_probs":
        return LogProbs(torch.nn.functional.logsigmoid(z / 2).to(dtype), temperature=2.0), {}
    if kind == "probs":
        return Probs(torch.sigmoid(z / 2).to(dtype), temperature=2.0), {}
    return make_top_k(n, c, max(1, min(c // 2, 20)), seed=seed, dtype=dtype), {"tail": kind[5:]}


def make_top_k(n: int, c: int, k: int, *, seed: int, dtype: torch.dtype = torch.float32) -> TopK:
    """The k largest sigmoids at T = 2 in no order; the last entry is padding where there are more than two."""
    p = torch.sigmoid(make_logits(n, c, seed=seed, dtype=torch.float64) / 2)
    largest = p.topk(k)
    order = [torch.randperm(k, generator=torch.Generator().manual_seed(seed + i)) for i in range(n)]
    order = torch.stack(order) if n else largest.indices
    log_probs, ids = largest.values.gather(-1, order).log(), largest.indices.gather(-1, order)
    rest = p.sum(-1) - (log_probs.exp()[:, : k - 1] if k > 2 else log_probs.exp()).sum(-1)
    if k > 2:
        log_probs[:, -1], ids[:, -1] = -torch.inf, 0
    return TopK(ids, log_probs.to(dtype), rest.log().float(), 2.0, c)


def make_labels(n: int, c: int, *, seed: int) -> Tensor:
    """0, 1, and -1; a row of three without any known label."""
    labels = torch.randint(-1, 2, (n, c), generator=torch.Generator().manual_seed(seed))
    labels[::3] = -1
    return labels


# Judging
# ------------------------------------------------------------------------------------------------------------


def run(
    student: Tensor, targets: Any, labels: Tensor | None = None, **arguments: Any
) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of its sum."""
    student = student.detach().requires_grad_()
    loss = multilabel_distillation_loss(student, targets, labels, **arguments)
    loss.sum().backward()
    return loss.detach(), student.grad


def assert_close(
    found: tuple[Tensor, Tensor],
    student: Tensor,
    targets: Any,
    labels: Tensor | None = None,
    **arguments: Any,
) -> None:
    """Found is as near to the truth as the naive code in float32 is (float64, where an input is), or nearer, up to a
    small eps."""
    dtype = torch.float64 if torch.float64 in (student.dtype, values_of(targets).dtype) else torch.float32
    truth, naive = (
        closed_forms(student, targets, labels, dtype=d, **arguments) for d in (torch.float64, dtype)
    )
    loss, gradient = found
    assert (loss.dtype, loss.shape) == (dtype, truth.loss.shape)
    assert (gradient.dtype, gradient.shape) == (student.dtype, student.shape)
    temperature, alpha = arguments.get("temperature", 1.0), arguments.get("alpha", 1.0)
    # A logit's own rounding moves a log-probability by that times its size; 6 units for the rest.
    eps = 6 * UNIT[dtype] * (1 + largest_logit(student, targets) / min(temperature, 1.0))
    size = (alpha * temperature**2 + 1 - alpha) * (
        1 + truth.loss.abs().max().item() if truth.loss.numel() else 1
    )
    assert worst(loss, truth.loss) <= worst(naive.loss, truth.loss) + eps * size
    # Rounded once to the student's dtype; a float16 mean's is kept large and divided later, which rounds subnormals again.
    divided = student.dtype == torch.float16 and arguments.get("reduction", "mean") in ("mean", "batchmean")
    once = UNIT[student.dtype] * (
        1.01 * truth.gradient.abs() + (1 + divided) * torch.finfo(student.dtype).smallest_normal
    )

    def excess(answer: Tensor, allowed: Tensor | float) -> float:
        over = ((answer.double() - truth.gradient).abs() - allowed).clamp(min=0)
        return worst(over / truth.mass.clamp(min=1e-37), torch.zeros(()))

    assert excess(gradient, once) <= excess(naive.gradient, 0.0) + eps
