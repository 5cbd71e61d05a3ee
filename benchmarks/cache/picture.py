"""The picture of a result: records a second of every store, warm and cold; bytes against error of every
codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ensdistill.common.files import atomic_path

_OURS, _OTHERS = "#0072B2", "#999999"


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG."""
    widths = sorted({row["width"] for row in result["gather"]})
    figure = Figure(figsize=(4.2 * (len(widths) + 1), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(widths) + 1)
    for panel, width in zip(panels, widths, strict=False):
        rows = sorted(
            (row for row in result["gather"] if row["width"] == width),
            key=lambda row: row["warm_records_per_s"],
        )
        colours = [_OURS if row["store"].startswith("ensdistill") else _OTHERS for row in rows]
        panel.barh([row["store"] for row in rows], [row["warm_records_per_s"] for row in rows], color=colours)
        cold = [i for i, row in enumerate(rows) if row["was_cold"]]
        panel.plot([rows[i]["cold_records_per_s"] for i in cold], cold, "k|", markersize=12, label="cold")
        panel.set_xscale("log")
        panel.set_xlabel("records a second, random batches of 1024")
        panel.set_title(f"records of {width} bytes", fontsize=10)
        panel.legend(frameon=False, fontsize=8)
    panel = panels[-1]
    for row in result["codecs"]:
        kl = max(row["kl"]["mean"], 1e-9)
        panel.plot(row["bytes_per_sample"], kl, "o" if row["mixture_at"] is None else "s", color=_OURS)
        label = row["codec"] + ("" if row["mixture_at"] is None else " (mixture)")
        panel.annotate(
            label, (row["bytes_per_sample"], kl), fontsize=7, xytext=(4, 3), textcoords="offset points"
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.margins(x=0.15)
    panel.set_xlabel("bytes of a sample")
    panel.set_ylabel("mean KL, nats (below 1e-9 drawn there)")
    panel.set_title("codecs on real networks' logits", fontsize=10)
    figure.suptitle(
        f"Target cache: {result['machine']['device']}, {result['machine']['cores']} cores", fontsize=11
    )
    with atomic_path(path) as part:
        figure.savefig(part, format="png")
