"""Logit standardisation, before another method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ensdistill.cache import TargetCache
from ensdistill.data import Rows
from ensdistill.loss.targets import EnsembleLogits
from ensdistill.student.methods.method import Method
from ensdistill.student.methods.protocol import Start, StudentLoss
from ensdistill.student.methods.teachers import centred, logits_of_members

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


@dataclass(frozen=True)
class Standardised(Method):
    """Another method, on logits of mean 0 and deviation 1 in each row, of each member and of the student.

    The student learns the members' ratios of logits and keeps a scale of its own, so its probabilities are
    not the ensemble's: its temperature has to be fitted, or ``labels`` mixed in.

    Parameters
    ----------
    of : str or mapping
        The method, as ``method`` of a trainer takes it.

    References
    ----------
    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, algorithm 1; there the
    temperature is 2.

    Examples
    --------
    >>> Standardised({"dkd": {"temperature": 2.0}}).inner.temperature
    2.0
    """

    of: str | Mapping[str, Any] = field(default_factory=lambda: {"kd": {"temperature": 2.0}})
    takes_mixture = False

    def __post_init__(self) -> None:
        _ = self.inner

    @cached_property
    def inner(self) -> StudentLoss:
        from ensdistill.student.methods.names import build  # which knows this method, too

        return build(self.of, "standardised.of")

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        logits = logits_of_members(targets)
        own = EnsembleLogits(standard(logits), targets.weights, getattr(targets, "combiner", None))
        return self.inner(standard(outputs), own, labels, batch)

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        super().check(rows, classes, cache)
        self.inner.check(rows, classes, None)  # standardised logits serve all temperatures

    @property
    def layers(self) -> Sequence[str]:  # type: ignore[override]
        return self.inner.layers

    def companion(self, start: Start) -> nn.Module | None:
        return self.inner.companion(start)


def standard(logits: Tensor) -> Tensor:
    """Logits [..., C] with mean 0 and deviation 1 over the finite ones; ``-inf`` stays."""
    finite = logits.isfinite()
    middle = centred(logits, finite)
    deviation = (middle.square().sum(-1, keepdim=True) / finite.sum(-1, keepdim=True).clamp(min=1)).sqrt()
    return (middle / (deviation + 1e-7)).masked_fill(~finite, float("-inf"))
