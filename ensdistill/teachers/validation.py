"""Checks of logits, weights, names and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ensdistill.common.tasks import Task, task_of
from ensdistill.data import BadRows
from ensdistill.teachers.members import (
    BoostedMember,
    Member,
    Preprocessed,
    SklearnMember,
    as_member,
    default_name,
    model_of,
)
from ensdistill.teachers.members.base import is_member, warn_of_unseen
from ensdistill.teachers.members.outputs import Output
from ensdistill.teachers.members.preprocessed import share_preprocess


def check_logits(
    logits: np.ndarray | Tensor,
    name: str,
    rows: int,
    classes: Sequence[str] | None,
    task: Task = "classification",
) -> None:
    """Raise ValueError, naming the member and the rows, for logits [N, C] that are no logits. Log-odds
    (multi-label) have to be finite; a classifier may rule classes out by -inf."""
    if logits.ndim != 2 or len(logits) != rows or (classes is not None and logits.shape[1] != len(classes)):
        expected = "C" if classes is None else len(classes)
        raise ValueError(f"{name}: expected logits [{rows}, {expected}]; got {list(logits.shape)}")
    if isinstance(logits, Tensor):
        # A row's largest is finite just where the row is good: little work for a GPU. The fault is then found
        # in main memory.
        least = logits if task == "multilabel" else logits.amax(1) if logits.numel() else logits
        if bool(least.isfinite().all()):
            return
        logits = logits.cpu().numpy()
    wrong = ~np.isfinite(logits) if task == "multilabel" else np.isnan(logits) | np.isposinf(logits)
    bad = np.flatnonzero(wrong.any(1))
    if len(bad):
        value = logits[bad[0]][wrong[bad[0]]][0]
        raise BadRows(
            f"{name}: the logits of row {bad[0]} hold {value} ({len(bad)} such rows: "
            f"{bad[:5].tolist()}{' ...' * (len(bad) > 5)})",
            bad,
        )
    empty = np.flatnonzero(np.isneginf(logits).all(1))
    if len(empty):
        raise BadRows(
            f"{name}: the logits of row {empty[0]} are all -inf ({len(empty)} such rows); no class is left",
            empty,
        )


def one_task(members: Sequence[Member]) -> Task:
    """The members' task.

    Raises
    ------
    ValueError
        They are of several; names two members.
    """
    first = members[0]
    for member in members:
        if task_of(member) != task_of(first):
            raise ValueError(
                f"members: expected one task; {first.name} is of the task {task_of(first)}, {member.name} of "
                f"{task_of(member)}: make an ensemble of each, or state the task of both by task="
            )
    return task_of(first)


def as_members(
    members: Sequence[Any], output: Output, order: tuple[str, ...] | None, task: Task | None = None
) -> list[Member]:
    """Members of any values, of different names; see ``Ensemble.from_members``."""
    if isinstance(members, nn.Module):
        raise TypeError(
            f"members: expected a sequence of members; got one {type(members).__name__}: [module] has "
            "it as a member"
        )
    if len(members) == 0:
        raise ValueError("members: expected at least one; got none")
    adapted = [
        named_by_index(as_member(m, name, output, task), m, order)
        for m, name in zip(members, free_names(members), strict=True)
    ]
    share_preprocess(adapted)
    names = [m.name for m in adapted]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"members: expected different names; {names.count(twice[0])} are called {twice[0]!r}"
        )
    return adapted


def free_names(members: Sequence[Any]) -> list[str | None]:
    """A name for each unnamed member: numbered where several would have one name."""
    names = [None if is_member(model_of(m)) else default_name(m) for m in members]
    return [
        f"{n}-{names[:i].count(n) + 1}" if n is not None and names.count(n) > 1 else n
        for i, n in enumerate(names)
    ]


def normalised(weights: Sequence[float] | np.ndarray | None, count: int) -> np.ndarray:
    try:
        values = np.ones(count) if weights is None else np.array(weights, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"weights: expected {count} numbers; got {weights!r}") from None
    if values.shape != (count,) or not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        raise ValueError(
            f"weights: expected {count} numbers of at least 0 with a positive sum; got {values.tolist()}"
        )
    return values / values.sum()


def plain_name(name: str, folder: Path) -> str:
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{folder}: {name!r} is no member's name")
    return name


def named_by_index(member: Member, value: Any, classes: tuple[str, ...] | None) -> Member:
    """The member that was made of the estimator ``value``, or of a tuple (estimator, preprocess), with its
    ``classes_`` as indices into ``classes`` where they are such."""
    if isinstance(member, Preprocessed) and member is not value:
        return Preprocessed(named_by_index(member.member, model_of(value), classes), member.preprocess)
    if (
        member is value
        or not isinstance(member, SklearnMember | BoostedMember)
        or classes is None
        or member.classes is None
        or member.task != "classification"
    ):
        return member
    return (
        type(member)(value, name=member.name, classes=classes)
        if not set(member.classes) & set(classes)
        else member
    )


def check_known(members: Sequence[Member], classes: tuple[str, ...] | None, remedy: str) -> None:
    """Raise ValueError for a member that has a class beside ``classes``, and warn of one that lacks some."""
    for member in members:
        if member.classes is None or classes is None:
            continue
        if set(member.classes) - set(classes):
            raise ValueError(
                f"members: {member.name} has the classes {list(member.classes)}; expected "
                f"{list(classes)}{remedy}"
            )
        unseen = [name for name in classes if name not in member.classes]
        if unseen and task_of(member) != "classification":
            raise ValueError(
                f"members: {member.name} lacks {unseen}; expected all of {list(classes)}, because a member "
                f"of the task {task_of(member)} has no prediction for others{remedy}"
            )
        if unseen:
            warn_of_unseen(member.name, unseen, stacklevel=4)


def check_members_logits(
    count: int, classes: Sequence[str] | None, logits: np.ndarray | Tensor
) -> np.ndarray:
    """The logits as an array, if they are [K, N, C] for so many members and these classes."""
    z = np.asarray(logits.detach().cpu() if isinstance(logits, Tensor) else logits)
    columns = "C" if classes is None else len(classes)
    if z.ndim != 3 or len(z) != count or (columns != "C" and z.shape[2] != columns):
        raise ValueError(
            f"logits: expected [{count}, N, {columns}], one for each member; got {list(z.shape)}"
        )
    return z
