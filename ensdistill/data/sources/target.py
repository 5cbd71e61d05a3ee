"""The target's columns as labels of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task, check_task
from ensdistill.data.classes import classes_of
from ensdistill.data.guess import guess_task
from ensdistill.data.multilabel import as_multilabels, from_tags
from ensdistill.data.quantities import as_numbers


@dataclass(frozen=True)
class Target:
    """How the columns of a target become labels.

    Parameters
    ----------
    columns : str or list of str
    task : {"classification", "multilabel", "regression"}, optional
        Classification by default.
    separator : str, optional
        Between the tags of one column, which are then multi-label.
    order : list of str, optional
        The classes, or the tags, in order.

    Raises
    ------
    ValueError
        Settings that contradict each other; or several columns without a task.
    """

    columns: str | Sequence[str]
    task: Task | None = None
    separator: str | None = None
    order: Sequence[str] | None = None

    def __post_init__(self) -> None:
        names = self.names
        if not names or len(set(names)) < len(names):
            raise ValueError(f"target: expected different columns, at least one; got {names}")
        if self.task is not None:
            check_task(self.task)
        if self.separator is not None and (len(names) > 1 or self.task in ("classification", "regression")):
            other = f"task {self.task}" if len(names) == 1 else f"{len(names)} target columns"
            raise ValueError(
                f"separator: expected with one column of tags (task multilabel); got {other} beside it"
            )
        if len(names) > 1 and self.task == "classification":
            raise ValueError(
                f"task: expected multilabel or regression for {len(names)} target columns; got classification"
            )
        if self.task == "multilabel" and len(names) == 1 and self.separator is None:
            raise ValueError(
                f"separator: expected the characters between two tags of column {names[0]!r}, such as ','; "
                "or several target columns, one for each label"
            )
        if self.order is not None and (len(names) > 1 or self.task == "regression"):
            raise ValueError(
                "labels: expected none beside columns of labels or numbers, whose names they are"
            )

    @property
    def names(self) -> list[str]:
        return [self.columns] if isinstance(self.columns, str) else list(self.columns)

    @property
    def of_classes(self) -> bool:
        """Whether the one column holds classes."""
        return len(self.names) == 1 and self.separator is None and self.task in (None, "classification")

    @property
    def texts(self) -> bool:
        """Whether the one column holds classes or tags."""
        return self.of_classes or self.separator is not None

    def labels(self, frame: Any, argument: str) -> tuple[np.ndarray, tuple[str, ...], tuple[Any, ...]]:
        """Labels as :class:`ensdistill.data.Rows` holds them, their names, and the data's own values.

        Parameters
        ----------
        frame : pandas frame
            The rows' target columns.
        argument : str
            The argument that an error message names.
        """
        names = self.names
        if self.of_classes:
            return classes_of(frame[names[0]], self.order, argument=argument)
        if self.separator is not None:
            found, tags = from_tags(frame[names[0]].tolist(), self.separator, self.order, argument=argument)
            return found, tags, tags
        if self.task is None:
            raise ValueError(
                f"task: expected multilabel or regression beside {len(names)} target columns; got none. They "
                f"look like {guess_task(frame[names]).task}"
            )
        convert = as_multilabels if self.task == "multilabel" else as_numbers
        return convert(frame[names], argument=argument), tuple(names), tuple(names)
