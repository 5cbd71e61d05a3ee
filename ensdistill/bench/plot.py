"""The roofline picture: bytes a second of every implementation, beside those of a plain copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # the object interface needs no display and leaves pyplot's state alone
from matplotlib.ticker import FuncFormatter

from ensdistill.bench.race import MODES
from ensdistill.bench.table import Shape, by_shape, is_family, place
from ensdistill.common.files import atomic_path

# Okabe and Ito's colours, and markers: the picture also reads in grey.
_LOOKS = {
    "floor": (".", "black", "streaming floor of the shape"),
    "fused": ("o", "#0072B2", "ensdistill"),
    "fused-avx2": ("s", "#56B4E9", "ensdistill, AVX2 only"),
    "liger": ("v", "#CC79A7", "Liger-Kernel"),
    "quack": ("x", "#999999", "quack's cross entropy: no teacher"),
    "autotune": ("P", "#009E73", "torch.compile, max-autotune"),
    "compile": ("^", "#E69F00", "torch.compile"),
    "eager": ("D", "#D55E00", "eager torch"),
}


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG with one panel for each kind of target and number of members: dense targets, forward KL,
    loss and gradient."""
    shapes = by_shape(result, MODES[0])
    shapes = [s for s in shapes if not is_family(s["fused"])] or shapes
    targets = list(dict.fromkeys(s["fused"]["targets"] for s in shapes))
    members = sorted({s["fused"]["members"] for s in shapes})
    classes = sorted({s["fused"]["classes"] for s in shapes})
    figure = Figure(
        figsize=(1.5 + 3.4 * len(targets), 1.4 + 2.5 * len(members)), dpi=150, layout="constrained"
    )
    panels = figure.subplots(
        max(1, len(members)), max(1, len(targets)), squeeze=False, sharex=True, sharey=True
    )
    for column, kind in zip(panels.T, targets, strict=True):
        lowest = None
        for panel, k in zip(column, members, strict=True):
            inside = [s for s in shapes if s["fused"]["members"] == k and s["fused"]["targets"] == kind]
            panel.set_visible(bool(inside))
            if inside:
                _panel(panel, inside, classes, result["machine"]["copy_gb_per_s"])
                panel.set_title(f"{kind} targets, K = {k}", fontsize=9)
                lowest = panel
        if (
            lowest is not None
        ):  # a shared axis has its labels in the last row, where this column may have nothing
            lowest.tick_params(labelbottom=True)
            lowest.set_xlabel("classes")
    for line in panels:
        line[0].set_ylabel("GB/s")
    handles = {
        label: handle
        for panel in panels.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    machine, source = result["machine"], result["source"]
    caption = (
        f"{place(machine)}, {(source['commit'] or source['version'])[:8]}: bytes that have to move, over time"
    )
    figure.suptitle(f"Distillation loss and gradient against the memory's speed\n{caption}", fontsize=10)
    with atomic_path(path) as part:
        figure.savefig(part, format="png")


def _panel(panel: Any, shapes: list[Shape], classes: list[int], copy: float) -> None:
    shapes = sorted(shapes, key=lambda s: s["fused"]["classes"])
    panel.axhline(copy, color="black", linewidth=1.0, linestyle="--", label="large copy")
    for name, (marker, colour, label) in _LOOKS.items():
        rows = [s[name] for s in shapes if name in s]
        if rows:
            # Evenly spaced: on a logarithmic axis the vocabularies would lie on each other.
            at, speed = [classes.index(r["classes"]) for r in rows], [r["gb_per_s"] for r in rows]
            style = "-" if name == "floor" else ":"
            panel.plot(
                at, speed, marker, color=colour, label=label, markersize=4, linestyle=style, linewidth=0.8
            )
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xticks(range(len(classes)), [_short(c) for c in classes], rotation=60, fontsize=8)
    panel.grid(axis="y", which="both", linewidth=0.3)


def _short(classes: int) -> str:
    return str(classes) if classes < 10000 else f"{classes / 1000:.0f}k"
