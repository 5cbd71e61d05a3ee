"""The frontier of a run: quality against bytes and latency, of all members, students and candidates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ensdistill.common.tasks import Task
from ensdistill.report.drawing import COLOURS, INK, MARKERS, OTHER, panels, plain_log_ticks
from ensdistill.report.measures import MEASURES, Metric
from ensdistill.report.results import SHARED_KINDS
from ensdistill.report.verdict import kind_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSTS = {"bytes": "bytes", "batch_1": "median latency of one row, ms"}
MEMBER, EXPORT, CANDIDATE = "member", "exported student", "candidate, validation rows"


@dataclass(frozen=True)
class Mark:
    """One model of the figure.

    Parameters
    ----------
    kind : str
        A kind of model, or one of ``member``, ``exported student``, ``candidate, validation rows``.
    model : dict
        Its entry in the report: metrics, bytes and latency_ms.
    name : str
        Beside the mark; none where it is empty.
    place : dict
        Of the name.
    """

    kind: str
    model: dict[str, Any]
    name: str = ""
    place: dict[str, Any] | None = None

    def cost(self, of: str) -> float | None:
        """Bytes, or milliseconds; None where it is unknown or zero, which no logarithmic axis shows."""
        found = self.model["bytes"] if of == "bytes" else self.model["latency_ms"][of]["p50"]
        return float(found) if found else None

    def quality(self, metric: Metric) -> float | None:
        """The mean of a metric as the axis shows it; None where the model lacks it."""
        value = self.model.get(metric.name)
        value = value["mean"] if isinstance(value, dict) else value
        return None if value is None else metric.scale * float(value)

    @property
    def look(self) -> dict[str, Any]:
        """Arguments for matplotlib's ``plot``."""
        if self.kind == MEMBER:
            return {"marker": ".", "color": OTHER, "markersize": 8}
        if self.kind in (EXPORT, CANDIDATE):
            colour, marker = (COLOURS["student"], "P") if self.kind == EXPORT else (OTHER, "o")
            return {"marker": marker, "color": colour, "markersize": 6, "fillstyle": "none"}
        return {"marker": MARKERS[self.kind], "color": COLOURS[self.kind], "markersize": 8}


def marks_of(report: dict[str, Any]) -> Iterator[Mark]:
    """All models that have a cost, the most important last, over the others."""
    for seeds in report.get("searches", {}).values():
        for one in seeds[0]["points"]:
            milliseconds = None if one["latency"] is None else 1e3 * one["latency"]
            latency = {"latency_ms": {"batch_1": {"p50": milliseconds}}}
            yield Mark(CANDIDATE, {**one["figures"], "bytes": one["bytes"], **latency})
    yield from (Mark(MEMBER, member) for member in report["members"])
    yield from (Mark(EXPORT, one) for one in report.get("exports", ()))
    for kind in SHARED_KINDS:
        yield Mark(kind, report["models"][kind])
    for i, (name, student) in enumerate(report["students"].items()):
        yield Mark("direct", student["models"]["direct"])
        named = name if len(report["students"]) > 1 else ""
        yield Mark("student", student["models"]["student"], named, beside(i))


def beside(place: int) -> dict[str, Any]:
    """Where the name of a student stands, by its place among the students: neighbours may be as good."""
    return {"xytext": (8, 3 if place % 2 else -3), "ha": "left", "va": "bottom" if place % 2 else "top"}


def draw(marks: Sequence[Mark], task: Task) -> Figure:
    """A row of panels for each deciding metric that some model has, a column for each cost."""
    from matplotlib.lines import Line2D

    labels = kind_labels(task)
    metrics = [m for m in MEASURES[task].deciding if any(m.name in mark.model for mark in marks)]
    # Candidates of a search alone are no frontier: a job without timing has theirs, but no model's latency.
    models = [mark for mark in marks if mark.kind != CANDIDATE]
    costs = [of for of in COSTS if any(mark.cost(of) for mark in models)] or ["bytes"]
    figure, axes = panels(4.4 * len(costs), 3.1 * len(metrics) + 0.5, len(metrics), len(costs))
    for row, metric in zip(axes, metrics, strict=True):
        for axis, of in zip(row, costs, strict=True):
            _panel(axis, marks, metric, of)
    kinds = list(dict.fromkeys(mark.kind for mark in reversed(marks)))
    handles = [
        Line2D([], [], linestyle="", label=labels.get(kind, kind), **Mark(kind, {}).look) for kind in kinds
    ]
    handles.append(Line2D([], [], color=INK, alpha=0.35, linewidth=1, label="none is cheaper and better"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, handletextpad=0.3)
    return figure


def _panel(axis: Any, marks: Sequence[Mark], metric: Metric, of: str) -> None:
    shown = [
        (x, y, mark)
        for mark in marks
        if (x := mark.cost(of)) is not None and (y := mark.quality(metric)) is not None
    ]
    leading = frontier([(x, y) for x, y, mark in shown if mark.kind != CANDIDATE], metric.sign)
    if leading:
        axis.step(*zip(*leading, strict=True), where="post", color=INK, alpha=0.35, linewidth=1, zorder=1)
    for (x0, y0, before), (x, y, mark) in pairwise(shown):
        if (before.kind, mark.kind) == ("direct", "student"):  # of the same student
            axis.plot([x0, x], [y0, y], ":", color=COLOURS["student"], linewidth=1.2, zorder=1)
    for x, y, mark in shown:
        axis.plot(x, y, linestyle="", **mark.look)
        if mark.name:
            axis.annotate(mark.name, (x, y), textcoords="offset points", fontsize=9, **(mark.place or {}))
    axis.margins(x=0.25, y=0.16)
    if shown:  # matplotlib has no logarithmic ticks without a point
        axis.set_xscale("log")
        plain_log_ticks(axis.xaxis, *([_bytes] if of == "bytes" else []))
    axis.set(title=f"{metric.title}, {'↑' if metric.sign > 0 else '↓'} better", xlabel=COSTS[of])


def _bytes(value: float) -> str:
    """A tick of bytes: 500, 20k, 1M."""
    power = min(3, max(0, int(math.log10(value) // 3)))
    return f"{value / 1000**power:g}{('', 'k', 'M', 'G')[power]}"


def frontier(points: Sequence[tuple[float, float]], sign: int) -> list[tuple[float, float]]:
    """The points of (cost, quality) of which none other is as cheap and better, by rising cost.

    Examples
    --------
    >>> frontier([(1, 0.5), (2, 0.4), (3, 0.9), (3, 0.8)], sign=1)
    [(1, 0.5), (3, 0.9)]
    """
    found: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda one: (one[0], -sign * one[1])):
        if not found or sign * quality > sign * found[-1][1]:
            found.append((cost, quality))
    return found
