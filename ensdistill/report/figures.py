"""The report's figures. One ink colour for all text and lines, so that the page can recolour it for light and
dark."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.report import metrics
from ensdistill.report.results import SCALED, SHARED_KINDS, STUDENT_KINDS, RunResults
from ensdistill.report.verdict import KIND_LABELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1c2128"
# Mid-tones, distinct on white, on near-black and by the colour blind (Okabe & Ito 2008, a little darker or
# lighter); markers repeat it.
COLOURS = {
    "ensemble": "#0a7fc2",
    "best_member": "#4f97a8",
    "direct": "#e07a10",
    "direct_label_smoothing": "#a8842c",
    "distilled_from_best_member": "#c05a96",
    "student": "#0b9a6d",
}
OTHER = "#8b929b"
MARKERS = {
    "ensemble": "D",
    "best_member": "d",
    "direct": "s",
    "direct_label_smoothing": "v",
    "distilled_from_best_member": "^",
    "student": "o",
}
DASHES = {"direct_label_smoothing": "--", "distilled_from_best_member": "-."}
UNSCALED = {scaled: kind for kind, scaled in SCALED.items()}
FEW = 5  # rows below which a bin's accuracy is mostly noise
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.hashsalt": "ensdistill",  # the same figure gives the same bytes
}
_DOT_PANELS = (
    ("accuracy", "accuracy, %", 100),
    ("nll", "NLL, nats", 1),
    ("brier", "Brier", 1),
    ("ece", "ECE, %", 100),
)


def draw(results: RunResults, report: dict[str, Any]) -> dict[str, Figure]:
    """Every figure by file stem: metrics, reliability, latency, and learning_curves where curves were
    recorded.

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
        figures = {
            "metrics": _metrics(report),
            "reliability": _reliability(results, report),
            "latency": _latency(report),
        }
        if any(student.curves for student in results.students):
            figures["learning_curves"] = _learning_curves(results)
        for figure in figures.values():  # laid out once; each format would do it again, for half of its time
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
    return figures


