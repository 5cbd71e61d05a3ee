"""The scores of a student's outputs, by task: against the ensemble's targets, and against labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ensdistill.common.tasks import Task
from ensdistill.data.tasks import UNKNOWN, UNLABELLED
from ensdistill.loss.functional import distillation_loss
from ensdistill.loss.gaussian import gaussian_distillation_loss, gaussian_moments
from ensdistill.loss.multilabel import multilabel_distillation_loss
from ensdistill.loss.multilabel_reference import mixture
from ensdistill.loss.regression import gaussian_nll
from ensdistill.loss.settings import LossSettings
from ensdistill.loss.targets import Probs, TopK
from ensdistill.student.units import Units

Metric = Literal["agreement", "kl", "nll", "accuracy", "distance", "rmse"]
NAMES: tuple[Metric, ...] = get_args(Metric)
LARGER_IS_BETTER = ("agreement", "accuracy")
# The first is the one by which weights are chosen where none is named.
OF_ENSEMBLE: dict[Task, tuple[Metric, ...]] = {
    "classification": ("kl", "agreement"),
    "multilabel": ("kl", "agreement"),
    "regression": ("distance", "kl"),
}
OF_LABELS: dict[Task, tuple[Metric, ...]] = {
    "classification": ("nll", "accuracy"),
    "multilabel": ("nll", "accuracy"),
    "regression": ("rmse", "nll"),
}
Sums = dict[Metric, tuple[Tensor, float]]
"""By metric the sum over some rows, and the number of its summands."""


@dataclass(frozen=True)
class Scores:
    """What an evaluation found, as means over the validation rows; None where there is nothing to compare
    with.

    Parameters
    ----------
    kl, agreement : float or None
        Nats, and a share, against the ensemble. Of several labels the sum of their KLs, and the share of
        labels on the same side of 1/2. Of a regression ``kl`` is the divergence of Gaussians, of a student
        with variances.
    nll, accuracy : float or None
        Nats, and a share, against the labels, of the rows that have one. Of several labels the sum of the
        known ones' NLL, and the share of known labels that are right. Of a regression ``nll`` is that of
        Gaussians in the data's units, of a student with variances.
    distance : float or None
        Of a regression the mean squared distance to the ensemble's mean, in units of the targets' spread.
    rmse : float or None
        Of a regression the root of the mean squared error of the labels, in the data's units.
    """

    kl: float | None = None
    agreement: float | None = None
    nll: float | None = None
    accuracy: float | None = None
    distance: float | None = None
    rmse: float | None = None

    @classmethod
    def of(cls, sums: Tensor) -> Scores:
        """From sums and numbers of summands, float64 [len(NAMES), 2]."""
        found = {
            name: total / count if count else None
            for name, (total, count) in zip(NAMES, sums.tolist(), strict=True)
        }
        if (squared := found["rmse"]) is not None:
            found["rmse"] = squared**0.5
        return cls(**found)


@dataclass(frozen=True, eq=False)
class Comparison:
    """How outputs of a task are compared.

    Parameters
    ----------
    task : {"classification", "multilabel", "regression"}
    settings : LossSettings
        Temperature and combiner of the divergence, with the reduction ``none``.
    weights : Tensor [K], optional
        The members' weights in place of those of the targets.
    units : Units or None
        Of a regression.
    """

    task: Task
    settings: LossSettings
    weights: Tensor | None = None
    units: Units | None = None

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor) -> Tensor:
        """Sums and numbers of summands, float64 [len(NAMES), 2].

        Parameters
        ----------
        outputs : Tensor [M, C], float32
        targets : one of :mod:`ensdistill.loss.targets`, or None
        labels : Tensor [M], or [M, C]
            On the CPU, in the form that the student's batches have.
        """
        against = {
            "classification": (of_classes, class_labels),
            "multilabel": (of_labels, several_labels),
            "regression": (of_numbers, numbers),
        }[self.task]
        found: Sums = {}
        if targets is not None:
            found |= against[0](self, outputs, targets.to(outputs.device))
        found |= against[1](self, outputs, labels)
        sums = torch.zeros(len(NAMES), 2, dtype=torch.float64)
        for name, (total, count) in found.items():
            sums[NAMES.index(name)] = torch.tensor([float(total), count], dtype=torch.float64)
        return sums


def of_classes(by: Comparison, outputs: Tensor, targets: Any) -> Sums:
    losses, rows = distillation_loss(
        outputs, targets, settings=by.settings, weights=by.weights, statistics=True
    )
    kl = losses.double().sum().cpu() / by.settings.temperature**2
    return {"kl": (kl, len(outputs)), "agreement": (rows.agreement.double().sum(), len(outputs))}


def class_labels(by: Comparison, outputs: Tensor, labels: Tensor) -> Sums:
    known = labels != UNLABELLED
    log_q, count = outputs.cpu().double().log_softmax(1), int(known.sum())
    nll = F.nll_loss(log_q, labels, ignore_index=UNLABELLED, reduction="sum")
    right = (log_q.argmax(1) == labels) & known
    return {"nll": (nll, count), "accuracy": (right.sum(), count)}


def of_labels(by: Comparison, outputs: Tensor, targets: Any) -> Sums:
    losses = multilabel_distillation_loss(outputs, targets, settings=by.settings, weights=by.weights)
    kl = losses.double().sum() / by.settings.temperature**2
    same = (present(targets, by.settings, by.weights) > 0.5) == (outputs > 0)
    return {"kl": (kl, len(outputs)), "agreement": (same.sum(), same.numel())}


def present(targets: Any, settings: LossSettings, weights: Tensor | None = None) -> Tensor:
    """The mixture's probability of each label, [M, C], at the settings' temperature."""
    if isinstance(targets, TopK):
        return targets.to_logits()[0].exp()
    values = targets.probs if isinstance(targets, Probs) else targets.to_logits()
    values = values if values.ndim == 3 else values[None]
    weights = getattr(targets, "weights", None) if weights is None else weights
    weights = torch.ones(len(values)) if weights is None else weights
    share = (weights / weights.sum()).to(values)
    combiner = settings.combiner or getattr(targets, "combiner", None) or "prob"
    kinds = {"LogProbs": "log_probs", "Probs": "probs"}  # LogProbs.to_logits() are log-probabilities
    kind = kinds.get(type(targets).__name__, "logits")
    return mixture(values, share, kind, combiner, settings.temperature)[0]


def several_labels(by: Comparison, outputs: Tensor, labels: Tensor) -> Sums:
    known, scores = labels != UNKNOWN, outputs.cpu().double()
    truth = labels.clamp(min=0).double()
    each = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    right = ((scores > 0) == (truth > 0.5)) & known
    return {
        "nll": (each.where(known, 0).sum(), int(known.any(1).sum())),
        "accuracy": (right.sum(), int(known.sum())),
    }


def of_numbers(by: Comparison, outputs: Tensor, targets: Any) -> Sums:
    weights = targets.weights if by.weights is None else by.weights
    mean, _ = gaussian_moments(targets.mean.double(), weights=weights)
    count, width = len(outputs), mean.shape[1]
    distance = (outputs[:, :width].double() - mean).square().mean(1).sum()
    found: Sums = {"distance": (distance, count)}
    if outputs.shape[1] > width:
        own, log_variance = outputs.double().chunk(2, 1)
        losses = gaussian_distillation_loss(
            own,
            log_variance,
            targets.mean.double(),
            None if targets.variance is None else targets.variance.double(),
            weights=weights,
            reduction="none",
        )
        found["kl"] = (losses.sum(), count)
    return found


def numbers(by: Comparison, outputs: Tensor, labels: Tensor) -> Sums:
    assert by.units is not None
    known, scale = ~labels.isnan().any(1), torch.from_numpy(by.units.scale)
    count, width = int(known.sum()), labels.shape[1]
    own, truth = outputs.cpu().double()[known], labels[known].double()
    squared = (scale * (own[:, :width] - truth)).square().mean(1).sum()
    found: Sums = {"rmse": (squared, count)}
    if own.shape[1] > width:
        nll = gaussian_nll(own[:, :width], own[:, width:], truth) + scale.log().sum()
        found["nll"] = (nll.sum(), count)
    return found
