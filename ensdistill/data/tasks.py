"""How labels of each task are held in memory.

==================  ==================================================================================
``classification``  int64 [N]: class indices; -100 where the class is unknown
``multilabel``      int8 [N, C]: 1 for a label that applies, 0 for one that doesn't, -1 for an unknown one
``regression``      float64 [N, D]: numbers in the data's units; a row of NaN where they are unknown
==================  ==================================================================================

A row without any known label is unlabelled: it may be in a pool, but not among labelled or test rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.common.tasks import Task

UNLABELLED = -100  # an unknown class: the ignore_index of torch's losses
UNKNOWN = -1  # an unknown label of a multi-label row


def task_of_labels(labels: np.ndarray) -> Task | None:
    """The task of labels in one of the forms above; None for an array of no such form.

    Examples
    --------
    >>> task_of_labels(np.zeros((5, 3), np.int8)), task_of_labels(np.zeros((5, 3), np.int64))
    ('multilabel', None)
    """
    forms: dict[tuple[int, np.dtype[Any]], Task] = {
        (1, np.dtype(np.int64)): "classification",
        (2, np.dtype(np.int8)): "multilabel",
        (2, np.dtype(np.float64)): "regression",
    }
    return forms.get((labels.ndim, labels.dtype))


def known_rows(labels: np.ndarray) -> np.ndarray:
    """Whether each row has a known label: bool [N], for labels in one of the forms above."""
    if labels.ndim == 1:
        known: np.ndarray = labels != UNLABELLED
    elif labels.dtype == np.int8:
        known = (labels != UNKNOWN).any(1)
    else:
        known = ~np.isnan(labels).all(1)
    return known


def has_gaps(labels: np.ndarray) -> bool:
    """Whether some label of a multi-label row is unknown.

    >>> has_gaps(np.array([[1, -1]], np.int8))
    True
    """
    return labels.dtype == np.int8 and bool((labels == UNKNOWN).any())


def rows_of_rarest(labels: np.ndarray) -> int:
    """Rows of the rarest class that occurs; 0 of other tasks and without a label.

    >>> rows_of_rarest(np.array([0, 0, 2, 0, 2, UNLABELLED]))
    2
    """
    if labels.ndim != 1:
        return 0
    counts = np.bincount(labels[labels != UNLABELLED])
    return int(counts[counts > 0].min(initial=len(labels))) if counts.any() else 0


def unlabelled_like(labels: np.ndarray) -> np.ndarray:
    """Labels of the same form, all unknown."""
    if labels.ndim == 1:
        return np.full_like(labels, UNLABELLED)
    return np.full_like(labels, UNKNOWN if labels.dtype == np.int8 else np.nan)


def strata_of(labels: np.ndarray) -> np.ndarray:
    """int64 [N]: the numbers by which a draw is stratified, -100 for an unlabelled row.

    They are the class indices. Rows of other tasks all have the number 0: those of a regression are drawn at
    random, those of several labels by :mod:`ensdistill.data.label_sets`.
    """
    return labels if labels.ndim == 1 else np.where(known_rows(labels), 0, UNLABELLED)
