"""The result of a search: the frontier of size against what is kept, the chosen student, the cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensdistill.common.files import write_json
from ensdistill.common.tasks import Task
from ensdistill.report.frontier import draw, goals_of, lines
from ensdistill.student.search.judging import Kept
from ensdistill.student.search.settings import in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """The best trial of one candidate.

    Parameters
    ----------
    candidate : str
        Family and size, ``mlp/64-64``.
    parameters, bytes : int
    latency : float or None
        Seconds for one row, p50, in one thread; None where it was not measured.
    runtime : str
        What was measured: ``onnxruntime``, ``torch``, or a booster's library.
    kept : dict of str to Kept
        Of the gain in each of the task's goals: ``nll`` and ``accuracy``, of several labels ``bce`` and
        ``map``, of a regression ``nll`` and ``rmse``.
    figures : dict of str to float
        Means over the rows that judge, after a calibration by them; see
        :class:`ensdistill.student.search.figures.Figures`.
    values : dict
        The trial's settings.
    section : dict
        A student of a job's YAML, that is trained by these settings.
    frontier : bool
        Whether no smaller candidate keeps as much.
    fits : bool
        Whether it is within the budgets.
    """

    candidate: str
    parameters: int
    bytes: int
    latency: float | None
    runtime: str
    kept: Mapping[str, Kept]
    figures: Mapping[str, float]
    values: Mapping[str, Any]
    section: Mapping[str, Any]
    frontier: bool = False
    fits: bool = True

    @property
    def share(self) -> float | None:
        """The smaller of the shares kept; see :func:`least`."""
        return least(self.kept)


def least(kept: Mapping[str, Kept]) -> float | None:
    """The smaller of the shares. A metric in which the ensemble has no gain has none: None where both have
    none, or where the student is worse than direct in it."""
    known = [one.share for one in kept.values() if one.share is not None]
    return None if any(one.worse for one in kept.values()) else min(known, default=None)


@dataclass(frozen=True)
class Cost:
    """What the search took.

    Parameters
    ----------
    seconds : dict of str to float
        Of the trials of ``student`` and ``direct``, over all processes.
    trials, ended, failed : dict of str to int
        How many began; of these ended early; diverged.
    teacher_rows : int
        Rows that the ensemble predicted: those of the caches, and of the judgement.
    """

    seconds: Mapping[str, float]
    trials: Mapping[str, int]
    ended: Mapping[str, int]
    failed: Mapping[str, int]
    teacher_rows: int


@dataclass(frozen=True)
class SearchResult:
    """The result of :func:`ensdistill.student.search.search_student`.

    ``print(result)`` shows the frontier and the choice.

    Parameters
    ----------
    points : tuple of Point
        Of all candidates that were judged, from the smallest to the largest.
    chosen : Point or None
        The smallest student that keeps enough, or within the budgets the one that keeps the most; None where
        none does.
    nearest : Point or None
        Where none does: the one that comes nearest.
    direct : Point
        The strongest direct student, of an equal search. Its ``kept`` are 0.
    ensemble : dict of str to float
        The ensemble's own figures on the rows that judge.
    gain : dict
        The ensemble's gain over the direct student on the labels, in each of the task's goals: mean and 95 %
        interval, or None.
    keep : float or None
    limits : dict of str to float
        The budgets.
    rows, labelled : int
        Rows that judge, and those with a label among them.
    cost : Cost
    task : {"classification", "multilabel", "regression"}
    untried : Point or None
        Where none keeps enough and there was no time for a long training of a larger size: that size, with
        the settings of the nearest. Its ``kept`` and ``figures`` are empty.
    """

    points: tuple[Point, ...]
    chosen: Point | None
    nearest: Point | None
    direct: Point
    ensemble: Mapping[str, float]
    gain: Mapping[str, tuple[float, float, float] | None]
    keep: float | None
    limits: Mapping[str, float]
    rows: int
    labelled: int
    cost: Cost
    notes: tuple[str, ...] = field(default=())
    task: Task = "classification"
    untried: Point | None = None

    @property
    def student(self) -> Point:
        """The student to be trained: the chosen one, or a larger one that was not tried, or the nearest.

        Raises
        ------
        ValueError
            No student was judged.
        """
        one = self.chosen or self.untried or self.nearest
        if one is None:
            raise ValueError("result: expected a student that was judged; there is none")
        return one

    @property
    def verdict(self) -> str:
        """The choice in words."""
        goal, within = self.wanted, self.within
        if (one := self.chosen) is not None:
            smallest = "" if self.keep is None else "is the smallest that "
            return f"{one.candidate} {smallest}{goal}{within}: {self._kept(one)}"
        if (one := self.nearest) is None:
            return f"no student was judged, so none {goal}{within}"
        beyond = "" if one.fits else ", beyond the budget"
        share = "keeps a share of the gains" if self.keep is None else goal
        larger = ""
        if self.untried is not None:
            larger = (
                f". There was no time to try {self.untried.candidate}, the student that is trained instead "
                f"({self.untried.parameters:,} parameters): give the search more minutes"
            )
        kept = self._kept(one)
        if all(share.share is None for share in one.kept.values()):
            return f"there is no gain to keep; the nearest student is {one.candidate}{beyond}: {kept}"
        return f"no student {share}{within}; the nearest is {one.candidate}{beyond}: {kept}{larger}"

    def _kept(self, one: Point) -> str:
        """A student's kept shares and its size in words."""
        goals = goals_of(self.task)
        kept = [
            f"{one.kept[m.name]} of the gain in {m.label}"
            for m in goals
            if one.kept[m.name].share is not None
        ]
        clauses = [f"it keeps {' and '.join(kept)}"] if kept else []
        clauses += [
            f"in {m.label} the ensemble has no gain over direct"
            + (", and the student is worse than direct" if one.kept[m.name].worse else "")
            for m in goals
            if one.kept[m.name].share is None
        ]
        size = f"{one.parameters:,} parameters" if one.parameters else f"{one.bytes:,} bytes"
        return "; ".join([*clauses, f"it has {size}"])

    @property
    def wanted(self) -> str:
        """The share that is wanted, in words."""
        return "keeps the most" if self.keep is None else f"keeps {100 * self.keep:g} %"

    @property
    def within(self) -> str:
        """The budgets in words."""
        limits = [
            in_words(name, value) + (" a row" if name == "seconds" else "")
            for name, value in self.limits.items()
        ]
        return f" within {' and '.join(limits)}" if limits else ""

    def __str__(self) -> str:
        return "\n".join(lines(self.as_json()))

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "points": [asdict(one) | {"share": one.share} for one in self.points],
            "chosen": None if self.chosen is None else self.chosen.candidate,
            "nearest": None if self.nearest is None else self.nearest.candidate,
            "untried": None if self.untried is None else self.untried.candidate,
            "direct": asdict(self.direct),
            "ensemble": dict(self.ensemble),
            "gain": {name: None if one is None else list(one) for name, one in self.gain.items()},
            "keep": self.keep,
            "limits": dict(self.limits),
            "rows": self.rows,
            "labelled": self.labelled,
            "cost": asdict(self.cost),
            "task": self.task,
            "verdict": self.verdict,
            "notes": list(self.notes),
        }

    def save(self, path: Path | str) -> None:
        """Write the JSON."""
        write_json(path, self.as_json())

    def figure(self) -> Figure:
        """The frontier as a picture of matplotlib: ``result.figure().savefig("frontier.png")``."""
        return draw(self.as_json())

    def yaml(self, name: str = "student") -> str:
        """A job's ``distill`` section with the chosen student, or the nearest, which needs no search.

        Raises
        ------
        ValueError
            No student was judged.
        """
        import yaml

        section = {"distill": {"students": {name: dict(self.student.section)}}}
        text: str = yaml.safe_dump(section, sort_keys=False, allow_unicode=True)
        return text
