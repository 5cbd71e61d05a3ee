"""The losses as modules, for training loops that are built from modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ensdistill.functional import Combiner, Divergence, Impl, Reduction, RowStatistics, Tail, distillation_loss
from ensdistill.targets import Targets


class DistillationLoss(nn.Module):
    """:func:`ensdistill.functional.distillation_loss` with its settings fixed; parameters, units, errors and sources are described there.

    ``sample_weights`` belong to a batch, not to the settings: they are an argument of the call. Class weights are a buffer, which moves
    with the module and isn't saved with it. Settings are looked at when the module is called.

    Examples
    --------
    >>> import torch
    >>> loss = DistillationLoss(temperature=2.0, alpha=0.9)
    >>> student, teachers, labels = torch.zeros(4, 10), torch.randn(3, 4, 10), torch.arange(4)
    >>> loss(student, teachers, labels).shape
    torch.Size([])
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        alpha: float = 1.0,
        weights: Tensor | Sequence[float] | None = None,
        combiner: Combiner = "prob",
        divergence: Divergence = "forward_kl",
        beta: float = 0.5,
        tail: Tail = "tail",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        class_weights: Tensor | Sequence[float] | None = None,
        z_loss: float = 0.0,
        reduction: Reduction = "mean",
        class_dim: int = -1,
        recompute: bool = False,
        statistics: bool = False,
        impl: Impl = "fused",
    ) -> None:
        super().__init__()
        self.temperature, self.alpha, self.weights, self.combiner = temperature, alpha, weights, combiner
        self.divergence, self.beta, self.tail = divergence, beta, tail
        self.ignore_index, self.label_smoothing, self.z_loss = ignore_index, label_smoothing, z_loss
        self.reduction, self.class_dim, self.recompute, self.statistics, self.impl = reduction, class_dim, recompute, statistics, impl
        given = None if class_weights is None else torch.as_tensor(class_weights)
        self.register_buffer("class_weights", given, persistent=False)

    def forward(
        self,
        student_logits: Tensor,
        targets: Tensor | Targets,
        labels: Tensor | None = None,
        sample_weights: Tensor | Sequence[float] | None = None,
    ) -> Tensor | tuple[Tensor, RowStatistics]:
        """The loss of one batch.

        Parameters
        ----------
        student_logits : Tensor [..., C]
        targets : Tensor [..., C] or [K, ..., C], or one of :mod:`ensdistill.targets`
        labels : Tensor [...], int64, optional
        sample_weights : Tensor or sequence [...], optional

        Returns
        -------
        Tensor [], or [...] for ``reduction="none"``; with ``statistics=True`` a pair of it and a RowStatistics
        """
        settings = {
            "temperature": self.temperature,
            "alpha": self.alpha,
            "weights": self.weights,
            "combiner": self.combiner,
            "divergence": self.divergence,
            "beta": self.beta,
            "tail": self.tail,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "class_weights": self.class_weights,
            "sample_weights": sample_weights,
            "z_loss": self.z_loss,
            "reduction": self.reduction,
            "class_dim": self.class_dim,
            "recompute": self.recompute,
            "statistics": self.statistics,
            "impl": self.impl,
        }
        result: Tensor | tuple[Tensor, RowStatistics] = distillation_loss(student_logits, targets, labels, **settings)  # type: ignore[call-overload]
        return result

    def extra_repr(self) -> str:
        names = ("temperature", "alpha", "combiner", "divergence", "reduction", "impl")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
