"""The task of a target for which none is stated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.data.classes import MOST_NUMBERS, ROWS_EACH


@dataclass(frozen=True)
class Guess:
    """The likely task of a target, and the reason.

    Parameters
    ----------
    task : {"classification", "multilabel", "regression"}
    reason : str
        A sentence that names the evidence, to be printed beside the task.
    """

    task: Task
    reason: str

    def __str__(self) -> str:
        return f"task: {self.task}, because {self.reason}; task= (--data.task) decides otherwise"


def guess_task(target: Any) -> Guess:
    """The likely task of a target, by its values. The caller should show the result to the user.

    Parameters
    ----------
    target : array-like [N] or [N, C], or a frame
        As the data have it, with gaps (None, NaN).

    Raises
    ------
    ValueError
        A column has no values, or several columns hold neither numbers nor 0 and 1.

    Examples
    --------
    >>> guess_task(["cat", "dog"]).task, guess_task(np.random.default_rng(0).normal(size=20)).task
    ('classification', 'regression')
    >>> print(guess_task(np.array([[0, 1, 1], [1, 0, 0]])))
    task: multilabel, because it has 3 columns of 0 and 1; task= (--data.task) decides otherwise
    """
    import pandas as pd

    frame = target if isinstance(target, pd.DataFrame) else _as_frame(target)
    columns = [frame.iloc[:, i].dropna() for i in range(frame.shape[1])]
    if not all(len(column) for column in columns) or not columns:
        raise ValueError(f"target: expected values in each column; got {len(frame)} rows, one column of gaps")
    if len(columns) == 1:
        return _guess_of_column(columns[0])
    values = [set(column.unique().tolist()) for column in columns]
    if all(one <= {0, 1} for one in values):
        return Guess("multilabel", f"it has {len(columns)} columns of 0 and 1")
    if all(pd.api.types.is_numeric_dtype(column) for column in columns):
        return Guess("regression", f"it has {len(columns)} columns of numbers")
    texts = next(name for name, c in zip(frame, columns, strict=True) if not pd.api.types.is_numeric_dtype(c))
    raise ValueError(
        f"target: expected one column of classes, or several of 0 and 1 or of numbers; column {texts!r} of "
        f"{len(columns)} holds texts"
    )


def _as_frame(target: Any) -> Any:
    import pandas as pd

    if hasattr(target, "to_pandas"):  # polars, pyarrow
        return pd.DataFrame(target.to_pandas())
    values = target if hasattr(target, "iloc") else list(target) if isinstance(target, tuple) else target
    return pd.DataFrame(values)


def _guess_of_column(column: Any) -> Guess:
    import pandas as pd

    different = int(column.nunique())
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return Guess("classification", f"it holds {different} different names")
    numbers = column.to_numpy(np.float64)
    fractions = int((numbers != np.floor(numbers)).sum())
    if fractions:
        return Guess("regression", f"it holds {different} different numbers, fractions among them")
    if different > MOST_NUMBERS and len(numbers) < ROWS_EACH * different:
        return Guess("regression", f"it holds {different} different numbers in {len(numbers)} rows")
    return Guess("classification", f"it holds {different} different whole numbers")
