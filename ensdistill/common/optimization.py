"""How a model is optimised: one small config shared by the members' training and the student's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from ensdistill.common.scalars import plain_fields


@dataclass(frozen=True)
class Optimization:
    """AdamW with a learning rate schedule, for a fixed number of steps.

    Parameters
    ----------
    steps : int
        Optimiser steps.
    batch_size : int
        Rows of one step.
    learning_rate : float
        The highest learning rate of the schedule.
    weight_decay : float
        Decoupled weight decay (Loshchilov and Hutter, 2019, "Decoupled Weight Decay Regularization").
    schedule : {"one_cycle", "cosine", "constant"}
        ``one_cycle`` also lowers and raises AdamW's first momentum (Smith and Topin, 2018,
        "Super-Convergence"); ``cosine`` and ``constant`` rise linearly during the warm-up.
    warmup : float
        Share of the steps during which the learning rate rises, in [0, 1).
    label_smoothing : float
        Share of the target that is spread evenly over all classes, in [0, 1).

    Raises
    ------
    ValueError
        A value outside the ranges above.

    Examples
    --------
    >>> import torch
    >>> cosine = Optimization(steps=100, learning_rate=0.01, schedule="cosine", warmup=0.1)
    >>> optimizer, scheduler = cosine.build(torch.nn.Linear(2, 2).parameters())
    >>> round(scheduler.get_last_lr()[0], 6)
    0.001
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"optimization.{name}: expected at least 1; got {getattr(self, name)}")
        if not (0 < self.learning_rate < math.inf):
            raise ValueError(
                f"optimization.learning_rate: expected a positive number; got {self.learning_rate}"
            )
        if not (0 <= self.weight_decay < math.inf):
            raise ValueError(
                f"optimization.weight_decay: expected a number of at least 0; got {self.weight_decay}"
            )
        for name in ("warmup", "label_smoothing"):
            if not (0 <= getattr(self, name) < 1):
                raise ValueError(
                    f"optimization.{name}: expected a share in [0, 1); got {getattr(self, name)}"
                )
        if self.schedule not in ("one_cycle", "cosine", "constant"):
            message = f"expected one_cycle, cosine or constant; got {self.schedule!r}"
            if "." in str(self.schedule):
                message += (
                    ": pass the class itself, such as schedule=torch.optim.lr_scheduler.CosineAnnealingLR, "
                    "to a StudentOptimization"
                )
            raise ValueError(f"optimization.schedule: {message}")

    def build(self, parameters: Iterable[Tensor | nn.Parameter]) -> tuple[AdamW, LRScheduler]:
        """The optimiser of ``parameters`` and its scheduler, which is stepped once after every optimiser
        step."""
        # The fused step is one call for all parameters; small models spend much of their time in the
        # per-parameter loop.
        optimizer = AdamW(list(parameters), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        if self.schedule == "one_cycle":
            # A cycle of one step would begin at its end, where the learning rate is next to nothing. And
            # OneCycleLR divides by the number of the warm-up's last step: 0 where it has one step. A hair
            # less of a warm-up has the same learning rates.
            total = max(2, self.steps)
            warmup = self.warmup * (1 - 1e-9) if self.warmup * total == 1 else float(self.warmup)
            return optimizer, OneCycleLR(
                optimizer, max_lr=self.learning_rate, total_steps=total, pct_start=warmup
            )
        return optimizer, LambdaLR(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        warmup = round(self.warmup * self.steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, self.steps - warmup))))
