"""Distillation from an ensemble of regressors: its mixture's mean, or mean and variance."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensdistill.cache import TargetCache
from ensdistill.data import Rows
from ensdistill.loss.gaussian import gaussian_distillation_loss, gaussian_moments
from ensdistill.loss.regression import SQUARED_ERROR, RegressionSettings, error_of, gaussian_nll, mean_over
from ensdistill.student.methods.protocol import StudentLoss
from ensdistill.student.methods.soft_targets import check_member, weights_of_member
from ensdistill.student.units import known_of

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


class MomentTargets(StudentLoss):
    """A regression student's loss against the mixture of the members.

    A student of D outputs learns the mixture's mean, by the squared error or Huber's loss. One of 2 D
    outputs, means and logarithms of variances, learns mean and variance by the divergence of Gaussians.
    Labels are mixed in where ``settings.alpha`` is below 1: by the same error, or the Gaussian NLL.

    Parameters
    ----------
    settings : RegressionSettings
    weights : Tensor [K], optional
        The members' weights in place of those of the source.
    member : str, optional
        The name of the one member that ``weights`` selects.

    Examples
    --------
    >>> MomentTargets(RegressionSettings("huber", delta=0.5)).settings.delta
    0.5
    """

    task = "regression"
    takes_mixture = True

    def __init__(
        self,
        settings: RegressionSettings = SQUARED_ERROR,
        weights: Tensor | None = None,
        member: str | None = None,
    ) -> None:
        self.settings, self.weights, self.member = settings, weights, member

    @classmethod
    def of_member(
        cls, settings: RegressionSettings, cache: TargetCache | TargetSource, member: str | None
    ) -> MomentTargets:
        """The loss against one member of a cache, or with ``member=None`` against the members' mixture."""
        weights = None if member is None else weights_of_member(cache, member)
        return cls(settings, weights, member)

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        alpha, total = self.settings.alpha, outputs.new_zeros(())
        if alpha > 0:
            soft = self.against_targets(outputs, targets)
            total = alpha * (soft if batch.weights is None else soft * batch.weights).mean()
        if alpha < 1:
            hard = mean_over(of_numbers(outputs, labels, self.settings), known_of(labels), batch.weights)
            total = total + (1 - alpha) * (1 if batch.label_factor is None else batch.label_factor) * hard
        return total

    def each(self, outputs: Tensor, targets: Any, labels: Tensor) -> Tensor:
        """The loss of each row [B], all of which have labels where these have a share."""
        alpha, total = self.settings.alpha, outputs.new_zeros(len(outputs))
        if alpha > 0:
            total = alpha * self.against_targets(outputs, targets)
        if alpha < 1:
            total = total + (1 - alpha) * of_numbers(outputs, labels, self.settings)
        return total

    def against_targets(self, outputs: Tensor, targets: Any) -> Tensor:
        """The error or the divergence [B] from the mixture."""
        weights = targets.weights if self.weights is None else self.weights
        count = targets.mean.shape[-1]
        if outputs.shape[1] == count:
            return error_of(outputs, gaussian_moments(targets.mean, weights=weights)[0], self.settings)
        if self.settings.loss != "mse":
            raise ValueError(
                f"loss: {self.settings.loss!r} is of a student that predicts means alone, {count} outputs; "
                f"this one has {outputs.shape[1]}, of which half are variances: choose 'mse', or {count} "
                "outputs"
            )
        if targets.variance is None and _members(targets, weights) == 1:
            raise ValueError(
                f"model: {outputs.shape[1]} outputs are means and variances, but the targets are means of "
                f"one member, without a variance: let the model have {count} outputs"
            )
        mean, log_variance = outputs.chunk(2, dim=1)
        return gaussian_distillation_loss(
            mean,
            log_variance,
            targets.mean,
            targets.variance,
            weights=weights,
            beta=self.settings.beta,
            reduction="none",
        )

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        """Raise ValueError for rows without labels where they have a share, and for a cache without targets
        of the member."""
        if self.settings.alpha < 1 and not rows.known.any():
            raise ValueError(
                f"alpha, rows.labels: alpha = {self.settings.alpha} mixes in the labels' loss, but none of "
                f"the {len(rows)} rows has a label; pass labels or alpha=1.0"
            )
        if cache is not None:
            check_member(self.member, cache)

    def fingerprint(self) -> Any:
        weights = [] if self.weights is None or self.member is not None else [self.weights]
        settings = self.settings
        return [self.task, self.member, *astuple(settings), *weights]


def of_numbers(outputs: Tensor, labels: Tensor, settings: RegressionSettings = SQUARED_ERROR) -> Tensor:
    """The loss of each row [B] against its label: the error of D outputs, the Gaussian NLL of 2 D; 0 where
    the label is unknown (NaN)."""
    if outputs.shape[1] == labels.shape[1]:
        return error_of(outputs, labels, settings)
    mean, log_variance = outputs.chunk(2, dim=1)
    return gaussian_nll(mean, log_variance, labels, settings.beta)


def _members(targets: Any, weights: Any) -> int:
    """The members that have a share."""
    if weights is None:
        return len(targets.mean)
    return int((torch.as_tensor(weights) > 0).sum())
