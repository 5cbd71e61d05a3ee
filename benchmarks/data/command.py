"""The command line of ``python -m benchmarks data``."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.data import measure, sources
from ensdistill.bench import machine
from ensdistill.bench.result import write_result

KINDS = ("array", "parquet", "arrow", "png")
DESCRIPTION = """\
Samples a second and peak memory through cache_targets and the student's trainer, from an array, a Parquet file, an Arrow file and a folder
of PNGs, against a plain loop over a torch DataLoader with as many workers and the same networks. The contenders take turns; each
runs in a process of its own. The cached logits are compared with those of the plain loop before anything is reported.

The network alone costs half a microsecond a row, so its ratio is the floor: it shows the cache's own work (hashes, checksums, measured
errors), which a plain loop does not do. Rows of tables also go through a network and a forest of 100 trees, as in a usual ensemble.

--large takes a Parquet file of 4 GB and 200 000 PNGs (an hour and 12 GB of disk). Keep the machine quiet.
"""


def main(arguments: Sequence[str], folder: Path) -> int:
    """Run; the result goes to ``folder``. Returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks data",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size = p.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="few samples and one round: does it all work?")
    size.add_argument("--large", action="store_true", help="a Parquet file of 4 GB, and 200 000 PNGs")
    p.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        metavar="KIND",
        help=f"of {', '.join(KINDS)}",
    )
    p.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read (default: 2)")
    p.add_argument("--rounds", type=int, metavar="N", help="default: 3; quick and large: 1")
    p.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="where samples are made, and kept for the next run"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="the result, .json")
    options = p.parse_args(arguments)
    notes, screen = Console(stderr=True, highlight=False, soft_wrap=True), Console(highlight=False)
    where, source = (
        machine.describe_machine(torch.device("cpu")),
        machine.describe_source(torch.device("cpu")),
    )
    suffix = "-quick" if options.quick else "-large" if options.large else ""
    out = options.out or folder / f"data-{machine.result_name(where, source)}{suffix}.json"
    rounds = options.rounds or (1 if options.quick or options.large else 3)
    steps = measure.STEPS["quick" if options.quick else "full"]
    scratch = options.scratch or Path(tempfile.mkdtemp(prefix="ensdistill-bench-"))
    result: dict[str, Any] = {
        "schema_version": 1,
        "benchmark": "data",
        "machine": where,
        "source": source,
        "settings": {"rounds": rounds, "steps": steps, "workers": options.workers},
        "rows": [],
    }
    try:
        for kind in options.kinds:
            rows = _rows(kind, options.quick, options.large)
            place = scratch / f"{kind}-{rows}"
            notes.print(f"{kind}: {rows:,} samples ...")
            sources.make(kind, place, rows)
            taken = min(steps, measure.PNG_STEPS) if kind == "png" else steps
            result["rows"].append(_measure(kind, place, rows, options.workers, taken, rounds, notes))
            write_result(out, result)
    finally:
        if options.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)
    _print(result, screen)
    notes.print(str(out))
    return 0


def _rows(kind: str, quick: bool, large: bool) -> int:
    if quick:
        return 2000 if kind == "png" else 100_000
    if large:
        return 200_000 if kind == "png" else 20_000_000  # 4 GB of float32
    return 20_000 if kind == "png" else 1_000_000


def _measure(
    kind: str, place: Path, rows: int, workers: int, steps: int, rounds: int, notes: Console
) -> dict[str, Any]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number in range(rounds):
        for part in ("cache", *["forest"] * (kind != "png"), "student", *["decode"] * (kind == "parquet")):
            # They take turns, and who is first changes: the second finds files in the system's memory.
            for contender in ("plain", "ours") if number % 2 == 0 else ("ours", "plain"):
                if part in ("cache", "forest") and contender == "ours":
                    shutil.rmtree(place / f"{part}-{kind}", ignore_errors=True)
                one = measure.run(contender, part, kind, place, rows, workers, steps)
                found.setdefault((part, contender), []).append(one)
                notes.print(f"  {part} {contender}: {one['samples_per_s']:,.0f}/s, {one['peak_mib']} MiB")
    for part in ("cache", "forest"):
        if (part, "ours") not in found:
            continue
        cached, plain = (found[part, who][0]["outputs"] for who in ("ours", "plain"))
        if cached.shape != plain.shape or not np.allclose(cached, plain, atol=1e-4):
            raise ValueError(
                f"{kind}: the cached logits differ from the plain loop's by {np.abs(cached - plain).max():.3g}"
            )
    if not all(np.isfinite(one["outputs"]).all() for one in found["student", "ours"]):
        raise ValueError(f"{kind}: the student's losses are not finite")
    row: dict[str, Any] = {"kind": kind, "samples": rows}
    for (part, contender), several in found.items():
        row[f"{part}_{contender}"] = {
            name: median(one[name] for one in several)
            for name in ("samples_per_s", "peak_mib", "anonymous_mib", "before_mib")
        }
    if kind == "parquet":
        sums = [found["decode", who][0]["outputs"] for who in ("ours", "plain")]
        if not np.allclose(*sums, rtol=1e-9, atol=1e-6):
            raise ValueError(f"{kind}: the shuffled rows are not those of the file: sums {sums}")
    for part in dict.fromkeys(part for part, _ in found):
        ratios = [
            ours["samples_per_s"] / plain["samples_per_s"]
            for ours, plain in zip(found[part, "ours"], found[part, "plain"], strict=True)
        ]
        row[f"{part}_ratio"] = {"median": median(ratios), "each": [round(ratio, 3) for ratio in ratios]}
    return row


def _print(result: dict[str, Any], screen: Console) -> None:
    # A part has two contenders and their ratio.
    titles = {"cache": "cache, network", "forest": "cache, with forest", "student": "student"}
    table = Table(title="Samples a second (MiB)", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("from")
    for title in titles.values():
        for column in (title, "plain loop", "ratio"):
            table.add_column(column, justify="right")
    for row in result["rows"]:
        cells = [row["kind"]]
        for part in titles:
            if f"{part}_ratio" not in row:
                cells += ["", "", ""]
                continue
            for contender in ("ours", "plain"):
                one = row[f"{part}_{contender}"]
                cells.append(f"{one['samples_per_s']:,.0f}\n({one['peak_mib']:.0f})")
            cells.append(f"{row[f'{part}_ratio']['median']:.2f}")
        table.add_row(*cells)
    screen.print(table)
    for row in result["rows"]:
        if "decode_ratio" in row:
            screen.print(
                f"Parquet in shuffled order: {row['decode_ours']['samples_per_s']:,.0f} rows a second, "
                f"{row['decode_ratio']['median']:.2f} of decoding from start to end"
            )
