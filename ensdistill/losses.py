"""The losses as modules, for training loops that are built from modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ensdistill.functional import Combiner, Impl, Reduction, distillation_loss
from ensdistill.targets import Targets


class DistillationLoss(nn.Module):
    """:func:`ensdistill.functional.distillation_loss` with its settings fixed; the parameters are described there.

    Examples
    --------
    >>> import torch
    >>> loss = DistillationLoss(temperature=2.0, alpha=0.9)
    >>> student, teachers, labels = torch.zeros(4, 10), torch.randn(3, 4, 10), torch.arange(4)
    >>> loss(student, teachers, labels).shape
    torch.Size([])
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        alpha: float = 1.0,
        weights: Tensor | Sequence[float] | None = None,
        combiner: Combiner = "prob",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        impl: Impl = "fused",
    ) -> None:
        super().__init__()
        self.temperature, self.alpha, self.weights, self.combiner = temperature, alpha, weights, combiner
        self.ignore_index, self.label_smoothing, self.reduction, self.impl = ignore_index, label_smoothing, reduction, impl

    def forward(self, student_logits: Tensor, targets: Tensor | Targets, labels: Tensor | None = None) -> Tensor:
        return distillation_loss(
            student_logits,
            targets,
            labels,
            temperature=self.temperature,
            alpha=self.alpha,
            weights=self.weights,
            combiner=self.combiner,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        names = ("temperature", "alpha", "combiner", "reduction", "impl")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
