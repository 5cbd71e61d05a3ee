"""A piece of work of a job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """One piece of work: a stage of a seed, for ``direct`` and ``distill`` of one student.

    Parameters
    ----------
    stage : str
    seed : int
    student : str
    trial : bool
        Whether it is of the run's trial, which has no rows that judge searched students.
    """

    stage: str
    seed: int
    student: str = ""
    trial: bool = False

    def __str__(self) -> str:
        return f"seed {self.seed} · {self.name}{' ' + self.student if self.student else ''}"

    @property
    def name(self) -> str:
        """The stage, as it is shown."""
        return f"trial {self.stage}" if self.trial else self.stage

    def needs(self) -> list[Unit]:
        """The units whose results this one reads; of a search, of the run in which it is done."""
        if self.stage in ("cache", "shrink"):
            return [Unit("teachers", self.seed, trial=self.trial)]
        return [Unit("cache", self.seed, trial=self.trial)] if self.stage in ("distill", "search") else []
