"""The clock of a search: how much of its budget is used up, and how much a training may take of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from ensdistill.student.search.finals import SHARE
from ensdistill.student.search.journal import Journal, Record
from ensdistill.student.search.settings import SearchSettings
from ensdistill.student.search.space import ROLES, Role

TRAININGS = 5  # of an ordinary length that fit into each role's share of the minutes


class Clock:
    """The minutes of a search. A search by a number of trials is never late.

    Parameters
    ----------
    settings : SearchSettings
    journal : Journal
        Has the time that was spent before this process joined.
    """

    def __init__(self, settings: SearchSettings, journal: Journal) -> None:
        self.journal, self.trials, self.seconds = journal, settings.trials, 60 * settings.minutes
        self._begun, self._before = time.monotonic(), 0.0

    @property
    def timed(self) -> bool:
        return self.trials is None

    def start(self) -> None:
        """Begin with the time that the search has spent already."""
        self._begun, self._before = time.monotonic(), self.journal.spent()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._begun + self._before

    @property
    def used(self) -> float:
        """The share of the minutes that is used up."""
        return self.spent / self.seconds

    def late(self, beyond: float = 0.0) -> bool:
        """Whether the minutes, and a share ``beyond`` them, are used up."""
        return self.timed and self.used >= 1 + beyond

    def left(self, records: Sequence[Record]) -> float:
        """The seconds that the student has left: half of the time of all processes goes to each role."""
        if not self.timed:
            return math.inf
        left = self.seconds * (1 - self.used)
        spent = {role: sum(one.seconds for one in records if one.role == role) for role in ROLES}
        ahead = spent["direct"] - spent["student"]
        return max(0.0, min(left, (left * (1 + len(self.journal.others())) + ahead) / 2))

    def seconds_of_each(self, role: Role) -> float:
        """The seconds of an ordinary training at most: several fit into the role's share of the minutes, and
        as many of the student's into its share without the long trainings."""
        return self.seconds / 2 * (1.0 if role == "direct" else 1 - SHARE) / TRAININGS
