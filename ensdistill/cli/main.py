"""The command line. Settings come from a YAML file and dotted overrides; every stage of the job is a command
of its own."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ensdistill.cli.jobs import SETTINGS, STAGES, job, wants_help
from ensdistill.cli.manner import manner, taken
from ensdistill.cli.messages import failure, print_json, short_warnings, usage_error
from ensdistill.cli.usage import CACHE_COMMANDS, COMMANDS, OTHERS, USAGE

# Commands with a parser of their own: a module here with main(words), imported when it is used.
OWN = ("init", "predict", "export", "compare", "share", "completion", "bench")
WITH_JSON = (*STAGES, "init", "predict", "export", "compare", "share", "info", "cache", "--version")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0; 1 for an error in data, in a file's content or in the work; 2
    for wrong words or settings; 130 for Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Users name their own models by import path, from the folder in which the command runs.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with taken(words) as words:
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
    is_run = command not in COMMANDS and Path(command).is_dir()
    if manner().json and not (command in WITH_JSON or command.startswith("cache ") or is_run):
        return usage_error(f"{command}: there is no option '--json'; {', '.join(WITH_JSON[:-1])} have one")
    if command == "--version":
        from ensdistill import __version__

        print_json({"ensdistill": __version__}) if manner().json else print(f"ensdistill {__version__}")
        return 0
    if command in STAGES:
        return job(command, rest)
    if command in OTHERS and (wants_help(rest) or (command == "cache" and not rest)):
        print(OTHERS[command], end="")
        return 0 if rest else 2
    if command == "info" and rest:
        return usage_error(f"info: expected no arguments; got {shlex.join(rest)!r}")
    if command == "info":
        return _info()
    if command in OWN:
        return int(import_module(f"ensdistill.cli.{command}").main(rest))
    if command.startswith("cache "):
        from ensdistill.cli.cache import main as cache

        return cache([command.removeprefix("cache "), *rest])
    if is_run:
        from ensdistill.cli.overview import main as overview

        return overview([command, *rest])
    return _unknown_command(command, rest)


def _unknown_command(command: str, rest: list[str]) -> int:
    """Show the commands that there are, and the line that was probably meant."""
    name, known = ("cache", CACHE_COMMANDS) if command == "cache" else ("command", COMMANDS)
    wrong, *others = rest if command == "cache" else [command, *rest]
    files = [word for word in (wrong, *others) if Path(word).suffix in SETTINGS or Path(word).is_file()]
    near = difflib.get_close_matches(wrong, (*known, "--help", "--version"), 1)
    meant: list[str] = []
    if near:
        meant = near if near[0].startswith("-") else [*["cache"] * (command == "cache"), *near, *others]
    elif name == "command" and files and (wrong in files or wrong.startswith("-")):
        meant = ["run", files[0], *(word for word in (wrong, *others) if word != files[0])]
    if name == "command" and not near and os.sep in wrong and not Path(wrong).exists():
        return usage_error(f"RUN: there is no folder {wrong!r}; expected that of a run, such as runs/NAME")
    hint = f" Did you mean `ensdistill {shlex.join(meant)}`?" if meant else ""
    message = f"{name}: expected one of {', '.join(known)}; got {wrong!r}.{hint}"
    return usage_error(message, f"`ensdistill {'cache ' * (command == 'cache')}--help` shows the commands.")


def _info() -> int:
    from rich.console import Console
    from rich.table import Table

    from ensdistill import __version__
    from ensdistill.loss.ops import build_info

    info = build_info()
    if manner().json:
        print_json({"ensdistill": __version__, **info})
        return 0
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
