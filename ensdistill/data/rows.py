"""Samples in a fixed order, each with a stable id."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.data.samples import as_samples, subset
from ensdistill.data.tasks import UNKNOWN, known_rows, task_of_labels, unlabelled_like
from ensdistill.data.tasks import UNLABELLED as UNLABELLED


class BadRows(ValueError):
    """An error that lies in single rows.

    Parameters
    ----------
    message : str
    rows : ndarray, int64
        Their positions in the argument. A caller that knows their uids or their source adds these to the
        message.
    """

    def __init__(self, message: str, rows: np.ndarray) -> None:
        super().__init__(message)
        self.rows = rows

    def __reduce__(self) -> tuple[type[BadRows], tuple[str, np.ndarray]]:
        return type(self), (str(self), self.rows)  # so that a worker process can hand it to its parent


@dataclass(frozen=True)
class Rows:
    """Samples in a fixed order.

    Parameters
    ----------
    inputs : ndarray [N, ...], or samples
        An array stays as it is. Other containers (a frame, strings, a mapping of arrays) and data sets become
        :mod:`ensdistill.data.samples`; nothing is copied.
    uids : ndarray [N], int64
        Unique: each sample's own number in its data set, stable whatever split the sample is drawn into.
        Caches find rows by it.
    labels : ndarray
        int64 [N]: class indices, -100 where the class isn't known. Or, for another task (see
        :mod:`ensdistill.data.tasks`), int8 [N, C]: labels that apply (1) or don't (0), -1 for unknown ones;
        or float64 [N, D]: numbers, NaN in unknown rows. :func:`ensdistill.data.multilabel.as_multilabels` and
        :func:`ensdistill.data.quantities.as_numbers` make them.
    weights : ndarray [N], float64, optional
        How much each sample counts, at least 0; all alike by default.
    groups : ndarray [N], int64, optional
        Samples with one number stay together in splits and folds: those of one patient, user or machine.

    Raises
    ------
    TypeError, ValueError
        Inputs of no kind that is known, not one uid, label, weight and group for each input, or a uid that
        stands twice.
    """

    inputs: Any
    uids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", as_samples(self.inputs))
        n = len(self.inputs)
        for name in ("uids", "labels", *["groups"] * (self.groups is not None)):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                raise TypeError(f"{name}: expected a NumPy array [N], int64; got {type(value).__name__}")
            if name == "labels" and value.ndim > 1:
                _check_table("labels", value, n)
            elif value.shape != (n,) or value.dtype != np.int64:
                raise ValueError(
                    f"{name}: expected int64 [{n}], one for each input; got {value.dtype} {list(value.shape)}"
                )
        increasing = bool(
            (self.uids[1:] > self.uids[:-1]).all()
        )  # of millions of rows a sort would cost memory
        if not increasing and len(np.unique(self.uids)) != n:
            values, counts = np.unique(self.uids, return_counts=True)
            raise ValueError(
                f"uids: expected unique ids; {int(values[counts > 1][0])} stands {int(counts.max())} times"
            )
        if self.weights is not None:
            object.__setattr__(self, "weights", as_weights("weights", self.weights, n))

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def task(self) -> Task:
        """The task that the labels are of, by their form."""
        return task_of_labels(self.labels) or "classification"

    @property
    def known(self) -> np.ndarray:
        """Whether each row has a known label: bool [N]."""
        return known_rows(self.labels)

    def take(self, index: np.ndarray) -> Rows:
        """The rows at the positions (or where the mask) ``index``, with their uids, labels and weights."""
        index = np.flatnonzero(index) if np.asarray(index).dtype == bool else np.asarray(index)
        weights, groups = (None if one is None else one[index] for one in (self.weights, self.groups))
        return Rows(subset(self.inputs, index), self.uids[index], self.labels[index], weights, groups)

    def __fingerprint__(self) -> dict[str, Any]:
        own = {"inputs": self.inputs, "uids": self.uids, "labels": self.labels}
        more = {"weights": self.weights, "groups": self.groups}
        return own | {name: value for name, value in more.items() if value is not None}

    def without_labels(self) -> Rows:
        return replace(self, labels=unlabelled_like(self.labels))


def _check_table(argument: str, labels: np.ndarray, count: int) -> None:
    """Raise ValueError for labels of two axes that are neither multi-label nor a regression's."""
    got = f"{labels.dtype} {list(labels.shape)}"
    if (task := task_of_labels(labels)) is None or len(labels) != count or labels.shape[1] == 0:
        raise ValueError(
            f"{argument}: expected int64 [{count}] (classes), int8 [{count}, C] (multi-label) or float64 "
            f"[{count}, D] (regression); got {got}: as_multilabels and as_numbers of ensdistill.data convert "
            "others"
        )
    if task == "multilabel":
        bad, expected = (labels < UNKNOWN) | (labels > 1), "0, 1, or -1 for an unknown label"
    else:
        gaps = np.isnan(labels)
        bad = np.isinf(labels) | (gaps & ~gaps.all(1, keepdims=True))
        expected = "finite numbers, or NaN in the whole row"
    if len(rows := np.flatnonzero(bad.any(1))):
        raise BadRows(
            f"{argument}: expected {expected}; row {rows[0]} has {labels[rows[0]].tolist()[:8]} "
            f"({len(rows)} such rows)",
            rows,
        )


def as_weights(argument: str, values: Any, count: int) -> np.ndarray:
    """Weights of the rows, float64 [N].

    Raises
    ------
    ValueError
        Not N finite numbers of at least 0; names the first row that is wrong.
    """
    given = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if given.dtype.kind in "OUT" and given.shape == (count,):
        texts = np.array([row for row, one in enumerate(given.tolist()) if isinstance(one, str)], np.int64)
        if len(texts):
            raise BadRows(
                f"{argument}: expected {count} numbers; row {texts[0]} has {given.tolist()[texts[0]]!r} "
                f"({len(texts)} such rows)",
                texts,
            )
    try:
        weights = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{argument}: expected {count} numbers; got {type(values).__name__}") from None
    if weights.shape != (count,):
        raise ValueError(f"{argument}: expected [{count}], one for each row; got {list(weights.shape)}")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise BadRows(
            f"{argument}: expected finite numbers of at least 0; row {bad[0]} has {weights[bad[0]]} "
            f"({len(bad)} such rows)",
            bad,
        )
    return weights


def check_finite(argument: str, inputs: np.ndarray, uids: np.ndarray | None = None) -> None:
    """Raise BadRows where ``inputs`` [N, ...] hold NaN or infinity, naming the first such row, and its uid
    where it is known."""
    flat = inputs.reshape(len(inputs), math.prod(inputs.shape[1:]))
    bad = np.flatnonzero(~np.isfinite(flat).all(1))
    if len(bad):
        row = bad[0]
        uid = "" if uids is None else f" (uid {uids[row]})"
        value = flat[row][~np.isfinite(flat[row])][0]
        raise BadRows(
            f"{argument}: expected finite numbers; row {row}{uid} holds {value} ({len(bad)} such rows)", bad
        )
