"""The settings explained: names, types, defaults and docstrings, and the classes that a setting may name."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any

import docstring_parser

from ensdistill.cli.classes import MODULES, find_class, is_group, is_kind, methods, parameters
from ensdistill.common.describe import class_path
from ensdistill.job.config import Config
from ensdistill.job.student_config import StudentConfig
from ensdistill.teachers.recipes import Recipe

OPTIONS = (
    (
        "--target NAME, --ignore NAME, --data DATA, --task TASK, --separator TEXT",
        "Where CONFIG is data (a table, arrays, a folder): the labels' columns, a column that is not used, "
        "the data of a folder of models, and the task. `ensdistill init --help` explains them.",
    ),
    (
        "--keep SHARE, --max_latency TIME, --max_bytes SIZE, --max_parameters N",
        "Where CONFIG is data: a goal in place of the student's model, which is searched for in --minutes.",
    ),
    ("--config FILE", "Another file of settings, which change those of CONFIG; may be given several times."),
    ("--print_config", "Print the settings, defaults included, as YAML, and stop."),
    (
        "--SETTING.help [CLASS_PATH]",
        "List the classes that a setting may name, or the arguments of one. "
        "For example: --cache.transfer.synthetic.help ensdistill.data.transfer.Munge",
    ),
)


def job_help(command: str, text: str) -> str:
    """``ensdistill COMMAND --help``: every setting; those within lists and mappings at the end."""
    example = (
        "CONFIG is a YAML file, such as examples/digits.yaml, the folder of a run, or data, whose settings "
        f"are found. Example: ensdistill {command} examples/digits.yaml --seeds 5"
    )
    student = "distill.students.NAME"
    groups: dict[str, Iterable[tuple[str, str]]] = {
        "options": OPTIONS,
        "settings": _listed(Config, "--"),
        f"settings of each student, --{student}": _listed(StudentConfig, f"--{student}."),
    }
    groups |= {f"init_args of {class_path(cls)}, a kind of members": _listed(cls) for cls in _offered(Recipe)}
    usage = f"ensdistill {command} CONFIG [--SETTING VALUE ...]"
    return _formatted(groups, usage=usage, description=f"{text} {example}")


def setting_help(setting: str, path: str = "") -> str:
    """``--SETTING.help [CLASS_PATH]``: the arguments of that class, or the classes that the setting may name.

    Raises
    ------
    ValueError
        No such setting takes a class, or there is no such class.
    """
    if path:
        return _formatted({path: _listed(find_class(path))})
    kind: Any = Config
    for key in setting.split("."):
        known = parameters(kind) if is_group(kind) else {}
        if key not in known:
            raise ValueError(f"there is no setting {key!r}; `ensdistill run --help` lists them")
        kind = _class_in(known[key].annotation)
    if is_group(kind):
        return _formatted({f"--{setting}": _listed(kind, f"--{setting}.NAME.")})
    if not inspect.isclass(kind) or kind.__module__ in ("builtins", "pathlib"):
        raise ValueError("expected a setting that names a class; `ensdistill run --help` lists them")
    lines = [f"--{setting}: class_path and init_args of one of"]
    lines += [
        line
        for c in _offered(kind)
        for line in (f"  {class_path(c)}", f"    {_plain(inspect.getdoc(c) or '').splitlines()[0]}")
    ]
    lines += [
        "or of a class of your own with"
        if methods(kind)
        else f"or of any other subclass of {class_path(kind)}"
    ]
    lines += [f"  {method}" for method in methods(kind).values()]
    return "\n".join([*lines, f"`ensdistill run --{setting}.help CLASS_PATH` lists a class's arguments.\n"])


def _class_in(hint: Any) -> Any:
    """The class within ``list[X]``, ``dict[str, X]``, ``X | None``, ``Callable[[], X]``."""
    parts = [part for part in typing.get_args(hint) if typing.get_origin(part) is not typing.Literal]
    inner = [part for part in parts if inspect.isclass(part) or typing.get_args(part)]
    return _class_in(next(part for part in reversed(inner) if part is not type(None))) if inner else hint


def _offered(base: Any) -> list[type]:
    """This package's classes that a setting of this type may name."""
    found = {
        c: None
        for name in MODULES
        for c in vars(importlib.import_module(name)).values()
        if inspect.isclass(c) and c is not base and c.__name__[0] != "_" and not inspect.isabstract(c)
    }
    return [c for c in found if c.__module__.startswith(tuple(MODULES)) and is_kind(c, base)]


def _listed(cls: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The name and the explanation of each setting: its type and default, then the docstring's text."""
    # The text of an inherited field stands with the class that has it.
    kinds = getattr(cls, "__mro__", ())[::-1] if is_dataclass(cls) else [cls]
    texts = {p.arg_name: p for c in kinds for p in docstring_parser.parse(inspect.getdoc(c) or "").params}
    texts = {name.strip(): p for names, p in texts.items() for name in names.split(",")}
    for name, parameter in parameters(cls).items():
        if is_group(parameter.annotation):
            yield from _listed(parameter.annotation, f"{prefix}{name}.")
            continue
        kind = getattr(texts.get(name), "type_name", None) or inspect.formatannotation(parameter.annotation)
        default = parameter.default
        given = (
            "required"
            if default is inspect.Parameter.empty
            else f"default {json.dumps(default, default=str)}"
        )
        text = getattr(texts.get(name), "description", None) or ""
        yield f"{prefix}{name}", _plain(f"{kind.removesuffix(', optional')}; {given}. {text}")


def _plain(text: str) -> str:
    """A docstring's text without the marks of Sphinx."""
    text = re.sub(r":\w+:`(?:~[\w.]*\.)?([^`]+)`", r"\1", text)
    return re.sub(r"(?<!\w)\*(\w[^*]*)\*(?!\w)", r"\1", text.replace("``", "`"))


def _formatted(groups: dict[str, Iterable[tuple[str, str]]], **options: Any) -> str:
    parser = argparse.ArgumentParser(
        add_help=False, prefix_chars="\0", **({"usage": argparse.SUPPRESS} | options)
    )
    for title, settings in groups.items():
        group = parser.add_argument_group(title)
        for name, text in settings:
            group.add_argument(name, metavar=name, help=text.replace("%", "%%"))
    return parser.format_help()
