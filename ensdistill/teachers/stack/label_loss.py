"""The settings of the losses by which networks are trained on labels, beside the labels' task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.common.scalars import real
from ensdistill.common.tasks import Task

LEAST = 1e-12  # of a factor above 0


@dataclass(frozen=True)
class LabelLoss:
    """What the loss of labels weighs, and what a network of numbers predicts.

    Parameters
    ----------
    variance : bool
        Of a regression: a network returns two numbers for each one of a row, means and then the logarithms
        of variances.
    pos_weight : sequence of float [C], or "balanced", optional
        Of several labels: the factor of the positive part of each label's cross entropy, above 0.
        ``balanced``: the known rows to which the label does not apply over those to which it does, of the
        network's own rows; 1 for a label that is the same in all of them.
    class_weights : sequence of float [C], optional
        Of several labels: the factor of each label, at least 0.

    Raises
    ------
    ValueError
        Another value; names it.

    Examples
    --------
    >>> labels = np.array([[1, 0], [0, 0], [0, -1], [0, 1]], np.int8)
    >>> LabelLoss(pos_weight="balanced").positive(labels).tolist()
    [3.0, 2.0]
    """

    variance: bool = False
    pos_weight: Sequence[float] | str | None = None
    class_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.pos_weight, str) and self.pos_weight != "balanced":
            raise ValueError(
                f"pos_weight: expected 'balanced', or a number for each label; got {self.pos_weight!r}"
            )
        if not isinstance(self.pos_weight, str):
            object.__setattr__(self, "pos_weight", _numbers("pos_weight", self.pos_weight, LEAST))
        object.__setattr__(self, "class_weights", _numbers("class_weights", self.class_weights, 0.0))
        if self.class_weights is not None and not any(self.class_weights):
            raise ValueError(f"class_weights: expected one above 0; got {list(self.class_weights)}")

    def check(self, name: str, task: Task | None, classes: int) -> None:
        """Raise ValueError for a setting that is of another task, or of another number of labels."""
        if self.variance and task != "regression":
            raise ValueError(
                f"variance: {name}: expected with the task regression alone; got labels of {task}"
            )
        for key in ("pos_weight", "class_weights"):
            value = getattr(self, key)
            if value is not None and task != "multilabel":
                raise ValueError(
                    f"{key}: {name}: expected with the task multilabel alone; got labels of {task}: weigh "
                    "rows by their sample weights"
                )
            if isinstance(value, tuple) and len(value) != classes:
                raise ValueError(
                    f"{key}: {name}: expected {classes} numbers, one for each label; got {len(value)}"
                )

    @property
    def weighed(self) -> bool:
        """Whether several labels have factors."""
        return self.pos_weight is not None or self.class_weights is not None

    def positive(self, labels: np.ndarray) -> np.ndarray:
        """The factor of the positive part for each label, float64 [C], of labels int8 [N, C]."""
        if self.pos_weight != "balanced":
            return np.array(self.pos_weight, np.float64)
        applies, lacks = (labels == 1).sum(0), (labels == 0).sum(0)
        return np.where((applies > 0) & (lacks > 0), lacks / np.maximum(applies, 1), 1.0)

    def factors(
        self, labels: np.ndarray, rows: Sequence[np.ndarray], device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """``pos_weight`` [models, 1, C] and ``class_weights`` [C], float64, for models of several labels that
        learn from ``rows``; None for those that are not set."""
        positive = each = None
        if self.pos_weight is not None:
            own = np.stack([self.positive(labels[index]) for index in rows])
            positive = torch.from_numpy(own).to(device).unsqueeze(1)
        if self.class_weights is not None:
            each = torch.tensor(self.class_weights, dtype=torch.float64, device=device)
        return positive, each


def _numbers(name: str, value: Any, least: float) -> tuple[float, ...] | None:
    """A sequence of numbers as a tuple."""
    if value is None:
        return None
    found = list(value) if isinstance(value, Sequence | np.ndarray) else [value]
    if not found or not all(real(one) and least <= float(one) < math.inf for one in found):
        bound = "above 0" if least else "of at least 0"
        raise ValueError(f"{name}: expected finite numbers {bound}, one for each label; got {value!r}")
    return tuple(map(float, found))


LABELS_ALONE = LabelLoss()
