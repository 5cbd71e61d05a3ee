"""The command line of ``python -m benchmarks tokens``."""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.tokens import caching, memory, models, training
from benchmarks.tokens.paper import on_paper
from benchmarks.tokens.quality import TARGETS, Study, compared
from ensdistill.bench import machine
from ensdistill.bench.result import write_result
from ensdistill.teachers.tokens import LanguageEnsemble
from examples import tokens as example
from examples.tokens import packed, sampled

DESCRIPTION = """\
Three small GPTs learn this repository's text (8 192 tokens) and become teachers; models with random weights stand for 32 768 and 151 936.

caching   tokens a second from texts to a finished cache, by codec, and bytes of a token; teachers: the share of their predictions alone
losses    the KL of each codec's targets from the full mixture, on held-out texts, computed anew in doubles: another mean than the
          cache certifies is an error. Of draws it is that of the drawn shares from the mixture, which is chance and none on average
training  tokens a second of a student's steps: from the cache, and with the same teachers online (goal: reading the cache below 5 %).
          Before, a cache of all classes has to give the online loss. Memory is that of another process of each way
on paper  bytes, hours and machines for 100 billion tokens at these rates: of these small models, on this machine

Keep the machine quiet. On two cores the whole takes about a quarter of an hour, --quick two minutes.

--quality compares students instead, on descriptions of Debian's packages (`apt-get update -o Acquire::Languages=en`): three GPTs are
trained once; a student of a quarter learns from each kind of targets, once for each seed. It prints losses of held-out sequences in
nats a token and the share of the gain that each student keeps, with 95 % intervals over seeds and sequences. Models stay in --work:
the same command goes on where it was stopped.
"""
COLUMNS = {
    "caching": ("vocabulary", "codec", "tokens_per_s", "of_it_teachers", "bytes_per_token"),
    "losses": ("codec", "kl_mean", "kl_max"),
    "training": ("way", "tokens_per_s", "ms_step", "of_it_reading", "mb_peak", "mb_of_steps", "missing"),
    "on paper": ("what", "vocabulary", "codec", "terabytes", "hours", "machines_for_a_week"),
    "quality": (
        "model",
        "alpha",
        "bytes_per_token",
        "loss",
        "loss_interval",
        "kept",
        "kept_interval",
        "seconds",
    ),
}


