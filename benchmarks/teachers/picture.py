"""The picture of a result: seconds of every training, and the effect of choosing among unequal members, with
intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ensdistill.common.files import atomic_path

_OURS, _OTHERS = "#0072B2", "#999999"


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG of a result with trainings or mixtures."""
    timed, judged = result.get("training", []), result.get("quality", [])
    columns = max(len(timed), len(judged))
    heights = [3.4] * bool(timed) + [3.2] * bool(judged)
    figure = Figure(figsize=(6.4 * columns, sum(heights) + 0.4), dpi=150, layout="constrained")
    rows = iter(figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights))
    if timed:
        for panel, found in zip(next(rows), timed, strict=False):
            _seconds(panel, found)
    if judged:
        for panel, found in zip(next(rows), judged, strict=False):
            _differences(panel, found)
    for panel in figure.axes:
        panel.set_visible(panel.has_data())
    figure.suptitle(
        f"Ensembles: {result['machine']['device']}, {result['machine']['cores']} cores", fontsize=11
    )
    with atomic_path(path) as part:
        figure.savefig(part, format="png")


def _seconds(panel: Any, found: dict[str, Any]) -> None:
    contenders = sorted(found["contenders"].items(), key=lambda item: -item[1]["seconds"])
    names = [name for name, _ in contenders]
    seconds = [r["seconds"] for _, r in contenders]
    panel.barh(names, seconds, color=[_OURS if name.startswith("ensdistill") else _OTHERS for name in names])
    for i, (_, r) in enumerate(contenders):
        panel.plot(r["all"], [i] * len(r["all"]), "k|", markersize=5)
        text = f"{r['seconds']:.3g} s, {r['accuracy']:.1%}"
        panel.annotate(
            text, (max(r["all"]), i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7
        )
    panel.set_xlim(0, 1.35 * max(max(r["all"]) for _, r in contenders))
    trained = f"{found['members']} members, {found['epochs']} epochs"
    panel.set_xlabel(f"seconds for {trained}: median and rounds; test accuracy", fontsize=8)
    panel.set_title(f"{found['task']}, {found['model']}", fontsize=10)
    panel.tick_params(axis="y", labelsize=8)


def _differences(panel: Any, found: dict[str, Any]) -> None:
    methods = [name for name in found["of"] if name != "uniform"][::-1]
    for place, name in enumerate(methods):
        mean, low, high = found["of"][name]["nll_minus_uniform"]
        gain, least, most = found["of"][name]["accuracy_minus_uniform"]
        panel.plot([low, high], [place, place], color=_OURS, linewidth=2)
        panel.plot(mean, place, "o", color=_OURS, markersize=4)
        panel.annotate(
            f"accuracy {100 * gain:+.2f} [{100 * least:+.2f}, {100 * most:+.2f}] points",
            (mean, place),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=6,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0},
        )
    panel.set_yticks(range(len(methods)), methods, fontsize=8)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.margins(x=0.35, y=0.12)
    panel.set_xlabel("test NLL minus that of the uniform mixture, nats (95 % interval)", fontsize=8)
    panel.set_title(f"{found['data']}, {found['rows']} rows, splits: {found['seeds']}", fontsize=10)
