"""``ensdistill predict``: a student's answers for new rows, from a file or stream to another."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensdistill.cli.manner import manner
from ensdistill.cli.messages import Parser, print_json, usage_error, whole_number

PATIENCE = 2.0  # seconds without a sign of progress
EXAMPLES = """\
examples:
  ensdistill predict runs/penguins new.csv -o answers.csv
  ensdistill predict runs/penguins new.parquet -o answers.parquet --id island
  ensdistill predict student.onnx images/ -o answers.jsonl
  cat new.csv | ensdistill predict runs/penguins - --format csv > answers.csv
"""


def parser() -> Parser:
    """The options of the command."""
    found = Parser(
        prog="ensdistill predict",
        description="Writes a student's answer for each row of NEW: its label, the probability of each class "
        "(p_CLASS), and the entropy of these in nats, the student's own uncertainty. Of several labels it "
        "writes those that are present, and of numbers each by its name, with NAME_deviation where the "
        "student has one. Rows are read and written piece by piece, so there may be any number of them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "student",
        type=Path,
        metavar="RUN",
        help="a run's folder, that of a student, or an .onnx or .pt2 file",
    )
    found.add_argument(
        "new",
        metavar="NEW",
        help="a table (.csv, .tsv, .jsonl, .parquet, .feather), an array (.npy), images or texts (a folder, "
        "a file, a table of them); - is standard input",
    )
    found.add_argument(
        "-o",
        "--output",
        default="-",
        metavar="OUT",
        help="a table: .csv, .tsv, .jsonl, .parquet or .arrow; - is standard output (default)",
    )
    found.add_argument(
        "--format",
        choices=("csv", "tsv", "jsonl", "parquet", "arrow"),
        help="of standard input and output (default: csv), and of a table whose name does not show it",
    )
    found.add_argument("--id", metavar="COLUMN", help="carry this column of NEW to the output")
    found.add_argument("--keep", action="store_true", help="carry all columns of NEW to the output")
    found.add_argument(
        "--ignore", action="append", default=[], metavar="COLUMN", help="leave this column of NEW out"
    )
    found.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="a row that can't be read is an error that names it (default), or is left out and counted",
    )
    found.add_argument(
        "--student", dest="name", metavar="NAME", help="which student of a run (default: the first)"
    )
    found.add_argument("--seed", type=whole_number, metavar="N", help="that of a run's student (default: 0)")
    found.add_argument(
        "--batch", type=whole_number, metavar="ROWS", help="rows in memory at once (default: by their size)"
    )
    found.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="CLASS_PATH",
        help="a class of another package that the student may be built of",
    )
    return found


def main(words: Sequence[str]) -> int:
    """Returns the exit status."""
    options = parser().parse(words)
    if wrong := _wrong(options):
        return usage_error(f"predict: {wrong}", "`ensdistill predict --help` explains the options.")

    from ensdistill.data.incoming import FORMATS, Wanted, open_source
    from ensdistill.data.outgoing import SUFFIXES, table_writer
    from ensdistill.job.contents import is_run, report_of
    from ensdistill.job.predicting import Predicted, output_names, predictions
    from ensdistill.job.serving import command_for, load_student

    output = None if options.output == "-" else Path(options.output)
    suffix = FORMATS[options.format or "csv"] if output is None else output.suffix.lower()
    if suffix not in SUFFIXES:
        return usage_error(
            f"predict: --output: expected a table ({', '.join(SUFFIXES)}); got {options.output!r}",
            "`ensdistill predict --help` explains the options.",
        )
    if is_run(path := Path(options.student)) and report_of(path) is None:
        _note(f"{path} has no report of its present students: {command_for(path)} makes it")
    student = load_student(options.student, student=options.name, seed=options.seed, trusted=options.trust)
    wanted = Wanted(
        student.samples,
        student.about.get("data", {}),
        id=options.id,
        keep=options.keep,
        ignore=options.ignore,
        batch=options.batch,
        skip=options.on_error == "skip",
    )
    stream = options.new == "-"
    new = None if stream else Path(options.new)
    form = (options.format or "csv") if stream else options.format if output is not None else None
    source = open_source(new, wanted, format=form, stream=sys.stdin.buffer if stream else None)
    output_names(student, wanted.carried(source.names))
    if unused := source.unused:
        carry = "" if options.id or options.keep else "; --id COLUMN carries one into the answers"
        names = f"{', '.join(unused[:10])}{' ...' * (len(unused) > 10)}"
        _note(f"not used: {names} (no inputs of the student{carry})")

    counted, start = Predicted(), time.monotonic()
    target = sys.stdout.buffer if output is None else None
    with _progress() as progress, table_writer(output, suffix, target) as writer:
        for table in predictions(student, source, counted, skip=wanted.skip, progress=progress):
            writer.write(table)
    seconds = time.monotonic() - start
    rate = f"{counted.rows / max(seconds, 1e-9):,.0f} rows a second" if seconds > PATIENCE else ""
    where = "" if output is None else f"{output}: "
    _note(f"{where}{counted.rows} rows in {seconds:.1f} s{f', {rate}' if rate else ''}")
    if manner().json:
        left_out = {"count": counted.skipped, "first": [vars(fault) for fault in counted.faults]}
        about = {"output": str(output), "rows": counted.rows, "left_out": left_out}
        print_json({**about, "seconds": round(seconds, 3)})
    if counted.skipped:
        every = "row was" if counted.skipped == 1 else "rows were"
        others = counted.skipped - len(counted.faults)
        more = f"\n  and {others} more" * (others > 0)
        listed = "\n  ".join(map(str, counted.faults))
        print(f"ensdistill: {counted.skipped} {every} left out:\n  {listed}{more}", file=sys.stderr)
    return 0


def _wrong(options: argparse.Namespace) -> str:
    if options.batch is not None and options.batch < 1:
        return f"--batch: expected at least 1; got {options.batch}"
    if options.id is not None and options.keep:
        return "--id: expected without --keep, which carries all columns"
    if manner().json and options.output == "-":
        return "--output: expected a file with --json, because standard output holds its document; got '-'"
    if options.output != "-" and options.new != "-" and Path(options.output).exists():
        new = Path(options.new)
        if new.exists() and new.samefile(options.output):
            return f"--output: expected another file than NEW; got {options.output!r}"
    return ""


def _note(text: str) -> None:
    if manner().quiet or manner().json:
        return
    print(f"ensdistill: {text}", file=sys.stderr)


@contextmanager
def _progress() -> Iterator[Any]:
    """Shows the rows that are done on a terminal, once the work has taken two seconds."""
    start = last = time.monotonic()
    shown = False

    def progress(done: int, total: int | None) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if manner().quiet or not sys.stderr.isatty() or now - start < PATIENCE or now - last < 0.2:
            return
        last, shown = now, True
        of = f" of {total:,}" if total else ""
        print(
            f"\r{done:,}{of} rows, {done / (now - start):,.0f} a second\x1b[K",
            end="",
            file=sys.stderr,
            flush=True,
        )

    try:
        yield progress
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
