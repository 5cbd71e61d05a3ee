"""Samples in a fixed order, each with a stable id."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

UNLABELLED = -100  # the ignore_index of torch's losses


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
    inputs : ndarray [N, ...]
    uids : ndarray [N], int64
        Unique: each sample's own number in its data set, stable whatever split the sample is drawn into.
        Caches find rows by it.
    labels : ndarray [N], int64
        Class indices; -100 where the label isn't known.

    Raises
    ------
    TypeError, ValueError
        Not NumPy arrays, not one uid and one label for each input, or a uid that stands twice.
    """

    inputs: np.ndarray
    uids: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        for name, expected in (("inputs", "[N, ...]"), ("uids", "[N], int64"), ("labels", "[N], int64")):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                raise TypeError(f"{name}: expected a NumPy array {expected}; got {type(value).__name__}")
            if value.ndim == 0:
                raise ValueError(f"{name}: expected an array {expected}; got a single number")
        n = len(self.inputs)
        for name in ("uids", "labels"):
            value = getattr(self, name)
            if value.shape != (n,) or value.dtype != np.int64:
                raise ValueError(
                    f"{name}: expected int64 [{n}], one for each input; got {value.dtype} {list(value.shape)}"
                )
        if len(np.unique(self.uids)) != n:
            values, counts = np.unique(self.uids, return_counts=True)
            raise ValueError(
                f"uids: expected unique ids; {int(values[counts > 1][0])} stands {int(counts.max())} times"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: np.ndarray) -> Rows:
        """The rows at the positions (or where the mask) ``index``, with their uids and labels."""
        return Rows(self.inputs[index], self.uids[index], self.labels[index])

    def without_labels(self) -> Rows:
        return replace(self, labels=np.full(len(self), UNLABELLED, np.int64))


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
