"""The command line of ``python -m benchmarks auto``."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.quality.sets import content
from benchmarks.teachers.data import Missing
from benchmarks.transfer.sets import SETS
from ensdistill.bench import machine
from ensdistill.bench.result import write_result
from ensdistill.data import Rows
from ensdistill.data.samples import as_samples, subset
from ensdistill.job.defaults import defaults
from ensdistill.report.metrics import correct_rows, nll_rows
from ensdistill.teachers import Ensemble, train_ensemble
from ensdistill.teachers.auto import MINUTES, auto_plan
from ensdistill.teachers.fitting.calibration import probabilities

DESCRIPTION = """\
The default ensemble and that of `teachers: auto`, trained on some rows of letter, income, spam, digits and diamonds, on folds;
NLL and accuracy of the mixtures and of each calibrated member on as many other rows.

Data: apt-get install r-cran-mlbench r-cran-kernlab r-cran-ggplot2; pip install 'ensdistill[bench,trees,table]'
"""


def main(arguments: Sequence[str], folder: Path) -> int:
    """Run; the result goes to ``folder``. Returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks auto",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--minutes", type=float, default=MINUTES, help="the budget of teachers: auto")
    p.add_argument(
        "--rows", type=int, metavar="N", help="learned rows at most (default: as the transfer sets)"
    )
    p.add_argument("--folds", type=int, default=5)
    p.add_argument("--quick", action="store_true", help="few rows and a small budget: to check that it runs")
    p.add_argument("--out", type=Path, metavar="FILE", help="the result, .json")
    options = p.parse_args(arguments)
    minutes = 0.1 if options.quick else options.minutes
    most = 400 if options.quick else options.rows
    torch.set_num_threads(1)
    where, source = (
        machine.describe_machine(torch.device("cpu")),
        machine.describe_source(torch.device("cpu")),
    )
    out = options.out or folder / f"auto-{machine.result_name(where, source)}.json"
    result: dict[str, Any] = {"benchmark": "auto", "machine": where, "source": source}
    result |= {"minutes": minutes, "most_rows": most, "folds": options.folds}
    result["rows"] = rows = list[dict[str, Any]]()
    for name in options.sets:
        for seed in range(options.seeds):
            try:
                rows += compare(name, seed, minutes, most, options.folds)
            except Missing as missing:
                print(f"{name}: {missing}", file=sys.stderr)
                break
            write_result(out, result)
            Console(highlight=False, stderr=True).print(as_table(rows))
    Console(highlight=False).print(as_table(rows))
    print(out, file=sys.stderr)
    return 0


def compare(name: str, seed: int, minutes: float, most: int | None, folds: int) -> list[dict[str, Any]]:
    """For both ensembles: the mixture's scores on the validation rows, those of its members, and seconds."""
    load, count = SETS[name]
    samples, labels = content(name)[:2] if name == "diamonds" else load()
    samples, count = as_samples(samples), min(count, most or count)
    order = np.random.default_rng([7, seed]).permutation(len(labels))[: 2 * count]
    learned, held = order[:count], order[count:]
    classes = tuple(str(i) for i in range(labels.max() + 1))
    own = Rows(subset(samples, learned), np.arange(count), labels[learned])
    validation, truth = samples[held], labels[held]
    found = []
    for kind in ("default", "auto"):
        plan = auto_plan(own.inputs, len(classes), minutes=minutes, folds=folds) if kind == "auto" else None
        recipes = defaults(own.inputs, count).teachers.recipes if plan is None else plan.recipes
        start, cpu = time.perf_counter(), time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ensemble, held_out = train_ensemble(
                recipes, own, classes, folds=folds, seed=seed, select=plan is not None
            )
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        estimated = None if plan is None else plan.seconds
        more = {"set": name, "seed": seed, "kind": kind, "estimated_seconds": estimated, **spent}
        found.append(more | scores(ensemble, held_out, own.labels, validation, truth))
    return found


def scores(
    ensemble: Ensemble, held_out: np.ndarray, labels: np.ndarray, validation: Any, truth: np.ndarray
) -> dict[str, Any]:
    """NLL and accuracy of the mixture and of each member, which has its own temperature."""
    logits = np.asarray(ensemble.predict_logits(validation))
    own = [probabilities(z * ensemble.temperature) for z in logits]
    folds = [probabilities(z * ensemble.temperature) for z in ensemble.apply_temperatures(held_out)]
    members = {
        name: {
            **_scores(p, truth),
            "weight": float(weight),
            "out_of_fold_nll": float(nll_rows(q, labels).mean()),
        }
        for name, p, q, weight in zip(ensemble.names, own, folds, ensemble.weights, strict=True)
    }
    return {**_scores(ensemble.combine(logits), truth), "members": members}


def _scores(p: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {"nll": float(nll_rows(p, labels).mean()), "accuracy": float(correct_rows(p, labels).mean())}


def as_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Means over the seeds: both mixtures, and the best member of each by out-of-fold NLL."""
    table = Table("set", "ensemble", "NLL", "accuracy %", "best member", "its NLL", "its accuracy %", "CPU s")
    for name, kind in dict.fromkeys((row["set"], row["kind"]) for row in rows):
        group = [row for row in rows if (row["set"], row["kind"]) == (name, kind)]
        best = [min(row["members"].items(), key=lambda one: one[1]["out_of_fold_nll"]) for row in group]
        of_best = [one for _, one in best]
        table.add_row(
            name,
            kind,
            f"{_mean(group, 'nll'):.4f}",
            f"{100 * _mean(group, 'accuracy'):.2f}",
            ", ".join(dict.fromkeys(member for member, _ in best)),
            f"{_mean(of_best, 'nll'):.4f}",
            f"{100 * _mean(of_best, 'accuracy'):.2f}",
            f"{_mean(group, 'cpu_seconds'):.0f}",
        )
    return table


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))
