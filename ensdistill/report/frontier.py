"""The frontier of a search for a student: size against the share of the ensemble's gain that is kept, as text
and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ensdistill.common.tasks import Task
from ensdistill.report.drawing import COLOURS, INK, OTHER, styled
from ensdistill.report.measures import MEASURES, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = ("o", "s")


def goals_of(task: Task) -> list[Metric]:
    """The metrics whose kept shares a search goes by: the deciding ones of its task, likelihood first."""
    return list(reversed(MEASURES[task].deciding))


def goals(found: Mapping[str, Any]) -> list[Metric]:
    """Those of a search's result."""
    return goals_of(found.get("task", "classification"))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The frontier as lines of text.

    Parameters
    ----------
    found : mapping
        The JSON of an :class:`ensdistill.student.search.SearchResult`.
    """
    metrics = goals(found)
    agreeing = "agreement" in found["ensemble"]
    head = ["", "parameters", "bytes", "1 row", *(f"kept {m.label}" for m in metrics)]
    head += [*(m.label for m in metrics), *["agreement"] * agreeing]
    rows = [head]
    for one in found["points"]:
        mark = "→" if one["candidate"] == found["chosen"] else "·" if one["frontier"] else " "
        shares, means = _kept(one, metrics), _means(one["figures"], metrics)
        rows.append([f"{mark} {one['candidate']}", *_sizes(one), *shares, *means])
    direct = found["direct"]
    none, all_of_it = ([share] * len(metrics) for share in ("0 %", "100 %"))
    means = _means(direct["figures"], metrics)
    rows.append([f"  direct, {direct['candidate']}", *_sizes(direct), *none, *means])
    rows.append(["  ensemble", "", "", "", *all_of_it, *_means(found["ensemble"], metrics)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    text = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    cost = found["cost"]
    spent = ", ".join(
        f"{role} {cost['trials'][role]} trials ({cost['ended'][role]} ended early) in "
        f"{cost['seconds'][role]:.0f} s"
        for role in ("student", "direct")
    )
    starred = any(one["kept"][m.name]["basis"] == "ensemble" for one in found["points"] for m in metrics)
    own = MEASURES[found.get("task", "classification")].predictions
    note = f"* by the ensemble's own {own}, because the labels are too few. " if starred else ""
    return [
        f"On {found['rows']} validation rows, {found['labelled']} of them with a label:",
        *(line.rstrip() for line in text),
        f"{note}· no smaller one keeps as much. Cost: {spent}; the ensemble predicted "
        f"{cost['teacher_rows']:,} rows.",
        "",
        found["verdict"],
        *found["notes"],
    ]


def _sizes(one: Mapping[str, Any]) -> list[str]:
    latency = "" if one["latency"] is None else f"{1e6 * one['latency']:.0f} µs"
    parameters = f"{one['parameters']:,}" if one["parameters"] else "-"  # a booster's are not counted
    return [parameters, f"{one['bytes']:,}", latency]


def _kept(one: Mapping[str, Any], metrics: Sequence[Metric]) -> list[str]:
    return [kept_text(one["kept"][metric.name]) for metric in metrics]


def kept_text(kept: Mapping[str, Any]) -> str:
    """A share with its 95 % interval; a star where the ensemble's own probabilities judged."""
    if kept["share"] is None:
        return "-"
    bounds = None in (kept["low"], kept["high"])
    span = "" if bounds else f" [{100 * kept['low']:.0f}, {100 * kept['high']:.0f}]"
    return f"{100 * kept['share']:.0f} %{span}{'*' if kept['basis'] == 'ensemble' else ''}"


def _means(figures: Mapping[str, float], metrics: Sequence[Metric]) -> list[str]:
    cells = []
    for metric in metrics:
        value = figures.get(metric.name)
        scaled = "" if value is None else f"{100 * value:.2f} %" if metric.percent else f"{value:.4f}"
        cells.append(scaled)
    if "agreement" in figures:
        cells.append(f"{100 * figures['agreement']:.2f} %")
    return cells


def draw(found: Mapping[str, Any]) -> Figure:
    """The share kept against the bytes of the student, with 95 % intervals; the chosen student is ringed.

    Parameters
    ----------
    found : mapping
        See :func:`lines`.

    Raises
    ------
    ModuleNotFoundError
        matplotlib is not installed; the message holds the command that installs it.
    """
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.0, 4.0), layout="constrained")
        axes = figure.subplots()
        looks = zip((COLOURS["student"], COLOURS["ensemble"]), MARKERS, strict=True)
        for metric, (colour, marker) in zip(goals(found), looks, strict=False):
            shown = [one for one in found["points"] if one["kept"][metric.name]["share"] is not None]
            size = [one["bytes"] for one in shown]
            share = [100 * one["kept"][metric.name]["share"] for one in shown]
            axes.plot(size, share, marker, color=colour, label=f"kept in {metric.label}")
            for x, one in zip(size, shown, strict=True):
                kept = one["kept"][metric.name]
                if None not in (kept["low"], kept["high"]):
                    axes.plot([x, x], [100 * kept["low"], 100 * kept["high"]], color=colour, alpha=0.4)
        leading = [one for one in found["points"] if one["frontier"] and one["share"] is not None]
        axes.step(
            [one["bytes"] for one in leading],
            [100 * one["share"] for one in leading],
            where="post",
            color=OTHER,
            label="frontier (the smaller of the two)",
        )
        for one in leading:
            axes.annotate(
                one["candidate"],
                (one["bytes"], 100 * one["share"]),
                textcoords="offset points",
                xytext=(4, -12),
                color=INK,
                fontsize=8,
            )
            if one["candidate"] == found["chosen"]:
                axes.plot(one["bytes"], 100 * one["share"], "o", markersize=14, fillstyle="none", color=INK)
        if found["keep"] is not None:
            axes.axhline(100 * found["keep"], color=INK, linestyle="--", linewidth=0.8)
        axes.set(xscale="log", xlabel="bytes of the student", ylabel="% of the gain over direct that is kept")
        low = min((100 * one["share"] for one in leading), default=0.0)
        axes.set_ylim(min(0.0, low) - 5, 110)
        axes.legend(loc="lower right", fontsize=8)
    return figure
