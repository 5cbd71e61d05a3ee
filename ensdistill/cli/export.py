"""``ensdistill export``: a run's student as a file for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensdistill.cli.manner import manner
from ensdistill.cli.messages import Parser, print_json, usage_error, whole_number

EXAMPLES = """\
examples:
  ensdistill export runs/penguins --to onnx
  ensdistill export runs/penguins --to onnx --int8 --calibrated -o penguins.onnx
  ensdistill export runs/penguins --to safetensors --student mlp --license cc0-1.0
"""
MORE = "`ensdistill export --help` explains the options."


def parser() -> Parser:
    """The options of the command."""
    found = Parser(
        prog="ensdistill export",
        description="Writes the student of a finished run as one file, with its preprocessing, class names "
        "and temperature. Its answers are compared with the student's on the run's test rows, and a model "
        "card and the figures are written beside it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    found.add_argument(
        "--to",
        choices=("onnx", "torch", "safetensors"),
        required=True,
        help="onnx: one graph, which onnxruntime runs alone; torch: a .pt2 program of torch.export; "
        "safetensors: a folder for ensdistill.load_student",
    )
    found.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PATH",
        help="the file, or the folder of safetensors (default: RUN/export/STUDENT/student.onnx, ...)",
    )
    found.add_argument("--int8", action="store_true", help="also an ONNX file whose weights have eight bits")
    found.add_argument("--student", metavar="NAME", help="the student (default: the run's first)")
    found.add_argument("--seed", type=whole_number, default=0, metavar="N", help="(default: 0)")
    found.add_argument(
        "--calibrated",
        action="store_true",
        help='divide logits by the temperature of the report\'s "student, temperature scaled" (default: 1)',
    )
    found.add_argument(
        "--license", metavar="ID", help="for the model card, such as apache-2.0 (default: unknown)"
    )
    return found


def main(words: Sequence[str]) -> int:
    """Returns the exit status."""
    options = parser().parse(words)
    from ensdistill.job.exporting import Wish, export
    from ensdistill.job.serving import SETTINGS, is_run, student_folder

    try:
        wish = Wish(
            options.to,
            options.output,
            options.student,
            options.seed,
            int8=options.int8,
            calibrated=options.calibrated,
            license=options.license,
        )
    except ValueError as error:
        return usage_error(f"export: --{str(error).replace('path:', 'output:', 1)}", MORE)
    run: Path = options.run
    if not is_run(run):
        return usage_error(
            f"export: RUN: expected a run's folder, on whose test rows the file is judged; got {str(run)!r}",
            "In Python, ensdistill.student.export.to_onnx(student, samples) exports any student.",
        )
    student_folder(run, wish.student, wish.seed)  # raises where it is not finished
    if not (run / SETTINGS).is_file():
        raise ValueError(
            f"RUN: {run} is of an earlier version, which wrote no {SETTINGS}: `ensdistill run CONFIG` adds "
            "it, and trains nothing again"
        )
    result = export(_folder(run), wish)
    if manner().json:
        print_json(
            {
                "files": [str(path) for path in result.files],
                "test_rows": result.rows,
                "temperature": result.temperature,
                "runtime": result.runtime,
                "variants": [one.plain() for one in result.variants],
            }
        )
    else:
        _show(result)
    return 0


def _folder(run: Path) -> Any:
    """The run's folder with its settings; it may have been moved since."""
    from ensdistill.cli.settings import load_config
    from ensdistill.job.run_folder import RunFolder
    from ensdistill.job.serving import SETTINGS

    folder = RunFolder(load_config(["--config", str(run / SETTINGS)]))
    folder.path = run
    return folder


def _figure(metric: Any, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if metric.percent else f"{value:.4f}"


def _show(result: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    table.add_column("", no_wrap=True)
    from ensdistill.report.measures import METRICS

    shown = [METRICS[name] for name in result.variants[0].figures]
    figures = [metric.heading for metric in shown]
    for name in ("bytes", *figures, "difference", "ms, 1 row", "256 rows"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in result.variants:
        table.add_row(
            one.name,
            f"{one.bytes:,}",
            *(_figure(metric, one.figures.get(metric.name)) for metric in shown),
            f"{one.largest_difference:.1e}",
            *(f"{one.latency_ms[size]['p50']:.3f}" for size in ("batch_1", "batch_256")),
        )
    # A regression has no temperature.
    more = "" if "rmse" in result.variants[0].figures else f"; temperature {result.temperature:.4g}"
    console.print(f"On the {result.rows} test rows, by {result.runtime}{more}:")
    console.print(table)
    for path in result.files:
        console.print(f"written: {path}", soft_wrap=True, markup=False)
