"""Logit standardisation, before another method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ensdistill.cache import TargetCache
from ensdistill.data import Rows
from ensdistill.loss.settings import LossSettings
from ensdistill.loss.targets import EnsembleLogits
from ensdistill.student.methods.method import Method
from ensdistill.student.methods.protocol import Start, StudentLoss
from ensdistill.student.methods.soft_targets import SoftTargets
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
    of : StudentLoss
        The method; by name, ``{"standardised": {"of": "dkd"}}``. By default kd at a temperature of 2.

    References
    ----------
    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, algorithm 1; there the
    temperature is 2.

    Examples
    --------
    >>> Standardised().of.settings.temperature
    2.0
    """

    of: StudentLoss = field(default_factory=lambda: SoftTargets(LossSettings(temperature=2.0)))
    takes_mixture = False

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        logits = logits_of_members(targets)
        own = EnsembleLogits(standard(logits), targets.weights, getattr(targets, "combiner", None))
        return self.of(standard(outputs), own, labels, batch)

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        super().check(rows, classes, cache)
        self.of.check(rows, classes, None)  # standardised logits serve all temperatures

    @property
    def layers(self) -> Sequence[str]:  # type: ignore[override]
        return self.of.layers

    @property
    def has_companion(self) -> bool:
        return self.of.has_companion

    def companion(self, start: Start) -> nn.Module | None:
        return self.of.companion(start)


def standard(logits: Tensor) -> Tensor:
    """Logits [..., C] with mean 0 and deviation 1 over the finite ones; ``-inf`` stays."""
    finite = logits.isfinite()
    middle = centred(logits, finite)
    deviation = (middle.square().sum(-1, keepdim=True) / finite.sum(-1, keepdim=True).clamp(min=1)).sqrt()
    return (middle / (deviation + 1e-7)).masked_fill(~finite, float("-inf"))
