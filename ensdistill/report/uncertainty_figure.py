"""The figure of the uncertainty kept: the error of the most certain rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ensdistill.report.drawing import COLOURS, panels
from ensdistill.report.row_scores import ROW_SCORES
from ensdistill.report.uncertainty import KINDS, SHARES
from ensdistill.report.verdict import KIND_LABELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(report: dict[str, Any]) -> Figure | None:
    """The error against the share of rows that are predicted, the most certain first; one panel for each
    student. None where no student has an uncertainty."""
    scores = ROW_SCORES[report["task"]]
    students = {n: s["uncertainty"] for n, s in report["students"].items() if s["uncertainty"] is not None}
    if not students:
        return None
    figure, axes = panels(4.4 * len(students), 3.4, 1, len(students))
    scale = 100 if scores.percent else 1
    for axis, (name, found) in zip(axes[0], students.items(), strict=True):
        for kind in KINDS:
            if kind in found:
                values = [scale * value for value in found[kind]["curve"]]
                shares = [100 * share for share in SHARES]
                axis.plot(shares, values, ".-", color=COLOURS[kind], label=KIND_LABELS[kind], linewidth=1.4)
        axis.set_ylim(bottom=0)
        axis.set(title=name, xlabel="% of the rows, the most certain first")
        axis.set_ylabel(f"{scores.error_of}{', %' if scores.percent else ', sd'}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure
