"""The command line of ``python -m benchmarks quality``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.quality import jobs, judgement, picture
from benchmarks.quality.peers import PEERS, autogluon, predictions
from benchmarks.quality.sets import SETS
from benchmarks.teachers.data import Missing
from ensdistill.bench import machine
from ensdistill.bench.result import write_result

DESCRIPTION = """\
How much of an ensemble's gain do students of two sizes keep, on real data sets, beside other tools' models on the same split? Each data set
comes in two regimes: few labels and a pool of unlabelled rows (pool), and all rows labelled with no pool (all). Everything is the default
of `ensdistill run`; the student's baselines, with a search of their own, are those of its report.

kept       the student's gain over the strongest direct model, as a share of the ensemble's, after temperature scaling. It counts where the
           ensemble leads by at least 4 standard errors (*); elsewhere the student must not be worse than the best alternative by more than
           .5 points or .01 nats.
over       the student minus the best alternative: the strongest direct model, or another tool's.

Development seeds (--develop) and reported ones differ: no setting may be chosen on the reported seeds. Results are kept for each data set
and seed; the same command goes on after a kill. All of it takes some hours on two cores, --quick about 20 minutes.
"""


def main(arguments: Sequence[str], folder: Path) -> int:
    """Run; the result goes to ``folder``. Returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks quality",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--quick", action="store_true", help="few rows and two seeds: does it all work?")
    p.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), metavar="SET", help="of "
                   f"{', '.join(SETS)}")  # fmt: skip
    p.add_argument("--regimes", nargs="+", choices=["pool", "all"], default=["pool", "all"], metavar="REGIME",
                   help="pool, all")  # fmt: skip
    p.add_argument("--seeds", type=int, metavar="N", help="default: 5, quick: 2")
    p.add_argument("--develop", action="store_true", help="other seeds, on which settings may be chosen")
    p.add_argument("--autogluon", metavar="PYTHON", help="of an environment that has autogluon.tabular")
    p.add_argument("--seconds", type=int, default=300, help="for AutoGluon, per seed (default: 300)")
    p.add_argument("--work", type=Path, default=Path("runs/quality"), metavar="FOLDER", help="of the runs")
    p.add_argument("--out", type=Path, metavar="FILE", help="the result, .json")
    options = p.parse_args(arguments)
    notes, screen = Console(stderr=True, highlight=False, soft_wrap=True), Console(highlight=False)
    screen.width = max(screen.width, 150)
    cpu = torch.device("cpu")
    where, source = machine.describe_machine(cpu), machine.describe_source(cpu)
    suffix = "-develop" * options.develop + "-quick" * options.quick
    out = options.out or folder / f"quality-{machine.result_name(where, source)}{suffix}.json"
    seeds = options.seeds or (2 if options.quick else 5)
    first = jobs.FIRST_SEEDS["develop" if options.develop else "report"]
    peers = PEERS | (
        {"AutoGluon distilled": autogluon(options.autogluon, options.seconds)} if options.autogluon else {}
    )
    result: dict[str, Any] = {
        "schema_version": 1,
        "benchmark": "quality",
        "machine": where,
        "source": source,
        "settings": {"seeds": seeds, "first_seed": first, "quick": options.quick, "peers": list(peers)},
        "students": [],
        "skipped": {},
    }
    work = options.work / ("develop" if options.develop else "report")
    for name in options.sets:
        for regime in ["quick"] if options.quick else options.regimes:
            case = jobs.Case(name, regime, seeds, first, work)
            start = time.perf_counter()
            notes.print(f"{case}: {seeds} seeds")
            try:
                results = jobs.run(case, notes.print)
                others = predictions(case, peers, notes.print)
            except Missing as error:
                notes.print(f"  skipped: {error}")
                result["skipped"][name] = str(error)
                break
            for size in jobs.SIZES:
                student = next(one for one in results.students if one.name == size).models["student"]
                models = jobs.probabilities(results, size) | others
                judged = judgement.judge_student(models, results.labels, list(others))
                cost = {k: getattr(student, k) for k in ("parameters", "bytes", "latency_ms")}
                whole = {k: getattr(results.ensemble, k) for k in ("parameters", "bytes", "latency_ms")}
                about = {"set": name, "regime": regime, "size": size, "cost": cost, "ensemble_cost": whole,
                         "dataset": dict(results.dataset), "timings_s": dict(results.timings)}  # fmt: skip
                result["students"].append(about | judged)
            result["goals"] = {
                f"{regime}, {size}": judgement.goals(result["students"], regime, size)
                for regime in ("pool", "all")
                for size in jobs.SIZES
            }
            write_result(out, result)
            notes.print(f"  {time.perf_counter() - start:.0f} s")
    if not result["students"]:
        notes.print("no data set is there")
        return 1
    screen.print(table(result))
    picture.draw(result, out.with_suffix(".png"))
    notes.print(str(out))
    return 0


def table(result: dict[str, Any]) -> Table:
    """One line for each data set, regime and size."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ("set", "regime", "student", "ensemble", "direct", "student's", "kept: accuracy", "NLL", "over")
    for column in columns:
        shown.add_column(column, justify="left" if column in columns[:3] else "right", no_wrap=True)
    for one in result["students"]:
        means = {m: one[m]["means"] for m in judgement.METRICS}
        figures = [
            f"{means['accuracy'][k]:.2%} / {means['nll'][k]:.3f}"
            for k in ("ensemble", one["nll"]["strongest_direct"], judgement.STUDENT)
        ]
        kept = [_share(one[m]) for m in judgement.METRICS]
        over = f"{one['accuracy']['over']:+.2%} / {-one['nll']['over']:+.3f}"
        shown.add_row(one["set"], one["regime"], one["size"], *figures, *kept, over)
    return shown


def _share(metric: dict[str, Any]) -> str:
    if metric["kept"] is None:
        return "no gain"
    bounds = metric["kept_interval"]
    text = f"{metric['kept']:.0%}" + ("" if bounds is None else f" [{bounds[0]:.0%}, {bounds[1]:.0%}]")
    return f"{text}{'*' if metric['counts'] else ''}"
