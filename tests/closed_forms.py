"""The distillation losses and their gradients from closed forms, in any precision, and data to try them on.

In float64 it is the truth that the package is judged by; in float32 it is the naive code whose own error is
the measure. It shares nothing with ensdistill.loss.reference, whose gradient is made by autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ensdistill.functional import distillation_loss
from ensdistill.loss import settings
from ensdistill.loss.targets import Counts, EnsembleLogits, LogProbs, Probs, QuantizedLogits, TopK

DIVERGENCES = settings.DIVERGENCES
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True)
class Answer:
    loss: Tensor  # [] or [N]
    gradient: Tensor  # [N, C]
    mass: Tensor  # [N, C] the sizes of the gradient's summands, to which its rounding errors are relative
    slack: Tensor  # [N, C] how far it may jump where p and q cross, for the one divergence with a kink
    statistics: Tensor  # [N, 4]


@dataclass(frozen=True)
class Teacher:
    p: Tensor  # [N, C]
    log_p: Tensor  # [N, C]
    disagreement: Tensor  # [N]
    listed: Tensor | None = None  # [N, C] with a bucket: the classes outside of it
    tail: Tensor | None = None  # [N] log-mass of the bucket


def closed_forms(
    student: Tensor,  # [N, C]
    targets: Any,  # [K, N, C], [N, C], or one of ensdistill.loss.targets
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    weights: Tensor | None = None,
    combiner: str = "prob",
    divergence: str = "forward_kl",
    beta: float = 0.5,
    tail: str = "tail",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
    dtype: torch.dtype = torch.float64,
) -> Answer:
    s, (n, classes), t = student.detach().to(dtype), student.shape, temperature
    said = teacher(targets, classes, t, weights, combiner, tail, dtype)
    q, log_q = torch.softmax(s / t, -1), torch.log_softmax(s / t, -1)
    value, slope = divergence_terms(divergence, beta, said.p, said.log_p, q, log_q)
    ties = torch.zeros_like(q)
    if divergence == "tvd":  # 1e-4: far above float32's error in p and q
        ties = q * ((said.p - q).abs() <= 1e-4 * q)
    if said.listed is None or said.tail is None:
        value, sizes, total = value.sum(-1), slope.abs(), slope.sum(-1)
    else:
        q_t = (q * ~said.listed).sum(-1)
        bucket, steep = divergence_terms(divergence, beta, said.tail.exp(), said.tail, q_t, q_t.log())
        value = torch.where(said.listed, value, 0).sum(-1) + bucket
        slope = torch.where(said.listed, slope, q * (steep / q_t)[:, None])
        if divergence == "tvd":
            close = (said.tail.exp() - q_t).abs() <= 1e-4 * q_t
            ties = torch.where(said.listed, ties, q * close[:, None])
        sizes, total = slope.abs(), slope.sum(-1)
    loss = alpha * t**2 * value
    gradient = alpha * t * (slope - q * total[:, None])
    mass = alpha * t * (sizes + q * (1 + sizes.sum(-1, keepdim=True)))
    slack = alpha * t * (ties + q * ties.sum(-1, keepdim=True))
    q1, log_q1, lse = torch.softmax(s, -1), torch.log_softmax(s, -1), torch.logsumexp(s, -1)
    if labels is not None and alpha < 1:
        per_class = torch.ones(classes, dtype=dtype) if class_weights is None else class_weights.to(dtype)
        wanted = torch.zeros_like(s)
        labelled = labels != ignore_index
        wanted[labelled, labels[labelled]] = 1 - label_smoothing
        wanted = (
            wanted * per_class
            if label_smoothing == 0
            else wanted * per_class + label_smoothing / classes * per_class
        ) * (1 - alpha)
        wanted = torch.where(labelled[:, None], wanted, 0)
        if reduction == "mean":  # over the labelled rows, of a loss that is divided by all of them below
            wanted = wanted * n / max(int(labelled.sum()), 1)
        loss = loss + torch.where(wanted > 0, -wanted * log_q1, 0).sum(-1)
        gradient, mass = (
            gradient + wanted.sum(-1, keepdim=True) * q1 - wanted,
            mass + wanted.sum(-1, keepdim=True) * q1 + wanted,
        )
    if z_loss:
        loss = loss + z_loss * lse**2
        gradient, mass = (
            gradient + 2 * z_loss * lse[:, None] * q1,
            mass + 2 * z_loss * (1 + lse.abs()[:, None]) * q1,
        )
    factor = torch.ones(n, dtype=dtype) if sample_weights is None else sample_weights.to(dtype)
    used = factor != 0
    factor = factor / (max(n, 1) if reduction in ("mean", "batchmean") else 1)
    loss = torch.where(used, loss * factor, 0)
    gradient, mass, slack = (
        torch.where(used[:, None], x * factor[:, None], 0) for x in (gradient, mass, slack)
    )
    statistics = torch.where(used[:, None], by_products(said, q, log_q), torch.nan)
    return Answer(loss if reduction == "none" else loss.sum(), gradient, mass, slack, statistics)


def divergence_terms(
    name: str, beta: float, p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor
) -> tuple[Tensor, Tensor]:
    """Each class's summand of D, and q times dD/dq."""
    if name == "forward_kl":
        return torch.where(p > 0, p * (log_p - log_q), p), -p
    if name == "reverse_kl":
        value = torch.where(q > 0, q * (log_q - log_p), q)
        return value, value
    if name == "tvd":
        return (p - q).abs() / 2, q * torch.sign(q - p) / 2
    m = beta * p + (1 - beta) * q
    slope = torch.where(q > 0, (1 - beta) * q * (q / m).log(), q)
    return torch.where(p > 0, beta * p * (p / m).log(), p) + slope, slope


