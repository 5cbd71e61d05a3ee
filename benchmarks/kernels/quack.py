"""quack's cross entropy (Dao-AILab), as an anchor: it has no distillation loss, but fast kernels that read
and write the student's logits.

The cross entropy with hard labels is a smaller computation, which reads no teacher. So its time stands beside
ours at the same shape, without a ratio. It needs a GPU, and ``pip install quack-kernels``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ensdistill.bench.cases import DTYPES, Case
from ensdistill.bench.contenders import Contender
from ensdistill.bench.inputs import Inputs

# Error of a gradient's element, in units of the largest element, that is allowed beyond the rounding of the
# dtype.
_TOLERANCE = 1e-3


class Quack:
    """quack's cross entropy among the contenders of a benchmark, as an anchor."""

    def why_not(self, device: torch.device) -> str | None:
        """Return the reason why quack is left out; None if it is timed."""
        if device.type != "cuda":
            return "quack: left out, it needs a GPU"
        return None if _function() else "quack: left out, it isn't installed (pip install quack-kernels)"

    def contenders(self, case: Case, device: torch.device) -> list[Contender]:
        """The cross entropy at the shape of ``case``, once for each student [N, C]: beside one dense teacher
        of the student's dtype."""
        function = _function()
        if (
            function is None
            or device.type != "cuda"
            or case.family
            or case.members != 1
            or case.targets not in DTYPES
        ):
            return []
        return [
            Contender("quack", "cross_entropy", cross_entropy(function, case, device), anchor=CrossEntropy())
        ]


def cross_entropy(
    function: Callable[..., Tensor], case: Case, device: torch.device
) -> Callable[[Inputs], Tensor]:
    """A cross entropy with the benchmark's labels, as a contender's loss."""
    labels = _labels(case, device)
    return lambda inputs: function(inputs.leaves[0], labels, reduction="sum") / case.divisor


class CrossEntropy:
    """The check and the count of bytes of a cross entropy with hard labels."""

    def bytes_moved(self, case: Case, gradient: bool) -> int:
        """The fewest bytes: logits and labels read, the gradient written."""
        return case.rows * (case.classes * DTYPES[case.student].itemsize * (1 + gradient) + 8)

    def check(self, case: Case, inputs: Inputs, loss: Tensor, gradient: Tensor) -> None:
        """Compare loss and gradient, in up to 64 of the rows, with torch's in float64.

        Raises
        ------
        RuntimeError
            The loss or the gradient is wrong, with the error and the tolerance.
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
        parts = (
            F.cross_entropy(x.float(), y, reduction="sum").double()
            for x, y in zip(logits.split(step), labels.split(step), strict=True)
        )
        value = float(sum(parts)) / case.divisor
        if not abs(float(loss) - value) <= _TOLERANCE * abs(value):
            raise RuntimeError(f"gives the loss {float(loss):.9g}; expected {value:.9g}")


def _labels(case: Case, device: torch.device) -> Tensor:
    """Labels that run through the classes; the time does not depend on them."""
    return torch.arange(case.rows, device=device) % case.classes


def _function() -> Any:
    try:
        return importlib.import_module("quack").cross_entropy
    except (ImportError, AttributeError):
        return None
