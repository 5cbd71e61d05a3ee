"""The titles and captions of the report's figures, and their places on the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ensdistill.common.tasks import Task
from ensdistill.report.drawing import FEW, Drawn
from ensdistill.report.measures import MEASURES

SEARCH = "search_"  # before a student's name: the figure of its search
WHOLE = ("metrics",)  # figures whose panels share an axis, so that they stay in one piece
# The parts of the page with several figures; the others stand alone.
PARTS = {
    "frontier": ("frontier",),
    "confidence": ("reliability", "label_reliability", "uncertainty"),
    "each": ("classes", "labels", "predictions"),
}

_CAPTIONS = {
    "metrics": (
        "Every model",
        "Large marks are means over seeds, small dots the seeds; a hollow mark is the model of that colour "
        "after {scaling} scaling.",
    ),
    "reliability": (
        "Reliability",
        "Accuracy of the test rows whose top label has about that confidence, all seeds together; on the "
        "dashed line the confidence "
        f"is right. A mark's area follows its number of rows; faint ones stand for fewer than {FEW}.",
    ),
    "label_reliability": (
        "Reliability",
        "The share of test rows that have a label, among those to which a model gives about that "
        "probability; all labels and seeds together. On the dashed line the probability is right. A mark's "
        f"area follows its number of rows; faint ones stand for fewer than {FEW}.",
    ),
    "classes": (
        "Recall of classes",
        "The gain of ensemble and student over direct, in points, the mean over seeds. Where there are many "
        "classes, those with the largest change. In brackets the number of test rows.",
    ),
    "labels": (
        "Average precision of labels",
        "The gain of ensemble and student over direct, in points, the mean over seeds. Where there are many "
        "labels, those with the largest change. In brackets the number of positive test rows.",
    ),
    "predictions": (
        "Predicted and true",
        "Left test rows of the first seed, a sample where there are many; each number in its standard "
        "deviations, where there are several. Beside them the student's errors; the band is its interval of "
        "90 %, the mean of rows with about that prediction. Right, of models with a variance, the share of "
        "labels within the central Gaussian interval of each probability, the mean over seeds: below the "
        "dashed line the intervals are too narrow.",
    ),
    "frontier": (
        "Quality against cost",
        "Every model on the test rows, timed on the machine named below; dotted lines join direct and "
        "student. A search's candidates are on validation rows, which are other rows, so no line has them.",
    ),
    "uncertainty": (
        "Error of the most certain rows",
        "The error of the rows that are left where a model gives no prediction for those that it is least "
        "certain of; the mean over seeds. A model without a useful uncertainty has a level line.",
    ),
    "learning_curves": (
        "Learning curves",
        "First seed. The objectives differ, so the losses on the left compare only with themselves. The "
        "test rows are watched for this "
        "picture; nothing is chosen by it.",
    ),
}


@dataclass(frozen=True)
class ShownFigure:
    """A figure on the page.

    Parameters
    ----------
    title, caption : str
    panels : list of Markup
        An ``<svg>`` element for each panel.
    legend : list of (Markup, str)
        The mark and the text of each entry of the legend.
    least : int
        The width in pixels from which panels stand side by side.
    whole : bool
        Whether it keeps its width, and scrolls on a narrow screen.
    """

    title: str
    caption: str
    panels: Sequence[Any]
    legend: Sequence[Any]
    least: int
    whole: bool = False


def shown_figures(task: Task, drawings: Mapping[str, Drawn]) -> dict[str, Any]:
    """Figures by part of the page: a list for each of `PARTS`, one `ShownFigure` for each of the others."""
    found = {stem: _shown(stem, task, drawn) for stem, drawn in drawings.items()}
    parts: dict[str, Any] = {
        part: [found.pop(stem) for stem in stems if stem in found] for part, stems in PARTS.items()
    }
    parts["frontier"] += [found.pop(stem) for stem in list(found) if stem.startswith(SEARCH)]
    return parts | found


def _shown(stem: str, task: Task, drawn: Drawn) -> ShownFigure:
    from markupsafe import Markup

    title, caption = _caption(stem, task)
    widths = [float(found[1]) for one in drawn.panels if (found := re.search(r'width="([\d.]+)pt"', one))]
    least = min(round(0.8 * max(widths, default=360.0) * 4 / 3), 420)  # pixels from points
    return ShownFigure(
        title,
        caption,
        [*map(Markup, drawn.panels)],
        [(Markup(m), name) for m, name in drawn.legend],
        least,
        stem in WHOLE,
    )


def _caption(stem: str, task: Task) -> tuple[str, str]:
    if not stem.startswith(SEARCH):
        title, text = _CAPTIONS[stem]
        return title, text.replace("{scaling}", MEASURES[task].scaling)
    return (
        f"The search for {stem.removeprefix(SEARCH)}",
        "First seed. The best student of each size, and the share that it keeps on the validation rows, with "
        "95 % intervals; the chosen one is ringed.",
    )
