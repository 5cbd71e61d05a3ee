"""A look at a target of several labels or of numbers, and the task of one for which none is stated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensdistill.common.errors import WrongArgument
from ensdistill.data.guess import Guess, guess_task
from ensdistill.data.partition import Partition
from ensdistill.data.sources.roles import read_roles, roles_of
from ensdistill.data.sources.target import Target
from ensdistill.data.table_files import TableFile
from ensdistill.data.tasks import known_rows
from ensdistill.job.kinds_of_labels import Labels

LEAST = 6  # labelled rows of several labels or numbers
MOST = 20  # different numbers, fractions among them, that may be classes


@dataclass(frozen=True)
class Labelled:
    """The findings in a target.

    Parameters
    ----------
    classes : dict of str to int
        Rows of each class, rows to which each label applies, or rows of each number.
    without : int
        Rows without a label.
    labels : Labels
    known : int, optional
        Labelled rows of another task than classification.
    arguments : dict
        Of the data set.
    facts : list of (str, str)
    """

    classes: Mapping[str, int]
    without: int
    labels: Labels = field(default_factory=Labels)
    known: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    facts: Sequence[tuple[str, str]] = ()


def look_at_target(
    file: TableFile,
    targets: Sequence[str],
    task: str | None,
    separator: str | None,
    labels: Sequence[str] | None,
) -> Labelled | None:
    """Several labels or numbers in a table's columns; None for one column of classes.

    Parameters
    ----------
    file : TableFile
    targets : list of str
    task : str, optional
        By default that which the columns look like; the facts hold it with the reason.
    separator : str, optional
        Between the tags of one column.
    labels : list of str, optional
        The tags that are labels.

    Raises
    ------
    ValueError
        The columns hold something else, too few rows have labels, or settings contradict each other.
    """
    if separator is not None and task is None:
        task = "multilabel"
    guess: Guess | None = None
    if task is None:
        if labels is not None and len(targets) == 1:  # which are its classes
            return None
        frame = file.read(list(targets))
        if len(targets) == 1 and frame[targets[0]].isna().all():
            return None
        guess = guess_task(frame)
        # Whole numbers, and a few others, may be classes: the error of a target of classes names both tasks.
        if guess.task == "classification" or (len(targets) == 1 and not _many_fractions(frame[targets[0]])):
            return None
        task = guess.task
    if task == "classification":
        if len(targets) > 1:
            raise WrongArgument(
                f"--task: expected multilabel or regression for {len(targets)} target columns; got "
                "classification"
            )
        return None
    try:
        target = Target(list(targets) if len(targets) > 1 else targets[0], task, separator, labels)  # type: ignore[arg-type]
    except ValueError as error:
        raise WrongArgument(f"--{error}") from error
    frame = read_roles(
        file, [], roles_of(Partition(), target=target.columns), -1, unlabelled=[], texts=target.texts
    )
    found, names, _ = target.labels(frame, f"target: {', '.join(targets)}")
    there = known_rows(found)
    if there.sum() < LEAST:
        raise ValueError(f"target: expected at least {LEAST} rows with a label; got {int(there.sum())}")
    multilabel = task == "multilabel"
    counts = (found == 1).sum(0) if multilabel else np.full(len(names), there.sum())
    gaps = multilabel and bool((found[there] < 0).any())
    arguments = {"task": task} | ({} if separator is None else {"separator": separator})
    return Labelled(
        dict(zip(names, counts.tolist(), strict=True)),
        int((~there).sum()),
        Labels(target.task or "regression", len(names), gaps),
        int(there.sum()),
        arguments,
        [("task", str(guess).removeprefix("task: "))] if guess is not None else [("task", task)],
    )


def _many_fractions(column: Any) -> bool:
    numbers = column.dropna().to_numpy(np.float64)
    return len(np.unique(numbers)) > MOST and bool((numbers != np.floor(numbers)).any())
