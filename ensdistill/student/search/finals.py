"""The last part of a search: long trainings of the students that matter, by the best settings so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ensdistill.student.search.journal import Record, best_of
from ensdistill.student.search.pace import Pace
from ensdistill.student.search.policy import Policy, mixture_of_best
from ensdistill.student.search.space import Space

SHARE = 0.6  # of a search: fewer and longer trainings win over more and shorter ones
LONGER = 4.0  # factor of the steps of a training that repeats the best settings so far
WORTH = 1.5  # the least such factor
LONGEST = 32_768  # steps
COMPARISON = 0.5  # of the time that is left, for the first long training of the second best family
ROOM = 0.6  # of the time that is left, for one training
FEW = 3.0  # long trainings: with time for fewer there is none to go through the sizes
MEANT = 2.0  # times the steps of the best training so far, for the first long training where these are few


@dataclass(frozen=True)
class Plan:
    """The next trial.

    Parameters
    ----------
    candidate : str
    values : dict
        Settings that are given; the others are drawn.
    final : bool
        Whether it belongs to the last part of the search.
    whole : bool
        Whether it is trained to its end, however it compares on the way.
    """

    candidate: str
    values: Mapping[str, Any] = field(default_factory=dict)
    final: bool = False
    whole: bool = False


def final_plan(
    policy: Policy,
    records: Sequence[Record],
    kept: Mapping[str, float | None],
    pace: Pace,
    space: Callable[[str], Space],
    left: float,
) -> Plan | None:
    """The next long training; None where none fits into the ``left`` seconds.

    The best two families have one long training each, the second in a part of the time. A candidate that no
    long training has had takes the settings and the length of the best one of its family. The best settings
    of a candidate are trained four times as long, as long as that helps; then others of that length are
    drawn. Where fewer than three long trainings fit, the first one is of the largest size that there is time
    for: the sizes below it are tried while it keeps enough.
    """
    best = best_of(records, "student")
    if best is not None and (plan := _largest(best, policy, records, pace, space, left)) is not None:
        return plan
    for key in policy.compared(records):
        first = best is not None and key in policy.ladder_of(best.candidate)
        plan = _plan_of(key, policy, records, pace, space, left if first else COMPARISON * left)
        if plan is not None and (plan.whole or pace.parameters[key] is None):
            return plan
    for key in policy.finalists(records, kept):
        plan = _plan_of(key, policy, records, pace, space, left)
        if plan is not None:
            return plan
    return None


def _largest(
    best: Record,
    policy: Policy,
    records: Sequence[Record],
    pace: Pace,
    space: Callable[[str], Space],
    left: float,
) -> Plan | None:
    """The first long training where few fit; None where it is done, or where there is time for the sizes."""
    ladder = policy.ladder_of(best.candidate)
    if policy.keep is None or pace.parameters[best.candidate] is None:
        return None
    if any(one.final and one.role == "student" and one.candidate in ladder for one in records):
        return None
    length = float(best.values["steps"])
    expected = pace.seconds(best.candidate, {**best.values, "steps": LONGER * length})
    if expected is None or left >= FEW * expected:
        return None
    for key in reversed(ladder[ladder.index(best.candidate) + 1 :]):
        plan = _plan_of(key, policy, records, pace, space, left)
        if plan is not None and plan.whole and plan.values["steps"] >= MEANT * length:
            return plan
    return None


def _plan_of(
    key: str,
    policy: Policy,
    records: Sequence[Record],
    pace: Pace,
    space: Callable[[str], Space],
    left: float,
) -> Plan | None:
    """The next long training of one candidate."""
    own = best_of(records, "student", key)
    family = [one for one in records if one.candidate in policy.ladder_of(key)]
    if pace.parameters[key] is None:
        expected, best = pace.seconds(key, {}), best_of(family, "student")
        given = mixture_of_best(records) if own is not None or best is None else best.values
        return None if expected is not None and expected > left else Plan(key, given, final=True)
    others = best_of([one for one in family if one.final], "student")
    source = others or best_of(family, "student")
    if own is not None and (own.final or others is None):
        source = own
    if source is None:
        return Plan(key, {"steps": 1.0}, final=True)
    values = moved(source, space(source.candidate), space(key))
    length = float(source.values["steps"])
    wanted = min(LONGER * length, max(LONGEST / pace.ordinary, 1.0))
    if source is not own:  # the length at which it was the best
        wanted = length if source.final else wanted
        least = length
    else:
        least = WORTH * length
    if source is not own or (wanted >= least and not _longer_tried(source, records)):
        for room in (ROOM * left, left):
            cut = pace.within(key, {**values, "steps": wanted}, room)
            if cut["steps"] >= least:
                return Plan(key, cut, final=True, whole=True)
    again = pace.within(key, {**values, "steps": length}, left)
    if again["steps"] < length / WORTH:
        return None
    return Plan(key, {name: again[name] for name in ("steps", "mixture") if name in again}, final=True)


def moved(source: Record, old: Space, new: Space) -> dict[str, Any]:
    """A trial's settings for another candidate of its family; the learning rate as far from its default."""
    rate = float(source.values["rate"]) * new.candidate.rate / old.candidate.rate
    names = new.defaults()
    return {name: value for name, value in source.values.items() if name in names} | {"rate": rate}


def _longer_tried(own: Record, records: Sequence[Record]) -> bool:
    """Whether a longer training by the settings of a candidate's best trial is done: it was no better."""

    def settings(one: Record) -> dict[str, Any]:
        return {name: value for name, value in one.values.items() if name != "steps"}

    return any(
        one.role == own.role
        and one.candidate == own.candidate
        and one.state != "ended"
        and one.values["steps"] > own.values["steps"]
        and settings(one) == settings(own)
        for one in records
    )
