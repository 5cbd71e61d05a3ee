"""``ensdistill RUN``: the contents of a run's folder, and the commands for it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensdistill.cli.manner import manner
from ensdistill.cli.messages import print_json, usage_error
from ensdistill.job.contents import Contents, contents

SHOWN = ("accuracy", "nll")
KINDS = ("ensemble", "direct", "student")


def main(words: Sequence[str]) -> int:
    """Show the run in the folder that is the only word; return the exit status."""
    folder, *rest = words
    if rest:
        return usage_error(
            f"{folder}: expected no more arguments after a run's folder; got {shlex.join(rest)}"
        )
    found = contents(Path(folder))
    if manner().json:
        print_json(_document(found))
    else:
        _show(found)
    return 0


def _document(found: Contents) -> dict[str, Any]:
    return {
        "run": str(found.folder),
        "data": found.settings.get("data"),
        "made_from": found.sources,
        "seeds": found.seeds,
        "finished": found.finished,
        "students": _figures(found),
        "exports": [str(path) for path in found.exports],
        "stale_exports": [str(path) for path in found.stale],
        "commands": {text: command for command, text in _commands(found)},
    }


def _figures(found: Contents) -> dict[str, Any]:
    """Of each student in the report: its outcome, verdict and main figures."""
    students = {} if found.report is None else found.report["students"]
    return {
        name: {
            "outcome": student["outcome"],
            "verdict": student["verdict"],
            **{kind: {m: student["models"][kind][m]["mean"] for m in SHOWN} for kind in KINDS},
            "kept": {m: student["retained_gain"][m] for m in SHOWN},
            "parameters": student["models"]["student"]["parameters"],
            "bytes": student["models"]["student"]["bytes"],
        }
        for name, student in students.items()
    }


def _show(found: Contents) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    about = Table.grid(padding=(0, 2))
    about.add_row("run", Text(str(found.folder)))
    about.add_row("data", Text(_data_line(found)))
    done = [f"{stage} {count}/{found.seeds}" for stage, count in found.finished.items()]
    about.add_row("finished", Text(", ".join([*done, "report" if found.report else "no report yet"])))
    for path in found.exports:
        about.add_row("exported", Text(f"{path} ({_described(path, path in found.stale)})"))
    console.print(about)
    if found.report is not None:
        from ensdistill.report.compare import figures_table
        from ensdistill.report.table import by_outcome, check_version
        from ensdistill.report.verdict import headline

        check_version(found.report)
        console.print()
        console.print(figures_table(found.report))
        for name, student in by_outcome(found.report):
            console.print(Text(headline(name, student)))
    if not manner().quiet:
        console.print("\nWhat can be done with it:")
        width = max(len(command) for command, _ in _commands(found))
        for command, text in _commands(found):
            console.print(Text.assemble((f"  {command:{width}}", "bold"), f"  # {text}"), soft_wrap=True)


def _described(path: Path, stale: bool) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = f"{sum(file.stat().st_size for file in files):,} bytes"
    return f"{size}; stale: of a student that was trained anew since, export it again" if stale else size


def _data_line(found: Contents) -> str:
    data = found.settings.get("data")
    if not data:
        return (
            found.report["dataset"]["name"]
            if found.report
            else "unknown: the run was made by an older version"
        )
    arguments = data.get("init_args") or {}
    shown = {
        name: arguments[name]
        for name in ("path", "inputs", "dataset", "text", "target")
        if arguments.get(name)
    }
    words = [f"{name} {value}" for name, value in shown.items()]
    return ", ".join([data["class_path"].rpartition(".")[2], *words])


def _commands(found: Contents) -> list[tuple[str, str]]:
    """Commands for this run, with the effect of each."""
    run = shlex.quote(str(found.folder))
    config = f"{run}/run.yaml" if found.settings else "CONFIG"
    data = (found.settings.get("data") or {}).get("init_args") or {}
    task = found.report.get("task") if found.report else data.get("task")
    answers = {"multilabel": "labels and probabilities", "regression": "numbers"}.get(
        str(task), "label and probabilities"
    )
    trained = [name for name in found.students if found.finished.get(f"distill {name}")]
    if found.report is None:
        left = sum(found.seeds - count for count in found.finished.values())
        more = f"{left} {'stage' if left == 1 else 'stages'} and the report are left"
        work = f"go on: {more}" if left else "make the report"
        commands = [(f"ensdistill run {config}", work)]
        commands += [(f"ensdistill predict {run} NEW.csv -o out.csv", answers)] * bool(trained)
        return commands
    return [
        (f"ensdistill predict {run} NEW.csv -o out.csv", f"{answers} of new rows"),
        (f"ensdistill export {run} --to onnx", "the student as one file"),
        (f"ensdistill report {config}", "the whole report; report.html has its figures"),
        (f"ensdistill run {config} --seeds {found.seeds + 2}", "more seeds: narrower intervals"),
        (f"ensdistill compare {run} OTHER_RUN", "beside another run"),
    ]
