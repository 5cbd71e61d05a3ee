"""The command line of ``python -m benchmarks student``."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.student import measure
from benchmarks.student.models import cases
from ensdistill.bench import machine
from ensdistill.bench.result import write_result

DESCRIPTION = """\
Trains four students (an MLP 64-64-10, a CNN, a small transformer, a ResNet-18) from the same targets: in a loop written by hand with
targets in memory, by the trainer with targets in memory, from a cache in fp32 and in uint8, and with K online teachers of the student's
own architecture. Order, loss, optimiser and schedule are the same. Before anything is timed the students are compared: the first three
ways have to end with the same bits, the others with the same losses to 1 %. Then the ways take turns.

step         microseconds, without the first block of 32 steps
over bare    the trainer's own work: the median difference from the bare loop of the same round (goal: 30 microseconds with targets in memory)
over memory  a cache against targets in memory (goal: 1 %)
targets      the source's own work for a step, most of it on another thread (goal: a cache at least K times faster than K teachers)

Keep the machine quiet. The result is written after each student. On two cores the whole takes about half an hour, --quick two minutes.
"""


def main(arguments: Sequence[str], folder: Path) -> int:
    """Run; the result goes to ``folder``. Returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks student",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--quick", action="store_true", help="a narrow ResNet, few steps and rounds: does it all work?"
    )
    p.add_argument("--rounds", type=int, metavar="N", help="timings of each way (default: 7, quick: 2)")
    p.add_argument("--only", metavar="TEXT", help="only students whose name contains it, as MLP")
    p.add_argument(
        "--without-online", action="store_true", help="no online teachers, which take the most time"
    )
    p.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own)")
    p.add_argument("--scratch", type=Path, metavar="FOLDER", help="where the caches are made")
    p.add_argument("--out", type=Path, metavar="FILE", help="the result, .json")
    options = p.parse_args(arguments)
    notes, screen = Console(stderr=True, highlight=False, soft_wrap=True), Console(highlight=False)
    chosen = [case for case in cases(options.quick) if not options.only or options.only in case.name]
    if not chosen:
        notes.print(f"--only: no student has {options.only!r} in its name")
        return 2
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rounds = options.rounds or (2 if options.quick else 7)
    cpu = torch.device("cpu")
    where, source = machine.describe_machine(cpu), machine.describe_source(cpu)
    name = f"student-{machine.result_name(where, source)}" + ("-quick" if options.quick else "")
    out = options.out or folder / f"{name}.json"
    result: dict[str, Any] = {
        "schema_version": 1,
        "benchmark": "student",
        "machine": where,
        "source": source,
        "settings": {"rounds": rounds, "quick": options.quick},
        "students": [],
    }
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ensdistill-bench-", dir=options.scratch) as scratch:
        for case in chosen:
            try:
                online = not options.without_online
                result["students"].append(measure.measure(case, rounds, Path(scratch), notes.print, online))
            except measure.WrongStudent as error:
                notes.print(f"wrong student: {error}")
                return 1
            write_result(out, result)
    _print(result, screen)
    notes.print(str(out))
    return 0


def _print(result: dict[str, Any], screen: Console) -> None:
    for found in result["students"]:
        title = f"{found['student']}, batch {found['batch']}, {found['members']} members, {found['classes']} classes"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, column in enumerate(("targets", "step µs", "over bare µs", "over memory", "targets µs")):
            table.add_column(column, justify="right" if i else "left", no_wrap=True)
        for name, step in found["us_step"].items():
            over, memory, made = (
                found[column].get(name) for column in ("us_over_bare", "over_memory", "us_targets")
            )
            table.add_row(
                name,
                f"{step:,.0f}",
                "" if over is None else f"{over:+,.0f}",
                "" if memory is None else f"{memory:+.1%}",
                "" if made is None else f"{made:,.1f}",
            )
        screen.print(table)
        made = found["us_targets"]
        if measure.ONLINE in made:
            screen.print(
                f"  {found['members']} online teachers take {made[measure.ONLINE] / made[measure.CODES]:,.0f} times as "
                "long as the cache for a step's targets"
            )
