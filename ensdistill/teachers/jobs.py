"""A job: one member to be trained, and the rows that it may learn from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.data.samples import subset
from ensdistill.data.tasks import task_of_labels


@dataclass(frozen=True, eq=False)
class Job:
    """One member to be trained.

    Parameters
    ----------
    name : str
        The member's.
    seed : int
        Decides everything that is random in its training.
    rows : ndarray [R], int64
        Positions that it learns from, in growing order; a bootstrap holds some of them twice.
    allowed : ndarray [M], int64, optional
        Positions that it may see at all, such as those outside a fold; a booster stops early by those of them
        that are not among ``rows``. By default ``rows`` alone.
    part : int, optional
        The fold whose rows are held out; None for a member of the ensemble itself.
    """

    name: str
    seed: int
    rows: np.ndarray
    allowed: np.ndarray | None = None
    part: int | None = None

    @property
    def key(self) -> str:
        """The name, with the fold's number where there is one: different for all jobs of a training."""
        return self.name if self.part is None else f"{self.name}, fold {self.part + 1}"

    @property
    def spare(self) -> np.ndarray:
        """Positions that it may see and does not learn from, int64."""
        return np.zeros(0, np.int64) if self.allowed is None else np.setdiff1d(self.allowed, self.rows)


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """Rows to learn from: inputs, an array [N, ...] or samples; labels, in a form of
    :mod:`ensdistill.data.tasks`; the names of the classes, the labels or the numbers; and weights, float64
    [N], or None."""

    inputs: Any
    labels: np.ndarray
    classes: tuple[str, ...]
    weights: np.ndarray | None = None

    @property
    def task(self) -> Task:
        """The task that the labels are of."""
        return task_of_labels(self.labels) or "classification"

    def take(self, rows: np.ndarray) -> TrainingRows:
        return replace(
            self,
            inputs=subset(self.inputs, rows),
            labels=self.labels[rows],
            weights=None if self.weights is None else self.weights[rows],
        )
