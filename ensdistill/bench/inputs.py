"""The data of a case."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ensdistill.bench.cases import DTYPES, SIDE, TEACHER_HIDDEN, TEMPERATURE, Case
from ensdistill.loss.targets import EnsembleLogits, QuantizedLogits, Targets, TopK


@dataclass(frozen=True)
class Inputs:
    """``leaves`` want a gradient: the student's logits [N, C] or [N, C, H, W]; or hidden [N, D] and weight
    [C, D]."""

    leaves: tuple[Tensor, ...]
    targets: Targets
    labels: Tensor | None = None
    teacher: tuple[Tensor, Tensor] | None = (
        None  # hidden and weight of a teacher's last layer, which made the targets
    )


def make_inputs(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Student, and members that agree with it and with each other only in part."""
    generator = torch.Generator(device).manual_seed(case.classes * 64 + case.members + seed * 1_000_003)
    n, c, dtype = case.rows, case.classes, DTYPES[case.student]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    labels = None
    lead = (n // SIDE**2, SIDE, SIDE) if case.layout == "map" else (n,)
    if case.labels:
        labels = torch.randint(0, c, lead, generator=generator, device=device)
    if case.hidden:
        leaves = (
            normal(n, case.hidden).to(dtype),
            normal(c, case.hidden).mul_(2 / case.hidden**0.5).to(dtype),
        )
        teacher = (
            normal(n, TEACHER_HIDDEN).to(dtype),
            normal(c, TEACHER_HIDDEN).mul_(2 / TEACHER_HIDDEN**0.5).to(dtype),
        )
        logits = (teacher[0] @ teacher[1].t()).unsqueeze(0)
        targets = _top_k(logits[0], case.listed) if case.targets == "topk" else EnsembleLogits(logits)
        return Inputs(tuple(x.requires_grad_() for x in leaves), targets, labels, teacher)
    shape = (lead[0], c, *lead[1:])
    student = normal(*shape).mul_(2).to(dtype)
    return Inputs((student.requires_grad_(),), _targets(case, student.detach(), generator), labels)


def _targets(case: Case, student: Tensor, generator: torch.Generator) -> Targets:
    k, device = case.members, student.device
    if case.targets == "uint8":
        codes = torch.randint(
            0, 256, (k, *student.shape), generator=generator, dtype=torch.uint8, device=device
        )
        scale = 0.02 + 0.04 * torch.rand(k, case.rows, generator=generator, device=device)
        return QuantizedLogits(codes, scale, -128 * scale)
    logits = torch.empty(k, *student.shape, dtype=DTYPES.get(case.targets, torch.float32), device=device)
    for (
        member
    ) in logits:  # one at a time: float32 numbers of all members together would need twice the memory
        member.copy_(
            torch.randn(student.shape, generator=generator, device=device).mul_(2).add_(student, alpha=0.5)
        )
    return _top_k(logits[0], case.listed) if case.targets == "topk" else EnsembleLogits(logits)


def _top_k(logits: Tensor, k: int) -> TopK:
    log_p = torch.log_softmax(logits.float() / TEMPERATURE, -1)
    top = log_p.topk(k)
    tail = log_p.scatter_(-1, top.indices, -torch.inf).logsumexp(-1)
    return TopK(top.indices.to(torch.int32), top.values, tail, TEMPERATURE)
