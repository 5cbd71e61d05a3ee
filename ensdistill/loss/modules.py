"""The losses as modules, for training loops that are built from modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn

from ensdistill.loss.checks import check_int, member_weights, numbers
from ensdistill.loss.functional import RowStatistics, distillation_loss
from ensdistill.loss.settings import (
    DEFAULTS,
    Impl,
    LossKeywords,
    LossSettings,
    check_call,
    refuse_label_settings,
    settings_of,
)
from ensdistill.loss.targets import Targets


class DistillationLoss(nn.Module):
    """:func:`ensdistill.functional.distillation_loss` with fixed settings; its parameters, units, errors and
    sources are described there.

    ``sample_weights`` belong to a batch, not to the settings: they are an argument of the call. The weights
    of members and classes are buffers, which move with the module, stay float64 under any cast, and aren't
    saved with it. All other settings are one
    :class:`~ensdistill.loss.settings.LossSettings`, ``loss.settings``. A schedule replaces it between calls:
    ``loss.settings = replace(loss.settings, temperature=4.0)``, with :func:`dataclasses.replace`.

    Parameters
    ----------
    settings, **keywords
        A :class:`~ensdistill.loss.settings.LossSettings`, or its fields as keywords.
    weights, class_weights, class_dim, statistics, impl
        As in :func:`ensdistill.loss.functional.distillation_loss`.

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

    def __init__(
        self,
        settings: LossSettings | None = None,
        *,
        weights: Tensor | Sequence[float] | None = None,
        class_weights: Tensor | Sequence[float] | None = None,
        class_dim: int = -1,
        statistics: bool = False,
        impl: Impl = "fused",
        **keywords: Unpack[LossKeywords],
    ) -> None:
        super().__init__()
        self.settings = settings_of(settings, dict(keywords))
        check_call(statistics, impl)
        if self.settings.alpha == 1:  # a schedule may get there later
            why = f"which has no share at alpha = {self.settings.alpha!r}; begin below 1"
            refuse_label_settings(self.settings.label_smoothing, class_weights, why)
        check_int("class_dim", class_dim, -64, 63, "of a Tensor's dimensions")
        self.class_dim, self.statistics, self.impl = class_dim, statistics, impl
        members = None if weights is None else member_weights(weights, None, _device(weights)).clone()
        classes = (
            None
            if class_weights is None
            else numbers("class_weights", class_weights, (None,), "class", _device(class_weights)).clone()
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
        targets : Tensor [..., C] or [K, ..., C], or one of :mod:`ensdistill.loss.targets`
        labels : Tensor [...], int64, optional
        sample_weights : Tensor or sequence [...], optional

        Returns
        -------
        Tensor [], or [...] for ``reduction="none"``; with ``statistics=True`` a pair of it and a
        RowStatistics
        """
        # The overloads need to know `statistics`, which is a variable here.
        function: Any = distillation_loss
        result: Tensor | tuple[Tensor, RowStatistics] = function(
            student_logits,
            targets,
            labels,
            settings=self.settings,
            weights=self.weights,
            class_weights=self.class_weights,
            sample_weights=sample_weights,
            class_dim=self.class_dim,
            statistics=self.statistics,
            impl=self.impl,
        )
        return result

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # .half() and .to(torch.bfloat16) would round the weights, so these buffers follow to the device only.
        before = {name: x for name, x in self._buffers.items() if x is not None and not x.is_meta}
        super()._apply(fn, recurse)
        for name, x in before.items():
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = moved if moved.is_meta else x.to(moved.device)
        return self

    def extra_repr(self) -> str:
        given = asdict(self.settings) | {
            "class_dim": self.class_dim,
            "statistics": self.statistics,
            "impl": self.impl,
        }
        shown = [f"{n}={value!r}" for n, value in given.items() if value != _DEFAULTS[n]]
        return ", ".join(
            [*shown, *(f"{n}={x.tolist()!r}" for n, x in self._buffers.items() if x is not None)]
        )


_DEFAULTS: dict[str, Any] = {**asdict(DEFAULTS), "class_dim": -1, "statistics": False, "impl": "fused"}


def _device(given: Any) -> torch.device:
    return given.device if isinstance(given, Tensor) else torch.device("cpu")
