"""What students keep of the ensemble's gain over the direct student, on the rows that judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ensdistill.report.bootstrap import interval, ratio_interval
from ensdistill.report.frontier import goals_of, kept_text
from ensdistill.student.quality import Quality
from ensdistill.student.search.figures import Figures, figures_of
from ensdistill.student.search.journal import Journal, Record
from ensdistill.student.search.rows import Lessons


@dataclass(frozen=True, eq=False)
class Judgement:
    """The figures of trials so far, computed once for each."""

    lessons: Lessons
    journal: Journal
    ensemble: Figures
    figures: dict[str, Figures]

    def of(self, record: Record) -> Figures:
        if record.key not in self.figures:
            self.figures[record.key] = figures_of(self.journal.outputs(record), self.lessons.judged)
        return self.figures[record.key]


@dataclass(frozen=True)
class Kept:
    """The share of the ensemble's gain over the direct student that a student keeps in one metric.

    Parameters
    ----------
    share : float or None
        (student - direct) / (ensemble - direct); None where the ensemble is no better than the direct
        student.
    low, high : float or None
        The 95 % interval; None where the ensemble's gain is not beyond its own interval.
    basis : {"labels", "ensemble"}
        On the rows' labels; or by the ensemble's own predictions, as if the labels were drawn from these:
        where there are no labels, or too few to show the gain.
    """

    share: float | None
    low: float | None
    high: float | None
    basis: str

    def __str__(self) -> str:
        return kept_text(asdict(self))


def kept(student: Figures, direct: Figures, ensemble: Figures) -> dict[str, Kept]:
    """What a student keeps in the task's two goals: NLL and accuracy, BCE and mAP, or NLL and RMSE.

    The labels decide where they show a gain of the ensemble over the direct student, beyond the 95 % interval
    of a bootstrap of the rows, or no gain at all. Where they show one within the interval, and where there
    are none, the ensemble's own predictions decide: with labels drawn from these, the excess NLL of a model
    is its KL from the ensemble, its accuracy the mean probability of its choice, and so on. That is likeness
    to the ensemble, not the truth.
    """
    models, found = (student, direct, ensemble), {}
    by_labels = [one.by_labels for one in models if one.by_labels is not None]
    for place, metric in enumerate(goals_of(student.task)):
        one = Kept(None, None, None, "labels")
        if by_labels:
            one = _share(by_labels, place, "labels")
        if one.low is None and (one.share is not None or not by_labels):
            one = _share([model.by_ensemble for model in models], place, "ensemble")
        found[metric.name] = one
    return found


def gain(direct: Figures, ensemble: Figures) -> dict[str, tuple[float, float, float] | None]:
    """The ensemble's gain over the direct student on the labels, in the task's goals, each with its 95 %
    interval; a positive one where the ensemble is better."""
    found: dict[str, tuple[float, float, float] | None] = {}
    for place, metric in enumerate(goals_of(direct.task)):
        found[metric.name] = None
        if (own := direct.by_labels) is not None and (other := ensemble.by_labels) is not None:
            draws = other.draws[:, place] - own.draws[:, place]
            found[metric.name] = (float(other.values[place] - own.values[place]), *interval(draws))
    return found


def _share(models: Sequence[Quality], place: int, basis: str) -> Kept:
    """Of the goal at a place, by student, direct and ensemble."""
    student, direct, ensemble = models
    above, whole = (float((one.values - direct.values)[place]) for one in (student, ensemble))
    if whole <= 0:
        return Kept(None, None, None, basis)
    draws = [(one.draws - direct.draws)[:, place] for one in (student, ensemble)]
    low, high = ratio_interval(*draws) or (None, None)
    return Kept(above / whole, low, high, basis)
