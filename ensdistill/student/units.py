"""A student's task: the form of its rows' labels, its number of outputs, and the units of a regression."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.tasks import Task, check_task
from ensdistill.data import Rows
from ensdistill.data.tasks import UNKNOWN, UNLABELLED
from ensdistill.teachers.members.standardised import Standardised


@dataclass(frozen=True, eq=False)
class Units:
    """The units in which a regression's student works: z = (y - location) / scale.

    Parameters
    ----------
    location, scale : ndarray [D], float64
    """

    location: np.ndarray
    scale: np.ndarray

    @classmethod
    def of_labels(cls, labels: np.ndarray) -> Units:
        """Mean and deviation of the known rows of labels [N, D]; a constant has the scale 1."""
        known = labels[~np.isnan(labels).all(1)]
        deviation = known.std(0)
        # The deviation of equal numbers is their rounding.
        constant = deviation <= 1e-12 * np.abs(known).max(0)
        return cls(known.mean(0), np.where(constant, 1.0, deviation))

    @classmethod
    def of_source(cls, source: Any) -> Units | None:
        """Those of targets with ``location`` and ``scale``; None of another task."""
        location, scale = (getattr(source, name, None) for name in ("location", "scale"))
        if location is None or scale is None:
            return None
        return cls(np.asarray(location, np.float64), np.asarray(scale, np.float64))

    def standardised(self, labels: np.ndarray) -> Tensor:
        """Labels [N, D] in these units, float32."""
        return torch.from_numpy(((labels - self.location) / self.scale).astype(np.float32))

    def restored(self, network: nn.Module) -> Standardised:
        """The network with outputs in the data's units."""
        return Standardised(network, self.location.tolist(), self.scale.tolist()).eval()

    def factory(self, network: Any) -> Any:
        """What makes such a module; ``network`` makes the one within."""
        inner = network if isinstance(network, partial) else partial(network)
        return partial(Standardised, model=inner, location=self.location.tolist(), scale=self.scale.tolist())

    def __fingerprint__(self) -> list[np.ndarray]:
        return [self.location, self.scale]


def units_of(task: Task, targets: Any) -> Units | None:
    """The units of a source's targets; None of another task than regression.

    Raises
    ------
    ValueError
        Targets of a regression without location and scale.
    """
    if task != "regression":
        return None
    units = Units.of_source(targets)
    if units is None:
        raise ValueError(
            f"cache: expected targets with location and scale for the task regression; "
            f"{type(targets).__name__} has none"
        )
    return units


class InUnits:
    """Targets of a regression in the units of others: those of a validation in the training's.

    Parameters
    ----------
    targets : RowTargets
    units : Units
    """

    def __init__(self, targets: Any, units: Units) -> None:
        self.targets, self.location, self.scale = targets, units.location, units.scale
        shift = (targets.location - units.location) / units.scale
        self._shift = torch.from_numpy(np.asarray(shift, np.float64))
        self._factor = torch.from_numpy(np.asarray(targets.scale / units.scale, np.float64))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.targets, name)

    def of(self, uids: np.ndarray, epochs: np.ndarray, samples: Any) -> Any:
        found = self.targets.of(uids, epochs, samples)
        factor, shift = (part.to(found.mean.device) for part in (self._factor, self._shift))
        variance = found.variance
        return replace(
            found,
            mean=(found.mean.double() * factor + shift).to(found.mean.dtype),
            variance=None if variance is None else (variance.double() * factor.square()).to(variance.dtype),
        )


def in_units(targets: Any, units: Units) -> Any:
    """The targets as they are where they have these units, else converted."""
    own = Units.of_source(targets)
    same = (
        own is not None
        and np.array_equal(own.location, units.location)
        and np.array_equal(own.scale, units.scale)
    )
    return targets if own is None or same else InUnits(targets, units)


def task_and_count(rows: Rows, task: Task | None, count: int | None) -> tuple[Task, int]:
    """The task, and the number of classes, labels or numbers, of rows that are trained on directly.

    Raises
    ------
    ValueError
        ``task`` is not that of the labels, or ``count`` not their number of columns; or class indices without
        a ``count``.
    """
    if task is not None and check_task(task) != rows.task:
        raise ValueError(
            f"task: expected {rows.task}, the task of the rows' labels ({rows.labels.dtype} "
            f"{list(rows.labels.shape)}); got {task}"
        )
    if rows.task == "classification":
        if count is None:
            raise ValueError("classes: expected the number of classes, because the labels are class indices")
        return rows.task, count
    own = int(rows.labels.shape[1])
    if count not in (None, own):
        raise ValueError(f"classes: expected {own}, the columns of the rows' labels; got {count}")
    return rows.task, own


def known_of(labels: Tensor) -> Tensor:
    """Whether each row of a batch has a known label: bool [B], for the forms of
    :mod:`ensdistill.data.tasks`."""
    if labels.ndim == 1:
        return labels != UNLABELLED
    if labels.dtype == torch.int8:
        return (labels != UNKNOWN).any(1)
    return ~labels.isnan().any(1)


def rows_of_task(rows: Rows, task: Task, count: int, argument: str = "rows.labels") -> Rows:
    """The rows, with labels in the form of the task.

    Parameters
    ----------
    rows : Rows
        Without any known label they may have the form of another task.
    task : Task
    count : int
        Of classes, labels or numbers.

    Raises
    ------
    ValueError
        The labels are of another task, or of another number of columns.
    """
    if rows.task != task:
        if rows.known.any():
            raise ValueError(
                f"{argument}: expected labels of the task {task}; got those of {rows.task} "
                f"({rows.labels.dtype} {list(rows.labels.shape)})"
            )
        return replace(rows, labels=_unknown(task, len(rows), count))
    if task != "classification" and rows.labels.shape[1] != count:
        if rows.known.any():
            raise ValueError(
                f"{argument}: expected [{len(rows)}, {count}] for the task {task}; got "
                f"{list(rows.labels.shape)}"
            )
        return replace(rows, labels=_unknown(task, len(rows), count))
    return rows


def _unknown(task: Task, rows: int, count: int) -> np.ndarray:
    if task == "classification":
        return np.full(rows, UNLABELLED)
    if task == "multilabel":
        return np.full((rows, count), UNKNOWN, np.int8)
    return np.full((rows, count), np.nan)


def widths(task: Task, count: int) -> tuple[int, ...]:
    """The numbers of outputs that a student of a task may have; a regression's may predict variances, too."""
    return (count, 2 * count) if task == "regression" else (count,)
