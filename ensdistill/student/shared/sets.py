"""A data set of a shared trunk: its rows, its cache, its head; and the targets of its batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.cache import TargetCache
from ensdistill.common.random import BatchOrder, derive_seed
from ensdistill.common.scalars import real
from ensdistill.common.tasks import task_of
from ensdistill.data import UNLABELLED, Rows
from ensdistill.data.tasks import UNKNOWN
from ensdistill.loss.settings import DEFAULTS, LossSettings
from ensdistill.student.batches import Batch
from ensdistill.student.inputs import Preparation
from ensdistill.student.methods import StudentLoss, loss_by_task
from ensdistill.student.sources import versions_of
from ensdistill.student.units import rows_of_task
from ensdistill.teachers.members.logits import logits_of


@dataclass(frozen=True, eq=False)
class HeadSet:
    """One data set of a shared trunk.

    Parameters
    ----------
    rows : Rows
        The transfer set of the cache.
    cache : TargetCache
        The targets of this set's own ensemble, of the task classification or multilabel. A cache of sequences
        holds targets at L positions of each row, such as the pixels of an image, in row-major order; each row
        has the same L.
    head : callable
        Makes the module from the trunk's features to logits: [N, C], or at positions [N, C, H, W], [N, L, C]
        and the like.
    weight : float
        The share of the steps, in proportion to the weights of all sets.
    class_dim : int
        The dimension of the classes in the head's outputs: 1 for [N, C, H, W], -1 for [N, L, C].
    loss : LossSettings
    labels : ndarray [N, L], int64, optional
        At positions, with -100 for unknown ones (of several labels int8 [N, L, C] with -1); ``rows.labels``
        has those of whole rows.
    held_out : float
        The share of the rows that are not learned from: on them the student is compared with the ensemble.
        With 0 on all rows.

    Raises
    ------
    ValueError
        A weight of 0 or less; labels of another shape; a share outside [0, 1).
    """

    rows: Rows
    cache: TargetCache
    head: Callable[[], nn.Module]
    weight: float = 1.0
    class_dim: int = -1
    loss: LossSettings = field(default=DEFAULTS)
    labels: np.ndarray | None = None
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if not (real(self.weight) and self.weight > 0 and np.isfinite(self.weight)):
            raise ValueError(f"weight: expected a finite number above 0; got {self.weight!r}")
        if not (real(self.held_out) and 0 <= self.held_out < 1):
            raise ValueError(f"held_out: expected a share in [0, 1); got {self.held_out!r}")
        if self.labels is not None and self.labels.dtype.kind not in "iu":
            raise ValueError(f"labels: expected integers; got {self.labels.dtype}")
        if self.labels is not None and (self.labels.ndim < 2 or len(self.labels) != len(self.rows)):
            raise ValueError(
                f"labels: expected [{len(self.rows)}, L], labels at the positions of each row; got "
                f"{list(self.labels.shape)}: the labels of whole rows belong to rows.labels"
            )


class SetTargets:
    """The checked targets of a set, and its loss.

    Parameters
    ----------
    name : str
    own : HeadSet
    size, seed : int
        Rows of a batch, and the seed of its order.
    prepare : Preparation

    Raises
    ------
    ValueError, CacheMismatch
        The set does not fit its cache; begins with the set's name.
    """

    def __init__(self, name: str, own: HeadSet, size: int, seed: int, prepare: Preparation) -> None:
        self.name, self.own, self.prepare = name, own, prepare
        cache, rows = own.cache, own.rows
        self.task, self.classes = task_of(cache), len(cache.classes)
        if self.task == "regression":
            raise ValueError(
                f"sets.{name}.cache: expected one of classification or multilabel; got regression: train "
                "that student by StudentTrainer"
            )
        missing = np.flatnonzero(~np.isin(rows.uids, cache.uids))
        if len(missing):
            raise ValueError(
                f"sets.{name}.rows: expected rows with targets in the cache; {len(missing)} of {len(rows)} "
                f"have none, such as uid {rows.uids[missing[0]]}"
            )
        versions_of(cache, rows, None)  # refuses an augmented cache, and other rows than the cache's
        lengths = np.unique(cache.lengths(rows.uids))
        if len(lengths) > 1:
            raise ValueError(
                f"sets.{name}.cache: expected as many positions in each row; got {lengths.min()} to "
                f"{lengths.max()}: pad the rows to one size"
            )
        self.positions = int(lengths[0]) if cache.manifest["sequences"] else None
        if own.labels is not None and int(np.prod(own.labels.shape[1:])) != self._labels_of_a_row:
            raise ValueError(
                f"sets.{name}.labels: expected {self._labels_of_a_row} for each row, as many as the cache "
                f"has positions (of several labels, times the labels); got {list(own.labels.shape)}"
            )
        # Rows without a label may have the form of another task.
        where = f"sets.{name}.rows.labels"
        self._row_labels = rows_of_task(rows, self.task, self.classes, where).labels
        self.loss: StudentLoss = loss_by_task(own.loss, cache, None)
        try:
            self.loss.check(self._flat_rows(), self.classes, cache)
        except ValueError as error:
            raise ValueError(f"sets.{name}.{error}") from error
        drawn = np.random.default_rng(derive_seed("held out of a shared trunk", seed)).permutation(len(rows))
        count = round(own.held_out * len(rows))
        if count == len(rows):
            raise ValueError(f"sets.{name}.held_out: {own.held_out} leaves none of {len(rows)} rows")
        self.learned, self.judged = np.sort(drawn[count:]), np.sort(drawn[:count] if count else drawn)
        self.order = BatchOrder(len(self.learned), size, seed)

    @property
    def _labels_of_a_row(self) -> int:
        return (self.positions or 1) * (self.classes if self.task == "multilabel" else 1)

    def _flat_rows(self) -> Rows:
        """Rows with a label for each position, for the loss's own check."""
        labels = self.labels_of(np.arange(len(self.own.rows)))
        count = len(labels)
        return Rows(np.zeros((count, 1), np.float32), np.arange(count), labels)

    def labels_of(self, positions: np.ndarray) -> np.ndarray:
        """The labels of some rows, one for each position."""
        width = () if self.task == "classification" else (self.classes,)
        if self.positions is None:
            whole: np.ndarray = self._row_labels[positions]
            return whole
        if self.own.labels is not None:
            kind = np.int64 if self.task == "classification" else np.int8
            return self.own.labels[positions].reshape(-1, *width).astype(kind)
        count = len(positions) * self.positions
        if self.task == "multilabel":
            return np.full((count, *width), UNKNOWN, np.int8)
        return np.full(count, UNLABELLED, np.int64)

    def batch(self, step: int, device: torch.device) -> Batch:
        """The batch of the set's own step."""
        chosen = self.learned[self.order(step)]
        uids = self.own.rows.uids[chosen]
        inputs = self.prepare(self.own.rows.inputs[chosen])
        moved = (
            {k: v.to(device) for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)
        )
        labels = torch.from_numpy(np.ascontiguousarray(self.labels_of(chosen))).to(device)
        weights = None
        if self.own.rows.weights is not None:
            mean = max(self.own.rows.weights.mean(), 1e-300)
            weights = torch.from_numpy(self.own.rows.weights[chosen] / mean).float().to(device)
            weights = weights.repeat_interleave(self.positions or 1)
        targets = self.own.cache.gather(uids).to(device)
        return Batch(moved, targets, labels, uids, step, None, weights)

    def rows_of(self, outputs: Any) -> Tensor:
        """The head's outputs as logits [N, C], or of all positions [N L, C], float32.

        Raises
        ------
        ValueError
            Another number of classes or positions.
        """
        logits = outputs if isinstance(outputs, Tensor) else logits_of(outputs)
        own = self.own.class_dim
        if not -logits.ndim <= own < logits.ndim or logits.shape[own] != self.classes:
            raise ValueError(
                f"sets.{self.name}.head: expected {self.classes} classes in dimension {own} (class_dim) of "
                f"its outputs; got {list(logits.shape)}"
            )
        rows = logits.movedim(own, -1)
        count = int(np.prod(rows.shape[1:-1]))
        if count != (self.positions or 1):
            raise ValueError(
                f"sets.{self.name}.head: expected outputs at {self.positions or 1} positions of each row, as "
                f"in the cache; got {count}: {list(logits.shape)}"
            )
        return rows.reshape(-1, self.classes).float()
