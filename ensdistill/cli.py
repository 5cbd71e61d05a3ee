"""The command line. Settings come from a YAML file and dotted overrides; every stage of the job is a command of its own."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import textwrap
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

USAGE = """\
ensdistill: any ensemble in, one small fast model out, with proof of how much of the ensemble it kept.

    teachers ──► cache ──► student ──► report

  ensdistill run CONFIG           the whole job, up to the report
  ensdistill teachers CONFIG      train, calibrate and weigh the ensemble
  ensdistill cache build CONFIG   and run it once over the transfer set
  ensdistill distill CONFIG       and train the students and their baselines
  ensdistill report CONFIG        and judge them: table, report.json, report.html
  ensdistill cache info FOLDER    what a target cache holds, and how exact it is
  ensdistill cache verify FOLDER  read all of it and check every byte
  ensdistill info                 what is built and what runs here
  ensdistill bench                time the losses on this machine (`ensdistill bench --help`)

Each of the job's commands does what is missing before it, skips what is finished and unchanged, and goes on where a killed
one stopped. Anything in CONFIG can be overridden:

  ensdistill run examples/digits.yaml --seeds 5 --distill.temperature 2 --distill.students.mlp.optimization.steps 2000

`ensdistill run --help` explains every setting; `ensdistill run CONFIG --print_config` prints them as they are. Your own models and
data sets come in by import path (class_path, init_args); the current folder is importable.
"""
STAGES = {"run": "report", "teachers": "teachers", "cache build": "cache", "distill": "distill", "report": "report"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 for an error in the work, 2 for wrong usage, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A model of the user's own is named by import path, from where the command is run.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        from ensdistill import __version__

        print(f"ensdistill {__version__}")
        return 0
    command, rest = words[0], words[1:]
    if command == "cache" and rest and rest[0] in ("build", "info", "verify"):
        command, rest = f"cache {rest[0]}", rest[1:]
    try:
        if command == "info":
            return _info()
        if command == "bench":
            from ensdistill.bench.command import main as bench

            return bench(rest)
        if command in ("cache info", "cache verify"):
            return _cache(command, rest)
        if command in STAGES:
            return _job(command, rest)
    except KeyboardInterrupt:
        print("\nStopped. Everything finished is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing to tell it
        return 0
    except Exception as error:
        return _failed(error)
    known = [*STAGES, "cache info", "cache verify", "info", "bench"]
    if command == "cache" and rest:
        command = f"cache {rest[0]}"
    near = difflib.get_close_matches(command, known, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return _usage_error(f"command: expected one of {', '.join(known)}; got {command!r}.{hint}")


def _failed(error: Exception) -> int:
    """An error on the terminal: its message, and a traceback only where the message may not be enough."""
    message = str(error) or type(error).__name__
    print(f"ensdistill: {message}", file=sys.stderr)
    details = getattr(error, "details", None)
    if os.environ.get("ENSDISTILL_TRACEBACK"):
        import traceback

        print(details or "".join(traceback.format_exception(error)), file=sys.stderr)
    elif not isinstance(error, OSError):
        print("(ENSDISTILL_TRACEBACK=1 shows where; everything finished is kept)", file=sys.stderr)
    return 1


def _usage_error(message: str) -> int:
    print(f"ensdistill: {message}\n`ensdistill --help` shows the commands.", file=sys.stderr)
    return 2


def job_parser(command: str = "run") -> Any:
    """The parser of a job's settings: jsonargparse over `ensdistill.config.Config`."""
    from jsonargparse import ArgumentParser

    from ensdistill.config import Config

    parser = ArgumentParser(
        prog=f"ensdistill {command}",
        usage=f"ensdistill {command} CONFIG [--SETTING VALUE ...]",
        description=f"CONFIG is a YAML file, such as examples/digits.yaml. Example: ensdistill {command} examples/digits.yaml --seeds 5",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="The YAML file; may be given as the first word.")
    parser.add_class_arguments(Config)
    return parser


def load_config(arguments: Sequence[str], command: str = "run", folder: str | None = None) -> Any:
    """The `Config` that ``--config FILE`` and overrides make. ``folder`` is put first on the import path."""
    from ensdistill.config import Config

    if folder is not None and folder not in sys.path:
        sys.path.insert(0, folder)
    parser = job_parser(command)
    settings = parser.instantiate(parser.parse_args(list(arguments)))
    return Config(**{f.name: settings[f.name] for f in fields(Config) if f.init})


def _job(command: str, rest: list[str]) -> int:
    if rest and not rest[0].startswith("-"):
        rest = ["--config", *rest]
    if "-h" in rest or "--help" in rest:
        job_parser(command).print_help()
        return 0
    if not any(word == "--config" or word.startswith("--config=") for word in rest):
        return _usage_error(f"{command}: expected a CONFIG file, for example: ensdistill {command} examples/digits.yaml")
    for index, word in enumerate(rest):
        path = rest[index + 1] if word == "--config" and index + 1 < len(rest) else word.removeprefix("--config=")
        if word.startswith("--config") and not Path(path).is_file():
            return _usage_error(f"{command}: CONFIG: there is no file {path!r}")
    try:
        if any(word.startswith("--print_config") for word in rest):
            parser = job_parser(command)
            print(parser.dump(parser.parse_args([word for word in rest if not word.startswith("--print_config")])), end="")
            return 0
        config = load_config(rest, command)
    except ArgumentError as error:
        message, hint = _tidy(str(error)), _suggestion(str(error))
        return _usage_error(f"{message.removesuffix('.')}.{hint}" if hint else message)
    except (ValueError, TypeError) as error:
        return _usage_error(str(error))

    from rich.console import Console

    from ensdistill.display import Display
    from ensdistill.run import run

    with Display() as display:
        report = run(config, STAGES[command], partial(load_config, rest, command, os.getcwd()), display)
    console = Console()
    if report is None:
        console.print(f"[green]✓[/] {command}: {config.run_folder}", highlight=False)
    else:
        from ensdistill.report import print_report

        print_report(report, console)
        console.print(f"\nreport: {config.run_folder / 'report.html'}  and  report.json, figures/ beside it", highlight=False)
    return 0


