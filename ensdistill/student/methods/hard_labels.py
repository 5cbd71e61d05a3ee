"""Training on labels alone: the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ensdistill.cache import TargetCache
from ensdistill.common.scalars import real
from ensdistill.common.tasks import Task, check_task
from ensdistill.data import Rows
from ensdistill.student.methods.moment_targets import of_numbers
from ensdistill.student.methods.protocol import StudentLoss
from ensdistill.student.methods.soft_labels import labels_alone

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


class HardLabels(StudentLoss):
    """The loss of *direct*: the labels' cross entropy; for several labels the binary cross entropy of the
    known ones; for numbers the squared error, or the Gaussian NLL of a student with variances.

    Parameters
    ----------
    smoothing : float
        The share of the target that is spread evenly over all classes, in [0, 1); 0 for numbers.
    task : {"classification", "multilabel", "regression"}
    """

    takes_mixture = True  # the loss reads no targets

    def __init__(self, smoothing: float = 0.0, task: Task = "classification") -> None:
        if not (real(smoothing) and 0 <= float(smoothing) < 1):
            raise ValueError(f"smoothing: expected a number of at least 0 and below 1; got {smoothing!r}")
        self.smoothing, self.task = float(smoothing), check_task(task)
        if task == "regression" and smoothing:
            raise ValueError(
                f"smoothing: expected 0 for the task regression, whose labels are numbers; got {smoothing!r}"
            )

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        if self.task == "multilabel":
            return labels_alone(outputs, labels, self.smoothing, batch.weights)
        if self.task == "regression":
            losses = of_numbers(outputs.float(), labels)
        elif batch.weights is None:
            return F.cross_entropy(outputs.float(), labels, label_smoothing=self.smoothing)
        else:
            losses = F.cross_entropy(
                outputs.float(), labels, label_smoothing=self.smoothing, reduction="none"
            )
        return (losses if batch.weights is None else losses * batch.weights).mean()

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        """Raise ValueError for a row without a label of the task."""
        wrong = ~rows.known
        expected = f"0..{classes - 1}"
        if self.task == "classification":
            wrong = (rows.labels < 0) | (rows.labels >= classes)
        elif self.task == "multilabel":
            expected = "at least one known label (0 or 1) in each row"
        else:
            expected = "a number in each row"
        if len(bad := np.flatnonzero(wrong)):
            raise ValueError(
                f"rows.labels: expected {expected}; uid {rows.uids[bad[0]]} has {rows.labels[bad[0]]}"
            )

    def fingerprint(self) -> Any:
        task = [] if self.task == "classification" else [self.task]
        return ["labels", *task, *([self.smoothing] if self.smoothing else [])]
