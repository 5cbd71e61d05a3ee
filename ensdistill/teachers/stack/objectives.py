"""The losses by which networks are trained on labels, one for each task and for each model of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ensdistill.common.tasks import Task
from ensdistill.data.tasks import UNKNOWN, task_of_labels
from ensdistill.loss.gaussian import relative_error
from ensdistill.loss.regression import BETA
from ensdistill.teachers.stack.label_loss import LabelLoss


def units_of(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Location and scale of numbers [N, D]: their means and deviations, float64 [D]; scale 1 of a constant.

    Examples
    --------
    >>> location, scale = units_of(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> location.tolist(), scale.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    location, scale = numbers.mean(0), numbers.std(0)
    negligible = scale <= 1e-12 * np.abs(location)
    return location, np.where(negligible, 1.0, scale)


@dataclass(frozen=True)
class Objective:
    """The loss of labels of one task.

    Parameters
    ----------
    task : {"classification", "multilabel", "regression"}
        Cross entropy; the sum of the binary cross entropies of a row's known labels, weighed by ``positive``
        and ``each``; half the squared error of standardised numbers, or their Gaussian NLL without its
        constant, whose mean has the gradient of the squared error (`ensdistill.loss.regression.BETA`).
    outputs : int
        Of a model for each row.
    label_smoothing : float
        The share of the target that is spread evenly over the classes, or over the two values of a label.
    units : tuple of Tensor [models, 1, D], float64, optional
        Location and scale of the numbers, for each model its own.
    positive : Tensor [models, 1, C], float64, optional
        The factor of the positive part of each label's cross entropy.
    each : Tensor [C], float64, optional
        The factor of each label.
    """

    task: Task
    outputs: int
    label_smoothing: float = 0.0
    units: tuple[Tensor, Tensor] | None = None
    positive: Tensor | None = None
    each: Tensor | None = None

    @classmethod
    def of(
        cls,
        labels: np.ndarray,
        rows: Sequence[np.ndarray],
        classes: int,
        loss: LabelLoss,
        label_smoothing: float,
        device: torch.device,
    ) -> Objective:
        """The objective of labels in a form of :mod:`ensdistill.data.tasks`, of which each model learns from
        its ``rows``."""
        task, outputs = task_of_labels(labels) or "classification", classes * (1 + loss.variance)
        if task == "multilabel":
            positive, each = loss.factors(labels, rows, device)
            return cls(task, outputs, label_smoothing, positive=positive, each=each)
        if task == "classification":
            return cls(task, outputs, label_smoothing)
        if label_smoothing:
            raise ValueError(
                "optimization.label_smoothing: expected 0 for the numbers of a regression; got "
                f"{label_smoothing}"
            )
        own = [units_of(labels[index]) for index in rows]
        location, scale = (
            torch.from_numpy(np.stack(parts)).to(device).unsqueeze(1) for parts in zip(*own, strict=True)
        )
        return cls(task, outputs, label_smoothing, (location, scale))

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of each row, [models, batch], of outputs [models, batch, W] and labels [models * batch,
        ...]."""
        models = len(outputs)
        if self.task == "classification":
            loss = F.cross_entropy(
                outputs.flatten(0, 1), labels, reduction="none", label_smoothing=self.label_smoothing
            )
            return loss.view(models, -1)
        labels = labels.unflatten(0, (models, -1))
        if self.task == "multilabel":
            known = labels != UNKNOWN
            target = labels.clamp(min=0).to(outputs.dtype)
            target = target * (1 - self.label_smoothing) + self.label_smoothing / 2
            positive = None if self.positive is None else self.positive.to(outputs.dtype)
            each = F.binary_cross_entropy_with_logits(outputs, target, reduction="none", pos_weight=positive)
            factor = known if self.each is None else known * self.each.to(outputs.dtype)
            return (each * factor).sum(-1)
        assert self.units is not None
        location, scale = self.units
        target = ((labels - location) / scale).to(outputs.dtype)
        count = target.shape[-1]
        if self.outputs == count:
            return (outputs - target).square().sum(-1) / 2
        log_variance = outputs[..., count:]
        relative = relative_error(outputs[..., :count] - target, log_variance, BETA)
        return (log_variance + relative).sum(-1) / 2

    def accuracies(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The share of right classes, or of known labels on their own side of 1/2, for each model; NaN of
        numbers."""
        models = len(outputs)
        if self.task == "classification":
            return (outputs.argmax(-1) == labels.view(models, -1)).float().mean(1)
        if self.task == "regression":
            return torch.full((models,), torch.nan)
        labels = labels.unflatten(0, (models, -1))
        known = labels != UNKNOWN
        right = ((outputs > 0) == (labels > 0)) & known
        return right.sum((1, 2)) / known.sum((1, 2)).clamp(min=1)

    @property
    def expectation(self) -> str:
        """The outputs of a model in words, for messages."""
        return {
            "classification": "one for each class",
            "multilabel": "one for each label",
            "regression": "one for each number, or also its variance's logarithm",
        }[self.task]
