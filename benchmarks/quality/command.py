"""The command line of ``python -m benchmarks quality``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.quality import cases, jobs, judgement, picture, rule, times
from benchmarks.quality.peers import PEERS, Peer, autogluon, available, predictions, torchdistill
from benchmarks.quality.sets import REGIMES, SETS
from benchmarks.teachers.data import Missing
from ensdistill.bench import machine
from ensdistill.bench.result import write_result
from ensdistill.common.files import read_json
from ensdistill.report.measures import METRICS, Metric

DESCRIPTION = """\
How much of an ensemble's gain do students keep, on real data sets, beside other tools' models on the same split? Each data set comes in
two regimes: few labels and a pool of unlabelled rows (pool), and all rows labelled with no pool (all). Everything is the default of
`ensdistill run`; the student's baselines, with a search of their own, are those of its report. Students have the size of a member, a tenth
of it (of Fashion-MNIST a quarter), and the one that `keep: 0.95` finds, in a job of its own whose search holds labelled rows back.

Classes are judged by accuracy and NLL, several labels (tags) by mAP and BCE, numbers (prices, delays, diabetes) by RMSE and NLL.

kept       the student's gain over the strongest direct model, as a share of the ensemble's, after temperature scaling. It counts where the
           ensemble leads by at least 4 standard errors (*); elsewhere the student must not be worse than the best alternative by more than
           .5 points, .005 deviations, .01 nats or .001 of BCE.
over       the student minus the best alternative: the strongest direct model, or another tool's.
× smaller  the ensemble's bytes over the student's; × faster: its time for one row (p50, one thread, onnxruntime) over the student's.

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
    p.add_argument("--quick", action="store_true", help="few rows and one seed: to check that all parts work")
    p.add_argument("--sets", nargs="*", choices=list(SETS), default=list(SETS), metavar="SET", help="of "
                   f"{', '.join(SETS)}; none: the results of --beside and the --times alone")  # fmt: skip
    p.add_argument("--regimes", nargs="+", choices=REGIMES, default=REGIMES, metavar="REGIME",
                   help="pool, all")  # fmt: skip
    p.add_argument("--seeds", type=int, metavar="N", help="default: 5, quick: 1")
    p.add_argument("--develop", action="store_true", help="other seeds, on which settings may be chosen")
    p.add_argument("--autogluon", metavar="PYTHON", help="of an environment that has autogluon.tabular")
    p.add_argument("--seconds", type=int, default=300, help="for AutoGluon, per seed (default: 300)")
    p.add_argument(
        "--torchdistill", metavar="PYTHON", help="of an environment that has torchdistill and torch"
    )
    p.add_argument("--fit-rule", nargs="?", const="all", choices=["all", "finished"], metavar="finished", help="fit "
                   "the rules by which a preflight predicts the share that is kept, and write them into the package: "
                   "train small jobs on development seeds first, or take the finished ones of --work; the students of "
                   "--beside are examples, too")  # fmt: skip
    p.add_argument("--times", nargs="*", type=int, choices=list(times.MINUTES), metavar="ROWS", help="time runs from "
                   "a CSV file of so many rows to the report, too (default: 10000 300000)")  # fmt: skip
    p.add_argument("--beside", nargs="+", type=Path, default=[], metavar="FILE", help="results of earlier runs: "
                   "their students stand beside these in the result, the table and the goals")  # fmt: skip
    p.add_argument("--work", type=Path, default=Path("runs/quality"), metavar="FOLDER", help="of the runs")
    p.add_argument("--out", type=Path, metavar="FILE", help="the result, .json")
    options = p.parse_args(arguments)
    earlier = []
    for file in options.beside:
        earlier.append(read_json(file))
        if not isinstance(earlier[-1], dict) or earlier[-1].get("benchmark") != "quality":
            p.error(f"--beside: expected results of this benchmark; got {file}")
    notes, screen = Console(stderr=True, highlight=False, soft_wrap=True), Console(highlight=False)
    screen.width = max(screen.width, 170)
    if options.fit_rule:
        if not options.sets:
            p.error("--sets: expected names of data sets with --fit-rule; got none")
        return _fit_rule(options, earlier, folder, notes)
    cpu = torch.device("cpu")
    where, source = machine.describe_machine(cpu), machine.describe_source(cpu)
    suffix = "-develop" * options.develop + "-quick" * options.quick
    out = options.out or folder / f"quality-{machine.result_name(where, source)}{suffix}.json"
    seeds = options.seeds or (1 if options.quick else 5)
    first = jobs.FIRST_SEEDS["develop" if options.develop else "report"]
    peers, missing = _peers(options)
    result: dict[str, Any] = {
        "schema_version": 2,
        "benchmark": "quality",
        "machine": where,
        "source": source,
        "settings": {"seeds": seeds, "first_seed": first, "quick": options.quick, "peers": list(peers)},
        "students": [],
        "skipped": missing,
        "failed": {},
        "minutes": {},
    }
    for one in earlier:
        result["students"] = beside(result["students"], one["students"], one["source"]["commit"])
        known = result["settings"]["peers"]
        known += [name for name in one["settings"]["peers"] if name not in known]
    for name, reason in missing.items():
        notes.print(f"without {name}: {reason}")
    work = options.work / ("develop" if options.develop else "report")
    for name in options.sets:
        for regime in ["quick"] if options.quick else options.regimes:
            case = jobs.Case(name, regime, seeds, first, work)
            start = time.perf_counter()
            try:
                found = _students(case, peers, notes.print)
                notes.print(f"{case}: {len(found)} students")
                result["students"] = beside(result["students"], found, source["commit"])
            except Missing as error:
                notes.print(f"  skipped: {error}")
                result["skipped"][name] = str(error)
                break
            except Exception as error:  # the other cases have figures all the same
                notes.print(f"  {case} failed: {error}")
                result["failed"][str(case)] = f"{type(error).__name__}: {error}"
            _keep(out, result)
            notes.print(f"  {time.perf_counter() - start:.0f} s")
    for rows in (options.times or list(times.MINUTES)) if options.times is not None else []:
        result["minutes"][str(rows)] = times.measured(rows, notes.print)
        _keep(out, result)
    if not result["students"] and not result["minutes"]:
        notes.print("no data set is there")
        return 1
    _keep(out, result)
    screen.print(table(result))
    screen.print(goals_table(result))
    picture.draw(result, out.with_suffix(".png"))
    notes.print(str(out))
    for name, reason in result["failed"].items():
        notes.print(f"{name} failed: {reason}")
    return 1 if result["failed"] else 0


