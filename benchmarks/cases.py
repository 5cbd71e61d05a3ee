"""The shapes that are timed: their data, their bytes, and the truth in float64 that every output is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ensdistill.targets import EnsembleLogits, QuantizedLogits, Targets

TEMPERATURE = 2.0  # a usual choice; at 1 nobody would divide, and the plain code is spared two passes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "uint8": torch.uint8}


@dataclass(frozen=True)
class Case:
    """One shape: ``student`` and ``targets`` are names of dtypes; uint8 targets are affine codes."""

    rows: int
    classes: int
    members: int
    student: str
    targets: str

    @property
    def label(self) -> str:
        return f"C={self.classes} K={self.members} {self.targets if self.student == self.targets else f'{self.student}/{self.targets}'}"

    def bytes_moved(self, gradient: bool) -> int:
        """Fewest bytes through memory: student and members read once, the gradient written once.

        N·C·(b_student·(1 or 2) + K·b_targets), and for codes 8 more for the scale and offset of each of the K·N rows. Reading a line
        of the gradient before it is written, as ordinary stores do, is not counted: the floor pays for it too.
        """
        student, targets = DTYPES[self.student].itemsize, DTYPES[self.targets].itemsize
        elements = self.rows * self.classes
        return elements * (student * (1 + gradient) + self.members * targets) + (
            8 * self.members * self.rows if self.targets == "uint8" else 0
        )


def make_case(classes: int, members: int, student: str, targets: str, data_bytes: int) -> Case:
    """The case whose inputs and gradient take about ``data_bytes``; rows come in fours, so that threads share them evenly."""
    row = Case(1, classes, members, student, targets).bytes_moved(gradient=True)
    return Case(max(4, data_bytes // row // 4 * 4), classes, members, student, targets)


def make_inputs(case: Case) -> tuple[Tensor, Targets]:
    """Student logits [N, C] that want a gradient, and members who agree with it and with each other only in part."""
    generator = torch.Generator().manual_seed(case.classes * 64 + case.members)
    n, c, k = case.rows, case.classes, case.members
    student = (2 * torch.randn(n, c, generator=generator)).to(DTYPES[case.student])
    if case.targets == "uint8":
        codes = torch.randint(0, 256, (k, n, c), generator=generator, dtype=torch.uint8)
        scale = 0.02 + 0.04 * torch.rand(k, n, generator=generator)
        return student.requires_grad_(), QuantizedLogits(codes, scale, -128 * scale)
    logits = torch.empty(k, n, c, dtype=DTYPES[case.targets])
    for member in logits:  # one at a time: float32 numbers of all members together would need twice the memory
        member.copy_(torch.randn(n, c, generator=generator).mul_(2).add_(student, alpha=0.5))
    return student.requires_grad_(), EnsembleLogits(logits)


Name = tuple[str, str]  # the kind and the form of a contender


@dataclass(frozen=True)
class Errors:
    """How far an output is from the truth: ``loss`` absolute, ``gradient`` the worst element, relative to T·(q + p̄)/N."""

    loss: float
    gradient: float


def errors(student: Tensor, targets: Targets, outputs: Mapping[Name, tuple[Tensor, Tensor]]) -> tuple[dict[Name, Errors], float]:
    """Judge losses [] and gradients [N, C] by the closed form in float64; the errors, and the true loss.

    With q = softmax(s/T) and p̄ = mean_k softmax(z_k/T) the loss is T²·mean_n Σ p̄·log(p̄/q), its gradient T·(q − p̄)/N. An element's
    error is measured in what was subtracted, q + p̄, not in the largest gradient: small elements must be right too.
    """
    n, c = student.shape
    t, loss = TEMPERATURE, 0.0
    worst: dict[Name, float] = dict.fromkeys(outputs, 0.0)
    step = max(1, (8 << 20) // (c * targets.shape[0]))  # 64 MiB of float64 members
    with torch.no_grad():
        for start in range(0, n, step):
            log_q = torch.log_softmax(student[start : start + step].double() / t, -1)
            q, p = log_q.exp(), _mixture(targets.rows(start, start + step))
            loss += float((p * (p.log() - log_q)).sum()) * t * t / n
            truth, unit = (q - p).mul_(t / n), (q + p).mul_(t / n)
            for name, (_, gradient) in outputs.items():
                error = float(((gradient[start : start + step] - truth).abs_() / unit).max())
                # A NaN compares false with everything, and must not pass for a small error.
                worst[name] = max(worst[name], error) if error == error else float("inf")
    return {name: Errors(abs(float(value) - loss), worst[name]) for name, (value, _) in outputs.items()}, loss


def _mixture(part: Targets) -> Tensor:
    if isinstance(part, QuantizedLogits):
        logits = part.offset.double()[..., None] + part.scale.double()[..., None] * part.codes
    else:
        logits = part.logits.double()
    return torch.softmax(logits / TEMPERATURE, -1).mean(0)


def tolerance(naive: Errors, student: Tensor, loss: float) -> Errors:
    """The plain code's own error, and a little more for luck in rounding.

    Loss: float32, a sum of terms of a few nats, hence eight units of max(1, loss). Gradient: q and p̄ are exponentials in float32 of
    arguments up to about 16, whose rounding alone is worth eight units; half precision then rounds once more, by half a unit of its own.
    """
    unit, half = torch.finfo(torch.float32).eps, torch.finfo(student.dtype).eps / 2 if student.dtype.itemsize < 4 else 0.0
    return Errors(naive.loss + 8 * unit * max(1.0, loss), naive.gradient + 8 * unit + half)
