"""The loss as users write it without a kernel: torch.nn.functional, in float32 as under autocast."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ensdistill.bench.cases import ALPHA, MULTILABEL, TEMPERATURE, Case
from ensdistill.bench.inputs import Inputs
from ensdistill.loss.targets import EnsembleLogits, QuantizedLogits, TopK


def tensors(inputs: Inputs) -> list[Tensor]:
    """The arguments of :func:`plain_loss`, in its order."""
    targets = inputs.targets
    if isinstance(targets, QuantizedLogits):
        parts = [targets.codes, targets.scale, targets.offset]
    elif isinstance(targets, TopK):
        assert targets.tail_log_mass is not None
        parts = [targets.ids, targets.log_probs, targets.tail_log_mass]
    else:
        assert isinstance(targets, EnsembleLogits)
        parts = [targets.logits]
    return [*inputs.leaves, *parts, *([] if inputs.labels is None else [inputs.labels])]


# The loss; with by-products a pair of it and them, [4, N].
Plain = Tensor | tuple[Tensor, Tensor]


def plain_loss(case: Case, form: str = "kl_div") -> Callable[..., Plain]:
    """The loss as a function of :func:`tensors`, which torch.compile can take whole.

    ``form`` is ``kl_div`` with probabilities as the target, ``log_target`` with log-probabilities, or
    ``cross_entropy``, which is as good for training but leaves the teacher's entropy out. Each is sometimes
    the fastest.
    """
    dim = 1 if case.layout == "map" else -1
    leaves = 2 if case.hidden else 1

    def loss(*given: Tensor) -> Plain:
        s = (F.linear(*given[:leaves]) if case.hidden else given[0]).float()
        parts, labels = list(given[leaves:]), None
        if case.labels:
            labels = parts.pop()
        if case.targets == "topk":
            total = _top_k(F.log_softmax(s / TEMPERATURE, -1), *parts)
        else:
            z = (
                parts[1][..., None] * parts[0] + parts[2][..., None]
                if case.targets == "uint8"
                else parts[0].float()
            )
            total = _dense(case.divergence, form, s / TEMPERATURE, z / TEMPERATURE, dim)
        value = total / case.divisor * TEMPERATURE**2
        if case.statistics:  # of dense targets in rows, as the suite has them
            return value, _by_products(s.detach() / TEMPERATURE, z / TEMPERATURE)
        return value if labels is None else ALPHA * value + (1 - ALPHA) * F.cross_entropy(s, labels)

    return loss


def _dense(divergence: str, form: str, s: Tensor, z: Tensor, dim: int) -> Tensor:
    """Summed over rows, of logits [N, C] and [K, N, C] (classes at ``dim`` of the first) divided by the
    temperature."""
    if divergence == MULTILABEL:
        return _bernoulli(form, s, z)
    members = dim + 1 if dim > 0 else dim
    if form == "log_target" or (divergence == "reverse_kl" and len(z) == 1):
        log_q, log_p = F.log_softmax(s, dim), F.log_softmax(z[0], dim)
        if divergence == "reverse_kl":
            return F.kl_div(log_p, log_q, reduction="sum", log_target=True)
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    p = F.softmax(z, members)
    p = p[0] if len(p) == 1 else p.mean(0)
    if form == "cross_entropy":
        return F.cross_entropy(s, p, reduction="sum")
    if divergence == "tvd":
        return (p - F.softmax(s, dim)).abs().sum() / 2
    log_q = F.log_softmax(s, dim)
    if divergence == "forward_kl":
        return F.kl_div(log_q, p, reduction="sum")
    if divergence == "reverse_kl":
        return F.kl_div(p.log(), log_q, reduction="sum", log_target=True)
    log_m = ((p + log_q.exp()) / 2).log()
    return (
        F.kl_div(log_m, p, reduction="sum") + F.kl_div(log_m, log_q, reduction="sum", log_target=True)
    ) / 2


def _bernoulli(form: str, s: Tensor, z: Tensor) -> Tensor:
    """Of C sigmoids: the cross entropy, less the mixture's own."""
    p = torch.sigmoid(z).mean(0)
    cross = F.binary_cross_entropy_with_logits(s, p, reduction="sum")
    if form == "cross_entropy":
        return cross
    return cross + (torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)).sum()


def _by_products(s: Tensor, z: Tensor) -> Tensor:
    """Entropies of student and mixture, whether they agree, and by how much the members disagree: of logits
    [N, C] and [K, N, C]."""
    log_q, members = F.log_softmax(s, -1), F.softmax(z, -1)
    p = members.mean(0)
    mixture = torch.special.entr(p).sum(-1)
    agreement = (log_q.argmax(-1) == p.argmax(-1)).float()
    return torch.stack(
        [
            -(log_q.exp() * log_q).sum(-1),
            mixture,
            agreement,
            mixture - torch.special.entr(members).sum(-1).mean(0),
        ]
    )


def _top_k(log_q: Tensor, ids: Tensor, log_p: Tensor, log_tail: Tensor) -> Tensor:
    """The listed classes and one bucket for the others, summed over rows."""
    listed = log_q.gather(-1, ids.long())
    log_outside = torch.log1p(-listed.exp().sum(-1))
    return (log_p.exp() * (log_p - listed)).sum() + (log_tail.exp() * (log_tail - log_outside)).sum()
