"""The commands of a job: ``run``, ``teachers``, ``cache build``, ``tune``, ``distill``, ``report``."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ensdistill.cli.manner import manner
from ensdistill.cli.messages import nearest, print_json, usage_error, warning_line
from ensdistill.cli.starting import Start, looks_like_data, start
from ensdistill.cli.usage import JOBS

STAGES = {
    "run": "report",
    "teachers": "teachers",
    "cache build": "cache",
    "preflight": "preflight",
    "tune": "search",
    "distill": "distill",
    "report": "report",
}
SETTINGS = (".yaml", ".yml")
RUN_YAML = "run.yaml"


def job(command: str, rest: list[str]) -> int:
    """Run a command of a job; return the exit status."""
    more = f"`ensdistill {command} --help` explains the settings."
    if (status := _help(command, rest, more)) is not None:
        return status
    found: Start | None = None
    if rest and not rest[0].startswith("-"):
        first = Path(rest[0])
        if (first / RUN_YAML).is_file():  # the run in a folder goes on
            rest = [str(first / RUN_YAML), *rest[1:]]
        elif first.exists() and looks_like_data(first):
            found, rest = start(rest)
        if found is None:
            rest = ["--config", *rest]
    try:
        from ensdistill.cli.settings import load_config, load_job, split_arguments

        sources = found.sources if found else split_arguments(rest).files
        if found is None and (wrong := _no_config(command, sources, rest)):
            return usage_error(wrong, more)
        settled = found.settings if found else None
        config, settings = load_job(rest, found=settled)
    except (ValueError, TypeError) as error:
        return usage_error(str(error), more)

    if command == "tune" and not config.searched:
        return usage_error(
            "distill.students: expected a student with keep, max_latency, max_bytes or max_parameters in "
            f"place of a model; got {', '.join(config.distill.students)} with a model: add "
            "one by a new NAME, --distill.students.NAME.keep 0.95; with data in place of CONFIG --keep 0.95",
            more,
        )

    from ensdistill.job.settings_file import check_same_source, keep_settings

    try:
        check_same_source(config.run_folder, settings, sources)
    except ValueError as error:
        return usage_error(str(error), more)

    from ensdistill.cli.display import Display
    from ensdistill.job.scheduler import run

    reload = partial(load_config, rest, os.getcwd(), settled)
    notes = [f"{word}: {text}" for word, text in found.facts] if found else []
    keep = partial(keep_settings, settings=settings, sources=sources, notes=notes)
    if found is not None:
        found.show(config.run_folder)
    with Display() as display:
        report = run(config, STAGES[command], reload, display, keep)
    if display.done:
        _warn_of_exports(config.run_folder)
    if command == "preflight":
        _show_preflight(config, changed=bool(display.done))
        return 0
    if command == "tune":
        from ensdistill.cli.tuning import show

        show(config, changed=bool(display.done))
        return 0
    _show(command, config.run_folder, report, changed=bool(display.done))
    return 0


def _show_preflight(config: Any, changed: bool) -> None:
    from rich.console import Console

    from ensdistill.cli.preflight import as_text, document
    from ensdistill.job.preflight import run_preflight
    from ensdistill.job.run_folder import RunFolder

    found = run_preflight(RunFolder(config))
    if manner().json:
        about = {"command": "preflight", "run": str(config.run_folder), "changed": changed}
        print_json(about | {"preflight": document(found)})
        return
    Console(highlight=False).print(as_text(found))


def _warn_of_exports(folder: Path) -> None:
    """Name exported files of a student that has been trained anew."""
    from ensdistill.job.exports import exported_files

    if stale := [str(path) for path, is_stale in exported_files(folder).items() if is_stale]:
        again = f"ensdistill export {shlex.quote(str(folder))} --to ... writes them again"
        text = f"stale, because their student was trained anew since: {', '.join(stale)}. {again}"
        print(warning_line(text), file=sys.stderr)


def _show(command: str, folder: Path, report: dict[str, Any] | None, changed: bool) -> None:
    from rich.console import Console

    if manner().json:
        about = {"command": command, "run": str(folder), "changed": changed}
        print_json(about if report is None else about | {"report": report})
        return
    console = Console()
    unchanged = "" if changed else " (unchanged)"
    if report is None:
        if not manner().quiet:
            tick = "✓" if changed else "="
            console.print(f"[green]{tick}[/] {command}: {folder}{unchanged}", highlight=False, soft_wrap=True)
        return
    from ensdistill.report import as_text

    console.print(as_text(report))
    if not manner().quiet:
        where = f"{folder / 'report.html'}  and  report.json, figures/ beside it"
        console.print(f"\nnext:   ensdistill {folder}", highlight=False, soft_wrap=True)
        console.print(f"report: {where}{unchanged}", highlight=False, soft_wrap=True)


def _help(command: str, rest: list[str], more: str) -> int | None:
    """Show the help that the words ask for, and return the exit status; None where they ask for none."""
    place = next((i for i, word in enumerate(rest) if re.fullmatch(r"--[\w.]+\.help(=.*)?", word)), None)
    if place is not None:
        setting, _, path = rest[place].removeprefix("--").partition("=")
        following = rest[place + 1] if len(rest) > place + 1 and not rest[place + 1].startswith("-") else ""
        try:
            from ensdistill.cli.help import setting_help

            print(setting_help(setting.removesuffix(".help"), path or following), end="")
        except ValueError as error:
            return usage_error(f"--{setting}: {error}", more)
        return 0
    if wants_help(rest):
        from ensdistill.cli.help import job_help

        print(job_help(command, JOBS[command]), end="")
        return 0
    return None


def wants_help(words: Sequence[str]) -> bool:
    return "-h" in words or "--help" in words


def _no_config(command: str, paths: list[Path], words: list[str]) -> str:
    """The error in the CONFIG among a job's words, or an empty string."""
    example = f"ensdistill {command} examples/digits.yaml"
    for path in paths:
        if path.is_dir():
            return (
                f"{command}: CONFIG: {str(path)!r} is a folder; expected a YAML file, for example: {example}"
            )
        if not path.is_file():
            beside = path.parent.iterdir() if path.parent.is_dir() else ()
            hint = nearest(str(path), [str(p) for p in beside if p.suffix in (*SETTINGS, path.suffix)])
            return f"{command}: CONFIG: there is no file {str(path)!r}.{hint}"
    if paths:
        return ""
    if later := next((word for word in words if Path(word).is_file()), ""):
        return (
            f"{command}: CONFIG comes first: ensdistill {command} "
            f"{shlex.join([later, *(word for word in words if word != later)])}"
        )
    return f"{command}: expected a CONFIG file, for example: {example}"
