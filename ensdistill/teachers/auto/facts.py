"""The facts of a table by which members are chosen and their cost is estimated."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ensdistill.common.errors import WrongArgument
from ensdistill.common.tasks import Task
from ensdistill.data.samples import as_samples, form

NUMBERS = ("integer", "float", "boolean")
ONE_HOT = 8  # columns that a category is assumed to become for a network


@dataclass(frozen=True)
class Facts:
    """The size and kind of the labelled rows.

    Parameters
    ----------
    kind : {"table", "array"}
    rows, classes : int
        Classes, labels, or numbers to be predicted.
    numbers, categories : int
        Columns of numbers (all of an array), and of categories or texts.
    task : {"classification", "multilabel", "regression"}
    gaps : bool
        Whether some labels of a row are unknown, which most estimators do not take.
    """

    kind: str
    rows: int
    classes: int
    numbers: int
    categories: int = 0
    task: Task = "classification"
    gaps: bool = False

    @property
    def columns(self) -> int:
        return self.numbers + self.categories

    @property
    def encoded(self) -> int:
        """The approximate number of columns that a network takes."""
        return self.numbers + ONE_HOT * self.categories

    @property
    def trees(self) -> int:
        """Trees of one boosting round."""
        return 1 if self.task == "classification" and self.classes == 2 else self.classes

    @property
    def several(self) -> bool:
        """Whether a row has several labels, or several numbers, to be predicted."""
        return self.task == "multilabel" or (self.task == "regression" and self.classes > 1)

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def facts_of(samples: Any, classes: int, task: Task = "classification", gaps: bool = False) -> Facts:
    """The facts of a table, or of an array [N, F]; see :class:`Facts` for the parameters.

    Raises
    ------
    ValueError
        Samples of another kind: images, texts, several fields.

    Examples
    --------
    >>> import numpy as np
    >>> facts_of(np.zeros((100, 5)), classes=3).columns
    5
    """
    samples = as_samples(samples)
    about = form(samples)
    if about["kind"] == "table":
        kinds = about["columns"].values()
        numbers = sum(kind in NUMBERS for kind in kinds)
        return Facts("table", len(samples), classes, numbers, len(kinds) - numbers, task, gaps)
    if about["kind"] == "array" and len(about["shape"]) == 1:
        return Facts("array", len(samples), classes, int(about["shape"][0]), 0, task, gaps)
    shape = about.get("shape")
    got = f"{about['kind']}{'' if shape is None else f' [N, {str(shape)[1:-1]}]'}"
    raise WrongArgument(
        "teachers: auto: expected a table, or an array [N, F] of numbers, for which it has members; got "
        f"{got}: name the members, teachers.members"
    )