def _tidy(message: str) -> str:
    """jsonargparse wraps each level of a nested setting in a line; the last one says what is wrong."""
    return textwrap.dedent(message).strip()


def _suggestion(message: str) -> str:
    """`` Did you mean ...?`` for a name in the message that nothing goes by; for a class that does not fit, what would."""
    protocol = re.search(r"does not implement protocol (\w+)", message)
    if protocol:
        return _protocol(protocol.group(1))
    missing = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)
    if missing:
        module, name = missing.groups()
        return _nearest(name, (n for n in dir(importlib.import_module(module)) if not n.startswith("_")))
    found = re.search(r"[Oo]ption '([\w.]+)'", message) or re.search(r"arguments: --([\w.]+)", message)
    if not found:
        return ""
    paths = re.findall(r"class_path[ =]'([\w.]+)'", message)
    # The message may name what stands below the wrong word: --optimisation.steps.
    parts, known = found.group(1).split("."), _settings(paths)
    wrong = next((i for i, part in enumerate(parts) if part not in known), len(parts) - 1)
    near = difflib.get_close_matches(parts[wrong], sorted(known - {parts[wrong]}), 1)
    return f" Did you mean {'.'.join([*parts[:wrong], near[0], *parts[wrong + 1 :]])!r}?" if near else ""


def _protocol(name: str) -> str:
    """The methods that a user's class needs, as it has to declare them."""
    from ensdistill import augmentation, data, specs, transfer

    cls = next((vars(module)[name] for module in (data, specs, transfer, augmentation) if name in vars(module)), None)
    methods = [f"def {n}{inspect.signature(f)}" for n, f in vars(cls).items() if n[0] != "_" and inspect.isfunction(f)] if cls else []
    return f" Expected, types included: {'; '.join(methods)}".replace("'", "") if methods else ""


def _settings(paths: Iterable[str]) -> set[str]:
    """Names of settings: those of the classes at these import paths, else all of the job's own."""
    names: set[str] = set()
    for path in paths:
        module, _, name = path.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        names.update(n for n in inspect.signature(cls).parameters if n != "self")
    from ensdistill import config, optimization

    classes = [c for m in (config, optimization) for c in vars(m).values() if inspect.isclass(c) and is_dataclass(c)]
    return names | {f.name for c in classes for f in fields(c)}


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), 1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def _info() -> int:
    from rich.console import Console
    from rich.table import Table

    from ensdistill import __version__
    from ensdistill.ops import build_info

    info = build_info()
    cpu, cuda, torch = info["cpu"], info["cuda"], info["torch"]
    table = Table.grid(padding=(0, 3))
    table.add_row("ensdistill", __version__)
    table.add_row("torch", f"{torch['running']} (built with {torch['compiled_with']}; the libraries serve {torch['stable_abi']} and later)")
    table.add_row("CPU built", f"{', '.join(cpu['compiled'])} (compiler {cpu['compiler']})")
    here = f"{', '.join(cpu['runnable'])}; in use: {cpu['instruction_set']}"
    table.add_row("CPU here", f"{here}; {cpu['threads']} threads, {cpu['cores']} cores")
    if cuda["built"]:
        table.add_row("CUDA built", ", ".join(cuda["architectures"]))
    else:
        reason = "this torch has no CUDA" if torch["cuda"] is None else "no CUDA toolkit was found at build time"
        table.add_row("CUDA built", f"no: {reason}")
    table.add_row("CUDA here", ", ".join(cuda["devices"]) or "no GPU")
    Console().print(table)
    return 0


def _cache(command: str, rest: list[str]) -> int:
    if len(rest) != 1 or rest[0].startswith("-"):
        return _usage_error(f"{command}: expected one FOLDER, for example: ensdistill {command} runs/digits/seed-0/cache/targets")
    from rich.console import Console
    from rich.table import Table

    from ensdistill.cache import TargetCache

    cache = TargetCache.open(rest[0])
    console = Console()
    if command == "cache verify":
        cache.verify()
        console.print(f"[green]✓[/] {len(cache)} records in {len(cache.manifest['shards'])} shards: every byte as written", highlight=False)
        return 0
    kl = cache.manifest["statistics"]["kl"]
    table = Table.grid(padding=(0, 3))
    table.add_row("folder", rest[0])
    table.add_row("records", f"{len(cache)} of {cache.layout.bytes} bytes, in {len(cache.manifest['shards'])} shards")
    exact = f"KL to the exact targets mean {kl['mean']:.1e}, p99 {kl['p99']:.1e}, max {kl['max']:.1e} nats"
    table.add_row("codec", f"{cache.manifest['codec']}: {exact}")
    table.add_row("members", ", ".join(f"{n} ({w:.3f})" for n, w in zip(cache.names, cache.weights, strict=True)))
    table.add_row("combiner", cache.combiner)
    table.add_row("classes", ", ".join(cache.classes[:12]) + (" ..." if len(cache.classes) > 12 else ""))
    console.print(table)
    return 0
