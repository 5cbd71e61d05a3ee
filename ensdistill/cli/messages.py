"""jsonargparse's messages in plain words: the setting, what came, what was expected."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ensdistill.cli.places import protocol_methods

_TYPES = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}


def plain(message: str, settings: dict[str, Any]) -> str:
    """One sentence from a message that has a line for each level of nesting, of which the last says what is wrong.

    Parameters
    ----------
    message : str
        jsonargparse's.
    settings : dict
        The raw settings, in which the students and members are found whose names the message leaves out.
    """
    lines = [line.strip(" -") for line in message.splitlines() if "NoneType" not in line and not line.strip().startswith("Given ")]
    text = re.sub(r"^Type .* expects a function or a callable class: |\.* Got value: Namespace\(.*$", "", lines[-1])
    text = re.sub(r"Expected an? <class '(\w+)'>", lambda m: f"expected {_TYPES.get(m[1], m[1])}", text)
    text = re.sub(r"Expected a typing\.Literal\[(.*)\]\.", lambda m: f"expected one of {m[1].replace(chr(39), '')}.", text)
    text = re.sub(r"Expected '(.*)' to be a subclass of <class '(.*)'>\.*", r"expected the class_path of a \2; got \1, which is none", text)
    text = re.sub(r"Import path (\S+) does not implement protocol (\w+)", lambda m: f"{m[1]} is no {m[2]}. {protocol_methods(m[2])}", text)
    text = re.sub(r"Expected a dot import path string: (.*)", r"expected an import path, package.module.Class; got \1", text)
    classes = re.findall(r"class_path '([\w.]+)'", message)
    text = text.replace("the following arguments are required", f"{classes[-1] if classes else 'the job'} needs").replace(
        ". Got value: ", "; got "
    )
    if missing := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        text += f".{nearest(missing[2], (name for name in dir(importlib.import_module(missing[1])) if name[0] != '_'))}"
    if (given := re.search(r"Given value: (.*)", message)) and "; got " not in text:  # of X | None it stands in a line of its own
        text += f"; got {given[1]}"
    keys = ".".join(re.findall(r'Parser key "([^"]+)":', message)).split(".")
    told = message.rpartition("Got value: ")[2]
    places = [at for at, value in _places(settings, keys) if re.search(rf"(?<![\w.]){re.escape(str(value))}(?![\w.])", told)]
    return f"{places[0] if places else '.'.join(keys) or 'CONFIG'}: {text}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean ...?``, or nothing where nothing is near."""
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _places(value: Any, keys: list[str], at: str = "") -> Iterator[tuple[str, Any]]:
    """Where the raw settings have these keys one below the other, and the value or the class there; names of students and numbers of
    members may stand between."""
    if not keys:
        yield at.lstrip("."), value.get("class_path", value) if isinstance(value, dict) else value
    elif isinstance(value, dict) and keys[0] in value:
        yield from _places(value[keys[0]], keys[1:], f"{at}.{keys[0]}")
    else:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            yield from _places(item, keys, f"{at}.{name}")
