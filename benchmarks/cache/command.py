"""The command line of ``python -m benchmarks cache``."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.cache import codecs, gather, training
from ensdistill.bench import machine
from ensdistill.bench.result import write_result
from ensdistill.cache.mapped import default_threads
from ensdistill.cache.native import shards

PEERS = ("pyarrow", "lmdb", "h5py", "zarr", "safetensors")
DESCRIPTION = """\
Times the target cache's reader against other stores (random batches of 1024 records; warm, and as cold as can be had without being
root), measures every codec's cost on real networks' logits, and a student's step fed by the cache against targets in memory.
Every store's every record is compared before it is timed. Cold is: opened, dropped from the system's memory, then timed. The cache
compares a block with its checksum at its first use after each opening: always in the cold rounds, not again in the warm ones. The
result is written after each part.

Stores whose package is missing are left out: pip install 'ensdistill[bench]'. Keep the machine quiet.
"""


def main(arguments: Sequence[str], folder: Path) -> int:
    """Run; the result goes to ``folder``. Returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks cache",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--quick", action="store_true", help="few records and rounds: does it all work?")
    p.add_argument("--records", type=int, metavar="N", help="of each store (default: 200000; quick: 4000)")
    p.add_argument(
        "--scratch",
        type=Path,
        metavar="FOLDER",
        help="where the stores are made (default: the system's temporary folder)",
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="the result, .json; a .png goes beside it")
    options = p.parse_args(arguments)
    notes, screen = Console(stderr=True, highlight=False, soft_wrap=True), Console(highlight=False)
    n = options.records or (4000 if options.quick else 200_000)
    if n < gather.BATCH:
        notes.print(f"--records: expected at least {gather.BATCH}, a batch; got {n}")
        return 2
    where, source = (
        machine.describe_machine(torch.device("cpu")),
        machine.describe_source(torch.device("cpu")),
    )
    name = f"cache-{machine.result_name(where, source)}" + ("-quick" if options.quick else "")
    out = options.out or folder / f"{name}.json"
    rounds, seconds = (2, 0.05) if options.quick else (9, 0.4)
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="ensdistill-bench-", dir=options.scratch))
    try:
        result: dict[str, Any] = {
            "schema_version": 1,
            "benchmark": "cache",
            "machine": {
                **where,
                "checksums": shards.crc32c_implementation(),
                "peers": {peer: _version(peer) for peer in PEERS},
            },
            "source": source,
            "settings": {
                "records": n,
                "batch": gather.BATCH,
                "rounds": rounds,
                "seconds": seconds,
                "threads": default_threads(),
            },
            "gather": [],
        }
        for width in gather.WIDTHS:
            result["gather"] += gather.measure(scratch, n, width, rounds, seconds, notes.print)
            write_result(out, result)
        notes.print("codecs, on networks trained for it ...")
        result["codecs"] = codecs.measure(scratch, 20 if options.quick else 600, min(rounds, 5), notes.print)
        write_result(out, result)
        result["training"] = training.measure(scratch, rounds, 10 if options.quick else 200, notes.print)
    except gather.WrongRecords as error:
        notes.print(f"wrong records: {error}")
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_result(out, result)
    _print(result, screen)
    from benchmarks.cache.picture import draw

    draw(result, out.with_suffix(".png"))
    notes.print(f"{out}\n{out.with_suffix('.png')}")
    return 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _print(result: dict[str, Any], screen: Console) -> None:
    table = _table(
        "Random batches of 1024 records", "store", "bytes", "warm rec/s", "GB/s", "cold rec/s", "write MB/s"
    )
    for row in result["gather"]:
        cold = row["cold_records_per_s"] if row["was_cold"] else None
        numbers = (row["warm_records_per_s"], row["warm_gb_per_s"], cold, row["write_mb_per_s"])
        texts = ("not cold" if x is None else f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in numbers)
        table.add_row(row["store"], str(row["width"]), *texts)
    screen.print(table)
    if not any(row["cold_mb_from_disk"] for row in result["gather"]):
        screen.print(
            "In the cold rounds nothing came from the disk, or the system does not count it: they may not "
            "have been cold."
        )
    table = _table("Codecs, 4 networks, 100 classes", "codec", "bytes", "KL mean", "p99", "max", "written/s")
    for row in result["codecs"]:
        label = (
            row["codec"]
            if row["mixture_at"] is None
            else f"{row['codec']}, mixture, T = {row['mixture_at']:g}"
        )
        kl = row["kl"]
        table.add_row(
            label,
            str(row["bytes_per_sample"]),
            *(f"{kl[x]:.1e}" for x in kl),
            f"{row['write_samples_per_s']:,.0f}",
        )
    screen.print(table)
    step = result["training"]
    screen.print(
        f"a student's step: {step['ms_cache']:.3f} ms from the cache, {step['ms_memory']:.3f} ms from "
        f"memory ({step['slower']:+.1%})"
    )
