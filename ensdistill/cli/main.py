"""The command line. Settings come from a YAML file and dotted overrides; every stage of the job is a command
of its own."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ensdistill.cli.messages import failure, nearest, short_warnings, usage_error
from ensdistill.cli.usage import JOBS, OTHERS, USAGE

COMMANDS = ("run", "teachers", "cache", "distill", "report", "info", "bench")
CACHE_COMMANDS = (
    "build",
    "info",
    "verify",
    "add-member",
    "drop-member",
    "reweight",
    "convert",
    "export",
    "push",
    "pull",
)
STAGES = {
    "run": "report",
    "teachers": "teachers",
    "cache build": "cache",
    "distill": "distill",
    "report": "report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 for an error in the work, 2 for wrong usage, 130 for
    Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Users name their own models by import path, from the folder in which the command runs.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    command, rest = " ".join(words[:1]), words[1:]
    if command == "cache" and rest and rest[0] in CACHE_COMMANDS:
        command, rest = f"cache {rest[0]}", rest[1:]
    try:
        with short_warnings():
            return _run(command, rest)
    except KeyboardInterrupt:
        kept = " Everything finished is kept; the same command goes on from there." * (command in STAGES)
        print(f"\nStopped.{kept}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone
        return 0
    except SystemExit as end:  # argparse, or --print_config, has printed
        return int(end.code or 0)
    except Exception as error:
        return failure(error)


def _run(command: str, rest: list[str]) -> int:
    if command in ("", "-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if command else 2
    if command == "--version":
        from ensdistill import __version__

        print(f"ensdistill {__version__}")
        return 0
    if command in STAGES:
        return _job(command, rest)
    if command in OTHERS and (_wants_help(rest) or (command == "cache" and not rest)):
        print(OTHERS[command], end="")
        return 0 if rest else 2
    if command == "info" and rest:
        return usage_error(f"info: expected no arguments; got {shlex.join(rest)!r}")
    if command == "info":
        return _info()
    if command == "bench":
        from ensdistill.cli.bench import main as bench

        return bench(rest)
    if command.startswith("cache "):
        from ensdistill.cli.cache import main as cache

        return cache([command.removeprefix("cache "), *rest])
    return _unknown_command(command, rest)


def _unknown_command(command: str, rest: list[str]) -> int:
    """Show the commands that there are, and the line that was probably meant."""
    name, known = ("cache", CACHE_COMMANDS) if command == "cache" else ("command", COMMANDS)
    wrong, *others = rest if command == "cache" else [command, *rest]
    files = [word for word in (wrong, *others) if Path(word).suffix in (".yaml", ".yml")]
    near = difflib.get_close_matches(wrong, (*known, "--help", "--version"), 1)
    meant: list[str] = []
    if near:
        meant = near if near[0].startswith("-") else [*["cache"] * (command == "cache"), *near, *others]
    elif name == "command" and files and (wrong in files or wrong.startswith("-")):
        meant = ["run", files[0], *(word for word in (wrong, *others) if word != files[0])]
    hint = f" Did you mean `ensdistill {shlex.join(meant)}`?" if meant else ""
    message = f"{name}: expected one of {', '.join(known)}; got {wrong!r}.{hint}"
    return usage_error(message, f"`ensdistill {'cache ' * (command == 'cache')}--help` shows the commands.")


def _job(command: str, rest: list[str]) -> int:
    more = f"`ensdistill {command} --help` explains the settings."
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
    if _wants_help(rest):
        from ensdistill.cli.help import job_help

        print(job_help(command, JOBS[command]), end="")
        return 0
    if rest and not rest[0].startswith("-"):
        rest = ["--config", *rest]
    try:
        from ensdistill.cli.settings import load_config, split_arguments

        if wrong := _no_config(command, split_arguments(rest).files, rest):
            return usage_error(wrong, more)
        config = load_config(rest)
    except (ValueError, TypeError) as error:
        return usage_error(str(error), more)

    from rich.console import Console

    from ensdistill.cli.display import Display
    from ensdistill.job.scheduler import run

    with Display() as display:
        report = run(config, STAGES[command], partial(load_config, rest, os.getcwd()), display)
    console = Console()
    unchanged = "" if display.done else " (unchanged)"
    if report is None:
        tick = "✓" if display.done else "="
        console.print(
            f"[green]{tick}[/] {command}: {config.run_folder}{unchanged}", highlight=False, soft_wrap=True
        )
    else:
        from ensdistill.report import as_text

        console.print(as_text(report))
        where = f"{config.run_folder / 'report.html'}  and  report.json, figures/ beside it"
        console.print(f"\nreport: {where}{unchanged}", highlight=False, soft_wrap=True)
    return 0


def _wants_help(words: Sequence[str]) -> bool:
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
            hint = nearest(str(path), [str(p) for p in beside if p.suffix in (".yaml", ".yml")])
            return f"{command}: CONFIG: there is no file {str(path)!r}.{hint}"
    if paths:
        return ""
    if later := next((word for word in words if Path(word).is_file()), ""):
        return (
            f"{command}: CONFIG comes first: ensdistill {command} "
            f"{shlex.join([later, *(word for word in words if word != later)])}"
        )
    return f"{command}: expected a CONFIG file, for example: {example}"


def _info() -> int:
    from rich.console import Console
    from rich.table import Table

    from ensdistill import __version__
    from ensdistill.loss.ops import build_info

    info = build_info()
    cpu, cuda, torch = info["cpu"], info["cuda"], info["torch"]
    table = Table.grid(padding=(0, 3))
    table.add_row("ensdistill", __version__)
    table.add_row("torch", f"{torch['running']}")
    table.add_row(
        "", f"built with {torch['compiled_with']}; the libraries serve {torch['stable_abi']} and later"
    )
    table.add_row("CPU built", f"{', '.join(cpu['compiled'])} (compiler {cpu['compiler']})")
    here = f"{', '.join(cpu['runnable'])}; in use: {cpu['instruction_set']}"
    table.add_row("CPU here", f"{here}; {cpu['threads']} threads, {cpu['cores']} cores")
    if cuda["built"]:
        table.add_row("CUDA built", ", ".join(cuda["architectures"]))
    else:
        reason = (
            "this torch has no CUDA" if torch["cuda"] is None else "no CUDA toolkit was found at build time"
        )
        table.add_row("CUDA built", f"no: {reason}")
    table.add_row("CUDA here", ", ".join(cuda["devices"]) or "no GPU")
    Console().print(table)
    return 0
