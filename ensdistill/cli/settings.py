"""From a YAML file and dotted overrides to a `Config`; pydantic checks the settings."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from ensdistill.cli.messages import nearest
from ensdistill.common.errors import WrongArgument

EXPECTED = {  # by pydantic's error types
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "dict_type": "a mapping of names to values",
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "sequence_str", "is_instance_of"), "a list"),
}


class Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in JSON; YAML 1.1 has it as text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass
class Arguments:
    """A job's arguments: the ``files`` of settings, ``texts`` of settings by dotted name, whether to
    ``show`` the settings instead of running, and the other words."""

    files: list[Path] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    show: bool = False
    stray: list[str] = field(default_factory=list)


def split_arguments(words: Iterable[str]) -> Arguments:
    """Sort a job's arguments; raise ValueError for an option without its value."""
    found, rest = Arguments(), list(words)
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if name == "--print_config":
            if equals:
                raise ValueError(f"--print_config: expected no value; got {text!r}")
            found.show = True
            continue
        if not name.startswith("--"):
            found.stray.append(name + equals + text)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                hint = nearest(name, ("--config", "--print_config"))
                raise ValueError(f"{name}: expected a value, {name} VALUE; got nothing.{hint}")
            text = rest.pop(0)
        if name == "--config":
            found.files.append(Path(text))
        else:
            found.texts.setdefault(name.removeprefix("--"), []).append(text)
    return found


def check_names(words: Iterable[str], data_options: Iterable[str]) -> None:
    """Raise WrongArgument for a word without an option and for an unknown setting.

    ``data_options`` were taken from the words before, and are named where they are near.
    """
    from ensdistill.cli.classes import parameters
    from ensdistill.job.config import Config

    given = split_arguments(words)
    if given.stray:
        raise WrongArgument(f"CONFIG: expected --SETTING VALUE; got {given.stray[0]!r}")
    known = list(parameters(Config))
    for name in (key.partition(".")[0].rstrip("+") for key in given.texts):
        if name not in known:
            hint = nearest(f"--{name}", [*data_options, *(f"--{one}" for one in known)])
            hint = _of_student(name) or hint
            raise WrongArgument(f"--{name}: there is no such setting; known: {', '.join(known)}.{hint}")


def load_config(words: Iterable[str], folder: str | None = None, found: dict[str, Any] | None = None) -> Any:
    """The `Config` that ``--config FILE`` and overrides make.

    Parameters
    ----------
    words : iterable of str
    folder : str, optional
        Put first on the import path.
    found : dict, optional
        Settings that the files and overrides change. Without a name, the run has that of the first file.

    Raises
    ------
    ValueError
        A file is not YAML, or settings are wrong: a line for each, with its path, the value and the
        expectation.
    SystemExit
        With ``--print_config`` among the words, after printing.
    """
    return load_job(words, folder, found)[0]


def load_job(
    words: Iterable[str], folder: str | None = None, found: dict[str, Any] | None = None
) -> tuple[Any, str]:
    """As `load_config`, with all settings as YAML, defaults included."""
    given = split_arguments(words)
    config, settings = _built(given, folder, found)
    text = complete(settings)
    if given.show:
        print(text, end="")
        raise SystemExit(0)
    return config, text


