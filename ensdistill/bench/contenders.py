"""The implementations that are timed. Each takes :class:`~ensdistill.bench.cases.Inputs` and returns the loss
[]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ensdistill.bench.cases import ALPHA, MULTILABEL, TEMPERATURE, Case
from ensdistill.bench.inputs import Inputs
from ensdistill.bench.plain import Plain, plain_loss, tensors
from ensdistill.bench.truth import Name
from ensdistill.loss import ops
from ensdistill.loss.functional import distillation_loss
from ensdistill.loss.linear import linear_distillation_loss
from ensdistill.loss.multilabel import multilabel_distillation_loss

Loss = Callable[[Inputs], Tensor]
# The specification through torch.compile is timed on some shapes only: compiling it takes as long as
# compiling the plain code.
_SPECIFICATION_CLASSES = (10, 100, 1000, 32000)


class Anchor(Protocol):
    """Measures of a contender that computes something other than the case's loss: its own check, and its own
    count of bytes."""

    def check(self, case: Case, inputs: Inputs, loss: Tensor, gradient: Tensor) -> None:
        """Raise RuntimeError if the outputs are wrong."""

    def bytes_moved(self, case: Case, gradient: bool) -> int:
        """The fewest bytes that it has to read and write."""


@dataclass(frozen=True)
class Contender:
    """One implementation.

    Parameters
    ----------
    kind : str
        Its name in the rows of the result.
    form : str
        Of several forms of a kind, the fastest one is timed at length.
    loss : callable
    ours : bool
        A wrong output of ours ends the run; other libraries' contenders are left out instead.
    whole : bool
        False for a cross entropy, which leaves the teacher's entropy out of the loss.
    anchor : Anchor, optional
        Set for a contender of another computation: it is timed beside the others, and compared with none of
        them.
    """

    kind: str
    form: str
    loss: Loss
    ours: bool = False
    whole: bool = True
    anchor: Anchor | None = None

    @property
    def name(self) -> Name:
        return self.kind, self.form

    @property
    def title(self) -> str:
        return f"{self.kind} ({self.form})"


class Peers(Protocol):
    """Another library's implementations, for a benchmark that is given some."""

    def contenders(self, case: Case, device: torch.device) -> list[Contender]:
        """The library's implementations of ``case``; none where it has none, or isn't installed."""

    def why_not(self, device: torch.device) -> str | None:
        """Return the reason why the library is left out on ``device``; None if it takes part."""


def contenders(case: Case, device: torch.device, peers: Sequence[Peers] = ()) -> list[Contender]:
    """New contenders for each case: torch.compile specialises on the shape, so the guards of the last case
    must not remain."""
    torch.compiler.reset()
    found = _ours(case, device)
    dense_kl = case.targets != "topk" and case.divergence == "forward_kl"
    forms = ["kl_div"]
    if dense_kl and case.members == 1:
        forms.append("log_target")
    # Each compilation takes seconds, so one form is compiled, and that is this one where it exists: of
    # probabilities kl_div also takes p·log(p), which compiled costs up to as much again as all the rest.
    # Compiled cross entropy is as fast as one of the two.
    compiled = forms[-1]
    sigmoids = case.divergence == MULTILABEL
    if (dense_kl or sigmoids) and not case.labels and not case.hidden:
        forms.append("cross_entropy")
    for form in forms:
        found.append(
            Contender("eager", form, partial(_plain, plain_loss(case, form)), whole=form != "cross_entropy")
        )
    # Of sigmoids the cross entropy spares two logarithms a class, so it is compiled, too.
    for form in (compiled, *(["cross_entropy"] if sigmoids else [])):
        whole = form != "cross_entropy"
        found.append(Contender("compile", form, _compiled(case, form, None), whole=whole))
    if device.type == "cuda":
        # Without its own CUDA graphs: where graphs help, each contender gets one (see cuda.py).
        found.append(Contender("autotune", compiled, _compiled(case, compiled, "max-autotune-no-cudagraphs")))
    found += [contender for library in peers for contender in library.contenders(case, device)]
    if (
        case.classes in _SPECIFICATION_CLASSES
        and case.targets == "float32"
        and case.members == 1
        and not case.family
    ):
        found.append(Contender("specification", "compile", partial(_loss, case, impl="compile")))
    return found


def _ours(case: Case, device: torch.device) -> list[Contender]:
    if case.hidden:
        unfused = partial(_unfused_layer, case)
        return [
            Contender("fused", "linear", partial(_layer, case), True),
            Contender("fused-logits", "logits", unfused, True),
        ]
    if device.type == "cuda":
        return [Contender("fused", "cuda", partial(_loss, case), True)]
    active, fused = ops.instruction_set(), partial(_loss, case)
    found = [Contender("fused", active, fused, True)]
    if active == "avx512":
        found.append(Contender("fused-avx2", "avx2", partial(_with_instruction_set, "avx2", fused), True))
    return found


def _settings(case: Case) -> dict[str, Any]:
    reduction = "sum" if case.divisor == 1 else "mean"
    settings = {
        "temperature": TEMPERATURE,
        "alpha": ALPHA if case.labels else 1.0,
        "reduction": reduction,
    }
    return settings if case.divergence == MULTILABEL else settings | {"divergence": case.divergence}


def _function(case: Case) -> Any:
    return multilabel_distillation_loss if case.divergence == MULTILABEL else distillation_loss


def _loss(case: Case, inputs: Inputs, **settings: Any) -> Tensor:
    student, class_dim = inputs.leaves[0], 1 if case.layout == "map" else -1
    settings |= _settings(case) | {"class_dim": class_dim}
    if case.statistics:
        return distillation_loss(student, inputs.targets, inputs.labels, statistics=True, **settings)[0]
    loss: Tensor = _function(case)(student, inputs.targets, inputs.labels, **settings)
    return loss


def _layer(case: Case, inputs: Inputs) -> Tensor:
    hidden, weight = inputs.leaves
    return linear_distillation_loss(hidden, weight, inputs.targets, inputs.labels, **_settings(case))


def _unfused_layer(case: Case, inputs: Inputs) -> Tensor:
    return distillation_loss(F.linear(*inputs.leaves), inputs.targets, inputs.labels, **_settings(case))


def _plain(function: Callable[..., Plain], inputs: Inputs) -> Tensor:
    result = function(*tensors(inputs))
    return result if isinstance(result, Tensor) else result[0]


def _compiled(case: Case, form: str, mode: str | None) -> Loss:
    return partial(_plain, torch.compile(plain_loss(case, form), dynamic=False, fullgraph=True, mode=mode))


def _with_instruction_set(name: str, loss: Loss, inputs: Inputs) -> Tensor:
    active = ops.instruction_set()
    ops.use_instruction_set(name)
    try:
        return loss(inputs)
    finally:
        ops.use_instruction_set(active)
