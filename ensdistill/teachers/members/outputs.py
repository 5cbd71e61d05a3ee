"""Kinds of a member's outputs: stated, or read off the values if only one kind fits."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.teachers.members.base import (
    SMOOTHING,
    SUM_TOLERANCE,
    as_float32,
    not_distributions,
    to_logits,
    two_logits,
)

STATED_TOLERANCE = 0.05  # for rows stated to be probabilities: rounded to two decimals, or in bfloat16
Reading = Literal["logits", "probabilities", "log_probabilities", "margin"]
"""Kind of outputs. One column of ``probabilities`` is the second of two classes, ``margin`` its logit."""
Output = Literal[
    "auto",
    "logits",
    "probabilities",
    "log_probabilities",
    "margin",
    "mean",
    "mean_and_variance",
    "mean_and_log_variance",
]
OUTPUTS: dict[Task, tuple[Output, ...]] = {
    "classification": ("auto", "logits", "probabilities", "log_probabilities", "margin"),
    "multilabel": ("auto", "logits", "probabilities"),
    "regression": ("auto", "mean", "mean_and_variance", "mean_and_log_variance"),
}
"""By task. The logits of ``multilabel`` are log-odds of each label by itself. The two parts of a regression's
mean and (log-)variance are a pair, or one array [N, 2 D]; ``auto`` is the mean."""


def check_output(name: str, output: Any, task: Task = "classification") -> Output:
    """``output``, if it is one of the task's kinds."""
    if output not in OUTPUTS[task]:
        also = "" if task == "classification" else f" for the task {task}"
        raise ValueError(f"output: {name}: expected one of {', '.join(OUTPUTS[task])}{also}; got {output!r}")
    found: Output = output
    return found


def reading_of(name: str, values: np.ndarray) -> Reading | None:
    """Probabilities if all rows of ``values`` [N, C] are distributions, logits if they can't be
    probabilities.

    None if every row has a NaN. One column is not read here: see `as_logits`.

    Raises
    ------
    ValueError
        Two readings are possible: probabilities that were rounded or have bad rows among them, percentages or
        votes, sigmoids.
    """
    rows = np.asarray(values, np.float64)
    rows = rows[~np.isnan(rows).any(-1)]
    if len(rows) == 0:
        return None
    if rows.ndim != 2 or rows.shape[1] == 1:
        return "logits"
    sums, wrong = rows.sum(-1), not_distributions(rows)
    if len(wrong) == 0:
        return "probabilities"
    distinct, unit = len(np.unique(rows, axis=0)), bool((rows >= 0).all() and (rows <= 1).all())
    reason = None
    if len(wrong) * 2 <= len(rows):
        reason = f"probabilities, but for row {wrong[0]} of those without NaN ({len(wrong)} such rows)"
    elif unit and np.median(np.abs(sums - 1)) <= STATED_TOLERANCE:
        reason = "probabilities that were rounded"
    elif unit and distinct * rows.shape[1] >= 32:
        reason = "probabilities of each class by itself (sigmoids)"
    elif distinct > 1 and _constant_sums(rows):
        reason = f"percentages or votes, because all rows sum to {sums[0]:.6g}; divide them by that"
    if reason is not None:
        raise ValueError(
            f"output: {name}: its outputs could be logits, or {reason}: row {wrong[0]} is "
            f"{rows[wrong[0]].round(4).tolist()[:8]}. State which by output='logits' or "
            "output='probabilities' (for an array by ArrayMember(logits=...) or "
            "ArrayMember(probabilities=...), which take rows that sum to 1 within 0.05)"
        )
    return "logits"


def _constant_sums(rows: np.ndarray) -> bool:
    """Whether rows look like percentages or votes: at least 0, of one sum, and not all of them unanimous."""
    sums = rows.sum(-1)
    constant = (rows >= 0).all() and sums.min() > 0 and np.ptp(sums) <= SUM_TOLERANCE * sums.mean()
    return bool(constant and ((rows > 0).sum(-1) > 1).any())


def as_logits(name: str, values: np.ndarray, output: str, smoothing: float = SMOOTHING) -> np.ndarray:
    """Outputs of any kind, [N, C] or of one column [N, 1] or [N], as float32 logits [N, C].

    Raises
    ------
    ValueError
        The values are not of that kind, or they are logits of one column.
    """
    single = values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)
    if output == "margin":
        if not single:
            raise ValueError(
                f"output: {name}: expected one column, the binary margin; got {list(values.shape)}"
            )
        return two_logits(values.reshape(len(values)).astype(np.float64)).astype(np.float32)
    if single and output == "probabilities":
        values = np.asarray(values, np.float64).reshape(len(values))
        values = np.stack([1 - values, values], axis=1)
    elif single:
        raise ValueError(
            f"output: {name}: one output column is no logits: a softmax over one class is always 1. State "
            "its kind: output='margin' (the logit of the second of two classes) or output='probabilities' "
            "(that class's probability)"
        )
    if output == "probabilities":
        return to_logits(values, smoothing, STATED_TOLERANCE)
    if output == "log_probabilities":
        with np.errstate(over="ignore"):
            to_logits(np.exp(np.asarray(values, np.float64)), smoothing, STATED_TOLERANCE)
    return as_float32(values)
