"""The shapes that are timed: their bytes and their data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ensdistill.targets import EnsembleLogits, QuantizedLogits, Targets, TopK

TEMPERATURE = 2.0  # a usual choice; at 1 nobody would divide, and the plain code is spared two passes
ALPHA = 0.5  # where there are hard labels
SIDE = 64  # of a feature map
TEACHER_HIDDEN = 64  # of linear cases: Liger's fused loss multiplies the teacher's layer too, which so costs it little

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One shape: N rows, C classes, K members.

    Parameters
    ----------
    student : {"float32", "bfloat16", "float16"}
    targets : {"float32", "bfloat16", "float16", "uint8", "topk"}
        Logits; affine codes; the 64 largest log-probabilities with the tail's mass.
    divergence : str
    labels : bool
        Mixed half and half with cross entropy.
    layout : {"rows", "map"}
        [N, C], or feature maps [N, C, 64, 64].
    hidden : int
        D of a last layer [C, D] that makes the logits; 0 for logits that are there.
    """

    rows: int
    classes: int
    members: int
    student: str
    targets: str
    divergence: str = "forward_kl"
    labels: bool = False
    layout: str = "rows"
    hidden: int = 0

    @property
    def label(self) -> str:
        kind = self.targets if self.student == self.targets else f"{self.student}/{self.targets}"
        family = "".join(f" {word}" for word in self.family)
        return f"C={self.classes} K={self.members} {kind}{family}"

    @property
    def family(self) -> list[str]:
        """What sets it apart from a forward KL of logits [N, C]."""
        words = [self.divergence] if self.divergence != "forward_kl" else []
        words += ["labels"] if self.labels else []
        words += ["[N,C,H,W]"] if self.layout == "map" else []
        return words + ([f"linear D={self.hidden}"] if self.hidden else [])

    @property
    def listed(self) -> int:
        """k of top-k targets."""
        return min(64, max(1, self.classes // 2))

    @property
    def divisor(self) -> int:
        """Of the sum over rows. float16 gradients of a mean over many rows would round to nothing, whoever computes them."""
        return 1 if self.student == "float16" else self.rows

    def bytes_moved(self, gradient: bool) -> int:
        """Fewest bytes through memory: student and targets read once, the gradient written once.

        N·C·(b_student·(1 or 2) + K·b_targets); for codes 8 more for the scale and offset of each of the K·N rows; for top-k targets N·(8·k + 4)
        (int32 ids, float32 log-probabilities, tail) instead of theirs; 8 a label. Reading a line of the gradient before it is written,
        as ordinary stores do, is not counted: the floor pays for it too. With a last layer: hidden, weight and their gradients.
        """
        b, n = DTYPES[self.student].itemsize, self.rows
        own = self.hidden * (n + self.classes) if self.hidden else n * self.classes
        total = own * b * (1 + gradient) + 8 * n * self.labels
        if self.targets == "topk":
            return total + n * (8 * self.listed + 4)
        if self.targets == "uint8":
            return total + self.members * n * (self.classes + 8)
        return total + self.members * n * self.classes * DTYPES[self.targets].itemsize

    def describe(self) -> dict[str, Any]:
        """As the columns of a result's row."""
        return {**vars(self), "case": self.label}


def make_case(data_bytes: int, classes: int, members: int, targets: str, **family: Any) -> Case:
    """The case whose inputs and gradient take about ``data_bytes``; rows come in fours, so that threads share them evenly."""
    student = targets if targets in DTYPES else "float32"
    row = Case(1, classes, members, student, targets, **{**family, "hidden": 0}).bytes_moved(gradient=True)
    step = SIDE * SIDE if family.get("layout") == "map" else 4
    return Case(max(step, data_bytes // row // step * step), classes, members, student, targets, **family)


@dataclass(frozen=True)
class Inputs:
    """``leaves`` want a gradient: the student's logits [N, C] or [N, C, H, W]; or hidden [N, D] and weight [C, D]."""

    leaves: tuple[Tensor, ...]
    targets: Targets
    labels: Tensor | None = None
    teacher: tuple[Tensor, Tensor] | None = None  # hidden and weight of a teacher's last layer, which made the targets


def make_inputs(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Student, and members who agree with it and with each other only in part."""
    generator = torch.Generator(device).manual_seed(case.classes * 64 + case.members + seed * 1_000_003)
    n, c, dtype = case.rows, case.classes, DTYPES[case.student]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    labels = None
    lead = (n // SIDE**2, SIDE, SIDE) if case.layout == "map" else (n,)
    if case.labels:
        labels = torch.randint(0, c, lead, generator=generator, device=device)
    if case.hidden:
        leaves = (normal(n, case.hidden).to(dtype), normal(c, case.hidden).mul_(2 / case.hidden**0.5).to(dtype))
        teacher = (normal(n, TEACHER_HIDDEN).to(dtype), normal(c, TEACHER_HIDDEN).mul_(2 / TEACHER_HIDDEN**0.5).to(dtype))
        logits = (teacher[0] @ teacher[1].t()).unsqueeze(0)
        targets = _top_k(logits[0], case.listed) if case.targets == "topk" else EnsembleLogits(logits)
        return Inputs(tuple(x.requires_grad_() for x in leaves), targets, labels, teacher)
    shape = (lead[0], c, *lead[1:])
    student = normal(*shape).mul_(2).to(dtype)
    return Inputs((student.requires_grad_(),), _targets(case, student.detach(), generator), labels)


def _targets(case: Case, student: Tensor, generator: torch.Generator) -> Targets:
    k, device = case.members, student.device
    if case.targets == "uint8":
        codes = torch.randint(0, 256, (k, *student.shape), generator=generator, dtype=torch.uint8, device=device)
        scale = 0.02 + 0.04 * torch.rand(k, case.rows, generator=generator, device=device)
        return QuantizedLogits(codes, scale, -128 * scale)
    logits = torch.empty(k, *student.shape, dtype=DTYPES.get(case.targets, torch.float32), device=device)
    for member in logits:  # one at a time: float32 numbers of all members together would need twice the memory
        member.copy_(torch.randn(student.shape, generator=generator, device=device).mul_(2).add_(student, alpha=0.5))
    return _top_k(logits[0], case.listed) if case.targets == "topk" else EnsembleLogits(logits)


def _top_k(logits: Tensor, k: int) -> TopK:
    log_p = torch.log_softmax(logits.float() / TEMPERATURE, -1)
    top = log_p.topk(k)
    tail = log_p.scatter_(-1, top.indices, -torch.inf).logsumexp(-1)
    return TopK(top.indices.to(torch.int32), top.values, tail, TEMPERATURE)