def teacher(
    targets: Any, classes: int, t: float, weights: Tensor | None, combiner: str, tail: str, dtype: torch.dtype
) -> Teacher:
    if isinstance(targets, TopK | Counts):
        return sparse_teacher(targets, classes, tail, dtype)
    weights = getattr(targets, "weights", None) if weights is None else weights
    if isinstance(targets, LogProbs | Probs):
        values = targets.log_probs if isinstance(targets, LogProbs) else targets.probs
        values = (values if values.dim() == 3 else values[None]).to(dtype)
        logits, t = (values if isinstance(targets, LogProbs) else values.log()), 1.0
    else:
        logits = decoded(targets, dtype)
    w = torch.ones(len(logits), dtype=dtype) if weights is None else weights.to(dtype)
    members = [(w_k / w.sum(), z.to(dtype) / t) for w_k, z in zip(w, logits, strict=True) if w_k > 0]
    if combiner == "prob":
        p = sum(w_k * torch.softmax(z, -1) for w_k, z in members)
        log_p = p.log() if len(members) > 1 else torch.log_softmax(members[0][1], -1)
    else:
        mean = sum(w_k * z for w_k, z in members)
        p, log_p = torch.softmax(mean, -1), torch.log_softmax(mean, -1)
    each = sum(w_k * entropy(torch.softmax(z, -1), torch.log_softmax(z, -1)) for w_k, z in members)
    return Teacher(p, log_p, entropy(p, log_p) - each)


def sparse_teacher(targets: TopK | Counts, classes: int, tail: str, dtype: torch.dtype) -> Teacher:
    ids = targets.ids.long()
    if isinstance(targets, Counts):
        masses, tail = targets.counts.to(dtype), "renormalize"
    else:
        masses = targets.log_probs.to(dtype).exp()
    if tail == "renormalize":
        masses = masses / masses.sum(-1, keepdim=True)
    p = torch.zeros(len(ids), classes, dtype=dtype).scatter_add(-1, ids, masses)
    nothing = torch.full((len(ids),), torch.nan, dtype=dtype)
    if tail != "tail":
        return Teacher(p, p.log(), nothing)
    return Teacher(p, p.log(), nothing, p > 0, targets.tail_log_mass.to(dtype))


def entropy(p: Tensor, log_p: Tensor) -> Tensor:
    return -torch.where(p > 0, p * log_p, 0).sum(-1)


