"""Which candidate the next trial is of: a function of the trials that have ended, so that a search that was
killed goes on as it would have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ensdistill.student.search.journal import Record
from ensdistill.student.search.space import Role

TRIALS = 3  # that a candidate has before it counts as one that keeps too little
OTHERS = 4  # each so many-th trial is of another family than the best one


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
        The share to keep; None where the best student within the budgets is wanted.
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
        """The key of the next candidate."""
        standings = self._standings(role, records, kept)
        if role == "direct" or self.keep is None:
            return self._best(standings)
        return self._smallest(standings, self.keep)

    def finalist(self, records: Sequence[Record], kept: Mapping[str, float | None]) -> str:
        """The key of the student that is trained long next.

        The best one so far comes first, or the smallest that keeps enough already; then larger ones until one
        keeps enough, then those between it and the largest that does not. Without ``keep`` it is the best
        two.
        """
        found = self._standings("student", records, kept)
        long = [one for one in records if one.role == "student" and one.final]
        found = {
            key: replace(one, trials=sum(other.candidate == key for other in long))
            for key, one in found.items()
        }
        best = min(self._keys, key=lambda key: found[key].value)
        if self.keep is None:
            return self._best_two(found)
        ladder = [found[key] for key in self.ladder_of(best)]
        enough = any(one.kept is not None and one.kept >= self.keep for one in ladder)
        if not enough and not any(one.trials for one in ladder):
            return best
        return self._on_ladder(ladder, self.keep, 1)

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
        return self._best_two(standings)

    def _best_two(self, standings: Mapping[str, Standing]) -> str:
        ranked = sorted(self._keys, key=lambda key: (standings[key].value, self._keys.index(key)))
        first = ranked[0]
        second = ranked[min(1, len(ranked) - 1)]
        return second if standings[first].trials > 2 * standings[second].trials else first

    def _smallest(self, standings: Mapping[str, Standing], keep: float) -> str:
        """The middle of each family first. Then the best family, and now and then the next one: larger sizes
        until one keeps enough, then sizes between it and the largest that does not."""
        for ladder in self.ladders.values():
            if not any(standings[key].trials for key in ladder):
                return ladder[_middle(ladder)]

        def merit(family: str) -> float:
            return min(standings[key].value for key in self.ladders[family])

        ranked = sorted(self.ladders, key=merit)
        done = sum(standing.trials for standing in standings.values())
        family = ranked[1] if len(ranked) > 1 and done % OTHERS == 0 else ranked[0]
        return self._on_ladder([standings[key] for key in self.ladders[family]], keep, TRIALS)

    def _on_ladder(self, ladder: Sequence[Standing], keep: float, trials: int) -> str:
        """``trials``: so many show that a candidate keeps too little."""
        passing = [i for i, one in enumerate(ladder) if one.kept is not None and one.kept >= keep]
        if not passing:
            tried = [i for i, one in enumerate(ladder) if one.trials]
            above = max(tried) + 1
            if above < len(ladder):
                return ladder[above].key
            # Nothing keeps enough: the candidates that keep the most, those with few trials first.
            best = sorted(tried, key=lambda i: ladder[i].value)[:2]
            return ladder[min(best, key=lambda i: (ladder[i].trials, ladder[i].value))].key
        smallest = passing[0]
        below = [i for i in range(smallest) if ladder[i].trials >= trials]
        failing = below[-1] if below else -1
        untried = [i for i in range(failing + 1, smallest) if not ladder[i].trials]
        if untried:
            return ladder[untried[len(untried) // 2]].key
        between = list(range(failing + 1, smallest))
        if between:  # tried, but not often enough
            return ladder[min(between, key=lambda i: (ladder[i].trials, -i))].key
        # The smallest that keeps enough is known: it, and the one below it, may become better.
        if failing >= 0 and ladder[failing].trials <= ladder[smallest].trials:
            return ladder[failing].key
        return ladder[smallest].key


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
