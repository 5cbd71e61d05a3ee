"""The losses that a student is trained with. A loss written outside this package needs a ``__call__`` and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensdistill.cache import TargetCache
from ensdistill.common.source import Used
from ensdistill.data import UNLABELLED, Rows
from ensdistill.loss.functional import distillation_loss
from ensdistill.loss.modules import DistillationLoss
from ensdistill.loss.settings import DEFAULTS, Impl, LossSettings, check_trained, digest_parts
from ensdistill.loss.targets import Targets

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch


@runtime_checkable
class StudentLoss(Protocol):
    """A loss of :class:`~ensdistill.student.trainer.StudentTrainer`.

    Any callable with the signature of ``__call__`` serves. A class that derives from this one can also refuse a training before it
    begins, and decide which checkpoints it resumes from. A loss keeps no state between calls: a checkpoint would not hold it.

    Examples
    --------
    >>> class MeanSquaredError(StudentLoss):
    ...     def __call__(self, outputs, targets, labels, batch):
    ...         return (outputs - targets.to_logits().mean(0)).square().mean()
    """

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        """The loss of one batch.

        Parameters
        ----------
        outputs : Tensor [B, C], float32
            The student's logits, with a gradient.
        targets : one of :mod:`ensdistill.loss.targets`, or None
            The cache's rows, as stored; ``to_logits()`` returns [K, B, C] (K = 1 where the cache holds the mixture only). None where
            the student is trained on labels alone.
        labels : Tensor [B], int64
            -100 where the label is unknown.
        batch : Batch
            The inputs, the uids, the number of the step, and the factor for means over labelled rows under torchrun.

        Returns
        -------
        Tensor [], floating point
            A mean over the rows: the trainer averages the gradients of all processes, whose shares of a batch are equally large.
        """
        ...

    def check(self, rows: Rows, classes: int, cache: TargetCache | None) -> None:
        """Raise ValueError for rows or a cache that this loss cannot be computed from. By default all are accepted."""

    def fingerprint(self) -> Any:
        """Data for :func:`ensdistill.common.fingerprint.digest`: a checkpoint of a loss with other data is not resumed.

        By default the code of the loss and the values of its attributes.
        """
        return code_and_values(self)


class SoftTargets(StudentLoss):
    """The distillation loss against a cache's targets, mixed with the labels' cross entropy where ``settings.alpha`` is below 1.

    Parameters
    ----------
    settings : LossSettings
        With the reduction ``mean`` and the default ``ignore_index``.
    weights : Tensor [K], optional
        The members' weights in place of the cache's.
    member : str, optional
        The name of the one member that ``weights`` selects; :meth:`of_member` derives them from it.
    impl : {"fused", "reference", "compile"}

    Examples
    --------
    >>> SoftTargets(LossSettings(temperature=2.0, alpha=0.9)).settings.alpha
    0.9
    """

    def __init__(
        self,
        settings: LossSettings = DEFAULTS,
        weights: Tensor | None = None,
        member: str | None = None,
        *,
        impl: Impl = "fused",
    ) -> None:
        check_trained("settings", settings)
        self.settings, self.weights, self.member, self.impl = settings, weights, member, impl

    @classmethod
    def of_member(cls, settings: LossSettings, cache: TargetCache, member: str | None, impl: Impl = "fused") -> SoftTargets:
        """The loss against one member of a cache, or with ``member=None`` against the members' mixture."""
        if member is None:
            return cls(settings, impl=impl)
        if member not in cache.names:
            raise ValueError(f"member: expected one of {', '.join(cache.names)}; got {member!r}")
        weights = torch.tensor([float(name == member) for name in cache.names], dtype=torch.float64)
        return cls(settings, weights, member, impl=impl)

    def __call__(self, outputs: Tensor, targets: Targets, labels: Tensor, batch: Batch) -> Tensor:
        if self.settings.alpha == 1:
            return distillation_loss(outputs, targets, settings=self.settings, weights=self.weights, impl=self.impl)
        factor = batch.label_factor
        return distillation_loss(
            outputs,
            targets,
            labels,
            settings=self.settings,
            weights=self.weights,
            class_weights=None if factor is None else torch.full((outputs.shape[1],), factor, dtype=torch.float64),
            impl=self.impl,
        )

    def check(self, rows: Rows, classes: int, cache: TargetCache | None) -> None:
        """Raise ValueError for rows without labels where they have a share, and for a cache without targets at the temperature."""
        if self.settings.alpha < 1:
            self._check_labels(rows, classes)
        if cache is not None:
            self._check_cache(cache)

    def fingerprint(self) -> Any:
        weights = [] if self.weights is None or self.member is not None else [self.weights]
        return [self.member, *digest_parts(self.settings), *weights]

    def _check_labels(self, rows: Rows, classes: int) -> None:
        labelled = rows.labels != UNLABELLED
        if not labelled.any():
            raise ValueError(
                f"alpha, rows.labels: alpha = {self.settings.alpha} mixes in cross entropy, but none of the {len(rows)} rows has a "
                "label; pass labels or alpha=1.0"
            )
        wrong = np.flatnonzero(labelled & ((rows.labels < 0) | (rows.labels >= classes)))
        if len(wrong):
            raise ValueError(
                f"rows.labels: expected 0..{classes - 1} or {UNLABELLED}; uid {rows.uids[wrong[0]]} has {rows.labels[wrong[0]]}"
            )

    def _check_cache(self, cache: TargetCache) -> None:
        temperature, made_at = self.settings.temperature, cache.temperature
        if made_at is not None and made_at != temperature:
            raise ValueError(f"temperature: {temperature}, but the cache {cache.path} holds the mixture at {made_at} only")
        if made_at is not None and self.member is not None:
            raise ValueError(f"member: {self.member!r} is not in the cache {cache.path}: it holds the members' mixture only")
        if cache.max_temperature is not None and temperature > cache.max_temperature:
            raise ValueError(
                f"temperature: {temperature}, but the cache {cache.path} holds rows that serve temperatures up to "
                f"{cache.max_temperature:g} only; build it again with max_temperature={temperature}, or with codec='fp32'"
            )


