"""A result as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Shape = dict[str, dict[str, Any]]  # {implementation: row}
COLUMNS = (
    "targets",
    "K",
    "C",
    "N",
    "ms",
    "GB/s",
    "x floor",
    "avx2",
    "x eager",
    "x compile",
    "x best peer",
    "",
    "extra MiB",
    "eager's",
)


def by_shape(result: dict[str, Any], mode: str) -> list[Shape]:
    """The rows of one mode, those of a case together; without cases that ours was left out of."""
    shapes: dict[str, Shape] = {}
    for row in result["rows"]:
        if row["mode"] == mode:
            shapes.setdefault(row["case"], {})[row["implementation"]] = row
    return [shape for shape in shapes.values() if "fused" in shape]


def is_family(row: dict[str, Any]) -> bool:
    """Whether a row is of something else than a forward KL of dense targets [K, N, C]."""
    return bool(row["family"] or row["targets"] == "topk")


def what(row: dict[str, Any]) -> str:
    """The computation in words: targets, then the case's difference from others."""
    return f"{row['targets']} {row['family']}".rstrip()


def place(machine: dict[str, Any]) -> str:
    """Where it was measured, in words."""
    threads = f", {machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    return machine["device"] + (threads if machine["kind"] == "cpu" else "")


def best_peer(fused: dict[str, Any]) -> tuple[str, float] | None:
    """Name of the fastest of the others, and how many times as fast ours is."""
    return min(fused["speedup"].items(), key=lambda item: item[1], default=None)


def as_text(result: dict[str, Any]) -> Group:
    """Return the result for a `rich.console.Console` to print.

    One table for each mode, below it the shape that compares worst with each competitor, then the contenders
    that were left out.
    """
    parts: list[RenderableType] = []
    for mode in dict.fromkeys(row["mode"] for row in result["rows"]):
        shapes = by_shape(result, mode)
        if shapes:
            parts += [_table(mode, shapes, result["machine"]), *_worst(shapes), ""]
    copy = f"A large copy moves {result['machine']['copy_gb_per_s']:.1f} GB/s here."
    parts += [f"{copy} Every output was checked against float64 first.", *result["notes"]]
    parts += [Text(f"{left['case']}: without {left['who']}: {left['why']}") for left in result["left_out"]]
    return Group(*parts)


def _table(mode: str, shapes: list[Shape], machine: dict[str, Any]) -> Table:
    table = Table(title=f"{mode}, {place(machine)}", title_justify="left", box=None, padding=(0, 1))
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("targets", "") else "right", no_wrap=True)
    for shape in shapes:
        fused, narrow, eager = shape["fused"], shape.get("fused-avx2"), shape.get("eager")
        best = best_peer(fused)
        table.add_row(
            what(fused).replace("[", "\\["),
            str(fused["members"]),
            str(fused["classes"]),
            str(fused["rows"]),
            milliseconds(fused["ms"]),
            f"{fused['gb_per_s']:.1f}",
            ratio(fused["ratio_to_floor"]),
            "" if narrow is None else ratio(narrow["ratio_to_floor"]),
            ratio(fused["speedup"].get("eager"), 1),
            ratio(fused["speedup"].get("compile"), 1),
            "" if best is None else ratio(best[1], 1),
            "" if best is None else best[0],
            mib(fused["extra_bytes"]),
            "" if eager is None else mib(eager["extra_bytes"]),
        )
    return table


def milliseconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def ratio(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def mib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f}"


def _worst(shapes: list[Shape]) -> list[str]:
    comparisons: tuple[tuple[str, Callable[[dict[str, Any]], float | None], Callable[..., Any]], ...] = (
        ("the floor's time", lambda row: row["ratio_to_floor"], max),
        ("as fast as eager torch", lambda row: row["speedup"].get("eager"), min),
        ("as fast as torch.compile", lambda row: row["speedup"].get("compile"), min),
        ("as fast as its best peer", lambda row: (best_peer(row) or ("", None))[1], min),
    )
    lines = []
    for text, value, worst in comparisons:
        found = [(v, shape["fused"]["case"]) for shape in shapes if (v := value(shape["fused"])) is not None]
        if found:
            number, case = worst(found)
            lines.append(f"fused, at its worst: {number:.2f}x {text} ({case})".replace("[", "\\["))
    return lines
