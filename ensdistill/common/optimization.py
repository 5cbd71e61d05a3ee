"""How a model is optimised: one small config shared by the members' training and the student's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from ensdistill.common.adamw import AdamW
from ensdistill.common.scalars import plain_fields

# Trainings replace "auto" by numbers before they compute with it, so type checkers see numbers.
if TYPE_CHECKING:
    Count: TypeAlias = int
    Rate: TypeAlias = float
else:
    Count, Rate = int | Literal["auto"], float | Literal["auto"]
AUTO: Any = "auto"
AUTOMATIC = ("steps", "batch_size", "learning_rate")
BATCH, EPOCHS, STEPS = 64, 40, (500, 6000)  # of members
RATE, SMALL = 0.01, 50_000  # of a member with so many parameters; larger ones need lower rates


def trained_parameters(module: nn.Module) -> int:
    """The number of the parameters that a training changes.

    >>> trained_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@dataclass(frozen=True)
class Optimization:
    """AdamW with a learning rate schedule, for a fixed number of steps.

    Parameters
    ----------
    steps : int or "auto"
        Optimiser steps. ``auto``: by the number of rows. A member makes some forty epochs, of 500 steps at
        least and 6000 at most; for students see :mod:`ensdistill.student.automatic`.
    batch_size : int or "auto"
        Rows of one step. ``auto``: 64 of labels, 256 of a student's targets.
    learning_rate : float or "auto"
        The highest learning rate of the schedule. ``auto``: for members 0.01, of those with more than 50 000
        parameters less by the root of their number; for students it is found by some short trainings.
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

    steps: Count = AUTO
    batch_size: Count = AUTO
    learning_rate: Rate = AUTO
    weight_decay: float = 0.01
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        plain_fields(self)
        for name, least in (("steps", 1), ("batch_size", 1), ("learning_rate", 0)):
            self._check_number(name, getattr(self, name), least)
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

    def _check_number(self, name: str, value: Any, least: int) -> None:
        if isinstance(value, str):
            if value != AUTO:
                raise ValueError(f"optimization.{name}: expected a number, or auto; got {value!r}")
        elif least and value < least:
            raise ValueError(f"optimization.{name}: expected at least {least}, or auto; got {value}")
        elif not 0 < value < math.inf:
            raise ValueError(f"optimization.{name}: expected a positive number, or auto; got {value}")

    @property
    def automatic(self) -> tuple[str, ...]:
        """The names of the settings that are ``auto``."""
        return tuple(name for name in AUTOMATIC if getattr(self, name) == AUTO)

    def with_numbers(self, steps: int, batch_size: int, learning_rate: float) -> Self:
        """The same settings with these numbers in place of those that are ``auto``.

        >>> Optimization(steps=5).with_numbers(100, 32, 0.01).batch_size
        32
        """
        numbers: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
        return replace(self, **{name: numbers[name] for name in self.automatic})

    def for_member(self, rows: int, parameters: int) -> Self:
        """The settings of a member's training on so many labelled rows, without ``auto``.

        >>> Optimization().for_member(5000, parameters=200_000)
        Optimization(steps=3125, batch_size=64, learning_rate=0.005, weight_decay=0.01, schedule='one_cycle',
            warmup=0.1, label_smoothing=0.0)
        """
        size = BATCH if self.batch_size == AUTO else self.batch_size
        steps = max(STEPS[0], min(EPOCHS * rows // size, STEPS[1]))
        rate = RATE * math.sqrt(SMALL / max(parameters, SMALL))
        return self.with_numbers(steps, size, float(f"{rate:.2g}"))

    def check_numbers(self) -> None:
        """Raise ValueError where a number that the optimiser or its schedule needs is still ``auto``."""
        if names := [name for name in self.automatic if name != "batch_size"]:
            raise ValueError(
                f"optimization.{names[0]}: expected a number; got auto, which StudentTrainer and members' "
                "training replace by themselves: call with_numbers before you build an optimiser"
            )

    def build(self, parameters: Iterable[Tensor | nn.Parameter]) -> tuple[AdamW, LRScheduler]:
        """The optimiser of ``parameters`` and its scheduler, which is stepped once after every optimiser
        step."""
        self.check_numbers()
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
