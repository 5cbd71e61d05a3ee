"""A look at a target of several labels or of numbers, and the task of one for which none is stated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensdistill.common.errors import WrongArgument
from ensdistill.common.tasks import Task
from ensdistill.data.guess import Guess, guess_task
from ensdistill.data.multilabel import as_multilabels
from ensdistill.data.partition import Partition
from ensdistill.data.quantities import as_numbers
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
        if guess.task == "classification" or (
            len(targets) == 1 and not _many_fractions(frame[targets[0]].dropna())
        ):
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
    arguments = {} if separator is None else {"separator": separator}
    return _labelled(found, names, target.task or "regression", guess, "target", arguments)


def look_at_labels(y: np.ndarray, task: Task | None, where: str) -> Labelled | None:
    """Several labels or numbers in an array; None for one of classes.

    Parameters
    ----------
    y : ndarray [N] or [N, C]
    task : str, optional
        By default that which the array looks like; the facts hold it with the reason.
    where : str
        The array, for messages.

    Raises
    ------
    ValueError
        The array holds something else, too few rows have labels, or it may be one-hot classes.
    """
    guess: Guess | None = None
    if task is None:
        table = y.ndim == 2 and y.shape[1] > 1
        if not table and (y.dtype.kind != "f" or not _many_fractions(y)):
            return None
        guess = guess_task(y)
        if guess.task == "multilabel" and (np.nan_to_num(y.astype(np.float64)).sum(1) == 1).all():
            raise WrongArgument(
                f"--task: {where} {list(y.shape)} has one 1 in each row: state multilabel if any number of "
                "labels may apply; of one class for each row write the indices, y.argmax(1)"
            )
        task = guess.task
    if task == "classification":
        return None
    found = (as_multilabels if task == "multilabel" else as_numbers)(y, argument=where)
    return _labelled(found, tuple(map(str, range(found.shape[1]))), task, guess, where, {})


def _labelled(
    found: np.ndarray,
    names: Sequence[str],
    task: Task,
    guess: Guess | None,
    where: str,
    arguments: dict[str, Any],
) -> Labelled:
    there = known_rows(found)
    if there.sum() < LEAST:
        raise ValueError(f"{where}: expected at least {LEAST} rows with a label; got {int(there.sum())}")
    multilabel = task == "multilabel"
    counts = (found == 1).sum(0) if multilabel else np.full(len(names), there.sum())
    return Labelled(
        dict(zip(names, counts.tolist(), strict=True)),
        int((~there).sum()),
        Labels(task, len(names), multilabel and bool((found[there] < 0).any())),
        int(there.sum()),
        {"task": task, **arguments},
        [("task", task if guess is None else str(guess).removeprefix("task: "))],
    )


def _many_fractions(values: Any) -> bool:
    numbers = np.asarray(values, np.float64)
    numbers = numbers[np.isfinite(numbers)]
    return len(np.unique(numbers)) > MOST and bool((numbers != np.floor(numbers)).any())