def main(arguments: Sequence[str], folder: Path) -> int:
    """Run; the result goes to ``folder``. Returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks tokens",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--quick", action="store_true", help="few sequences, steps and codecs: does it all work?")
    p.add_argument("--rounds", type=int, metavar="N", help="timings of each way (default: 3, quick: 1)")
    p.add_argument(
        "--steps", type=int, metavar="N", help="of each model (default: 600, of --quality 1500; quick: 10)"
    )
    p.add_argument("--codec", default="topk5-50", help="from which the student learns")
    p.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own)")
    p.add_argument("--scratch", type=Path, metavar="FOLDER", help="where the caches are made")
    p.add_argument("--out", type=Path, metavar="FILE", help="the result, .json")
    p.add_argument("--quality", action="store_true", help="compare what students keep, instead of speed")
    p.add_argument("--seeds", type=int, default=3, metavar="N", help="of --quality's students (default: 3)")
    p.add_argument("--work", type=Path, metavar="FOLDER", help="of --quality (default: runs/tokens-quality)")
    options = p.parse_args(arguments)
    notes, screen = Console(stderr=True, highlight=False, soft_wrap=True), Console(highlight=False)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    cpu = torch.device("cpu")
    where, source = machine.describe_machine(cpu), machine.describe_source(cpu)
    kind = "tokens-quality" if options.quality else "tokens"
    name = f"{kind}-{machine.result_name(where, source)}" + ("-quick" if options.quick else "")
    out = options.out or folder / f"{name}.json"
    rounds = options.rounds or (1 if options.quick else 3)
    steps = options.steps or (10 if options.quick else 1500 if options.quality else 600)
    settings = {"rounds": rounds, "steps": steps, "quick": options.quick, "codec": options.codec}
    result: dict[str, Any] = {"schema_version": 1, "benchmark": kind, "machine": where}
    result |= {"source": source, "settings": settings}
    if options.quality:
        return _quality(options, steps, result, out, notes, screen)
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="ensdistill-bench-", dir=options.scratch) as scratch,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*cost a row a KL")  # it is what is measured
        try:
            for part, rows in _parts(options, rounds, steps, Path(scratch), notes):
                result[part] = rows
                write_result(out, result)
        except caching.WrongTargets as error:
            notes.print(f"wrong targets: {error}")
            return 1
    for part in [one for one in COLUMNS if one in result]:
        screen.print(_table(part, COLUMNS[part], result[part]))
    notes.print(str(out))
    return 0


def _quality(
    options: Any, steps: int, result: dict[str, Any], out: Path, notes: Console, screen: Console
) -> int:
    """Compare students; the result is written after each kind of targets."""
    example.keep_memory()
    quick, seeds = options.quick, 1 if options.quick else options.seeds
    work = options.work or memory.ROOT / "runs" / ("tokens-quality" + ("-quick" if quick else ""))
    texts = example.corpus()
    try:
        study = Study(work, texts, steps, 24 if quick else 8000, 12 if quick else 1000, notes.print)
    except ValueError as error:
        notes.print(f"--work: {error}")
        return 2
    result["settings"] = {**study.settings, "seeds": seeds, "quick": quick}
    students: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cost a row a KL")  # that is a part of the comparison
        study.teach()
        for done, targets in enumerate(TARGETS, 1):
            students += [study.student(targets, seed) for seed in range(seeds)]
            result["quality"] = compared(study, students, TARGETS[:done])
            write_result(out, result)
    screen.print(_table("quality", COLUMNS["quality"], result["quality"]))
    notes.print(str(out))
    return 0


def _parts(options: Any, rounds: int, steps: int, scratch: Path, notes: Console) -> Any:
    """Name and rows of each part, once it is measured."""
    quick = options.quick
    learned, held = packed(models.texts(memory.ROOT))
    learned, held = (
        sampled(learned, 48 if quick else 1000, 0),
        sampled(held, 12 if quick else 200, 0),
    )
    teachers = models.teachers(learned, steps)
    ensemble = LanguageEnsemble(teachers)
    notes.print(f"  three teachers, {steps} steps each")
    codecs = caching.FEW if quick else caching.CODECS
    rows = caching.rates(ensemble, learned, codecs, rounds, scratch, notes.print)
    yield "caching", rows
    for vocabulary, count in zip(models.LARGE, (8, 2) if quick else (128, 24), strict=True):
        large, sequences = models.synthetic(vocabulary, count)
        rows = rows + caching.rates(large, sequences, codecs, rounds, scratch, notes.print)
        yield "caching", rows
    yield "losses", caching.losses(ensemble, held, codecs, scratch)
    off = training.check(ensemble, learned, scratch)
    notes.print(f"  a cache of all classes gives the online loss to {off:.1e}")
    cache, _ = caching.written(ensemble, learned, options.codec, scratch / "cache")
    trained = training.measure(ensemble, cache, learned, 5 if quick else 40, rounds, notes.print)
    memory.save(scratch, teachers, learned)
    for row in trained[:2]:
        row |= memory.measured(scratch, row["way"], 3 if quick else 20)
    yield "training", trained
    yield "on paper", on_paper(rows, trained)


def _table(part: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=part, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        side: Any = "left" if column in ("codec", "way", "what", "missing", "model") else "right"
        table.add_column(column.replace("_", " "), justify=side, overflow="fold")
    for row in rows:
        table.add_row(*(_shown(column, row.get(column)) for column in columns))
    return table


def _shown(column: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list):
        return "..".join(_shown(column, one) for one in value)
    if column.startswith(("of_it", "kept")):
        return f"{value:.1%}"
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.4g}"
