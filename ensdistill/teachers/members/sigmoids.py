"""Outputs of multi-label members: log-odds [N, C], each label by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdistill.data import BadRows
from ensdistill.teachers.members.base import SMOOTHING

LEAST_NUMBERS = 32  # so many log-odds are hardly ever all between 0 and 1


def log_odds(probabilities: np.ndarray, smoothing: float = SMOOTHING) -> np.ndarray:
    """log(p + smoothing) - log(1 - p + smoothing) as float32: finite, at most 13.8 from 0 by default.

    Raises
    ------
    ValueError
        A probability is below 0, above 1, or NaN.

    Examples
    --------
    >>> log_odds(np.array([[0.0, 0.5, 0.9]])).round(2).tolist()
    [[-13.819999694824219, 0.0, 2.200000047683716]]
    """
    p = np.asarray(probabilities, np.float64)
    bad = np.flatnonzero(~((p >= 0) & (p <= 1)).all(-1))
    if len(bad):
        raise BadRows(
            f"probabilities: expected numbers in 0..1, one for each label; row {bad[0]} is "
            f"{p[bad[0]].round(4).tolist()[:8]} ({len(bad)} such rows). If they are logits, pass them as "
            "logits",
            bad,
        )
    return (np.log(p + smoothing) - np.log1p(smoothing - p)).astype(np.float32)


def reading_of(name: str, values: np.ndarray) -> str | None:
    """``"logits"`` for outputs with a number outside 0..1, ``"probabilities"`` for many numbers within.

    None where every number is a NaN.

    Raises
    ------
    ValueError
        So few numbers could be either.
    """
    numbers = np.asarray(values, np.float64)
    numbers = numbers[~np.isnan(numbers)]
    if not numbers.size:
        return None
    if (numbers < 0).any() or (numbers > 1).any():
        return "logits"
    if numbers.size >= LEAST_NUMBERS:
        return "probabilities"
    raise ValueError(
        f"output: {name}: its {numbers.size} outputs, all in 0..1, could be probabilities or logits; state "
        "output='probabilities' or output='logits'"
    )


def as_log_odds(name: str, values: np.ndarray, output: str, smoothing: float = SMOOTHING) -> np.ndarray:
    """Outputs [N, C], or [N] for one label, as float32 log-odds [N, C]; ``output`` is logits or
    probabilities."""
    values = np.asarray(values)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2:
        raise ValueError(f"{name}: expected outputs [N, C], one for each label; got {list(values.shape)}")
    return log_odds(values, smoothing) if output == "probabilities" else values.astype(np.float32)


def of_applying(name: str, outputs: Any, known: Any) -> np.ndarray:
    """The probabilities that labels apply, [N, C], from the outputs of scikit-learn's ``predict_proba``.

    Parameters
    ----------
    outputs : ndarray [N, C], or list of C ndarrays [N, 1 or 2]
        One array for each label holds the columns of the values that it had at the fit.
    known : list, optional
        The estimator's ``classes_``: for each label these values.

    Raises
    ------
    ValueError
        A label had values other than 0 and 1 (multi-output), or unknown values.
    """
    if not isinstance(outputs, list):
        return np.asarray(outputs)
    columns = []
    for place, part in enumerate(outputs):
        values: Sequence[Any] | None = known[place] if isinstance(known, list) else None
        if values is None and part.shape[1] == 2:
            values = [0, 1]
        if values is None or not set(np.asarray(values).tolist()) <= {0, 1}:
            got = "unknown ones" if values is None else np.asarray(values).tolist()
            raise ValueError(
                f"estimator: {name}: expected labels that are 0 or 1; label {place} has the values {got}"
            )
        p, ones = np.asarray(part, np.float64), [i for i, value in enumerate(values) if value == 1]
        columns.append(p[:, ones[0]] if ones else np.zeros(len(p)))
    return np.stack(columns, axis=1)
