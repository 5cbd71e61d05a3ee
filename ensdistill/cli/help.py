"""What the command line says about itself: its commands, their settings, and the arguments of the classes that settings name."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from dataclasses import is_dataclass
from typing import Any

from ensdistill.cli.places import PLACES, methods

USAGE = """\
ensdistill: any ensemble in, one small fast model out, with proof of how much of the ensemble it kept.

    teachers ──► cache ──► student ──► report

  ensdistill run CONFIG           the whole job, up to the report
  ensdistill teachers CONFIG      train, calibrate and weigh the ensemble
  ensdistill cache build CONFIG   and run it once over the transfer set
  ensdistill distill CONFIG       and train the students and their baselines
  ensdistill report CONFIG        and judge them: table, report.json, report.html
  ensdistill cache info FOLDER    what a target cache holds, and how exact it is
  ensdistill cache verify FOLDER  read all of it and check every byte (`ensdistill cache --help`: what else can be done with one)
  ensdistill info                 what is built and what runs here
  ensdistill bench                time the losses on this machine (`ensdistill bench --help`)

Each of the job's commands does what is missing before it, skips what is finished and unchanged, and goes on where a killed
one stopped. Anything in CONFIG can be overridden:

  ensdistill run examples/digits.yaml --seeds 5 --distill.loss.temperature 2 --distill.students.mlp.optimization.steps 2000

`ensdistill run --help` explains every setting; `ensdistill run CONFIG --print_config` prints them as they are. Your own models and
data sets come in by import path (class_path, init_args); the current folder is importable.
"""
JOBS = {
    "run": "The whole job: trains the ensemble, asks it once about the transfer set, trains the students and their baselines, and reports "
    "what was kept.",
    "teachers": "Trains the ensemble's members, calibrates and weighs them by held-out predictions, and stops there. Writes "
    "seed-*/teachers/ in the run's folder. Of the settings it reads data, teachers, seeds, workers and threads; the others may be there.",
    "cache build": "Builds the transfer set, asks the ensemble about it once, and stores the answers; trains the teachers first where they "
    "are missing or changed. Writes seed-*/cache/ in the run's folder. Of the settings it reads cache and what `teachers` reads.",
    "distill": "Trains the students from the cache, and their baselines on the labels; makes what is missing before that. Writes "
    "seed-*/distill/ and seed-*/direct/ in the run's folder. No report: `ensdistill report CONFIG` makes it.",
    "report": "Judges the students on the test rows: prints the table and writes report.json, report.html and figures/ in the run's "
    "folder; makes what is missing before that, like `run`.",
}
OTHERS = {
    "cache": """\
