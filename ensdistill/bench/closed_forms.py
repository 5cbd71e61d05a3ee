"""Each row's loss and gradient in closed form, in float64: written apart from the package's own
specification, to judge both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ensdistill.bench.cases import ALPHA, MULTILABEL, TEMPERATURE
from ensdistill.loss.targets import EnsembleLogits, QuantizedLogits, Targets, TopK


@dataclass(frozen=True)
class RowTruth:
    """Of n rows."""

    loss: Tensor  # [n]
    entropy: Tensor  # [n], the part of the loss that is independent of the student: T²·H(p)
    gradient: Tensor  # [n, C]
    unit: Tensor  # [n, C], in which the gradient's error is measured


def row_truth(divergence: str, student: Tensor, targets: Targets, labels: Tensor | None) -> RowTruth:
    """Of student logits [n, C] in float64."""
    if divergence == MULTILABEL:
        return _sigmoids(student, targets)
    log_q = torch.log_softmax(student / TEMPERATURE, -1)
    rows = (
        _top_k(log_q, targets) if isinstance(targets, TopK) else _dense(divergence, log_q, _mixture(targets))
    )
    if labels is None:
        return rows
    log_1 = torch.log_softmax(student, -1)
    hard = torch.zeros_like(log_1).scatter_(-1, labels[:, None], 1)
    ce, q = -(hard * log_1).sum(-1), log_1.exp()
    return RowTruth(
        ALPHA * rows.loss + (1 - ALPHA) * ce,
        rows.entropy,
        ALPHA * rows.gradient + (1 - ALPHA) * (q - hard),
        ALPHA * rows.unit + (1 - ALPHA) * (q + hard),
    )


def _dense(divergence: str, log_q: Tensor, p: Tensor) -> RowTruth:
    t, q, log_p = TEMPERATURE, log_q.exp(), p.log()
    value, qd = _DIVERGENCES[divergence](p, q, log_p, log_q)  # D [n], and q·dD/dq [n, C]
    mean = qd.sum(-1, keepdim=True)
    unit = t * (q + qd.abs() + q * mean.abs())
    if divergence == "tvd":  # where p and q are as good as equal, the sign of their difference is rounding
        unit = unit.masked_fill((p - q).abs() <= 1e-5 * (p + q), torch.inf)
    return RowTruth(t * t * value, -t * t * (p * log_p).sum(-1), t * (qd - q * mean), unit)


def _forward_kl(p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    return (p * (log_p - log_q)).sum(-1), -p


def _reverse_kl(p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    qd = q * (log_q - log_p)
    return qd.sum(-1), qd


def _jsd(p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    log_m = ((p + q) / 2).log()
    qd = q * (log_q - log_m) / 2
    return (p * (log_p - log_m) / 2 + qd).sum(-1), qd


def _tvd(p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    return (p - q).abs().sum(-1) / 2, q * (q - p).sign() / 2


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "tvd": _tvd,
}


def _top_k(log_q: Tensor, targets: TopK) -> RowTruth:
    """The listed classes, and one bucket for all others."""
    assert targets.tail_log_mass is not None
    t, ids, q = TEMPERATURE, targets.ids.long(), log_q.exp()
    log_p, log_tail = targets.log_probs.double(), targets.tail_log_mass.double()[:, None]
    log_outside = log_q.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    p = torch.zeros_like(q).scatter_(-1, ids, log_p.exp())
    outside = torch.ones_like(q, dtype=torch.bool).scatter_(-1, ids, False)
    share = (log_tail - log_outside).exp().where(log_tail > -torch.inf, 0.0)  # p_t / q_t
    inside = (log_p.exp() * (log_p - log_q.gather(-1, ids))).sum(-1)
    bucket = (log_tail.exp() * (log_tail - log_outside)).where(log_tail > -torch.inf, 0.0).squeeze(-1)
    expected = p.where(~outside, q * share)
    return RowTruth(
        t * t * (inside + bucket), torch.zeros_like(inside), t * (q - expected), t * (q + expected)
    )


def _sigmoids(student: Tensor, targets: Targets) -> RowTruth:
    t, x = TEMPERATURE, student / TEMPERATURE
    q, p = torch.sigmoid(x), torch.sigmoid(_logits(targets) / t).mean(0)
    own = torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)
    cross = -p * torch.nn.functional.logsigmoid(x) - (1 - p) * torch.nn.functional.logsigmoid(-x)
    return RowTruth(t * t * (own + cross).sum(-1), -t * t * own.sum(-1), t * (q - p), t * (q + p))


def _mixture(part: Targets) -> Tensor:
    return torch.softmax(_logits(part) / TEMPERATURE, -1).mean(0)


def _logits(part: Targets) -> Tensor:
    if isinstance(part, QuantizedLogits):
        return part.offset.double()[..., None] + part.scale.double()[..., None] * part.codes
    assert isinstance(part, EnsembleLogits)
    return part.logits.double()
