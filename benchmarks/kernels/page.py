"""The tables of ``docs/benchmarks.md`` and the README, generated from a result: ``python -m benchmarks page
[RESULT.json]``."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

from ensdistill.bench.race import MODES
from ensdistill.bench.result import check_result
from ensdistill.bench.table import (
    Shape,
    best_peer,
    by_shape,
    is_family,
    mib,
    milliseconds,
    place,
    ratio,
    what,
)
from ensdistill.common.files import read_json, write_bytes

BLOCK = re.compile(r"(?<=<!-- kernels -->\n).*?(?=<!-- /kernels -->)", re.DOTALL)
_NAMED = re.compile(r"`(benchmarks/results/[^`]+\.json)`")
PAGES = ("README.md", "docs/benchmarks.md")
_SHORT = (10, 1000, 32000, 151936)  # classes in the README
_LAYERS = {  # {implementation: in words}
    "fused": "`linear_distillation_loss`",
    "fused-logits": "a layer, then `distillation_loss`",
    "eager": "a layer, then eager torch",
    "compile": "torch.compile of both",
    "autotune": "the same, max-autotune",
    "liger": "Liger-Kernel",
}


def named(text: str) -> str:
    """Return the path of the result file that a page's table names.

    Raises
    ------
    ValueError
        There is no such table, or it names no file.
    """
    block = BLOCK.search(text)
    found = _NAMED.search(block[0]) if block else None
    if found is None:
        raise ValueError(
            "page: expected a block between <!-- kernels --> and <!-- /kernels --> that names its result file"
        )
    return found[1]


def rewrite(root: Path, result: Path) -> None:
    """Put the tables of ``result`` between the marks of the pages below ``root``: all rows into docs/, a few
    into the README."""
    value = read_json(result)
    if value is None:
        raise ValueError(f"result: there is no file {result}")
    value, name = check_result(value), result.resolve().relative_to(root.resolve()).as_posix()
    for page, table in zip(PAGES, (summary(value, name), markdown(value, name)), strict=True):
        text = (root / page).read_text(encoding="utf-8")
        if BLOCK.search(text) is None:
            raise ValueError(f"{root / page}: expected the lines <!-- kernels --> and <!-- /kernels -->")
        write_bytes(root / page, re.sub(BLOCK, lambda _, table=table: table, text).encode())  # type: ignore[misc]


def summary(result: dict[str, Any], name: str) -> str:
    """The README's block: forward KL of float32 logits at a few numbers of classes, for one member and for
    four."""
    shapes = [
        s for s in _shapes(result, name) if not is_family(s["fused"]) and s["fused"]["targets"] == "float32"
    ]
    few = [s for s in shapes if s["fused"]["members"] in (1, 4) and s["fused"]["classes"] in _SHORT]
    m = result["machine"]
    lines = [
        f"Loss and gradient on {place(m)} (torch {m['versions']['torch']}), every output checked against "
        "float64 first",
        f"(`{name}`; [all shapes, targets and divergences](docs/benchmarks.md)):",
        "",
        *_table([row[:2] + row[2:3] + row[4:7] for row in _shape_rows(few or shapes, "")]),
    ]
    return "\n".join(lines) + "\n"


def markdown(result: dict[str, Any], name: str) -> str:
    """The full block: float32 shape by shape, other dtypes in a line each, then the family and fused
    layers."""
    shapes = _shapes(result, name)
    dense = [s for s in shapes if not is_family(s["fused"])]
    exact = [s for s in dense if s["fused"]["targets"] == "float32"]
    family = [s for s in shapes if is_family(s["fused"]) and not s["fused"]["hidden"]]
    layers = [s for s in shapes if s["fused"]["hidden"]]
    m = result["machine"]
    unfinished = "" if result["complete"] else " The run was interrupted."
    lines = [
        f"Loss and gradient on {place(m)} (torch {m['versions']['torch']}), medians of all contenders in "
        "rotation in one run, every output",
        f"checked against float64 first. A large copy moves {m['copy_gb_per_s']:.1f} GB/s there.{unfinished}",
        f"`python -m benchmarks kernels` makes `{name}`, from which this is generated.",
        "",
    ]
    lines += ["Forward KL, float32:", "", *_table(_shape_rows(exact, ""))] if exact else []
    lines += _others([s for s in dense if s["fused"]["targets"] != "float32"])
    if family:
        table = _table(_shape_rows(family, "what"))
        lines += ["", "## The rest of the family", "", *table]
    lines += (
        ["", "A last layer of D inputs with the loss behind it:", "", *_table(_layer_rows(layers))]
        if layers
        else []
    )
    left_out = [f"{left['who']} at {left['case']} ({left['why']})" for left in result["left_out"]]
    lines += ["", f"Left out: {'; '.join(left_out)}."] if left_out else []
    return "\n".join(lines) + "\n"


def _shapes(result: dict[str, Any], name: str) -> list[Shape]:
    shapes = by_shape(result, MODES[0])
    if not shapes:
        raise ValueError(f"{name}: has no rows of {MODES[0]}")
    return shapes


def _table(rows: list[list[str]]) -> list[str]:
    """Markdown of rows, the first of which is the head; words go left, numbers right."""
    head, *body = rows
    marks = [
        ":---" if any(row[i][:1].isalpha() or row[i][:1] == "`" for row in body) else "---:"
        for i in range(len(head))
    ]
    return ["|" + "|".join(cell.join("  ") for cell in row) + "|" for row in (head, marks, *body)]


def _shape_rows(shapes: list[Shape], first: str) -> list[list[str]]:
    """``first`` heads the column of computations; it is empty where all rows have the same."""
    head = [
        "classes",
        "members",
        "ms",
        "GB/s",
        "× the floor",
        "× eager torch",
        "× torch.compile",
        "× the best other",
        "extra MiB (eager's)",
    ]
    rows = [[*filter(None, [first]), *head]]
    for shape in shapes:
        fused = shape["fused"]
        best = best_peer(fused)
        cells = [
            str(fused["classes"]),
            str(fused["members"]),
            milliseconds(fused["ms"]),
            f"{fused['gb_per_s']:.1f}",
            ratio(fused["ratio_to_floor"]),
            ratio(fused["speedup"].get("eager"), 1),
            ratio(fused["speedup"].get("compile"), 1),
            "" if best is None else ratio(best[1], 1),
            f"{mib(fused['extra_bytes'])} ({mib(shape.get('eager', {}).get('extra_bytes'))})",
        ]
        rows.append([what(fused), *cells] if first else cells)
    return rows


def _others(shapes: list[Shape]) -> list[str]:
    """One row for each kind of target and number of members."""
    kinds = dict.fromkeys((s["fused"]["targets"], s["fused"]["members"]) for s in shapes)
    if not kinds:
        return []
    rows = [
        [
            "targets, over all numbers of classes",
            "members",
            "× the floor: median, worst",
            "× eager torch: least",
            "× torch.compile: least",
        ]
    ]
    for kind in kinds:
        inside = [s["fused"] for s in shapes if (s["fused"]["targets"], s["fused"]["members"]) == kind]
        floors = [r["ratio_to_floor"] for r in inside if r["ratio_to_floor"] is not None]
        least = [
            min((r["speedup"][p] for r in inside if p in r["speedup"]), default=None)
            for p in ("eager", "compile")
        ]
        floor = f"{statistics.median(floors):.2f}, {max(floors):.2f}" if floors else ""
        rows.append([kind[0], str(kind[1]), floor, *(ratio(x, 1) for x in least)])
    return ["", *_table(rows)]


def _layer_rows(shapes: list[Shape]) -> list[list[str]]:
    rows = [["what", "how", "ms", "× its matrix products", "peak extra MiB"]]
    for shape in shapes:
        for name, words in _LAYERS.items():
            if name in shape:
                row = shape[name]
                label = f"{what(row)}, N={row['rows']}, C={row['classes']}"
                rows.append(
                    [label, words, f"{row['ms']:.0f}", ratio(row["ratio_to_floor"]), mib(row["extra_bytes"])]
                )
    return rows
