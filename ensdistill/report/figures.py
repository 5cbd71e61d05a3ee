"""The report's figures: those of all tasks here, those of one in `label_figures` and `number_figures`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.report import cost_figure, label_figures, number_figures, uncertainty_figure
from ensdistill.report.drawing import (
    COLOURS,
    DASHES,
    MARKERS,
    OTHER,
    UNSCALED,
    lay_out,
    panels,
    plain_log_ticks,
    styled,
)
from ensdistill.report.measures import MEASURES, METRICS
from ensdistill.report.reliability_figure import reliability
from ensdistill.report.results import SHARED_KINDS, STUDENT_KINDS, RunResults
from ensdistill.report.verdict import kind_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawing = Callable[[RunResults, dict[str, Any]], "Figure | None"]
_OWN: dict[Task, dict[str, Drawing]] = {
    "classification": {"reliability": reliability, "classes": label_figures.draw},
    "multilabel": {"label_reliability": reliability, "labels": label_figures.draw},
    "regression": {"predictions": number_figures.draw},
}


def draw(results: RunResults, report: dict[str, Any]) -> dict[str, Figure]:
    """Every figure by file stem: metrics, frontier, those of the task, uncertainty where the models have one,
    and learning_curves where curves were recorded.

    Parameters
    ----------
    results : RunResults
    report : dict
        The return value of `judge` for these results.

    Raises
    ------
    ModuleNotFoundError
        matplotlib isn't installed; the message holds the command that installs it.
    """
    with styled():
        own = {stem: drawing(results, report) for stem, drawing in _OWN[results.task].items()}
        own["uncertainty"] = uncertainty_figure.draw(report)
        figures = {
            "metrics": _metrics(report),
            "frontier": cost_figure.draw(list(cost_figure.marks_of(report)), report["task"]),
        }
        figures |= {stem: figure for stem, figure in own.items() if figure is not None}
        if any(student.curves for student in results.students):
            figures["learning_curves"] = _learning_curves(results)
        for figure in figures.values():
            lay_out(figure)
    return figures


def _metrics(report: dict[str, Any]) -> Figure:
    """Every model in a row, every metric in a panel: the mean, and a small dot for each seed."""
    labels = kind_labels(report["task"])
    rows: list[tuple[str, str, dict[str, Any]] | None] = [
        (labels[kind], kind, report["models"][kind]) for kind in SHARED_KINDS
    ]
    for name, student in report["students"].items():
        rows += [
            None,
            *(
                (f"{name}: {labels[kind]}", kind, student["models"][kind])
                for kind in STUDENT_KINDS
                if kind in student["models"]
            ),
        ]
    if report["members"]:
        rows += [None, *((f"member {member['name']}", "member", member) for member in report["members"])]
    shown = [row[2] for row in rows if row is not None]
    four = MEASURES[report["task"]].metrics[:4]
    metrics = [metric for metric in four if any(metric.name in model for model in shown)]
    figure, axes = panels(10.4, 0.6 + 0.25 * len(rows), 1, len(metrics), sharey=True)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for y, row in enumerate(rows):
            if row is None or metric.name not in row[2]:
                continue
            _, kind, model = row
            # After temperature scaling: the same model, so the same mark, but hollow.
            like = UNSCALED.get(kind, kind)
            colour, marker, fill = (
                COLOURS.get(like, OTHER),
                MARKERS.get(like, "o"),
                "none" if kind in UNSCALED else "full",
            )
            per_seed = metric.scale * np.array(model[metric.name]["per_seed"])
            axis.plot(per_seed, np.full(len(per_seed), y), ".", color=colour, alpha=0.45, markersize=5)
            mean = metric.scale * model[metric.name]["mean"]
            axis.plot(mean, y, marker, color=colour, fillstyle=fill, markersize=7)
        axis.set_title(metric.title + ("", " → better", " ← better")[metric.sign])
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
        axis.margins(x=0.08)
    named = [(y, row[0]) for y, row in enumerate(rows) if row is not None]
    axes[0, 0].set_yticks([y for y, _ in named], [label for _, label in named])
    axes[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _learning_curves(results: RunResults) -> Figure:
    """Left each model's own objective, right the watched metric on the test rows, which alone compares
    them; first seed."""
    labels, watched = kind_labels(results.task), METRICS[MEASURES[results.task].watched]
    students = [student for student in results.students if student.curves]
    figure, axes = panels(8.8, 3.3 * len(students), len(students), 2)
    for row, student in zip(axes, students, strict=True):
        for kind, points in student.curves.items():
            look = {
                "color": COLOURS[kind],
                "linestyle": DASHES.get(kind, "-"),
                "linewidth": 0.9 if kind in DASHES else 1.4,
            }
            look["zorder"] = 2 if kind in DASHES else 3
            row[0].plot([p[0] for p in points], [p[1] for p in points], label=labels[kind], **look)
            validated = [(step, value) for step, _, value in points if value is not None]
            row[1].plot([p[0] for p in validated], [p[1] for p in validated], label=labels[kind], **look)
        row[0].set(title=f"{student.name}: training loss, each its own objective", xlabel="step")
        row[1].set(title=f"{student.name}: test {watched.title}", xlabel="step")
        for axis in row:
            values = np.concatenate([line.get_ydata() for line in axis.lines]) if axis.lines else np.empty(0)
            if values.size and (values > 0).all():
                axis.set_yscale("log")
                plain_log_ticks(axis.yaxis)
    # Beside the panels: curves go everywhere within them. All students have the same kinds.
    handles, names = max(
        (row[0].get_legend_handles_labels() for row in axes), key=lambda entry: len(entry[1])
    )
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure
