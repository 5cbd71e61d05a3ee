"""Distillation from a multi-label ensemble's targets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ensdistill.data import Rows
from ensdistill.loss.multilabel import multilabel_distillation_loss
from ensdistill.loss.settings import DEFAULTS, LossSettings
from ensdistill.loss.targets import Targets
from ensdistill.student.methods.soft_targets import SoftTargets

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch

OF_A_SOFTMAX = ("divergence", "beta", "z_loss", "ignore_index")


class SoftLabels(SoftTargets):
    """The multi-label distillation loss against the ensemble's targets, mixed with the binary cross entropy
    of the known labels where ``settings.alpha`` is below 1.

    Parameters are those of :class:`SoftTargets`; settings of a softmax have their defaults.

    Examples
    --------
    >>> SoftLabels(LossSettings(alpha=0.9)).task
    'multilabel'
    """

    task = "multilabel"
    _loss = staticmethod(multilabel_distillation_loss)

    def __init__(
        self,
        settings: LossSettings = DEFAULTS,
        weights: Tensor | None = None,
        member: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(settings, weights, member, **options)
        for name in OF_A_SOFTMAX:
            if (value := getattr(settings, name)) != (expected := getattr(DEFAULTS, name)):
                raise ValueError(
                    f"settings.{name}: expected {expected!r} for the task multilabel, because it is of a "
                    f"softmax; got {value!r}"
                )

    def __call__(self, outputs: Tensor, targets: Targets, labels: Tensor, batch: Batch) -> Tensor:
        settings, scale = shared(self.settings, batch.label_factor)
        loss = multilabel_distillation_loss(
            outputs,
            targets,
            None if settings.alpha == 1 else labels,
            settings=settings,
            weights=self.weights,
            sample_weights=batch.weights,
            impl=self.impl,
        )
        return loss if scale == 1 else loss * scale

    def fingerprint(self) -> Any:
        return [self.task, *super().fingerprint()]

    def _check_labels(self, rows: Rows, classes: int) -> None:
        if not rows.known.any():
            raise ValueError(
                f"alpha, rows.labels: alpha = {self.settings.alpha} mixes in cross entropy, but none of the "
                f"{len(rows)} rows has a known label; pass labels or alpha=1.0"
            )


def shared(settings: LossSettings, label_factor: float | None) -> tuple[LossSettings, float]:
    """Settings and a factor of the loss, by which the labels' part counts ``label_factor`` times.

    Examples
    --------
    >>> found, scale = shared(LossSettings(alpha=0.5), 3.0)
    >>> found.alpha, scale
    (0.25, 2.0)
    """
    if label_factor is None or settings.alpha == 1:
        return settings, 1.0
    scale = settings.alpha + (1 - settings.alpha) * label_factor
    if scale == settings.alpha:  # no row of this part has a known label
        return replace(settings, alpha=1.0, label_smoothing=0.0), scale
    return replace(settings, alpha=settings.alpha / scale), scale


def labels_alone(
    outputs: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """The binary cross entropy [] of known labels: its sum over a row's labels, averaged over the rows with a
    known one.

    Parameters
    ----------
    outputs : Tensor [B, C]
        Log-odds.
    labels : Tensor [B, C], int8
        -1 where unknown.
    smoothing : float
        e: y (1 - e) + e / 2 takes the place of y.
    weights : Tensor [B], optional
    """
    # With alpha = 0 the kernel does not read the targets.
    settings = LossSettings(alpha=0.0, label_smoothing=smoothing)
    return multilabel_distillation_loss(
        outputs.float(),
        outputs.detach().float(),
        labels,
        settings=settings,
        sample_weights=weights,
    )
