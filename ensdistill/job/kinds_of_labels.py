"""The kind of the labels that a look at data has found."""

from __future__ import annotations

from dataclasses import dataclass

from ensdistill.common.tasks import Task


@dataclass(frozen=True)
class Labels:
    """The kind of labels that default models are chosen for.

    Parameters
    ----------
    task : {"classification", "multilabel", "regression"}
    count : int
        Labels, or numbers, of a row.
    gaps : bool
        Whether some labels of a row are unknown, which most estimators do not take.
    rarest : int
        Labelled rows of the rarest class, 0 where they are not known.
    """

    task: Task = "classification"
    count: int = 1
    gaps: bool = False
    rarest: int = 0
