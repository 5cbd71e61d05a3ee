"""The reliability figure of classifiers, and of the labels of multi-label models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.report import metrics, multilabel_metrics
from ensdistill.report.drawing import COLOURS, FEW, INK, MARKERS, panels
from ensdistill.report.results import RunResults
from ensdistill.report.verdict import KIND_LABELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reliability(results: RunResults, report: dict[str, Any]) -> Figure:
    """Accuracy against confidence, or the share of rows with a label against its probability, the rows of all
    seeds together, for ensemble, direct and student; one panel for each student."""
    students = results.students
    figure, axes = panels(4.4 * len(students), 5.1, 1, len(students))
    labels = np.concatenate(results.labels)
    weights = np.concatenate(results.weights) if len(results.weights) else None
    of_labels = results.task == "multilabel"
    across = "probability of a label" if of_labels else "confidence of the top label"
    for axis, student in zip(axes[0], students, strict=True):
        axis.plot([0, 1], [0, 1], "--", color=INK, alpha=0.4, linewidth=1)
        for kind, model in (
            ("ensemble", results.ensemble),
            ("direct", student.models["direct"]),
            ("student", student.models["student"]),
        ):
            bins = _bins(model.probabilities, labels, weights, of_labels)
            # The tables' figure, a mean over seeds: that of the pooled rows drawn here would be smaller, and
            # would contradict them.
            ece = report["students"][student.name]["models"][kind]["ece"]["mean"]
            label = f"{KIND_LABELS[kind]}, ECE {100 * ece:.2f} %"
            enough = bins.count >= FEW
            axis.plot(
                bins.confidence[enough],
                bins.accuracy[enough],
                "-",
                color=COLOURS[kind],
                linewidth=1,
                alpha=0.35,
            )
            # A bin's area follows its rows: a far-off bin of three rows should not look like one of three
            # hundred.
            area = 8 + 160 * bins.count / bins.count.max()
            for shown, alpha, name in ((enough, 0.8, label), (~enough, 0.2, None)):
                x, y = bins.confidence[shown], bins.accuracy[shown]
                axis.scatter(x, y, area[shown], COLOURS[kind], marker=MARKERS[kind], label=name, alpha=alpha)
        axis.set(title=student.name, ylabel="share of rows that have it" if of_labels else "accuracy")
        axis.set(xlim=(0, 1.04), ylim=(0, 1.04), xlabel=across, aspect="equal")
        # Below the panel: over- and underconfident models have their marks in all corners.
        legend = axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), handletextpad=0.2)
        for handle in legend.legend_handles:
            handle.set_sizes([36])
    return figure


def _bins(
    probabilities: Sequence[np.ndarray], labels: np.ndarray, weights: np.ndarray | None, of_labels: bool
) -> metrics.Reliability:
    """The rows of all seeds, by their confidence, or by the probability of each label."""
    all_seeds = np.concatenate(list(probabilities))
    if not of_labels:
        return metrics.reliability(all_seeds, labels, weights=weights)
    prediction = multilabel_metrics.LabelProbabilities(all_seeds)
    return multilabel_metrics.reliability(prediction, labels, weights=weights)
