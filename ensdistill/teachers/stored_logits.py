"""Logits of members that exist already: an array, or a cache of these members, so that no member has to run
again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from ensdistill.common.tasks import Task, task_of
from ensdistill.data.multilabel import as_multilabels
from ensdistill.data.rows import as_weights
from ensdistill.data.tasks import known_rows
from ensdistill.teachers.validation import check_logits

if TYPE_CHECKING:
    from ensdistill.teachers.ensemble import Ensemble


@runtime_checkable
class StoredLogits(Protocol):
    """A store of members' logits, such as a target cache."""

    def raw_logits(self, ensemble: Any, uids: np.ndarray | None, count: int, unshifted: bool) -> np.ndarray:
        """Logits [K, N, C], float64, of the ensemble's members before any calibration, for the samples
        ``uids`` [N].

        ``count`` is N as the labels have it; ``unshifted`` refuses rows that were shifted when they were
        stored.
        """


Known = np.ndarray | Tensor | StoredLogits


def raw_logits(
    ensemble: Ensemble, logits: Known, labels: np.ndarray, uids: np.ndarray | None, *, unshifted: bool = False
) -> np.ndarray:
    """Checked raw logits [K, N, C], float64, of the rows that ``labels`` are of.

    Parameters
    ----------
    ensemble, logits, labels, uids
        As for ``Ensemble.calibrate``.
    unshifted : bool
        Whether the fit is changed by a shift of a row: a scale for each class is, a temperature isn't.

    Raises
    ------
    ValueError
        Shapes, labels or values don't fit; or a cache without ``uids``.
    CacheError
        The cache is of other members (CacheMismatch), holds a mixture only, or shifted rows where they have
        to be as they were.
    """
    task = task_of(ensemble)
    labels = check_labels(labels, task)
    if isinstance(logits, StoredLogits):
        raw = logits.raw_logits(ensemble, uids, len(labels), unshifted)
    elif uids is not None:
        raise ValueError(
            "uids: expected a cache beside them, whose samples they name; got an array of logits"
        )
    else:
        raw = np.asarray(logits, np.float64)
    count = len(ensemble)
    if raw.ndim != 3 or len(raw) != count or raw.shape[1] != len(labels) or len(labels) == 0:
        raise ValueError(
            f"logits: expected [{count}, {len(labels)}, C] for {len(labels)} labels; got {list(raw.shape)}"
        )
    if task == "multilabel":
        if labels.shape[1] != raw.shape[2]:
            raise ValueError(f"labels: expected [{len(labels)}, {raw.shape[2]}]; got {list(labels.shape)}")
        if not known_rows(labels).any():
            raise ValueError(f"labels: expected known labels; all of {len(labels)} rows are unknown")
    elif labels.min() < 0 or labels.max() >= raw.shape[2]:
        hint = (
            "; rows without a label (-100) can be left out by uids"
            if isinstance(logits, StoredLogits) and labels.min() == -100
            else ""
        )
        raise ValueError(f"labels: expected 0..{raw.shape[2] - 1}; got {labels.min()}..{labels.max()}{hint}")
    for name, z in zip(ensemble.names, raw, strict=True):
        check_logits(z, name, len(labels), ensemble.classes, task)
    return raw


def judged(
    ensemble: Ensemble,
    logits: Known,
    labels: np.ndarray,
    uids: np.ndarray | None,
    sample_weight: Any,
    *,
    unshifted: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The rows that a fit goes by: raw logits [K, N, C], labels [N] and weights [N], without rows of weight
    0.

    Arguments and errors as for :func:`raw_logits`; ``sample_weight`` are N numbers of at least 0, one of them
    above it.
    """
    raw = raw_logits(ensemble, logits, labels, uids, unshifted=unshifted)
    labels = check_labels(labels, task_of(ensemble))
    if sample_weight is None:
        return raw, labels, None
    weights = as_weights("sample_weight", sample_weight, len(labels))
    kept = np.flatnonzero(weights)
    if len(kept) == 0:
        raise ValueError(f"sample_weight: expected a weight above 0 among {len(labels)} rows; got none")
    return raw[:, kept], labels[kept], weights[kept]


def check_labels(labels: Any, task: Task = "classification") -> np.ndarray:
    """Labels as an array [N] of integers; of multi-label ones int8 [N, C], -1 for unknown ones."""
    if task == "multilabel":
        return as_multilabels(labels)
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels: expected integers [N], class indices; got {labels.dtype} {list(labels.shape)}"
        )
    return labels.astype(np.int64)