def by_products(said: Teacher, q: Tensor, log_q: Tensor) -> Tensor:
    mixed = entropy(said.p, said.log_p)
    if said.tail is not None:
        mixed = mixed + entropy(said.tail.exp()[:, None], said.tail[:, None])
    agreement = (q.argmax(-1) == said.p.argmax(-1)).to(q.dtype)
    return torch.stack([entropy(q, log_q), mixed, agreement, said.disagreement], -1)


def decoded(targets: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """The logits that a target stands for, [K, N, C]."""
    if isinstance(targets, EnsembleLogits):
        return targets.logits
    if not isinstance(targets, QuantizedLogits):
        return targets if targets.dim() == 3 else targets[None]
    scale, offset = targets.scale.to(dtype)[..., None], targets.offset.to(dtype)[..., None]
    return torch.where((scale < 0) & (targets.codes == 0), -torch.inf, offset + scale.abs() * targets.codes)


# Data
# ------------------------------------------------------------------------------------------------------------


def make_logits(*shape: int, seed: int, dtype: torch.dtype = torch.float32, spread: float = 3.0) -> Tensor:
    return (
        spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).to(dtype)


def make_codes(k: int, n: int, c: int, *, seed: int, masked: bool = False) -> QuantizedLogits:
    """Codes as the cache gives them: views [K, N, C] of records [N, K, 8 + C], so the strides are not those
    of [K, N, C].

    With ``masked`` every other row has a negative scale, and code 0 for every fifth of its classes.
    """
    random = torch.Generator().manual_seed(seed)
    records = torch.randint(1, 256, (n, k, 8 + c), generator=random, dtype=torch.uint8)
    affine = torch.stack(
        [0.02 + 0.06 * torch.rand(n, k, generator=random), -9 + 2 * torch.rand(n, k, generator=random)], -1
    )
    if masked and n:
        affine[::2, :, 0] *= -1
        records[:, :, 8::5] = 0
        records[:, :, 9] = 255  # at C = 2 a class is left
    records[..., :8] = affine.view(torch.uint8)
    records = records.transpose(0, 1)
    numbers = affine.transpose(0, 1)
    return QuantizedLogits(records[..., 8:], numbers[..., 0], numbers[..., 1])


def make_top_k(
    n: int,
    c: int,
    k: int,
    *,
    seed: int,
    temperature: float = 1.0,
    padding: int = 0,
    dtype: torch.dtype = torch.float32,
) -> TopK:
    """The k largest of n distributions over c > k classes in no order, with the exact rest; the last
    ``padding`` entries are padding."""
    log_p = torch.log_softmax(make_logits(n, c, seed=seed, dtype=torch.float64) / temperature, -1)
    largest = log_p.topk(k)
    order = (
        torch.stack([torch.randperm(k, generator=torch.Generator().manual_seed(seed + i)) for i in range(n)])
        if n
        else largest.indices
    )
    log_probs, ids = largest.values.gather(-1, order), largest.indices.gather(-1, order)
    if padding:
        log_probs[:, -padding:] = -torch.inf
    outside = log_p.scatter(-1, ids, torch.where(log_probs == -torch.inf, log_p.gather(-1, ids), -torch.inf))
    if padding:
        ids[:, -padding:] = 0
    return TopK(
        ids.to(torch.int32), log_probs.to(dtype), outside.logsumexp(-1).to(torch.float32), temperature
    )


def make_counts(n: int, c: int, draws: int, *, seed: int) -> Counts:
    """``draws`` draws of n distributions over c classes; padded with count 0."""
    p = torch.softmax(make_logits(n, c, seed=seed, dtype=torch.float64), -1)
    drawn = (
        torch.multinomial(p, draws, replacement=True, generator=torch.Generator().manual_seed(seed))
        if n
        else torch.zeros(0, draws).long()
    )
    ids, counts = torch.zeros(n, draws, dtype=torch.int64), torch.zeros(n, draws, dtype=torch.int64)
    for row in range(n):
        found, times = drawn[row].unique(return_counts=True)
        ids[row, : len(found)], counts[row, : len(found)] = found, times
    return Counts(ids, counts)


# Judging
# ------------------------------------------------------------------------------------------------------------


def run(
    student: Tensor, targets: Any, labels: Tensor | None = None, **arguments: Any
) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of its sum."""
    student = student.detach().requires_grad_()
    loss = distillation_loss(student, targets, labels, **arguments)
    loss.sum().backward()
    return loss.detach(), student.grad


def worst(found: Tensor, truth: Tensor) -> float:
    """The largest distance; infinite where one is NaN, or infinite alone."""
    distance = torch.where(found.double() == truth.double(), 0, (found.double() - truth.double()).abs())
    return distance.nan_to_num(nan=torch.inf).max().item() if distance.numel() else 0.0


def assert_close(
    found: tuple[Tensor, Tensor],
    student: Tensor,
    targets: Any,
    labels: Tensor | None = None,
    **arguments: Any,
) -> None:
    """Found is as near to the truth as the naive code in float32 is (float64, where an input is), or nearer,
    up to a small eps."""
    dtype = torch.float64 if torch.float64 in (student.dtype, values_of(targets).dtype) else torch.float32
    truth, naive = (
        closed_forms(student, targets, labels, dtype=d, **arguments) for d in (torch.float64, dtype)
    )
    loss, gradient = found
    assert (loss.dtype, loss.shape, gradient.dtype, gradient.shape) == (
        dtype,
        truth.loss.shape,
        student.dtype,
        student.shape,
    )
    temperature, alpha = arguments.get("temperature", 1.0), arguments.get("alpha", 1.0)
    # A logit's own rounding moves every log-probability by that times its size; 6 units for the exponential,
    # the sums, the division.
    eps = 6 * UNIT[dtype] * (1 + largest_logit(student, targets) / min(temperature, 1.0))
    if (
        dtype == torch.float64
    ):  # here the naive code is the truth, so its error doesn't contain the loss of a plain sum over C
        eps += 2 * UNIT[dtype] * student.shape[-1] ** 0.5
    size = (alpha * temperature**2 + 1 - alpha) * (
        1 + truth.loss.abs().nan_to_num(0, 0, 0).max().item() if truth.loss.numel() else 1
    )
    for name in ("class_weights", "sample_weights"):
        if arguments.get(name) is not None and arguments[name].numel():
            size *= max(arguments[name].max().item(), 1)
    rows = len(student) if arguments.get("reduction") == "sum" else 1
    assert worst(loss, truth.loss) <= worst(naive.loss, truth.loss) + eps * size * rows

    # The gradient is rounded once to the student's dtype: half a unit, or half the smallest subnormal. A
    # float16 mean's is kept as large as a row's and divided later: that rounds subnormals again, and all of
    # them if the divisor is no power of two.
    divided = student.dtype == torch.float16 and arguments.get("reduction", "mean") in ("mean", "batchmean")
    again = divided and labels is not None
    sizes = (1 + again) * 1.01 * truth.gradient.abs() + (1 + divided) * torch.finfo(
        student.dtype
    ).smallest_normal
    once = UNIT[student.dtype] * sizes

    def relative(answer: Tensor, allowed: Tensor | float) -> float:
        excess = ((answer.double() - truth.gradient).abs() - truth.slack - allowed).clamp(min=0)
        return worst(excess / truth.mass.clamp(min=1e-37), torch.zeros(()))

    assert relative(gradient, once) <= relative(naive.gradient, 0.0) + eps


def values_of(targets: Any) -> Tensor:
    """The tensor that decides about float64."""
    if isinstance(targets, Tensor):
        return targets
    for name in ("logits", "codes", "log_probs", "probs", "ids"):
        if hasattr(targets, name):
            return getattr(targets, name)
    raise AssertionError(targets)


def largest_logit(student: Tensor, targets: Any) -> float:
    """Probabilities count by their logarithms."""
    if isinstance(targets, Tensor | EnsembleLogits | QuantizedLogits):
        said = decoded(targets)
    else:
        said = (
            targets.log_probs
            if isinstance(targets, LogProbs | TopK)
            else targets.probs.log()
            if isinstance(targets, Probs)
            else student
        )
    largest = torch.cat([x.double().flatten() for x in (student, said)])
    largest = largest[largest.isfinite()].abs()
    return largest.max().item() if largest.numel() else 0.0
