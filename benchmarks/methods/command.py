"""The command line of ``python -m benchmarks methods``."""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.methods import measure, table
from benchmarks.methods.data import LONG, NAMES, QUICK, SHORT, Size, draw, few
from benchmarks.quality.jobs import FIRST_SEEDS
from benchmarks.teachers.data import Missing
from ensdistill import cache_targets
from ensdistill.bench import machine
from ensdistill.bench.result import write_result

DESCRIPTION = """\
Trains the same small student by each method, from one cache of an ensemble's targets for each set and seed. The students see
labelled rows and a pool. Scores of test rows: accuracy, NLL (also after one temperature that validation rows fit), KL from the
ensemble, the AUROC by which uncertainty finds rows whose columns were shuffled, and the rank correlation with the members'
disagreement. The result is written after each student, and the same command goes on from it.

Data: apt-get install r-cran-mlbench r-cran-kernlab; pip install 'ensdistill[bench,table]'
"""


def main(arguments: Sequence[str], folder: Path) -> int:
    """Run; the result goes to ``folder``. Returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks methods",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--long", action="store_true", help="larger sets, members, students; hours")
    p.add_argument("--quick", action="store_true", help="few rows and steps: does it all work?")
    p.add_argument("--sets", nargs="+", choices=(*NAMES, "income"), default=list(NAMES), metavar="SET")
    p.add_argument(
        "--methods", nargs="+", metavar="METHOD", help=f"by default all: {', '.join(measure.METHODS)}"
    )
    p.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="by default five reported ones")
    p.add_argument("--develop", action="store_true", help="five other seeds, on which a method may be chosen")
    p.add_argument("--steps", type=int, metavar="N", help="of a student")
    p.add_argument("--out", type=Path, metavar="FILE", help="the result, .json; an existing one is continued")
    options = p.parse_args(arguments)
    notes, screen = (
        Console(stderr=True, highlight=False, soft_wrap=True),
        Console(highlight=False, soft_wrap=True),
    )
    chosen = options.methods or list(measure.METHODS)
    if unknown := [method for method in chosen if method not in measure.METHODS]:
        notes.print(f"--methods: expected some of {', '.join(measure.METHODS)}; got {unknown[0]}")
        return 2
    form = "quick" if options.quick else "long" if options.long else "short"
    size = few({"quick": QUICK, "long": LONG, "short": SHORT}[form], options.steps)
    cpu = torch.device("cpu")
    where, source = machine.describe_machine(cpu), machine.describe_source(cpu)
    seeds = options.seeds or [FIRST_SEEDS["develop" if options.develop else "report"] + i for i in range(5)]
    suffix = ("" if form == "short" else f"-{form}") + "-develop" * options.develop
    out = options.out or folder / f"methods-{machine.result_name(where, source)}{suffix}.json"
    start: dict[str, Any] = {"schema_version": 1, "benchmark": "methods", "machine": where, "source": source}
    start |= {"settings": {"form": form, **asdict(size)}, "rows": []}
    try:
        result = continued(out, start)
    except ValueError as error:
        notes.print(str(error))
        return 2
    for seed in seeds:
        for name in options.sets:
            try:
                compare(name, seed, chosen, size, result, out, notes)
            except Missing as missing:
                notes.print(f"{name}: {missing}")
    screen.print(table.markdown(result["rows"]), markup=False)
    best, shares = table.winner(result["rows"])
    if best:
        screen.print(f"\nThe largest mean share is kept by {best}: {100 * shares[best]:.0f} %")
    if len(shares) > 1:
        table.draw(result["rows"], out.with_suffix(".png"))
    notes.print(str(out))
    return 0


def continued(out: Path, start: dict[str, Any]) -> dict[str, Any]:
    """The result so far, or a new one.

    Raises
    ------
    ValueError
        The file is of other settings.
    """
    if not out.is_file():
        return start
    before: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if before.get("settings") != start["settings"]:
        raise ValueError(f"--out: {out} is of other settings, {before.get('settings')}; name another file")
    return before


def compare(
    name: str, seed: int, methods: list[str], size: Size, result: dict[str, Any], out: Path, notes: Console
) -> None:
    """Train the students of one set and seed that the result does not have."""
    there = {row["method"] for row in result["rows"] if (row["set"], row["seed"]) == (name, seed)}
    if not (missing := [method for method in methods if method not in there]):
        return
    drawn = draw(name, seed, size)
    teacher = functools.partial(measure.of_ensemble, drawn.ensemble)
    if "ensemble" not in there:
        own = measure.scores(teacher, teacher, drawn)
        result["rows"].append({"set": name, "seed": seed, "method": "ensemble", **own})
    with tempfile.TemporaryDirectory() as place:
        cache = cache_targets(drawn.ensemble, drawn.rows, Path(place) / "targets", codec="fp32")
        for method in missing:
            row = measure.row_of(name, seed, method, drawn, cache, size)
            result["rows"].append(row)
            write_result(out, result)
            notes.print(
                f"{name} {seed} {method}: accuracy {row['accuracy']:.3f}, NLL {row['nll']:.3f} "
                f"(scaled {row['scaled_nll']:.3f}), OOD {row['ood_auroc']:.2f}, {row['seconds']:.1f} s"
            )
