"""The picture of a result: the shares that were kept, with intervals, and the students beside other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.quality.judgement import ACCURACY, NLL, metrics_of
from ensdistill.common.files import atomic_path

STUDENTS = {
    "keep": ("#009E73", "the size that keep: 0.95 chooses"),
    "member": ("#0072B2", "as large as a member"),
    "tenth": ("#D55E00", "a tenth of a member"),
    "quarter": ("#CC79A7", "a quarter of a member"),
}
GOAL = 0.95


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG: for each metric the share kept on every case in which it counts."""
    cases = list(dict.fromkeys((one["set"], one["regime"]) for one in result["students"]))
    figure = Figure(figsize=(11, 1.8 + 0.5 * len(cases)), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, squeeze=False)[0]
    for place, panel in enumerate(panels):
        _shares(panel, result["students"], cases, place)
    labels = dict[str, Any]()
    for panel in panels:
        labels |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(list(labels.values()), list(labels), loc="outside lower center", ncols=4, fontsize=8)
    seeds = result["settings"]["seeds"]
    figure.suptitle(f"Share of the ensemble's gain that students kept: {seeds} seeds, 95 % intervals")
    with atomic_path(path) as part:
        figure.savefig(part, format="png")


def _shares(panel: Any, students: list[dict[str, Any]], cases: list[tuple[str, str]], place: int) -> None:
    sizes = [size for size in STUDENTS if any(one["size"] == size for one in students)]
    for number, size in enumerate(sizes):
        colour, label = STUDENTS[size]
        shift = 0.2 * (number - (len(sizes) - 1) / 2)
        for one in students:
            found = one[metrics_of(one)[place]]
            if one["size"] != size or found["kept"] is None or found["kept_interval"] is None:
                continue
            height = len(cases) - 1 - cases.index((one["set"], one["regime"])) + shift
            low, high = (min(max(bound, -1.0), 2.0) for bound in found["kept_interval"])
            kept = min(max(found["kept"], -1.0), 2.0)
            strong = 1.0 if found["counts"] else 0.35
            panel.plot([low, high], [height] * 2, color=colour, alpha=strong, linewidth=2)
            panel.plot([kept], [height], "o", color=colour, alpha=strong, label=label)
    panel.axvline(GOAL, color="#555555", linewidth=0.8, linestyle="--")
    panel.axvline(0, color="#555555", linewidth=0.8)
    panel.set_ylim(-0.5, len(cases) - 0.5)
    panel.set_yticks(range(len(cases)), [f"{name}, {regime}" for name, regime in reversed(cases)], fontsize=8)
    panel.set_title((ACCURACY, NLL)[place], fontsize=10)
    panel.set_xlabel("pale: the ensemble leads by less than 4 standard errors", fontsize=8)