@contextmanager
def styled() -> Iterator[None]:
    """Within, matplotlib draws in the report's style.

    Raises
    ------
    ModuleNotFoundError
        matplotlib isn't installed; the message holds the command that installs it.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the report's figures need matplotlib: pip install 'ensdistill[report]'", name="matplotlib"
        ) from error
    with matplotlib.rc_context(_STYLE):
        yield


def png(figure: Figure) -> bytes:
    """On white, at 160 dots per inch."""
    return _saved(figure, format="png", dpi=160, facecolor="white")


def svg(figure: Figure) -> str:
    """The ``<svg>`` element alone, transparent, its ink set to the surrounding text's colour."""
    text = _saved(figure, format="svg", transparent=True, metadata={"Date": None, "Creator": None}).decode()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _saved(figure: Figure, **options: Any) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def _figure(
    width: float, height: float, rows: int, columns: int, **options: Any
) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import (
        Figure,
    )  # the object interface: no pyplot, hence no global figures and no display

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _metrics(report: dict[str, Any]) -> Figure:
    """Every model in a row, every metric in a panel: the mean, and a small dot for each seed."""
    rows: list[tuple[str, str, dict[str, Any]] | None] = [
        (KIND_LABELS[kind], kind, report["models"][kind]) for kind in SHARED_KINDS
    ]
    for name, student in report["students"].items():
        rows += [
            None,
            *((f"{name}: {KIND_LABELS[kind]}", kind, student["models"][kind]) for kind in STUDENT_KINDS),
        ]
    if report["members"]:
        rows += [None, *((f"member {member['name']}", "member", member) for member in report["members"])]
    figure, axes = _figure(10.4, 0.6 + 0.25 * len(rows), 1, len(_DOT_PANELS), sharey=True)
    for axis, (metric, title, scale) in zip(axes[0], _DOT_PANELS, strict=True):
        for y, row in enumerate(rows):
            if row is None:
                continue
            _, kind, model = row
            # After temperature scaling: the same model, so the same mark, but hollow.
            like = UNSCALED.get(kind, kind)
            colour, marker, fill = (
                COLOURS.get(like, OTHER),
                MARKERS.get(like, "o"),
                "none" if kind in UNSCALED else "full",
            )
            per_seed = scale * np.array(model[metric]["per_seed"])
            axis.plot(per_seed, np.full(len(per_seed), y), ".", color=colour, alpha=0.45, markersize=5)
            axis.plot(scale * model[metric]["mean"], y, marker, color=colour, fillstyle=fill, markersize=7)
        axis.set_title(f"{title} {'→' if metric == 'accuracy' else '←'} better")
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
        axis.margins(x=0.08)
    named = [(y, row[0]) for y, row in enumerate(rows) if row is not None]
    axes[0, 0].set_yticks([y for y, _ in named], [label for _, label in named])
    axes[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _reliability(results: RunResults, report: dict[str, Any]) -> Figure:
    """Accuracy against confidence, the rows of all seeds together, for ensemble, direct and student; one
    panel for each student."""
    students = results.students
    figure, axes = _figure(5.0 * len(students) + 0.2, 4.8, 1, len(students), sharey=True)
    labels = np.concatenate(results.labels)
    weights = np.concatenate(results.weights) if len(results.weights) else None
    for axis, student in zip(axes[0], students, strict=True):
        axis.plot([0, 1], [0, 1], "--", color=INK, alpha=0.4, linewidth=1)
        for kind, model in (
            ("ensemble", results.ensemble),
            ("direct", student.models["direct"]),
            ("student", student.models["student"]),
        ):
            probabilities = np.concatenate(list(model.probabilities))
            bins = metrics.reliability(probabilities, labels, weights=weights)
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
        axis.set_title(student.name)
        axis.set(xlim=(0, 1.04), ylim=(0, 1.04), xlabel="confidence of the top label", aspect="equal")
        legend = axis.legend(loc="lower right", handletextpad=0.2)
        for handle in legend.legend_handles:
            handle.set_sizes([36])
    axes[0, 0].set_ylabel("accuracy")
    return figure


def _learning_curves(results: RunResults) -> Figure:
    """Left each model's own objective, right the NLL on the test rows, which alone compares them; first
    seed."""
    students = [student for student in results.students if student.curves]
    figure, axes = _figure(10.4, 3.3 * len(students), len(students), 2)
    for row, student in zip(axes, students, strict=True):
        for kind, points in student.curves.items():
            look = {
                "color": COLOURS[kind],
                "linestyle": DASHES.get(kind, "-"),
                "linewidth": 0.9 if kind in DASHES else 1.4,
            }
            look["zorder"] = 2 if kind in DASHES else 3
            row[0].plot([p[0] for p in points], [p[1] for p in points], label=KIND_LABELS[kind], **look)
            validated = [(step, value) for step, _, value in points if value is not None]
            row[1].plot([p[0] for p in validated], [p[1] for p in validated], label=KIND_LABELS[kind], **look)
        row[0].set(title=f"{student.name}: training loss, each its own objective", xlabel="step")
        row[1].set(title=f"{student.name}: test NLL, nats", xlabel="step")
        for axis in row:
            values = np.concatenate([line.get_ydata() for line in axis.lines]) if axis.lines else np.empty(0)
            if values.size and (values > 0).all():
                axis.set_yscale("log")
                _plain_log_ticks(axis.yaxis)
    # Beside the panels: curves go everywhere within them. All students have the same kinds.
    handles, labels = max(
        (row[0].get_legend_handles_labels() for row in axes), key=lambda entry: len(entry[1])
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _latency(report: dict[str, Any]) -> Figure:
    """Accuracy against the median time of a batch of 1 and of 256."""
    from matplotlib.lines import Line2D

    above: dict[str, Any] = {"xytext": (0, 8), "ha": "center"}
    below: dict[str, Any] = {"xytext": (0, -13), "ha": "center", "va": "top"}
    points: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        (kind.replace("_", " "), kind, place, report["models"][kind])
        for kind, place in (("ensemble", above), ("best_member", below))
    ]
    for i, (name, student) in enumerate(report["students"].items()):
        # Often beside the next student, and at its direct twin, of the same speed, where the two are as good.
        side, across = ("left", 9) if i % 2 else ("right", -9)
        for kind, up, edge in (("direct", -2, "top"), ("student", 2, "bottom")):
            place = {"xytext": (across, up), "ha": side, "va": edge}
            points.append((f"{name}, {kind}", kind, place, student["models"][kind]))
    figure, axes = _figure(10.4, 3.9, 1, 2, sharey=True)
    for axis, batch in zip(axes[0], ("batch_1", "batch_256"), strict=True):
        for member in report["members"]:
            if member["latency_ms"][batch]["p50"] is not None:
                axis.plot(
                    member["latency_ms"][batch]["p50"],
                    100 * member["accuracy"]["mean"],
                    ".",
                    color=OTHER,
                    markersize=8,
                )
        for label, kind, place, model in points:
            x, y = model["latency_ms"][batch]["p50"], 100 * model["accuracy"]["mean"]
            if x is None:
                continue
            axis.plot(x, y, MARKERS[kind], color=COLOURS[kind], markersize=8)
            axis.annotate(label, (x, y), textcoords="offset points", fontsize=9, **place)
        axis.set_xscale("log")
        axis.margins(x=0.36, y=0.14)
        _plain_log_ticks(axis.xaxis)
        axis.set(title=f"batch of {batch.removeprefix('batch_')}", xlabel="median latency, ms")
    axes[0, 0].set_ylabel("accuracy, %")
    entries: Sequence[tuple[str, str, str]] = [
        (KIND_LABELS[kind], MARKERS[kind], COLOURS[kind])
        for kind in ("ensemble", "best_member", "direct", "student")
    ]
    entries = [*entries, ("member", ".", OTHER)] if report["members"] else entries
    handles = [
        Line2D([], [], marker=marker, color=colour, linestyle="", label=label)
        for label, marker, colour in entries
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.1)
    return figure


def _plain_log_ticks(axis: Any) -> None:
    """0.2, 1, 5 instead of powers of ten, which a range of less than a decade leaves without labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    wide = low <= 0 or np.log10(high / low) > 2.5
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