def _keep(out: Path, result: dict[str, Any]) -> None:
    """Write the result so far, with the goals that it shows."""
    goals = judgement.goals(result["students"], result["settings"]["peers"])
    result["goals"] = [asdict(goal) for goal in [*goals, *times.goals(result["minutes"])]]
    write_result(out, result)


def _peers(options: argparse.Namespace) -> tuple[dict[str, Peer], dict[str, str]]:
    """The other tools, and the reasons why some are left out."""
    found, missing = dict(PEERS), dict[str, str]()
    others = {
        "torchdistill KD": (options.torchdistill or sys.executable, "torchdistill", torchdistill),
        "AutoGluon distilled": (
            options.autogluon or sys.executable, "autogluon", lambda python: autogluon(python, options.seconds)
        ),
    }  # fmt: skip
    for name, (python, package, make) in others.items():
        reason = available(python, package)
        if reason:
            missing[name] = reason
        else:
            found[name] = make(python)
    return found, missing


def _students(case: jobs.Case, peers: dict[str, Peer], note: Callable[[str], None]) -> list[dict[str, Any]]:
    """The judged students of a case, trained where they are not there."""
    jobs.train(case, note)
    return cases.judged(case, predictions(case, peers, note), note)


def beside(
    known: list[dict[str, Any]], found: list[dict[str, Any]], commit: str | None
) -> list[dict[str, Any]]:
    """The students ``found`` at a commit after those that are ``known``, whose place they take."""
    places = {(one["set"], one["regime"], one["size"]) for one in found}
    others = [one for one in known if (one["set"], one["regime"], one["size"]) not in places]
    return [*others, *({"commit": commit} | one for one in found)]


def _fit_rule(
    options: argparse.Namespace, earlier: Sequence[dict[str, Any]], folder: Path, notes: Console
) -> int:
    cpu = torch.device("cpu")
    found = rule.gather(options.work, options.sets, notes.print, train=options.fit_rule == "all")
    found += chain.from_iterable(map(rule.examples_of, earlier))
    made = rule.fit(found)
    rule.write(made, found, machine.describe_source(cpu), folder / "quality-rule-examples.json")
    for task, one in made.items():
        errors = f"error {100 * one.error:.0f} points, the mean's {100 * one.mean_error:.0f}"
        notes.print(f"{task}: {one.source}; {errors}")
    return 0


def goals_table(result: dict[str, Any]) -> Table:
    """One line for each goal."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("goal", "met", "found"):
        shown.add_column(column)
    for goal in result["goals"]:
        met = "-" if goal["met"] is None else "yes" if goal["met"] else "no"
        shown.add_row(goal["text"], met, goal["found"])
    return shown


def table(result: dict[str, Any]) -> Table:
    """One line for each data set, regime and size."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    kept = judgement.ACCURACY, judgement.NLL
    columns = ("set", "regime", "student", "ensemble", "direct", "student's", f"kept: {kept[0]}", kept[1], "over",
               "× smaller", "× faster")  # fmt: skip
    for column in columns:
        shown.add_column(column, justify="left" if column in columns[:3] else "right", no_wrap=True)
    for one in result["students"]:
        first, second = (METRICS[name] for name in judgement.metrics_of(one))
        means = {m: one[m.name]["means"] for m in (first, second)}
        figures = [
            f"{_text(first, means[first][k])} / {_text(second, means[second][k])}"
            for k in ("ensemble", one[second.name]["strongest_direct"], judgement.STUDENT)
        ]
        kept = [_share(one[m.name]) for m in (first, second)]
        overs = (_text(m, m.sign * one[m.name]["over"], "+") for m in (first, second))
        over = " / ".join(overs)
        ratios = [f"{one[key]:.1f}" for key in ("times_smaller", "times_faster")]
        shown.add_row(one["set"], one["regime"], one["size"], *figures, *kept, over, *ratios)
    return shown


def _text(metric: Metric, value: float, sign: str = "") -> str:
    return f"{value:{sign}.2%}" if metric.percent else f"{value:{sign}.3f}"


def _share(metric: dict[str, Any]) -> str:
    if metric["kept"] is None:
        return "no gain"
    bounds = metric["kept_interval"]
    text = f"{metric['kept']:.0%}" + ("" if bounds is None else f" [{bounds[0]:.0%}, {bounds[1]:.0%}]")
    return f"{text}{'*' if metric['counts'] else ''}"
