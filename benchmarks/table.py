"""A result as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

Rows = dict[str, dict[str, Any]]


def by_shape(result: dict[str, Any], mode: str) -> list[Rows]:
    """The rows of one mode, those of a shape together as {implementation: row}."""
    shapes: dict[tuple[Any, ...], Rows] = {}
    for row in result["rows"]:
        if row["mode"] == mode:
            shapes.setdefault((row["student"], row["targets"], row["members"], row["classes"]), {})[row["implementation"]] = row
    return list(shapes.values())


def print_result(result: dict[str, Any], console: Console) -> None:
    """One table per mode, then the worst shape of each comparison in words."""
    for mode in dict.fromkeys(row["mode"] for row in result["rows"]):
        shapes = by_shape(result, mode)
        console.print(_table(mode, shapes, result["machine"]))
        console.print(*_worst(shapes), sep="\n", end="\n\n")


def _table(mode: str, shapes: list[Rows], machine: dict[str, Any]) -> Table:
    table = Table(title=f"{mode}, {machine['device']}, {machine['threads']} threads", title_justify="left", box=None, padding=(0, 1))
    for name in ("targets", "K", "C", "N", "ms", "GB/s", "x floor", "avx2 x floor", "x eager", "x compile", "extra MiB", "eager's"):
        table.add_column(name, justify="left" if name == "targets" else "right")
    for shape in shapes:
        fused, narrow = shape["fused"], shape.get("fused-avx2")
        table.add_row(
            fused["targets"],
            str(fused["members"]),
            str(fused["classes"]),
            str(fused["rows"]),
            f"{fused['ms']:.2f}",
            f"{fused['gb_per_s']:.1f}",
            f"{fused['ratio_to_floor']:.2f}",
            "" if narrow is None else f"{narrow['ratio_to_floor']:.2f}",
            f"{fused['speedup']['eager']:.1f}",
            f"{fused['speedup']['compile']:.1f}",
            _mib(fused["extra_bytes"]),
            _mib(shape["eager"]["extra_bytes"]),
        )
    return table


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f}"


def _worst(shapes: list[Rows]) -> list[str]:
    comparisons: tuple[tuple[str, Callable[[dict[str, Any]], float], Callable[..., Any]], ...] = (
        ("the floor's time", lambda row: row["ratio_to_floor"], max),
        ("as fast as eager torch", lambda row: row["speedup"]["eager"], min),
        ("as fast as torch.compile", lambda row: row["speedup"]["compile"], min),
    )
    lines = []
    for text, value, worst in comparisons:
        row = worst((shape["fused"] for shape in shapes), key=value)
        lines.append(f"fused, at its worst: {value(row):.2f}x {text} (C={row['classes']}, K={row['members']}, {row['targets']})")
    return lines
