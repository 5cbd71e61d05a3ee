"""The command line of ``python -m benchmarks teachers``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.teachers import data, measure, quality
from benchmarks.teachers.contenders import CONTENDERS
from benchmarks.teachers.picture import draw
from ensdistill.bench import machine
from ensdistill.bench.result import write_result

DESCRIPTION = """\
training     K members by this package (its own choice; stacked; one by one; side by side), by a plain loop (eager, torch.compile), by
             Ensemble-Pytorch: same optimiser, batch size and epochs, in rotation; the ensembles' test accuracies have to agree
prediction   K members' logits in one vmapped call against a loop
memory       for each further member of a training
quality      random forest, ExtraTrees, boosting and five MLPs: selected, weighed and calibrated mixtures against the uniform one

Data and peers: apt-get install dataset-fashion-mnist r-cran-mlbench; pip install 'ensdistill[bench]'; pip install --no-deps torchensemble
Keep the machine quiet.
"""


def main(arguments: Sequence[str], folder: Path) -> int:
    """Run; the result goes to ``folder``. Returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks teachers",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = ("training", "prediction", "memory", "quality")
    p.add_argument("--parts", nargs="+", choices=parts, default=parts)
    p.add_argument(
        "--quick", action="store_true", help="few epochs, rows and rounds: to see that it runs, not how fast"
    )
    p.add_argument("--members", type=int, default=8, metavar="K")
    p.add_argument("--rounds", type=int, help="timings of each (default: 5, quick: 1)")
    p.add_argument("--seeds", type=int, help="of the quality part (default: 5, quick: 1)")
    p.add_argument("--device", default="cpu")
    p.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    p.add_argument("--fashion", type=Path, default=data.FASHION, metavar="FOLDER")
    p.add_argument("--letter", type=Path, default=data.LETTER, metavar="FILE")
    p.add_argument("--out", type=Path, metavar="FILE", help="the result, .json; a .png goes beside it")
    options = p.parse_args(arguments)
    rounds, seeds = (
        options.rounds or (1 if options.quick else 5),
        options.seeds or (1 if options.quick else 5),
    )
    notes, screen = Console(stderr=True, highlight=False), Console(highlight=False)
    device = torch.device(options.device)
    result: dict[str, Any] = {
        "machine": machine.describe_machine(device),
        "source": machine.describe_source(device),
        "quick": options.quick,
    }
    try:
        timed = {"training", "prediction", "memory"} & set(options.parts)
        cases = (
            measure.cases(options.quick, options.members, options.device, options.fashion) if timed else []
        )
        tables = (
            {"letter": data.letter(options.letter), "flights": data.flights()}
            if "quality" in options.parts
            else {}
        )
    except data.Missing as error:
        print(error, file=sys.stderr)
        return 1
    name = f"teachers-{machine.result_name(result['machine'], result['source'])}{'-quick' if options.quick else ''}.json"
    out = options.out or folder / name

    def keep(part: str, *found: dict[str, Any]) -> None:
        result.setdefault(part, []).extend(found)
        write_result(out, result)  # at once: the whole takes most of an hour

    for case in cases:
        notes.print(f"{case.task.name}, {case.model}")
        if "training" in options.parts:
            found = measure.training(case, rounds, options.contenders, notes.print)
            if "ensdistill" in found["contenders"]:
                found["ratios"] = measure.targets(found)
            keep("training", found)
        if "prediction" in options.parts:
            keep("prediction", *measure.prediction(case, 5 * rounds))
        if "memory" in options.parts and options.device == "cpu":
            for way in ("stacked", "one_by_one", "side_by_side"):
                per_member = measure.memory(case, way)
                keep(
                    "memory",
                    {"task": case.task.name, "model": case.model, "way": way, "bytes_per_member": per_member},
                )
    for name, (x, y) in tables.items():
        limit = 3000 if options.quick else None
        keep(
            "quality",
            quality.compare(name, x, y, seeds=seeds, rows=limit, quick=options.quick, note=notes.print),
        )
    _show(result, screen)
    notes.print(str(out))
    if "training" in result or "quality" in result:
        draw(result, out.with_suffix(".png"))
        notes.print(str(out.with_suffix(".png")))
    wrong = [t["task"] for t in result.get("training", []) if not t["same_accuracy"]]
    if wrong:
        notes.print(
            f"the contenders' accuracies differ on {', '.join(wrong)}: their times are not of the same work"
        )
    return 1 if wrong and not options.quick else 0


def _show(result: dict[str, Any], screen: Console) -> None:
    for found in result.get("training", []):
        table = Table(
            "contender",
            "seconds",
            "accuracy",
            title=f"{found['task']}, {found['members']} x {found['model']}",
        )
        for name, r in found["contenders"].items():
            table.add_row(name, f"{r['seconds']:.2f}", f"{r['accuracy']:.4f}")
        screen.print(table)
        for name, ratio in found.get("ratios", {}).items():
            screen.print(f"  {ratio:.2f} x as fast as {name}")
    for found in result.get("prediction", []):
        screen.print(
            f"{found['task']}, {found['rows']} rows: stacked {found['stacked']:.2f} ms, one by one "
            f"{found['one_by_one']:.2f} ms"
        )
    for found in result.get("memory", []):
        screen.print(
            f"{found['task']}, {found['way']}: {found['bytes_per_member'] / 2**20:.2f} MiB for each further "
            "member"
        )
    for found in result.get("quality", []):
        where = f"{found['data']}, {found['rows']} rows, splits: {found['seeds']}"
        for metric, unit, scale, digits in (("accuracy", "accuracy, %", 100, 2), ("nll", "NLL, nats", 1, 4)):
            table = Table("mixture", unit, "minus that of the uniform one", title=where)
            for name, entry in found["of"].items():
                mean, low, high = (
                    f"{scale * value:+.{digits}f}" for value in entry[f"{metric}_minus_uniform"]
                )
                table.add_row(
                    name,
                    f"{scale * entry[metric]:.{digits}f}",
                    "" if name == "uniform" else f"{mean} [{low}, {high}]",
                )
            screen.print(table)