usage: ensdistill cache COMMAND ...     `ensdistill cache COMMAND --help` explains each

  build CONFIG [--SETTING VALUE ...]    ask the ensemble once about the transfer set and store its answers
  info FOLDER                           what a target cache holds, and how exact it is
  verify FOLDER                         read all of it and check every byte; --against-teachers 0.1% asks them again
  add-member FOLDER OUT ...             a copy with one member more, whose logits are in a file
  drop-member FOLDER OUT --name NAME    a copy with one member less
  reweight FOLDER MEMBER=WEIGHT ...     other weights, in place (a job's next run undoes it: reweight a copy)
  convert FOLDER OUT --codec CODEC      the same targets in another codec, or only their mixture (--mixture-at T)
  export FOLDER FILE.parquet            for other tools
  push FOLDER URL, pull URL FOLDER      to and from s3://, gs://, ...: whatever fsspec knows
""",
    "info": """\
usage: ensdistill info

What is built (CPU instruction sets, CUDA architectures, torch versions) and what of it runs on this machine.
""",
}


def job_help(command: str) -> str:
    """``ensdistill COMMAND --help``: what the command does, and every setting; those within lists and mappings at the end."""
    from ensdistill.cli.settings import job_parser
    from ensdistill.job.config import StudentConfig
    from ensdistill.teachers.recipes import SklearnMembers, TorchMembers

    example = f"CONFIG is a YAML file, such as examples/digits.yaml. Example: ensdistill {command} examples/digits.yaml --seeds 5"
    text = job_parser(command, f"{JOBS[command]} {example}").format_help()
    parts = [text, "Settings of each student, --distill.students.NAME. ...:\n", _arguments(StudentConfig, "distill.students.NAME")]
    for cls in (TorchMembers, SklearnMembers):
        parts += [f"\nArguments (init_args) of the members of {_path(cls)}:\n", _arguments(cls)]
    parts.append("\nThe arguments of any other class: the setting's .help with its import path, for example\n")
    parts.append(f"  ensdistill {command} --cache.transfer.synthetic.help ensdistill.data.transfer.Munge\n")
    return "".join(parts)


def setting_help(setting: str, path: str = "") -> str:
    """``--SETTING.help [CLASS_PATH]``: the arguments of that class, or which classes there are.

    Raises
    ------
    ValueError
        No such setting takes a class, or there is no such class.
    """
    from ensdistill.job.config import Config

    wanted: Any = Config
    for key in setting.split("."):
        known = typing.get_type_hints(wanted) if is_dataclass(wanted) else {}
        if key not in known:
            # A student's own name stands between its mapping and its settings.
            raise ValueError(f"--{setting}.help: {key!r} is no setting that has one; `ensdistill run --help` lists them")
        wanted = _class_of(known[key])
    if path:
        return f"{path}:\n{_arguments(_found(path))}"
    protocol = getattr(wanted, "_is_protocol", False)
    if is_dataclass(wanted) and not protocol:
        return _arguments(wanted, f"{setting}.NAME")
    if not inspect.isclass(wanted) or wanted.__module__ in ("builtins", "pathlib"):
        raise ValueError(f"--{setting}.help: expected a setting that names a class; `ensdistill run --help` lists them")
    lines = [f"--{setting}: class_path and init_args of one of\n"]
    lines += [f"  {_path(c):42} {(inspect.getdoc(c) or '').splitlines()[0]}\n" for c in _offered(wanted)]
    if protocol:
        lines += ["or of a class of your own with, types included,\n", *(f"  {method}\n" for method in methods(wanted))]
    else:
        lines.append(f"  or any other subclass of {_path(wanted)}, your own ones too\n")
    return "".join([*lines, f"`ensdistill run --{setting}.help CLASS_PATH` lists a class's arguments.\n"])


def _class_of(hint: Any) -> Any:
    """The class within ``list[X]``, ``dict[str, X]``, ``X | None``, ``Callable[[], X]``."""
    inner = [a for a in typing.get_args(hint) if a is not type(None) and not isinstance(a, list)]
    return _class_of(inner[-1]) if inner else hint


def _offered(base: Any) -> list[type]:
    """This package's classes that a setting of this type may name."""
    needed = [n for n, f in vars(base).items() if n[0] != "_" and inspect.isfunction(f)] if getattr(base, "_is_protocol", False) else []
    modules = [importlib.import_module(name) for name in PLACES]
    classes = [c for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ == m.__name__ and c is not base]
    return [c for c in classes if (all(hasattr(c, n) for n in needed) if needed else issubclass(c, base))]


def _found(path: str) -> type:
    module, _, name = path.rpartition(".")
    for place in (module,) if module else PLACES:
        try:
            cls = getattr(importlib.import_module(place), name, None)
        except ImportError as error:
            raise ValueError(f"CLASS_PATH: {path!r} can't be imported ({error})") from error
        if inspect.isclass(cls):
            return cls
    raise ValueError(f"CLASS_PATH: there is no class {path!r}")


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _arguments(cls: Any, prefix: str = "") -> str:
    """The arguments as jsonargparse explains them, without the usage; without dashes where they are init_args of a file."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="", usage="", add_help=False)
    parser.add_class_arguments(cls, prefix or None)
    _, _, text = parser.format_help().partition("\n\n")
    # Every module that torch has is a known subclass; and what can't be said in a list of arguments is not listed.
    text = re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", text)
    text = re.sub(r"^  --\S+(\.help\b.*| CONFIG *)\n(?:    .*\n)*", "", text, flags=re.MULTILINE)
    return text if prefix else re.sub(r"^  --", "  ", text, flags=re.MULTILINE)
