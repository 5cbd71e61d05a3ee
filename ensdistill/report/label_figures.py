"""The figure of classes and labels: the recall, or average precision, that each one gains or loses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ensdistill.report.drawing import COLOURS, INK, MARKERS, panels
from ensdistill.report.measures import MEASURES
from ensdistill.report.outputs import most_changed
from ensdistill.report.results import RunResults
from ensdistill.report.verdict import KIND_LABELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 30  # labels, of which there may be thousands


def draw(results: RunResults, report: dict[str, Any]) -> Figure | None:
    """The gain of ensemble and student over direct for each class or label, one panel for each student; None
    where the metric is defined for none of them."""
    each = MEASURES[results.task].each
    chosen = {}
    for name, student in report["students"].items():
        changed = most_changed(student["outputs"], each, SHOWN)
        there = [(one, change) for one in changed if (change := each.change(one)) is not None]
        chosen[name] = [one for one, _ in sorted(there, key=lambda item: item[1])]
    if not any(chosen.values()):
        return None
    height = 1.1 + 0.22 * max(map(len, chosen.values()))
    figure, axes = panels(4.6 * len(chosen), height, 1, len(chosen))
    for axis, (name, outputs) in zip(axes[0], chosen.items(), strict=True):
        axis.axvline(0, color=INK, linestyle="--", alpha=0.4, linewidth=1)
        for kind in ("ensemble", "student"):
            gains = [100 * (each.change(one, kind) or 0.0) for one in outputs]
            axis.plot(
                gains,
                range(len(outputs)),
                MARKERS[kind],
                color=COLOURS[kind],
                label=KIND_LABELS[kind],
                alpha=0.85,
            )
        for y, one in enumerate(outputs):
            ends = [100 * (each.change(one, kind) or 0.0) for kind in ("ensemble", "student")]
            axis.plot(ends, [y, y], "-", color=INK, alpha=0.25, linewidth=1, zorder=1)
        names = [f"{_short(one['name'])} ({one[each.about]:.4g})" for one in outputs]
        axis.set_yticks(range(len(outputs)), names)
        axis.set_ylim(-0.7, len(outputs) - 0.3)
        axis.tick_params(axis="y", length=0)
        axis.set(title=name, xlabel=f"{each.metric.label} over direct, points")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _short(name: str, length: int = 28) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
