"""What is timed: the fused loss, and what somebody without it would write. Each takes (student, targets) and returns the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import TEMPERATURE
from ensdistill import ops
from ensdistill.functional import distillation_loss
from ensdistill.targets import QuantizedLogits, Targets

Loss = Callable[[Tensor, Targets], Tensor]
NARROW = 100  # classes


@dataclass(frozen=True)
class Contender:
    """``kind`` is what a row of the result is called; of several ``form``s of a kind the faster one is timed at length."""

    kind: str
    form: str
    loss: Loss


def contenders(classes: int) -> list[Contender]:
    """Fresh ones for each case: torch.compile specialises on the shape, and must not carry the last one's guards along.

    The specification is a form of its own for narrow rows only: there torch.compile is sometimes faster with it, by much. On wider rows
    it took two to three times as long as the plain code, compiled or not, and half of all compiling.
    """
    torch.compiler.reset()
    active = ops.instruction_set()
    fused = partial(distillation_loss, temperature=TEMPERATURE)
    found = [Contender("fused", active, fused)]
    if active == "avx512":
        found.append(Contender("fused-avx2", "avx2", partial(_with_instruction_set, "avx2", fused)))
    found += [Contender("eager", "plain", _plain_eager), Contender("compile", "plain", _PlainCompiled())]
    if classes <= NARROW:
        found += [
            Contender("eager", "reference", partial(fused, impl="reference")),
            Contender("compile", "reference", partial(fused, impl="compile")),
        ]
    return found


def plain(student: Tensor, logits: Tensor) -> Tensor:
    """What a user writes: KL to the mean of the members' softmaxes [K, N, C], in float32 as autocast would have it."""
    log_q = F.log_softmax(student.float() / TEMPERATURE, -1)
    p = F.softmax(logits.float() / TEMPERATURE, -1)
    p = p[0] if len(p) == 1 else p.mean(0)
    return F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2


def plain_codes(student: Tensor, codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """The same for uint8 codes [K, N, C] with one affine map [K, N] per row."""
    return plain(student, offset[..., None] + scale[..., None] * codes)


def _plain_eager(student: Tensor, targets: Targets) -> Tensor:
    if isinstance(targets, QuantizedLogits):
        return plain_codes(student, targets.codes, targets.scale, targets.offset)
    return plain(student, targets.logits)


class _PlainCompiled:
    """The plain code through torch.compile, decoding of codes included, so that it can be fused."""

    def __init__(self) -> None:
        self._logits: Any = torch.compile(plain, dynamic=False)
        self._codes: Any = torch.compile(plain_codes, dynamic=False)

    def __call__(self, student: Tensor, targets: Targets) -> Tensor:
        if isinstance(targets, QuantizedLogits):
            return self._codes(student, targets.codes, targets.scale, targets.offset)
        return self._logits(student, targets.logits)


def _with_instruction_set(name: str, loss: Loss, student: Tensor, targets: Targets) -> Tensor:
    active = ops.instruction_set()
    ops.use_instruction_set(name)
    try:
        return loss(student, targets)
    finally:
        ops.use_instruction_set(active)
