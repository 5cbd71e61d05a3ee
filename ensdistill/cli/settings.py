"""From a YAML file and dotted overrides to a `Config`. jsonargparse reads and checks them; here stands what it leaves out: a name that
nothing goes by is refused also where its value is empty, with the nearest one that there is, and its messages are made plain."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
import typing
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ensdistill.cli.messages import nearest, plain

Problem = tuple[str, str]  # the setting, and what is wrong with it


def job_parser(command: str = "run", description: str = "") -> Any:
    """The parser of a job's settings: jsonargparse over `ensdistill.job.config.Config`."""
    from jsonargparse import ArgumentParser

    from ensdistill.job.config import Config

    usage = f"ensdistill {command} CONFIG [--SETTING VALUE ...]"
    parser = ArgumentParser(prog=f"ensdistill {command}", usage=usage, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="The YAML file; may be given as the first word.")
    parser.add_class_arguments(Config, fail_untyped=False)  # estimators made of others have arguments without a type
    return parser


def load_config(arguments: Sequence[str], command: str = "run", folder: str | None = None) -> Any:
    """The `Config` that ``--config FILE`` and overrides make. ``folder`` is put first on the import path.

    Raises
    ------
    ValueError, TypeError
        The file is no mapping of settings, or a setting is unknown or can't have its value: the setting, what came, what was expected.
    SystemExit
        With ``--print_config`` among the arguments, after printing.
    """
    from ensdistill.job.config import Config

    if folder is not None and folder not in sys.path:
        sys.path.insert(0, folder)
    settings: dict[str, Any] = {}
    for path in config_files(arguments):
        settings.update(_read(path))
    _refuse(_problems(settings, Config, ""))
    settings = _overridden(settings, arguments)
    dashed = ((f"--{at}", text.replace("mean '", f"mean '--{at[: at.rfind('.') + 1]}")) for at, text in _problems(settings, Config, ""))
    _refuse(dashed)
    parser = job_parser(command)
    try:
        namespace = parser.parse_args(list(arguments))
        _check_parts(namespace)
        parsed = parser.instantiate(namespace)
    except ArgumentError as error:
        raise ValueError(plain(str(error), settings)) from error
    return Config(**{f.name: parsed[f.name] for f in fields(Config) if f.init})


def config_files(arguments: Sequence[str]) -> Iterator[Path]:
    """The files named by ``--config``, in their order."""
    for word, following in pairwise([*arguments, ""]):
        path = following if word == "--config" else word.removeprefix("--config=")
        if (word == "--config" or word.startswith("--config=")) and path:
            yield Path(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"CONFIG: {path}{where}: not YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(settings, dict):
        got = "nothing" if settings is None else f"a {type(settings).__name__}"
        raise ValueError(f"CONFIG: {path}: expected settings (data, teachers, distill, ...), each `name: value`; got {got}")
    return settings


def _overridden(settings: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The raw settings with those of the command line; ``--data.labelled 9`` is short for ``--data.init_args.labelled 9``."""
    merged = copy.deepcopy(settings)
    for word, following in pairwise([*arguments, ""]):
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or key in ("config", "print_config"):
            continue
        at: Any = merged
        *parents, last = key.rstrip("+").split(".")
        for parent in parents:
            at = _within(at, parent).setdefault(parent, {}) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at = _within(at, last)
            try:
                value = yaml.safe_load(text if equals else following)
            except yaml.YAMLError:
                value = None  # jsonargparse will say so
            if last == "class_path":  # another class, other arguments
                at.clear()
            of_class = isinstance(at.get(last), dict) and "class_path" in at[last] and isinstance(value, str)
            at[last] = {"class_path": value} if of_class else value
    return merged


def _within(at: dict[str, Any], key: str) -> dict[str, Any]:
    short = "class_path" in at and key not in ("class_path", "init_args", "dict_kwargs")
    return at.setdefault("init_args", {}) if short else at


def _refuse(problems: Iterable[Problem]) -> None:
    for at, text in problems:
        raise ValueError(f"{at}: {text}")


def _problems(value: Any, hint: Any, at: str) -> Iterator[Problem]:
    """The names in raw settings that the type ``hint`` doesn't know, and mappings that are none: what jsonargparse passes over."""
    inner = [a for a in typing.get_args(hint) if a is not type(None)]
    if isinstance(value, dict) and "class_path" in value and not isinstance(value["class_path"], str):
        yield f"{at}.class_path", f"expected an import path, package.module.Class; got {value['class_path']!r}"
    elif isinstance(value, dict) and "class_path" in value:
        extra = [key for key in value if key not in ("class_path", "init_args", "dict_kwargs")]
        yield from ((f"{at}.{key}", "beside class_path stands init_args alone; arguments belong there") for key in extra)
        yield from _of_class(value.get("init_args"), _imported(value["class_path"]), f"{at}.init_args", value["class_path"])
    elif is_dataclass(hint):
        yield from _of_class(value, hint, at)
    elif typing.get_origin(hint) is dict and isinstance(value, dict):
        for name, item in value.items():
            yield from _problems(item, inner[1], f"{at}.{name}")
    elif isinstance(value, list) and inner:
        for i, item in enumerate(value):
            yield from _problems(item, inner[0], f"{at}.{i}")
    elif len(inner) == 1:  # X | None
        if value is not None or len(typing.get_args(hint)) == 1:
            yield from _problems(value, inner[0], at)
    elif value is None and hint in (bool, int, float, str, Path):
        yield at, "expected a value; got nothing"


def _of_class(settings: Any, cls: Any, at: str, path: str = "") -> Iterator[Problem]:
    """The arguments of a class: ``path`` where it is the user's choice, empty for the job's own."""
    if not isinstance(settings, dict):
        if settings is not None and not isinstance(settings, str):  # a string names a file
            yield at, f"expected a mapping of names to values; got {settings!r}"
        return
    try:
        parameters = inspect.signature(cls).parameters
        hints = typing.get_type_hints(cls if is_dataclass(cls) else cls.__init__)
    except (TypeError, ValueError, NameError):  # nothing to be imported, or no signature: jsonargparse will say so
        return
    for name, value in settings.items():
        if name in parameters:
            yield from _problems(value, hints.get(name), f"{at}.{name}".lstrip("."))
        elif not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            what = f"{path} takes no such argument" if path else "there is no such setting"
            yield f"{at}.{name}".lstrip("."), f"{what}; known: {', '.join(parameters)}.{nearest(str(name), parameters)}"


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except Exception:  # whatever a module of the user's raises, jsonargparse will meet it too
        return None


def _check_parts(settings: Any, at: str = "") -> None:
    """Build every `Optimization` and `LossSettings` in the parsed settings on its own: built inside its owner, its error lacks the path."""
    from jsonargparse import Namespace

    from ensdistill.common.optimization import Optimization
    from ensdistill.loss.settings import LossSettings

    value = vars(settings) if isinstance(settings, Namespace) else settings
    for kind, own in ((Optimization, "optimization"), (LossSettings, "")):
        if isinstance(value, dict) and set(value) == {f.name for f in fields(kind)}:
            try:
                kind(**value)
            except (ValueError, TypeError) as error:
                raise type(error)(str(error).replace(own, at, 1) if own else f"{at}.{error}") from error
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _check_parts(item, f"{at}.{key}".lstrip("."))
