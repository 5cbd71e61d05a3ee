"""Multi-level logit distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ensdistill.common.scalars import check_temperature
from ensdistill.student.methods.method import Method, check_number
from ensdistill.student.methods.teachers import kl_rows, log_mixture

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch


@dataclass(frozen=True)
class MultiLevel(Method):
    """The sum over temperatures T of T² KL(p‖q), ``batch`` ‖PPᵀ - QQᵀ‖² / B and ``classes`` ‖PᵀP - QᵀQ‖² / C.

    P and Q are the mixture's and the student's probabilities [B, C] of a batch at T: the second part compares
    rows with each other, the third classes. The paper masks rows of little confidence between weak and strong
    augmentations; here each row is there once, so none is masked.

    Parameters
    ----------
    pool : sequence of float
        The temperatures.
    batch, classes : float
        Of at least 0.

    References
    ----------
    Jin et al., "Multi-Level Logit Distillation", CVPR 2023.

    Examples
    --------
    >>> MultiLevel().temperatures
    (2.0, 3.0, 4.0, 5.0, 6.0)
    """

    pool: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)
    batch: float = 1.0
    classes: float = 1.0
    compares_rows = True

    def __post_init__(self) -> None:
        if isinstance(self.pool, str) or not isinstance(self.pool, Sequence) or not self.pool:
            raise ValueError(f"pool: expected a list of temperatures; got {self.pool!r}")
        for temperature in self.pool:
            check_temperature("pool", temperature)
        object.__setattr__(self, "pool", tuple(float(one) for one in self.pool))
        check_number("batch", self.batch)
        check_number("classes", self.classes)

    @property
    def temperatures(self) -> Sequence[float]:
        return tuple(self.pool)

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        parts = [self.at(outputs, log_mixture(targets, t), t) for t in self.pool]
        return torch.stack(parts).sum()

    def at(self, outputs: Tensor, log_p: Tensor, temperature: float) -> Tensor:
        """The three parts at one temperature."""
        log_q = F.log_softmax(outputs / temperature, -1)
        p, q = log_p.exp(), log_q.exp()
        rows = temperature**2 * kl_rows(log_p, log_q).mean()
        batch = (p @ p.T - q @ q.T).square().sum() / len(p)
        classes = (p.T @ p - q.T @ q).square().sum() / p.shape[1]
        return rows + self.batch * batch + self.classes * classes
