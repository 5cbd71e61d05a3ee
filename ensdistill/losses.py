"""The losses as modules, for training loops that are built from modules."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ensdistill.checks import check_int, check_settings, member_weights, numbers, refuse_label_settings
from ensdistill.functional import Combiner, Divergence, Impl, Reduction, RowStatistics, Tail, distillation_loss
from ensdistill.targets import Targets


class DistillationLoss(nn.Module):
    """:func:`ensdistill.functional.distillation_loss` with its settings fixed; parameters, units, errors and sources are described there.

    ``sample_weights`` belong to a batch, not to the settings: they are an argument of the call. The weights of members and classes are
    buffers, which move with the module, stay float64 whatever it is cast to, and aren't saved with it. All other settings are in the dict
    ``settings``, and may be changed there (``loss.settings["temperature"] = 4.0``); they are looked at here and in each call.

    Examples
    --------
    >>> import torch
    >>> loss = DistillationLoss(temperature=2.0, alpha=0.9)
    >>> student, teachers, labels = torch.zeros(4, 10), torch.randn(3, 4, 10), torch.arange(4)
    >>> loss(student, teachers, labels).shape
    torch.Size([])
    >>> loss
    DistillationLoss(temperature=2.0, alpha=0.9)
    """

    weights: Tensor | None
    class_weights: Tensor | None
    settings: dict[str, Any]

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        alpha: float = 1.0,
        weights: Tensor | Sequence[float] | None = None,
        combiner: Combiner | None = None,
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
        settings: dict[str, Any] = {
            "temperature": temperature,
            "alpha": alpha,
            "combiner": combiner,
            "divergence": divergence,
            "beta": beta,
            "tail": tail,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "reduction": reduction,
            "recompute": recompute,
            "statistics": statistics,
            "impl": impl,
        }
        check_settings(**settings)
        if alpha == 1:  # a schedule may get there later
            refuse_label_settings(label_smoothing, class_weights, f"which has no share at alpha = {alpha!r}; begin below 1")
        check_int("class_dim", class_dim, -64, 63, "of a Tensor's dimensions")
        self.settings = {**settings, "class_dim": class_dim}
        members = None if weights is None else member_weights(weights, None, _device(weights)).clone()
        classes = (
            None if class_weights is None else numbers("class_weights", class_weights, (None,), "class", _device(class_weights)).clone()
        )
        self.register_buffer("weights", members, persistent=False)
        self.register_buffer("class_weights", classes, persistent=False)

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
        result: Tensor | tuple[Tensor, RowStatistics] = distillation_loss(
            student_logits,
            targets,
            labels,
            weights=self.weights,
            class_weights=self.class_weights,
            sample_weights=sample_weights,
            **self.settings,
        )
        return result

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # What .half() and .to(torch.bfloat16) do to buffers would round the weights: they follow to the device only.
        before = {name: x for name, x in self._buffers.items() if x is not None and not x.is_meta}
        super()._apply(fn, recurse)
        for name, x in before.items():
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = moved if moved.is_meta else x.to(moved.device)
        return self

    def extra_repr(self) -> str:
        given = {**self.settings, **{n: x.tolist() for n, x in self._buffers.items() if x is not None}}
        defaults = inspect.signature(distillation_loss).parameters
        return ", ".join(f"{n}={given[n]!r}" for n, p in defaults.items() if n in given and given[n] != p.default)


def _device(given: Any) -> torch.device:
    return given.device if isinstance(given, Tensor) else torch.device("cpu")
