"""quack's cross entropy (Dao-AILab), as an anchor: it has no distillation loss, but fast kernels that read and write the student's logits.

What it computes is another and smaller thing, a cross entropy with hard labels, which reads no teacher. So its time stands beside ours at
the same shape, and is nobody's best peer. It needs a GPU, and ``pip install quack-kernels``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ensdistill.bench.cases import DTYPES, Case
from ensdistill.bench.inputs import Inputs

KIND = "quack"
# Of a gradient's element, in units of its largest, beyond the rounding of its own dtype.
_TOLERANCE = 1e-3


def why_not(device: torch.device) -> str | None:
    """Why quack isn't timed; None where it is."""
    if device.type != "cuda":
        return "quack: left out, it needs a GPU"
    return None if _function() else "quack: left out, it isn't installed (pip install quack-kernels)"


def quack(case: Case, device: torch.device) -> list[tuple[str, Callable[[Inputs], Tensor]]]:
    """Name and function of what it has at the shape of ``case``; once for each student [N, C]: beside one dense teacher of its dtype."""
    function = _function()
    if function is None or case.family or case.members != 1 or case.targets not in DTYPES:
        return []
    labels = _labels(case, device)

    def run(inputs: Inputs) -> Tensor:
        return function(inputs.leaves[0], labels, reduction="sum") / case.divisor

    return [("cross_entropy", run)]


def bytes_moved(case: Case, gradient: bool) -> int:
    """Fewest bytes of it: logits and labels read, the gradient written."""
    return case.rows * (case.classes * DTYPES[case.student].itemsize * (1 + gradient) + 8)


def check(case: Case, inputs: Inputs, loss: Tensor, gradient: Tensor) -> None:
    """That it computed this cross entropy, in a few of the rows.

    Raises
    ------
    RuntimeError
        It didn't; saying what of it is wrong.
    """
    labels, logits = _labels(case, gradient.device), inputs.leaves[0].detach()
    rows = slice(0, min(case.rows, 64))
    p = torch.softmax(logits[rows].double(), -1)
    wanted = (p - F.one_hot(labels[rows], case.classes)) / case.divisor
    allowed = (_TOLERANCE + torch.finfo(gradient.dtype).eps) * float(wanted.abs().max())
    off = float((gradient[rows].double() - wanted).abs().max())
    if not off <= allowed:  # so that a NaN fails
        raise RuntimeError(f"wrong by {off:.3g} in the gradient; allowed are {allowed:.3g}")
    step = max(1, (64 << 20) // case.classes)
    parts = (F.cross_entropy(x.float(), y, reduction="sum").double() for x, y in zip(logits.split(step), labels.split(step), strict=True))
    value = float(sum(parts)) / case.divisor
    if not abs(float(loss) - value) <= _TOLERANCE * abs(value):
        raise RuntimeError(f"gives the loss {float(loss):.9g}; expected {value:.9g}")


def _labels(case: Case, device: torch.device) -> Tensor:
    """Any will do."""
    return torch.arange(case.rows, device=device) % case.classes


def _function() -> Any:
    try:
        return importlib.import_module("quack").cross_entropy
    except (ImportError, AttributeError):
        return None
