"""Liger-Kernel's losses, where they compute the same loss. They are Triton code: they need a GPU, and ``pip
install liger-kernel``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ensdistill.bench.cases import TEMPERATURE, Case
from ensdistill.bench.contenders import Contender
from ensdistill.bench.inputs import Inputs
from ensdistill.loss.targets import EnsembleLogits

_T = TEMPERATURE


class Liger:
    """Liger-Kernel among the peers of a benchmark."""

    def why_not(self, device: torch.device) -> str | None:
        """Return the reason why Liger-Kernel is left out; None if it takes part."""
        if device.type != "cuda":
            return "Liger-Kernel: left out, it needs a GPU"
        return (
            None
            if _module("fused_linear_jsd")
            else "Liger-Kernel: left out, it isn't installed (pip install liger-kernel)"
        )

    def contenders(self, case: Case, device: torch.device) -> list[Contender]:
        """The losses that Liger-Kernel has for ``case``; none beside a CPU."""
        return (
            [Contender("liger", form, loss) for form, loss in losses(case)] if device.type == "cuda" else []
        )


def losses(case: Case) -> list[tuple[str, Callable[[Inputs], Tensor]]]:
    """Names and functions of Liger-Kernel's losses for ``case``: one teacher's dense logits, no hard labels,
    rows of classes."""
    if (
        case.members != 1
        or case.targets in ("uint8", "topk")
        or case.labels
        or case.statistics
        or case.layout != "rows"
    ):
        return []
    factor = _T**2 * case.rows / case.divisor  # its losses are means over rows
    if case.hidden:
        # beta 0 is its forward KL.
        beta = {"forward_kl": 0.0, "jsd": 0.5}.get(case.divergence)
        module = _module("fused_linear_jsd")
        return (
            []
            if beta is None or module is None
            else [("fused_linear_jsd", _linear(module.LigerFusedLinearJSD(beta, temperature=_T), factor))]
        )
    found: list[tuple[str, Callable[[Inputs], Tensor]]] = []
    if case.divergence == "forward_kl" and (module := _module("kl_div")):
        found.append(("kl_div", _kl_div(module.LigerKLDIVLoss(reduction="batchmean"), factor)))
    if case.divergence == "tvd" and (module := _module("tvd")):
        found.append(("tvd", _tvd(module.LigerTVDLoss(), factor)))
    beta = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}.get(case.divergence)
    if beta is not None and (module := _module("jsd")):
        found.append(("jsd", _jsd(module.LigerJSD(beta), factor)))
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"liger_kernel.transformers.{name}")
    except ImportError:
        return None


def _logits(inputs: Inputs) -> tuple[Tensor, Tensor]:
    assert isinstance(inputs.targets, EnsembleLogits)
    return inputs.leaves[0].float() / _T, inputs.targets.logits[0].float() / _T


def _kl_div(loss: Any, factor: float) -> Callable[[Inputs], Tensor]:
    def run(inputs: Inputs) -> Tensor:
        s, z = _logits(inputs)
        return loss(F.log_softmax(s, -1), F.softmax(z, -1)) * factor

    return run


def _jsd(loss: Any, factor: float) -> Callable[[Inputs], Tensor]:
    def run(inputs: Inputs) -> Tensor:
        s, z = _logits(inputs)
        return loss(F.log_softmax(s, -1), F.log_softmax(z, -1)) * factor

    return run


def _tvd(loss: Any, factor: float) -> Callable[[Inputs], Tensor]:
    def run(inputs: Inputs) -> Tensor:
        s, z = _logits(inputs)
        return loss(F.softmax(s, -1), F.softmax(z, -1)) * factor  # it differentiates the first

    return run


def _linear(loss: Any, factor: float) -> Callable[[Inputs], Tensor]:
    def run(inputs: Inputs) -> Tensor:
        assert inputs.teacher is not None
        return loss(*inputs.leaves, *inputs.teacher, None) * factor

    return run
