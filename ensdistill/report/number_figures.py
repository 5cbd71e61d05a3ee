"""The figures of regressions: predicted against true, errors beside intervals, and intervals' coverage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.report.drawing import COLOURS, INK, panels
from ensdistill.report.regression_metrics import Forecasts, coverage_curve, deviations
from ensdistill.report.results import ModelResult, RunResults, StudentResults
from ensdistill.report.verdict import KIND_LABELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 600  # of each model: more hide each other, and make the page large
BINS = 12  # of the shaded intervals
LEVELS = np.linspace(0.05, 0.95, 19)


def predictions(results: RunResults, report: dict[str, Any]) -> Figure:
    """For each student a row: left predictions against labels of direct and student, right the student's
    errors against its predictions, and the intervals' half width. First seed."""
    students, labels = results.students, results.labels[0]
    several = labels.shape[1] > 1
    figure, axes = panels(10.4, 4.2 * len(students), len(students), 2)
    rows, numbers = np.divmod(_sample(labels.size), labels.shape[1])
    scale = deviations(labels) if several else np.ones(1)
    middle = labels.mean(0) if several else np.zeros(1)
    true = ((labels - middle) / scale)[rows, numbers]
    for (left, right), student in zip(axes, students, strict=True):
        for kind in ("direct", "student"):
            mean = (student.models[kind].forecasts[0].mean - middle) / scale
            found = mean[rows, numbers]
            look = {"color": COLOURS[kind], "alpha": 0.35, "markersize": 4}
            left.plot(true, found, ".", label=KIND_LABELS[kind], **look)
        ends = [float(true.min()), float(true.max())]
        left.plot(ends, ends, "--", color=INK, alpha=0.4, linewidth=1)
        unit = ", standard deviations" if several else ""
        left.set(title=f"{student.name}: predicted", xlabel=f"true{unit}", ylabel=f"predicted{unit}")
        left.legend(loc="upper left", handletextpad=0.1, markerscale=2)
        right.plot(found, true - found, ".", **look)
        right.axhline(0, color=INK, linestyle="--", alpha=0.4, linewidth=1)
        _shade(right, student, middle, scale)
        right.set(
            title=f"{student.name}: errors", xlabel=f"predicted{unit}", ylabel=f"true - predicted{unit}"
        )
    return figure


def _sample(count: int) -> np.ndarray:
    """Positions of points to show: all, or a draw that is always the same."""
    if count <= POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, POINTS, replace=False))


def _shade(axis: Any, student: StudentResults, middle: np.ndarray, scale: np.ndarray) -> None:
    """The mean half width of the student's intervals, over bins of equally many predictions."""
    forecasts: Forecasts = student.models["student"].forecasts[0]
    if (bounds := forecasts.bounds) is None:
        return
    half = ((bounds[1] - bounds[0]) / 2 / scale).ravel()
    mean = ((forecasts.mean - middle) / scale).ravel()
    parts = [part for part in np.array_split(np.argsort(mean, kind="stable"), BINS) if len(part)]
    x = [float(mean[part].mean()) for part in parts]
    y = np.array([half[part].mean() for part in parts])
    axis.fill_between(x, -y, y, color=COLOURS["student"], alpha=0.18, linewidth=0)


def intervals(results: RunResults, report: dict[str, Any]) -> Figure | None:
    """Coverage against level of central Gaussian intervals, one panel for each student; None where no model
    has a variance."""
    students = [s for s in results.students if any(_has_variance(m) for _, m in _shown(results, s))]
    if not students:
        return None
    figure, axes = panels(5.0 * len(students) + 0.2, 4.8, 1, len(students), sharey=True)
    for axis, student in zip(axes[0], students, strict=True):
        axis.plot([0, 1], [0, 1], "--", color=INK, alpha=0.4, linewidth=1)
        for kind, model in _shown(results, student):
            if not _has_variance(model):
                continue
            curves = [
                coverage_curve(forecasts, labels, LEVELS, results.weights_of(s))
                for s, (forecasts, labels) in enumerate(zip(model.forecasts, results.labels, strict=True))
            ]
            covered = np.mean(curves, axis=0)
            axis.plot(LEVELS, covered, ".-", color=COLOURS[kind], label=KIND_LABELS[kind], alpha=0.85)
        axis.set_title(student.name)
        axis.set(xlim=(0, 1.04), ylim=(0, 1.04), xlabel="probability of the interval", aspect="equal")
        axis.legend(loc="upper left")
    axes[0, 0].set_ylabel("share of labels within")
    return figure


def _shown(results: RunResults, student: StudentResults) -> list[tuple[str, ModelResult]]:
    own = [(kind, student.models[kind]) for kind in ("direct", "student")]
    return [("ensemble", results.ensemble), *own]


def _has_variance(model: ModelResult) -> bool:
    return all(forecasts.variance is not None for forecasts in model.forecasts)
