"""The picture of quality against size: the ensemble, and models of several sizes, on each set with a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ensdistill.common.files import atomic_path, read_json
from ensdistill.report.drawing import COLOURS, INK, MARKERS
from ensdistill.report.results import SCALED

LABELS = {
    "student": "distilled from the ensemble",
    "distilled_from_best_member": "distilled from its best member",
    "direct": "the same network on labels alone, the strongest form",
}
KEEP = "keep"  # jobs.KEEP, whose import takes seconds
SEEDS = {False: "reported seed", True: "development seed"}


@dataclass(frozen=True)
class Panel:
    """One data set's models.

    Attributes
    ----------
    ensemble : (bytes, NLL)
    models : dict of kind to list of (bytes, NLL), in the order of their sizes
    """

    name: str
    ensemble: tuple[int, float]
    models: dict[str, list[tuple[int, float]]]


def panels(results: Sequence[dict[str, Any]]) -> list[Panel]:
    """The sets of classes in these results that have a pool and several sizes, in the order of their names.

    Of equal sizes of a set the first is taken, and of reported and development seeds the first that have
    several sizes. The line of the ensemble is that of a student of a given size, where there is one.
    """
    by_seed: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for result in results:
        for one in result["students"]:
            if one["regime"] == "pool" and one.get("task", "classification") == "classification":
                sizes = by_seed.setdefault((one["set"], result["settings"]["first_seed"]), {})
                sizes.setdefault(one["size"], one)
    found: dict[str, Panel] = {}
    for (name, first_seed), sizes in by_seed.items():
        if len(sizes) < 2 or name in found:
            continue
        sized = sorted(sizes.values(), key=lambda one: one["cost"]["bytes"])
        whole = next((one for one in sized if one["size"] != KEEP), sized[0])
        ensemble = (whole["ensemble_cost"]["bytes"], whole["nll"]["means"]["ensemble"])
        models = {kind: [(one["cost"]["bytes"], _nll(kind, one["nll"])) for one in sized] for kind in LABELS}
        found[name] = Panel(f"{name}, {SEEDS[first_seed == 0]}", ensemble, models)
    return [found[name] for name in sorted(found)]


def _nll(kind: str, found: dict[str, Any]) -> float:
    """After temperature scaling; of *direct* that of its strongest form."""
    return float(found["means"][found["strongest_direct"] if kind == "direct" else SCALED[kind]])


def draw(found: Sequence[Panel], path: Path) -> None:
    """Write an SVG with a panel for each set, three beside each other."""
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    with rc_context({"svg.hashsalt": "frontier", "font.size": 9, "text.color": INK}):
        figure = Figure(figsize=(4.2 * columns, 3.6 * rows), layout="constrained", facecolor="white")
        places = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in places[len(found) :]:
            axes.set_axis_off()
        for axes, panel in zip(places, found, strict=False):
            size, nll = panel.ensemble
            axes.axhline(nll, color=COLOURS["ensemble"], linewidth=0.8, linestyle="--")
            axes.plot(
                [size / 1e3], [nll], MARKERS["ensemble"], color=COLOURS["ensemble"], label="the ensemble"
            )
            for kind, points in panel.models.items():
                sizes, values = [size / 1e3 for size, _ in points], [nll for _, nll in points]
                axes.plot(
                    sizes, values, MARKERS[kind] + "-", color=COLOURS[kind], linewidth=1, label=LABELS[kind]
                )
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} kB")
            axes.set_title(panel.name, fontsize=10)
            axes.set_xlabel("size")
            axes.spines[["top", "right"]].set_visible(False)
        for axes in places[::columns]:
            axes.set_ylabel("NLL on test rows (lower is better)")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        with atomic_path(path) as part:
            figure.savefig(part, format="svg", metadata={"Date": None})


def rewrite(results: Path, path: Path) -> list[Panel]:
    """Draw the committed results of this benchmark. Those of reported seeds take precedence, and before
    others those of jobs that find the size (``-keep.json``), which were run again with later settings."""
    files = sorted(
        results.glob("quality-*c-*.json"),
        key=lambda file: ("develop" in file.name, not file.stem.endswith(f"-{KEEP}"), file.name),
    )
    found = panels([result for file in files if (result := read_json(file)) is not None])
    draw(found, path)
    return found
