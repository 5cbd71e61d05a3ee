"""Objects as the settings of a YAML file that make them: class_path and init_args, without defaults."""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from ensdistill.common.describe import class_path


def as_settings(value: Any, short: tuple[str, ...] = ()) -> Any:
    """Plain data, from which the command line makes an equal object.

    Parameters
    ----------
    value : plain data, dataclass, scikit-learn estimator, class, or functools.partial of a class
    short : tuple of str
        Modules whose classes are named without their module.

    Returns
    -------
    dict, list, or scalar
        Of an object ``{"class_path": ..., "init_args": {...}}`` with the arguments that differ from their
        defaults; without any, ``{"class_path": ...}``.

    Raises
    ------
    TypeError
        An object of another kind, whose arguments can't be read.

    Examples
    --------
    >>> from sklearn.svm import SVC
    >>> as_settings(SVC(C=3.0))
    {'class_path': 'sklearn.svm.SVC', 'init_args': {'C': 3.0}}
    >>> from ensdistill.models import MLP
    >>> as_settings(functools.partial(MLP, hidden=[8]), short=("ensdistill.models",))
    {'class_path': 'MLP', 'init_args': {'hidden': [8]}}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): as_settings(part, short) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_settings(part, short) for part in value]
    if inspect.isclass(value):
        return _named(value, {}, short)
    if isinstance(value, functools.partial) and inspect.isclass(value.func) and not value.args:
        return _named(value.func, value.keywords, short)  # as given: a stage is stale by what is given
    if is_dataclass(value):
        return _named(type(value), _fields(value, short), short)
    if hasattr(value, "get_params"):
        return _named(type(value), _changed(type(value), value.get_params(deep=False)), short)
    raise TypeError(
        "as_settings: expected plain data, a dataclass, an estimator, or a class with plain arguments; got "
        f"{class_path(type(value))}"
    )


def group_settings(value: Any, short: tuple[str, ...] = ()) -> dict[str, Any]:
    """The changed fields of a dataclass that a YAML file writes without a class_path, such as a job's
    settings.

    Examples
    --------
    >>> from ensdistill.common.optimization import Optimization
    >>> group_settings(Optimization(steps=5))
    {'steps': 5}
    """
    return {name: as_settings(part, short) for name, part in _fields(value, short).items()}


def _fields(value: Any, short: tuple[str, ...]) -> dict[str, Any]:
    """The changed fields; those whose type is one dataclass are groups already."""
    hints = typing.get_type_hints(type(value))
    return {
        name: group_settings(part, short)
        if _is_group(hints[name], part)
        else _of_dict(hints[name], part, short)
        for name, part in changed_fields(value).items()
    }


def _is_group(hint: Any, value: Any) -> bool:
    parts = [part for part in typing.get_args(hint) if part is not NoneType] or [hint]
    return is_dataclass(value) and parts == [type(value)]


def _of_dict(hint: Any, value: Any, short: tuple[str, ...]) -> Any:
    """A dict of groups, such as a job's students, with its groups as plain data."""
    inner = typing.get_args(hint)[1:] if typing.get_origin(hint) is dict else ()
    if inner and isinstance(value, dict):
        return {n: group_settings(v, short) if _is_group(inner[0], v) else v for n, v in value.items()}
    return value


def changed_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, and that its constructor would not fill in
    by itself."""
    given = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    for field in fields(value):
        if not field.init:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if _same(default, given[field.name]) or (default is not MISSING and _filled_in(value, field.name)):
            del given[field.name]
    return given


def _filled_in(value: Any, name: str) -> bool:
    """Whether the constructor makes this value of the other ones: a name of the class's, for example."""
    others = {f.name: getattr(value, f.name) for f in fields(value) if f.init and f.name != name}
    try:
        return _same(getattr(type(value)(**others), name), getattr(value, name))
    except (TypeError, ValueError):
        return False


def _named(cls: type, arguments: Mapping[str, Any], short: tuple[str, ...]) -> dict[str, Any]:
    made: dict[str, Any] = {"class_path": _public_path(cls, short)}
    if arguments:
        made["init_args"] = {name: as_settings(part, short) for name, part in arguments.items()}
    return made


def _public_path(cls: type, short: tuple[str, ...]) -> str:
    """The class's name alone where one of the modules ``short`` has it; else with the shortest package that
    does: ``sklearn.svm.SVC`` of ``sklearn.svm._classes``."""
    if any(getattr(importlib.import_module(module), cls.__qualname__, None) is cls for module in short):
        return cls.__qualname__
    names = cls.__module__.split(".")
    for size in range(1, len(names)):
        package = ".".join(names[:size])
        if getattr(importlib.import_module(package), cls.__qualname__, None) is cls:
            return f"{package}.{cls.__qualname__}"
    return class_path(cls)


def _changed(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that differ from the constructor's defaults."""
    own = inspect.signature(cls).parameters
    return {n: v for n, v in arguments.items() if n not in own or not _same(own[n].default, v)}


def _same(default: Any, value: Any) -> bool:
    if default is value:
        return True
    pair = [list(part) if isinstance(part, tuple) else part for part in (default, value)]
    same = type(pair[0]) is type(pair[1]) and pair[0] == pair[1]
    return isinstance(same, bool) and same
