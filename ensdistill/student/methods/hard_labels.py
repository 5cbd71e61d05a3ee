"""Training on labels alone: the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ensdistill.cache import TargetCache
from ensdistill.common.scalars import real
from ensdistill.data import Rows
from ensdistill.student.methods.protocol import StudentLoss

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


class HardLabels(StudentLoss):
    """Cross entropy with the labels: the loss of *direct*.

    Parameters
    ----------
    smoothing : float
        The share of the target that is spread evenly over all classes, in [0, 1).
    """

    takes_mixture = True  # the loss reads no targets

    def __init__(self, smoothing: float = 0.0) -> None:
        if not (real(smoothing) and 0 <= float(smoothing) < 1):
            raise ValueError(f"smoothing: expected a number of at least 0 and below 1; got {smoothing!r}")
        self.smoothing = float(smoothing)

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        if batch.weights is None:
            return F.cross_entropy(outputs.float(), labels, label_smoothing=self.smoothing)
        losses = F.cross_entropy(outputs.float(), labels, label_smoothing=self.smoothing, reduction="none")
        return (losses * batch.weights).mean()

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        """Raise ValueError for a row without a label in 0..classes-1."""
        wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= classes))
        if len(wrong):
            raise ValueError(
                f"rows.labels: expected 0..{classes - 1}; uid {rows.uids[wrong[0]]} has "
                f"{rows.labels[wrong[0]]}"
            )

    def fingerprint(self) -> Any:
        return ["labels", *([self.smoothing] if self.smoothing else [])]
