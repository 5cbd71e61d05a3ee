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


def draw(results: RunResults, report: dict[str, Any]) -> Figure:
    """For each student a row of panels: predictions against labels, the student's errors and intervals,
    and the coverage of intervals where some model has a variance."""
    with_variance = any(_has_variance(m) for s in results.students for _, m in _shown(results, s))
    columns = 3 if with_variance else 2
    figure, axes = panels(10.4, 3.7 * len(results.students), len(results.students), columns)
    for row, student in zip(axes, results.students, strict=True):
        _predictions(row[0], row[1], student, results.labels[0])
        if with_variance:
            _coverage(row[2], student, results)
    return figure


def _predictions(left: Any, right: Any, student: StudentResults, labels: np.ndarray) -> None:
    """Of the first seed: predictions of direct and student, and the student's errors."""
    several = labels.shape[1] > 1
    rows, numbers = np.divmod(_sample(labels.size), labels.shape[1])
    scale = deviations(labels) if several else np.ones(1)
    middle = labels.mean(0) if several else np.zeros(1)
    true = ((labels - middle) / scale)[rows, numbers]
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
    right.set(title=f"{student.name}: errors", xlabel=f"predicted{unit}", ylabel="true - predicted")


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


def _coverage(axis: Any, student: StudentResults, results: RunResults) -> None:
    """Coverage against the level of central Gaussian intervals, of the models that have a variance."""
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
    axis.set(xlim=(0, 1.04), ylim=(0, 1.04), xlabel="probability of the interval", aspect="equal")
    axis.set(title=f"{student.name}: intervals", ylabel="share of labels within")
    axis.legend(loc="upper left")


def _shown(results: RunResults, student: StudentResults) -> list[tuple[str, ModelResult]]:
    own = [(kind, student.models[kind]) for kind in ("direct", "student")]
    return [("ensemble", results.ensemble), *own]


def _has_variance(model: ModelResult) -> bool:
    return all(forecasts.variance is not None for forecasts in model.forecasts)
