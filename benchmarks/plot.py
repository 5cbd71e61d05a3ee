"""The roofline picture: how many times the floor every implementation takes, shape by shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # the object interface needs no display and leaves pyplot's state alone

from benchmarks.table import by_shape
from ensdistill.files import atomic_path

# Okabe and Ito's colours, and markers: the picture also reads in grey.
_LOOKS = {
    "fused": ("o", "#0072B2"),
    "fused-avx2": ("s", "#56B4E9"),
    "compile": ("^", "#E69F00"),
    "eager": ("D", "#D55E00"),
}
_NAMES = {"compile": "torch.compile", "eager": "eager torch"}


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG with one panel for each kind of target and number of members."""
    mode = result["rows"][0]["mode"]
    shapes = by_shape(result, mode)
    targets = list(dict.fromkeys(s["fused"]["targets"] for s in shapes))
    members = list(dict.fromkeys(s["fused"]["members"] for s in shapes))
    figure = Figure(figsize=(1.5 + 3.6 * len(targets), 1.2 + 2.6 * len(members)), dpi=150, layout="constrained")
    panels = figure.subplots(len(members), len(targets), squeeze=False, sharex=True, sharey=True)
    for line, k in zip(panels, members, strict=True):
        for panel, kind in zip(line, targets, strict=True):
            inside = [s for s in shapes if s["fused"]["members"] == k and s["fused"]["targets"] == kind]
            _panel(panel, inside, f"{kind}, K = {k}")
        line[0].set_ylabel("time / floor")
    for panel in panels[-1]:
        panel.set_xlabel("classes")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    machine, source = result["machine"], result["source"]
    place = f"{machine['device']}, {machine['threads']} threads, {(source['commit'] or 'no commit')[:8]}"
    figure.suptitle(f"Distillation loss, {mode}: times the streaming floor\n{place}", fontsize=10)
    with atomic_path(path) as part:
        figure.savefig(part, format="png")


def _panel(panel: Any, shapes: list[dict[str, dict[str, Any]]], title: str) -> None:
    positions = range(len(shapes))
    for name, (marker, colour) in _LOOKS.items():
        at = [i for i in positions if name in shapes[i]]
        if at:
            panel.plot(
                at,
                [shapes[i][name]["ratio_to_floor"] for i in at],
                marker,
                color=colour,
                label=_NAMES.get(name, name),
                linestyle=":",
                linewidth=0.8,
            )
    panel.axhline(1.0, color="black", linewidth=1.0, label="floor")
    panel.set_yscale("log")
    panel.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    panel.minorticks_off()
    panel.set_xticks(positions, [_short(s["fused"]["classes"]) for s in shapes])
    panel.grid(axis="y", linewidth=0.3)
    panel.set_title(title, fontsize=9)


def _short(classes: int) -> str:
    return str(classes) if classes < 10000 else f"{classes / 1000:.0f}k"
