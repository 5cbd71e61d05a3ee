"""``ensdistill compare RUN...``: several runs in one table and one page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ensdistill.cli.manner import manner
from ensdistill.cli.messages import Parser, print_json, warning_line


def parser() -> Parser:
    """The options."""
    p = Parser(
        prog="ensdistill compare",
        description="Shows finished runs side by side: data, ensemble, students, direct training, the share "
        "kept with its intervals, and the cost to serve; in the terminal and as one page. Warns where data "
        "or test rows differ. Example: ensdistill compare runs/small runs/large",
    )
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run, such as runs/NAME")
    p.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.html",
        help="the page (default: compare.html in the folder that holds the runs)",
    )
    p.add_argument("--json", action="store_true", help="print one JSON document; no page unless -o is given")
    p.formatter_class = argparse.HelpFormatter
    return p


def main(words: Sequence[str]) -> int:
    """Compare the runs; return the exit status."""
    from ensdistill.job.contents import contents
    from ensdistill.report.compare import compared, comparison_table, differences, write_comparison

    options = parser().parse(words)
    names = _names(options.runs)
    found = [contents(folder) for folder in options.runs]
    reports = [run.report for run in found if run.report is not None]
    if missing := [run for run in found if run.report is None]:
        config = missing[0].folder / "run.yaml" if missing[0].settings else "CONFIG"
        raise ValueError(
            f"RUN: {missing[0].folder} has no report yet: ensdistill run {config} goes on with it"
        )
    columns = compared(list(zip(names, reports, strict=True)))
    notes = differences(list(zip(names, reports, [run.rows for run in found], strict=True)))
    out = (
        options.output
        or Path(os.path.commonpath([run.parent.absolute() for run in options.runs])) / "compare.html"
    )
    wanted = options.output is not None or not manner().json
    if wanted:
        write_comparison(columns, notes, out)
    if manner().json:
        print_json(
            {
                "runs": {name: report for name, report in zip(names, reports, strict=True)},
                "warnings": notes,
                "page": str(out) if wanted else None,
            }
        )
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    console.print(comparison_table(columns, console.width))
    for note in notes:
        Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(warning_line(note))
    if not manner().quiet:
        console.print(f"\npage: {os.path.relpath(out)}", soft_wrap=True)
    return 0


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; their paths where two have one name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