def complete(settings: dict[str, Any]) -> str:
    """Settings as YAML, with those defaults that can be written down."""
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    from ensdistill.cli.classes import parse
    from ensdistill.job.config import Config

    try:
        plain = to_jsonable_python(parse(Config, settings, plain=True), inf_nan_mode="constants")
    except PydanticSerializationError:  # a user's class may have any object as a default
        plain = settings
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _built(given: Arguments, folder: str | None, found: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """The config, and the settings that it was made from."""
    from pydantic import ValidationError

    from ensdistill.cli.classes import parse
    from ensdistill.job.config import Config

    if folder is not None and folder not in sys.path:
        sys.path.insert(0, folder)
    if given.stray:
        raise ValueError(f"CONFIG: expected --SETTING VALUE; got {given.stray[0]!r}")
    named = {"name": given.files[0].stem} if given.files else {}
    files = [named, found or {}, *(_expanded(_read(path)) for path in given.files)]
    names = {_short(key.rstrip("+").split(".")): key for key in given.texts}
    as_text: set[str] = set()
    while True:
        nested: list[Any] = [
            reduce(
                lambda inner, name: {name: inner},
                reversed(key.split(".")),
                text if key in as_text else _yaml(text, f"--{key}"),
            )
            for key, texts in given.texts.items()
            for text in texts
        ]
        settings: Any = reduce(_merged, [*files, *map(_expanded, nested)], {})
        try:
            config = parse(Config, settings)
            break
        except ValidationError as error:
            # Where text is expected, `--name 007` is no number and `--distill.mixed_precision no` is not
            # false.
            places = [fault["loc"] for fault in error.errors() if fault["type"] in ("string_type", "one_of")]
            texts = {names.get(_short(place), "") for place in places} - {"", *as_text}
            if not texts:
                raise ValueError("\n".join(_sentence(fault, names) for fault in _inner(error))) from error
            as_text |= texts
    return config, settings


def parsed(cls: Any, path: Path, **defaults: Any) -> Any:
    """The settings class that a YAML file describes, without overrides.

    Raises
    ------
    ValueError
        As by `load_config`.
    """
    from pydantic import ValidationError

    from ensdistill.cli.classes import parse

    settings = {**defaults, **_expanded(_read(path))}
    try:
        return parse(cls, settings)
    except ValidationError as error:
        raise ValueError("\n".join(_sentence(fault, {}) for fault in _inner(error))) from error


def _read(path: Path) -> dict[str, Any]:
    settings = _yaml(path.read_bytes(), f"CONFIG: {path}")
    if not isinstance(settings, dict):
        got = "nothing" if settings is None else f"a {type(settings).__name__}"
        raise ValueError(
            f"CONFIG: {path}: expected settings (data, teachers, distill, ...), each `name: value`; got {got}"
        )
    return settings


def _yaml(text: str | bytes, name: str) -> Any:
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{name}{where}: not YAML ({getattr(error, 'problem', error)})") from error


def _expanded(settings: Any) -> Any:
    """The settings with ``teachers: auto`` at full length."""
    short = isinstance(settings, dict) and isinstance(settings.get("teachers"), str)
    return {**settings, "teachers": {"members": settings["teachers"]}} if short else settings


def _merged(old: Any, new: Any) -> Any:
    """Settings with later ones: ``data.labelled`` is short for ``data.init_args.labelled``, and ``a+`` adds
    to the list ``a``."""
    if isinstance(old, list) and isinstance(new, dict):  # members.0 is the first of a list
        return list(_merged({str(place): item for place, item in enumerate(old)}, new).values())
    if isinstance(old, str) and isinstance(new, dict):  # a class without arguments
        old = {"class_path": old}
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    if "class_path" in old and new.get("class_path", old["class_path"]) != old["class_path"]:
        return new  # another class has other arguments
    if "class_path" in old and not new.keys() & {"class_path", "init_args", "dict_kwargs"}:
        new = {"init_args": new}
    more = {
        n[:-1]: [*(old.get(n[:-1]) or []), *(v if isinstance(v, list) else [v])]
        for n, v in new.items()
        if n.endswith("+")
    }
    return {**old, **more, **{n: _merged(old.get(n), v) for n, v in new.items() if not n.endswith("+")}}


def _inner(error: Any) -> list[Any]:
    """The faults, without those of a word in whose place a list with faults of its own was given."""
    from ensdistill.cli.classes import BRANCH

    found = error.errors()

    def place(fault: Any) -> list[str]:
        return [str(key) for key in fault["loc"] if key not in (BRANCH, "[key]")]

    def has_inner(fault: Any) -> bool:
        own = place(fault)
        return any(len(place(other)) > len(own) and place(other)[: len(own)] == own for other in found)

    return [fault for fault in found if fault["type"] != "one_of" or not has_inner(fault)]


def _of_student(*keys: str) -> str:
    """Where a setting of students stands, if it was given as one of the whole job's."""
    from ensdistill.cli.classes import parameters
    from ensdistill.job.student_config import StudentConfig

    known = len(keys) == 1 and keys[0] in parameters(StudentConfig)
    return f" It is a student's: distill.students.NAME.{keys[0]}" if known else ""


def _short(keys: Iterable[object]) -> str:
    """A setting's dotted name without its init_args."""
    return ".".join(str(key) for key in keys if key != "init_args")


def _sentence(fault: Any, overridden: Iterable[str]) -> str:
    """The setting, its fault and the value; a setting of the command line gets its dashes."""
    from ensdistill.cli.classes import BRANCH

    keys = [str(key) for key in fault["loc"] if key not in (BRANCH, "[key]")]
    names = fault.get("ctx", {}).get("names")
    # An unknown name may have others below it.
    dashed = any(key == _short(keys) or (names and key.startswith(f"{_short(keys)}.")) for key in overridden)
    at = f"{'--' * dashed}{'.'.join(keys) or 'CONFIG'}"
    if fault["type"] == "fault":
        hint = nearest(keys[-1], names, at[: -len(keys[-1])] if dashed else "") if names else ""
        return f"{at}: {fault['msg']}{_of_student(*keys) or hint}"
    if fault["type"] == "missing":
        return f"{at}: expected a value, because it has no default; got nothing"
    got = "nothing" if fault["input"] is None else repr(fault["input"])
    expected = ", ".join(names) if names else EXPECTED.get(fault["type"])
    text = f"expected {'one of ' * bool(names)}{expected}" if expected else fault["msg"]
    near = nearest(str(fault["input"]), names or ())
    return f"{at}: {text}; got {got}{'.' * bool(near)}{near}"
