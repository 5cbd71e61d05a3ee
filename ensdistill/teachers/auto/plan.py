"""The choice of members within a budget of time, by a rule of cost: the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ensdistill.common.errors import WrongArgument
from ensdistill.common.scalars import plain, real
from ensdistill.common.tasks import Task
from ensdistill.teachers.auto.facts import Facts, facts_of
from ensdistill.teachers.auto.portfolio import EXTRAS, PORTFOLIO, Entry, Size
from ensdistill.teachers.recipes import Recipe

MINUTES = 4.0  # of one core: two minutes on two cores
SHARE = 0.25  # of the budget that one member may take
OUTPUTS: dict[Task, str] = {"classification": "classes", "multilabel": "labels", "regression": "numbers"}


@dataclass(frozen=True)
class PlannedMember:
    """A member of the plan.

    Parameters
    ----------
    name : str
        Of its entry in the portfolio.
    size : dict of str to float
        Rounds and rate, trees, or epochs.
    seconds : float
        Estimated, for all folds and the fit to all rows, on one core.
    """

    name: str
    size: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The members of ``teachers: auto`` for some rows.

    Parameters
    ----------
    facts : Facts
    minutes : float
    folds : int
    members : tuple of PlannedMember
    left_out : dict of str to str
        The reason for each entry of the portfolio that is not among the members.
    """

    facts: Facts
    minutes: float
    folds: int
    members: tuple[PlannedMember, ...]
    left_out: Mapping[str, str]

    @property
    def seconds(self) -> float:
        """The estimate for all members, on one core."""
        return sum(member.seconds for member in self.members)

    @property
    def recipes(self) -> list[Recipe]:
        """The members to be trained, for :func:`ensdistill.teachers.train_ensemble` with ``select=True``.

        Raises
        ------
        ValueError
            A member's package is no longer installed, or this version has no such member.
        """
        entries = {entry.name: entry for entry in PORTFOLIO}
        found = []
        for member in self.members:
            if (entry := entries.get(member.name)) is None:
                raise WrongArgument(
                    f"teachers: auto: the plan has the member {member.name!r}, which this version does not "
                    "have: delete the plan's file, and the members are chosen anew"
                )
            try:
                found.append(entry.make(member.name, self.facts, member.size))
            except ImportError as error:
                raise WrongArgument(
                    f"teachers: auto: the plan has the member {member.name!r}, but {_missing(entry)}; or "
                    "delete the plan's file, and the members are chosen anew"
                ) from error
        return found

    def plain(self) -> dict[str, Any]:
        """The plan as JSON-able data, from which :meth:`of` makes an equal one."""
        members = [
            {"name": one.name, "size": dict(one.size), "seconds": round(one.seconds, 1)}
            for one in self.members
        ]
        return {
            "minutes": self.minutes,
            "folds": self.folds,
            "rows": self.facts.plain(),
            "members": members,
            "left_out": dict(self.left_out),
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Plan:
        """The plan that :meth:`plain` wrote.

        Raises
        ------
        ValueError
            The data are no plan.
        """
        try:
            members = tuple(
                PlannedMember(str(one["name"]), dict(one["size"]), float(one["seconds"]))
                for one in plain["members"]
            )
            facts, left_out = Facts(**plain["rows"]), dict(plain["left_out"])
            return cls(facts, float(plain["minutes"]), int(plain["folds"]), members, left_out)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"plan: expected minutes, folds, rows, members and left_out; got {plain!r}"
            ) from error


def auto_plan(
    samples: Any,
    classes: int,
    *,
    minutes: float = MINUTES,
    folds: int = 5,
    task: Task = "classification",
    gaps: bool = False,
) -> Plan:
    """Choose unlike members for a table or an array [N, F] within a budget of time.

    Boosted trees, forests and networks are gone through in an order of worth. Each gets the largest of its
    sizes (rounds, trees, epochs) that takes at most a quarter of the budget and no more than is left. The
    estimated seconds follow from the numbers of rows, columns and classes alone, so the choice is the same
    on every machine with the same packages. A machine that is slower than one core of a two-core Intel Xeon
    takes longer than ``minutes``. Members without weight after the selection by out-of-fold predictions drop
    out: see ``select`` of :func:`ensdistill.teachers.train_ensemble`.

    Parameters
    ----------
    samples : table, or array [N, F]
        The labelled rows; labels have no part in the choice.
    classes : int
        Classes, labels, or numbers to be predicted.
    minutes : float
        Of one core, for the training of all members on all folds and on all rows.
    folds : int
    task : {"classification", "multilabel", "regression"}
        Numbers have regressors of the same kinds and a ridge regression; several labels have a model for
        each, or one for all where its library has such, and logistic regressions.
    gaps : bool
        Whether some labels of a row are unknown.

    Raises
    ------
    ValueError
        Samples of another kind, or a budget that is too small for one member: the message has the least.

    Examples
    --------
    >>> import numpy as np
    >>> plan = auto_plan(np.zeros((300, 4)), classes=3, minutes=0.2)
    >>> "extra_trees" in [member.name for member in plan.members], plan.seconds <= 12
    (True, True)
    """
    facts = facts_of(samples, classes, task, gaps)
    minutes = check_minutes(minutes)
    if folds < 2:
        raise ValueError(f"folds: expected at least 2; got {folds}")
    budget = 60 * minutes
    left, members = budget, list[PlannedMember]()
    left_out: dict[str, str] = {}
    least: PlannedMember | None = None
    for entry in PORTFOLIO:
        if facts.task not in entry.tasks:
            continue
        if entry.package and find_spec(entry.package) is None:
            left_out[entry.name] = _missing(entry)
            continue
        sizes = [PlannedMember(entry.name, size, _seconds(entry, facts, size, folds)) for size in entry.sizes]
        least = min(least or sizes[-1], sizes[-1], key=lambda one: one.seconds)
        most = min(left, SHARE * budget)
        chosen = next((one for one in sizes if one.seconds <= most), None)
        if chosen is None:
            left_out[entry.name] = f"takes {sizes[-1].seconds:.1f} s or more; it may take {most:.1f} s"
        else:
            members.append(chosen)
            left -= chosen.seconds
    if not members and least is not None:
        if least.seconds > budget:
            raise WrongArgument(
                f"minutes: expected at least {_rounded_up(least.seconds / 60)}, the time of the cheapest "
                f"member ({least.name}) on {folds} folds of {facts.rows} rows, {facts.columns} columns and "
                f"{facts.classes} {OUTPUTS[facts.task]}; got {minutes:g}"
            )
        members.append(least)
        del left_out[least.name]
    return Plan(facts, minutes, folds, tuple(members), left_out)


def check_minutes(minutes: float) -> float:
    """The budget as a float.

    Raises
    ------
    TypeError, ValueError
        No number, or none above 0.
    """
    if not (real(minutes) and not isinstance(minutes, bool)):
        raise TypeError(f"minutes: expected a number; got {minutes!r}")
    if not 0 < minutes < math.inf:
        raise WrongArgument(f"minutes: expected a finite number above 0; got {minutes}")
    return float(plain(minutes))


def _seconds(entry: Entry, facts: Facts, size: Size, folds: int) -> float:
    """Seconds of the fits on all folds, each to the other folds' rows, and of the one to all rows."""
    return entry.seconds(facts, size) * folds


def _missing(entry: Entry) -> str:
    return f"needs the package {entry.package}: pip install 'ensdistill[{EXTRAS[entry.package]}]'"


def _rounded_up(value: float) -> float:
    """Up to two digits."""
    digits = 1 - math.floor(math.log10(value))
    return math.ceil(value * 10**digits) / 10**digits