class HardLabels(StudentLoss):
    """Cross entropy with the labels: the loss of *direct*.

    Parameters
    ----------
    smoothing : float
        The share of the target that is spread evenly over all classes, in [0, 1).
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs.float(), labels, label_smoothing=self.smoothing)

    def check(self, rows: Rows, classes: int, cache: TargetCache | None) -> None:
        """Raise ValueError for a row without a label in 0..classes-1."""
        wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= classes))
        if len(wrong):
            raise ValueError(f"rows.labels: expected 0..{classes - 1}; uid {rows.uids[wrong[0]]} has {rows.labels[wrong[0]]}")

    def fingerprint(self) -> Any:
        return ["labels", *([self.smoothing] if self.smoothing else [])]


class PlainLoss(StudentLoss):
    """A callable with no method of :class:`StudentLoss` but the call."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        return self.function(outputs, targets, labels, batch)

    def check(self, rows: Rows, classes: int, cache: TargetCache | None) -> None:
        if callable(check := getattr(self.function, "check", None)):
            check(rows, classes, cache)

    def fingerprint(self) -> Any:
        own = getattr(self.function, "fingerprint", None)
        return own() if callable(own) else code_and_values(self.function)


def as_student_loss(loss: Any) -> StudentLoss:
    """``loss`` with all methods of :class:`StudentLoss`.

    Raises
    ------
    TypeError
        It is a class or no callable, or a loss of another signature.
    ValueError
        It has parameters, which the trainer would not train.
    """
    if isinstance(loss, DistillationLoss):
        raise TypeError("loss: a DistillationLoss takes sample weights, not a batch; pass its settings: StudentTrainer(loss=loss.settings)")
    if isinstance(loss, type) or not callable(loss):
        got = f"the class {loss.__name__}; pass an instance of it" if isinstance(loss, type) else type(loss).__name__
        raise TypeError(
            f"loss: expected LossSettings or a callable (outputs, targets, labels, batch) that returns a scalar tensor; got {got}"
        )
    if isinstance(loss, nn.Module):
        trained = [name for name, parameter in loss.named_parameters() if parameter.requires_grad]
        if trained:
            raise ValueError(
                f"loss: {type(loss).__name__} has parameters ({trained[0]}), which would not be trained: the optimiser holds the "
                "student's parameters only; make them parameters of the student, or call requires_grad_(False)"
            )
    return loss if isinstance(loss, StudentLoss) else PlainLoss(loss)


def name_of(loss: Any) -> str:
    """The name of a loss in a message."""
    loss = loss.function if isinstance(loss, PlainLoss) else loss
    return str(getattr(loss, "__name__", type(loss).__name__))


def code_and_values(loss: Any) -> Any:
    """The code of a callable, and the values of its attributes or of its closure, as data for a digest."""
    used = Used()
    content = used.refer(loss, "loss")
    return [content, used.parts]
