"""The command line of ``python -m benchmarks transfer``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.teachers.data import Missing
from benchmarks.transfer import measure
from benchmarks.transfer.sets import SETS, development
from ensdistill.bench import machine
from ensdistill.bench.result import write_result

DESCRIPTION = """\
Distils an ensemble into a small network without a pool of unlabelled samples: from the labelled rows alone, and with synthetic rows of several
kinds. Scores are on validation rows of development splits. A kept share is that of the NLL's gain over the same network trained on labels
(the best of six trainings, temperature-scaled on the validation rows).
"""


def main(arguments: Sequence[str], folder: Path) -> int:
    """Run; the result goes to ``folder``. Returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks transfer",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--quick", action="store_true", help="few rows and steps: does it all work?")
    p.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help=", ".join(SETS))
    p.add_argument("--kinds", nargs="+", metavar="KIND", help="of synthetic rows; by default all")
    p.add_argument("--sizes", nargs="+", choices=("member", "tenth"), default=["tenth"], metavar="SIZE")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    p.add_argument("--rows", type=int, default=80_000, metavar="N", help="synthetic rows (default: 80000)")
    p.add_argument("--many", type=int, default=400_000, metavar="N", help="of the kinds with more rows")
    p.add_argument("--steps", type=int, default=6000, metavar="N", help="of a student (default: 6000)")
    p.add_argument(
        "--rate", type=float, default=0.02, metavar="R", help="learning rate of it (default: 0.02)"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="the result, .json")
    options = p.parse_args(arguments)
    notes, screen = Console(stderr=True, highlight=False, soft_wrap=True), Console(highlight=False)
    if options.quick:
        options.rows, options.many, options.steps, options.seeds = 1000, 2000, 50, [0]
    known = measure.kinds(options.rows, options.many)
    if unknown := [kind for kind in options.kinds or [] if kind not in known]:
        notes.print(f"--kinds: expected some of {', '.join(known)}; got {unknown[0]}")
        return 2
    cpu = torch.device("cpu")
    where, source = machine.describe_machine(cpu), machine.describe_source(cpu)
    suffix = "-quick" if options.quick else ""
    out = options.out or folder / f"transfer-{machine.result_name(where, source)}{suffix}.json"
    settings = {name: getattr(options, name) for name in ("rows", "many", "steps", "rate", "seeds")}
    result: dict[str, Any] = {
        "schema_version": 1,
        "benchmark": "transfer",
        "machine": where,
        "source": source,
    }
    result |= {"settings": settings, "rows": []}
    chosen = {kind: known[kind] for kind in options.kinds or known}
    for name in options.sets:
        for seed in options.seeds:
            try:
                _one(name, seed, chosen, options, result["rows"], notes)
            except Missing as missing:
                notes.print(f"{name}: {missing}")
                break
            write_result(out, result)
    _print(result["rows"], screen)
    notes.print(str(out))
    return 0


def _one(
    name: str, seed: int, chosen: dict[str, list[Any]], options: Any, rows: list[Any], notes: Console
) -> None:
    data = development(name, seed, options.quick)
    ensemble = measure.ensemble_of(data, seed)
    z = ensemble.predict_logits(data.validation).double()
    of_ensemble = np.asarray(torch.softmax(z, -1).mean(0))
    for size in options.sizes:
        hidden = data.sizes[size]

        def judged(kind: str, p: np.ndarray, seconds: dict[str, float], size: str = size) -> None:
            one = measure.scores(p, of_ensemble, data.validation_labels)
            rows.append({"set": name, "seed": seed, "size": size, "kind": kind, **one, "seconds": seconds})
            told = " ".join(f"{k} {v:.4f}" for k, v in one.items())
            notes.print(f"{name} {seed} {size} {kind}: {told}")

        judged("ensemble", of_ensemble, {})
        judged("direct", measure.direct(data, hidden, seed, options.quick), {})
        for kind, synthetic in chosen.items():
            judged(
                kind, *measure.student(data, ensemble, hidden, synthetic, seed, (options.steps, options.rate))
            )


def _print(rows: list[Any], screen: Console) -> None:
    pairs = list(dict.fromkeys((row["set"], row["size"]) for row in rows))
    table = Table(
        title="NLL, agreement, kept share of the NLL's gain (least..largest of the seeds)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("kind")
    for name, size in pairs:
        table.add_column(f"{name}, {size}", justify="right")

    for kind in dict.fromkeys(row["kind"] for row in rows):
        table.add_row(kind, *(_cell(rows, pair, kind) for pair in pairs))
    screen.print(table)


def _cell(rows: list[Any], pair: tuple[str, str], kind: str) -> str:
    """Means over seeds of NLL and agreement; the kept share of the mean gain, and its least and largest."""

    def of(kind: str, score: str) -> np.ndarray:
        own = [(r["seed"], r[score]) for r in rows if (r["set"], r["size"], r["kind"]) == (*pair, kind)]
        return np.array([value for _, value in sorted(own)])

    loss, low, high = (of(one, "nll") for one in (kind, "ensemble", "direct"))
    seeds = 100 * (high - loss) / (high - low)
    kept = 100 * (high - loss).sum() / (high - low).sum()
    spread = f" ({seeds.min():.0f}..{seeds.max():.0f})" if len(seeds) > 1 else ""
    return f"{loss.mean():.4f} {100 * of(kind, 'agreement').mean():.1f} {kept:.0f} %{spread}"
