"""Which candidate the next trial is of: a function of the trials that have ended, so that a search that was
killed goes on as it would have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ensdistill.student.search.journal import Record, best_of
from ensdistill.student.search.space import Role

OTHERS = 4  # one trial in so many is of another family than the best one
HOPELESS = 4.0  # times the best family's value: no long training makes up for that


@dataclass(frozen=True)
class Standing:
    """A candidate's trials so far.

    Parameters
    ----------
    family : str
    key : str
    trials : int
        Judged or ended early.
    value : float
        The lowest one.
    kept : float or None
        The smaller share of NLL and accuracy; None where it is unknown.
    """

    family: str
    key: str
    trials: int
    value: float
    kept: float | None = None


@dataclass(frozen=True)
class Policy:
    """The order of trials.

    Parameters
    ----------
    ladders : dict of str to sequence of str
        By family the keys of its candidates, from the smallest to the largest.
    keep : float or None
        The share to keep; None where the search is for the best student within the budgets.
    """

    ladders: Mapping[str, Sequence[str]]
    keep: float | None
    _keys: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_keys", tuple(key for ladder in self.ladders.values() for key in ladder))

    def role(self, records: Sequence[Record], timed: bool, trials: int | None) -> Role | None:
        """The student that is next: the one that has had less of the budget, the direct one first; None where
        the trials are used up."""
        spent: dict[Role, float] = {"direct": 0.0, "student": 0.0}
        for one in records:
            spent[one.role] += one.seconds if timed else 1.0
        if trials is not None and min(spent.values()) >= trials:
            return None
        return "direct" if spent["direct"] <= spent["student"] else "student"

    def candidate(self, role: Role, records: Sequence[Record], kept: Mapping[str, float | None]) -> str:
        """The key of the next candidate; of the student's, in the part of a search that finds settings.

        Settings are found for one size of each family: the middle one, or without ``keep`` the largest within
        the budgets.
        """
        standings = self._standings(role, records, kept)
        if role == "direct":
            return self._best(standings)
        starts = {family: self._start(ladder) for family, ladder in self.ladders.items()}
        for key in starts.values():
            if not standings[key].trials:
                return key
        ranked = self._ranked(standings)
        done = sum(standing.trials for standing in standings.values())
        return starts[ranked[1] if len(ranked) > 1 and done % OTHERS == 0 else ranked[0]]

    def _start(self, ladder: Sequence[str]) -> str:
        return ladder[-1] if self.keep is None else ladder[_middle(ladder)]

    def _ranked(self, standings: Mapping[str, Standing]) -> list[str]:
        """The families by their lowest value."""
        return sorted(self.ladders, key=lambda family: min(standings[k].value for k in self.ladders[family]))

    def compared(self, records: Sequence[Record]) -> list[str]:
        """The best candidate of each of the best two families, where the family had no long training yet and
        is not far behind."""
        found = self._standings("student", records, {})
        long = {one.candidate for one in records if one.role == "student" and one.final}
        tried = [
            min(self.ladders[family], key=lambda key: found[key].value)
            for family in self._ranked(found)[:2]
            if not long.intersection(self.ladders[family])
        ]
        least = min((one.value for one in found.values()), default=math.inf)
        near = HOPELESS * least if least > 0 else math.inf
        return [key for key in tried if found[key].value < math.inf and found[key].value <= near]

    def finalists(self, records: Sequence[Record], kept: Mapping[str, float | None]) -> list[str]:
        """The keys of students that are trained long next, the first one unless there is too little time.

        In the best family come larger sizes until one keeps enough, and then those between it and the largest
        that does not. Without ``keep`` it is the best two of all sizes.
        """
        found = self._standings("student", records, kept)
        long = [one.candidate for one in records if one.role == "student" and one.final]
        found = {key: replace(one, trials=long.count(key)) for key, one in found.items()}
        judged = [key for key in self._keys if found[key].value < math.inf]
        ranked = sorted(judged, key=lambda key: found[key].value)
        if not ranked:
            return [self._start(next(iter(self.ladders.values())))]
        ladder = self.ladder_of(ranked[0])
        if self.keep is not None:
            return [self._on_ladder([found[key] for key in ladder], self.keep), *ranked]
        smaller = ladder[max(0, ladder.index(ranked[0]) - 1)]
        first, second = ranked[0], ranked[1] if len(ranked) > 1 else smaller
        return [second if found[first].trials > 2 * found[second].trials else first, *ranked]

    def ladder_of(self, key: str) -> Sequence[str]:
        """The candidates of a candidate's family."""
        return next(ladder for ladder in self.ladders.values() if key in ladder)

    def _standings(
        self, role: Role, records: Sequence[Record], kept: Mapping[str, float | None]
    ) -> dict[str, Standing]:
        found = {}
        for family, ladder in self.ladders.items():
            for key in ladder:
                own = [one for one in records if one.role == role and one.candidate == key]
                value = min((one.value for one in own), default=float("inf"))
                found[key] = Standing(family, key, len(own), value, kept.get(key))
        return found

    def _best(self, standings: Mapping[str, Standing]) -> str:
        """Each family's candidates from the middle outwards, then the best two, one trial in three of the
        second."""
        order = [
            key for ladder in zip_longest([_outwards(one) for one in self.ladders.values()]) for key in ladder
        ]
        for key in order:
            if not standings[key].trials:
                return key
        ranked = sorted(self._keys, key=lambda key: (standings[key].value, self._keys.index(key)))
        first = ranked[0]
        second = ranked[min(1, len(ranked) - 1)]
        return second if standings[first].trials > 2 * standings[second].trials else first

    def _on_ladder(self, ladder: Sequence[Standing], keep: float) -> str:
        """``trials`` are long ones here: one shows that a candidate keeps too little."""
        passing = [i for i, one in enumerate(ladder) if one.kept is not None and one.kept >= keep]
        if not passing:
            tried = [i for i, one in enumerate(ladder) if one.trials]
            if not tried:
                return min(ladder, key=lambda one: one.value).key
            above = max(tried) + 1
            if above < len(ladder):
                return ladder[above].key
            # Nothing keeps enough: the candidates that keep the most, those with few trials first.
            best = sorted(tried, key=lambda i: ladder[i].value)[:2]
            return ladder[min(best, key=lambda i: (ladder[i].trials, ladder[i].value))].key
        smallest = passing[0]
        below = [i for i in range(smallest) if ladder[i].trials]
        failing = below[-1] if below else -1
        untried = [i for i in range(failing + 1, smallest) if not ladder[i].trials]
        if untried:
            return ladder[untried[len(untried) // 2]].key
        # The smallest that keeps enough is known: it, and the one below it, may become better.
        if failing >= 0 and ladder[failing].trials <= ladder[smallest].trials:
            return ladder[failing].key
        return ladder[smallest].key


def untried_mixture(records: Sequence[Record], mixtures: Sequence[str]) -> tuple[Record, str] | None:
    """The student's best trial and a transfer set that no trial has had: each second trial compares one, by
    the same settings."""
    best, tried = best_of(records, "student"), {one.values.get("mixture") for one in records}
    untried = next((name for name in mixtures[1:] if name not in tried), None)
    return (best, untried) if best is not None and untried is not None and len(records) % 2 else None


def mixture_of_best(records: Sequence[Record]) -> dict[str, str]:
    """The transfer set of the student's best trial; empty where there is none."""
    best = best_of(records, "student")
    return {} if best is None or "mixture" not in best.values else {"mixture": best.values["mixture"]}


def _middle(ladder: Sequence[str]) -> int:
    return len(ladder) // 2


def _outwards(ladder: Sequence[str]) -> list[str]:
    middle = _middle(ladder)
    return [ladder[i] for i in sorted(range(len(ladder)), key=lambda i: (abs(i - middle), -i))]


def zip_longest(lists: Sequence[Sequence[str]]) -> list[list[str]]:
    """The first of each list, the second of each, ...

    >>> zip_longest([["a", "b"], ["c"]])
    [['a', 'c'], ['b']]
    """
    longest = max(map(len, lists), default=0)
    return [[one[i] for one in lists if i < len(one)] for i in range(longest)]
