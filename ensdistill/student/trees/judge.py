"""Comparison with the ensemble on rows that a student is not fitted to: it chooses the rounds of a booster,
and the way of an estimator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import log_softmax, xlogy

from ensdistill.common.tasks import Task
from ensdistill.student.comparisons import OF_ENSEMBLE
from ensdistill.student.trees.objective import Objective
from ensdistill.student.validation import Validation

TIE = 1e-9  # of a nat: rows that agree come first, and of equals the least KL
DEFAULT_VALIDATION = Validation(rows=0.1, patience=50)


def check_validation(settings: Validation, task: Task = "classification") -> None:
    """Raise ValueError for settings that the validation of an estimator does not have."""
    if settings.every is not None:
        raise ValueError(
            "validation.every: expected none for an estimator, of which every round is evaluated; got "
            f"{settings.every}"
        )
    metrics = OF_ENSEMBLE[task][:1] if task == "regression" else OF_ENSEMBLE[task]  # means have no KL
    if settings.metric not in (None, *metrics):
        raise ValueError(
            f"validation.metric: expected one of {', '.join(metrics)} for an estimator, which is compared "
            f"with the ensemble; got {settings.metric!r}"
        )


@dataclass(eq=False)
class Judge:
    """Compares scores with the ensemble's targets on held-out rows.

    Parameters
    ----------
    samples : samples of V rows
    objective : Objective
        Of these rows.
    settings : Validation
    """

    samples: Any
    objective: Objective
    settings: Validation
    _first: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._first = self.objective.targets.argmax(1)
        if not self.objective.weights.any():
            raise ValueError("validation: expected a row of a weight above 0; got none")

    def ends(self, rounds: int) -> int:
        """After so many rounds without a better one a booster that is allowed ``rounds`` stops."""
        return rounds if self.settings.patience is None else self.settings.patience

    def figures(self, scores: np.ndarray) -> tuple[float, float]:
        """The agreement with the ensemble, and the KL from it in nats, for scores [V, C]."""
        one, weights = self.objective, self.objective.weights
        divergence = xlogy(one.targets, one.targets) - one.targets * log_softmax(
            np.asarray(scores, np.float64) / one.temperature, axis=1
        )
        same = scores.argmax(1) == self._first
        return float(np.average(same, weights=weights)), float(np.average(divergence.sum(1), weights=weights))

    def value(self, figures: tuple[float, float]) -> float:
        """A number that is larger for better figures."""
        agreement, divergence = figures
        return -divergence if self.settings.metric != "agreement" else agreement - TIE * divergence
