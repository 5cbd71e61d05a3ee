"""The tasks: kinds of labels, and of the predictions for them."""

from __future__ import annotations

from typing import Any, Literal, get_args

from ensdistill.common.errors import WrongArgument

Task = Literal["classification", "multilabel", "regression"]
"""``classification``: one of C classes, by a softmax. ``multilabel``: any of C labels, each by a sigmoid of
its own. ``regression``: D numbers."""
TASKS: tuple[Task, ...] = get_args(Task)


def check_task(task: Any, argument: str = "task") -> Task:
    """``task`` itself, if it is one of :data:`TASKS`.

    Raises
    ------
    ValueError
        Any other value.

    Examples
    --------
    >>> check_task("multilabel")
    'multilabel'
    """
    if task not in TASKS:
        raise WrongArgument(f"{argument}: expected one of {', '.join(TASKS)}; got {task!r}")
    found: Task = task
    return found


def task_of(value: Any) -> Task:
    """The attribute ``task`` of a member, an ensemble or another object; classification without one.

    Examples
    --------
    >>> task_of(object())
    'classification'
    """
    return check_task(getattr(value, "task", "classification"), f"{type(value).__name__}.task")
