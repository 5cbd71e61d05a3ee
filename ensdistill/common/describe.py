"""Configured objects as plain data: for fingerprints, and to write down how a module is built again without
pickling it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.nn.parameter import is_lazy

from ensdistill.common.source import source_digest

BUILT_IN = (
    "ensdistill.models.",
    "ensdistill.student.shared.",
    "ensdistill.student.shrink.",
    "ensdistill.teachers.members.heads.",
    "ensdistill.teachers.members.standardised.",
    "torch.nn.",
)
_NESTED = "module"  # the key of an argument that is a module with a recipe of its own


def class_path(cls: type) -> str:
    """The import path of a class.

    >>> class_path(nn.Linear)
    'torch.nn.modules.linear.Linear'
    """
    return f"{cls.__module__}.{cls.__qualname__}"


def describe(value: Any) -> Any:
    """The settings of ``value`` and the digest of its source, as JSON-able data that is the same in every
    process.

    Parameters
    ----------
    value : plain data, dataclass, scikit-learn estimator, class, function, functools.partial of one, or an
    object with a method ``fingerprint``, or with ``__description__``, whose result it then is

    Raises
    ------
    TypeError
        For anything else: it has no settings that could be read.

    Examples
    --------
    >>> from sklearn.svm import SVC
    >>> describe(SVC(C=3.0))["params"]["C"]
    3.0
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, functools.partial):
        return {
            "partial": [describe(v) for v in (value.func, *value.args)],
            "init_args": describe(value.keywords),
        }
    if inspect.isclass(value):
        return _class(value)
    if callable(own := getattr(type(value), "__description__", None)):
        return own(value)
    if dataclasses.is_dataclass(value):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {**_class(type(value)), "fields": fields}
    if callable(getattr(type(value), "fingerprint", None)):
        return {**_class(type(value)), "fingerprint": value.fingerprint()}
    if hasattr(value, "get_params"):
        return {**_class(type(value)), "params": describe(value.get_params(deep=False))}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [describe(v) for v in value]
    if inspect.isfunction(value) or inspect.isbuiltin(value):
        return {"function": f"{value.__module__}.{value.__qualname__}", "source": source_digest(value)}
    raise TypeError(
        "describe: expected plain data, a dataclass, an estimator, a class or a function; got "
        f"{class_path(type(value))}"
    )


def _class(cls: type) -> dict[str, str | None]:
    # An edited class counts as another one, even under the same name and settings.
    return {"class_path": class_path(cls), "source": source_digest(cls)}


def make_module(factory: Callable[[], nn.Module]) -> nn.Module:
    """The module that a factory makes.

    Raises
    ------
    TypeError
        It is a module itself or not callable, or it returns no module.
    ValueError
        The module has parameters without a shape (``LazyLinear`` and the like).
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        got = (
            f"the {type(factory).__name__} itself"
            if isinstance(factory, nn.Module)
            else type(factory).__name__
        )
        raise TypeError(
            "factory: expected what makes a new module (its class, functools.partial of it, a function); "
            f"got {got}"
        )
    module = factory()
    if not isinstance(module, nn.Module):
        raise TypeError(f"factory: expected a torch.nn.Module; got {type(module).__name__}")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            kind = type(module.get_submodule(name.rpartition(".")[0])).__name__
            raise ValueError(
                f"factory: expected a module whose parameters have a shape; {name} of {kind} gets one by a "
                "first batch: name its inputs "
                f"({kind.removeprefix('Lazy')} in the place of {kind}), or let a function make the module "
                "and pass it two rows"
            )
    return module


def module_recipe(factory: Callable[[], nn.Module]) -> dict[str, Any] | None:
    """``{"class_path", "init_args"}`` of a module class or of a ``functools.partial`` of one (a config's
    ``class_path`` and ``init_args`` become); None for any other callable, and where an argument is neither
    plain data nor a ``functools.partial`` of a module class.

    >>> module_recipe(functools.partial(nn.Linear, in_features=2, out_features=3))["init_args"]
    {'in_features': 2, 'out_features': 3}
    """
    cls: Any = factory
    arguments: dict[str, Any] = {}
    if isinstance(factory, functools.partial) and not factory.args:
        cls, arguments = factory.func, dict(factory.keywords)
    inner = {name: value for name, value in arguments.items() if isinstance(value, functools.partial)}
    nested = {name: module_recipe(value) for name, value in inner.items()}
    plain = {name: value for name, value in arguments.items() if name not in inner}
    is_module = inspect.isclass(cls) and issubclass(cls, nn.Module)
    if not is_module or not _plain(plain) or None in nested.values():
        return None
    made = {name: {_NESTED: recipe} for name, recipe in nested.items()}
    return {"class_path": class_path(cls), "init_args": describe(plain) | made}


def module_factory(recipe: Mapping[str, Any]) -> functools.partial[nn.Module]:
    """What makes the module of a recipe, for :func:`module_recipe`; its classes have been imported already.

    >>> factory = functools.partial(nn.Linear, in_features=2, out_features=3)
    >>> module_factory(module_recipe(factory))().weight.shape
    torch.Size([3, 2])
    """
    module, _, name = str(recipe["class_path"]).rpartition(".")
    arguments = {
        name: module_factory(value[_NESTED]) if _is_nested(value) else value
        for name, value in recipe["init_args"].items()
    }
    return functools.partial(getattr(importlib.import_module(module), name), **arguments)


def paths_of(recipe: Mapping[str, Any]) -> list[str]:
    """The class paths of a recipe: its own, and those of modules among its arguments.

    >>> inner = {"class_path": "torch.nn.Linear", "init_args": {}}
    >>> paths_of({"class_path": "package.Wrapper", "init_args": {"model": {"module": inner}}})
    ['package.Wrapper', 'torch.nn.Linear']
    """
    nested = [value[_NESTED] for value in recipe.get("init_args", {}).values() if _is_nested(value)]
    return [str(recipe["class_path"]), *(path for one in nested for path in paths_of(one))]


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {_NESTED} and isinstance(value[_NESTED], Mapping)


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_plain(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str, np.number, np.bool_))


def build_module(recipe: Mapping[str, Any], trusted: Sequence[str] = ()) -> nn.Module:
    """Build the module that :func:`module_recipe` wrote down, with new parameters.

    Parameters
    ----------
    recipe : dict
    trusted : sequence of str
        Class paths that may be imported beside those of ``ensdistill.models`` and ``torch.nn``.

    Raises
    ------
    ValueError
        The class is not trusted, not there, not a module class, or does not take these arguments.
    """
    path, arguments = recipe.get("class_path"), recipe.get("init_args")
    if not isinstance(path, str) or not isinstance(arguments, dict):
        raise ValueError(f"recipe: expected class_path and init_args; got {dict(recipe)!r}")
    # Importing a module runs it, so the name is judged before anything is imported.
    if path not in trusted and not path.startswith(BUILT_IN):
        raise ValueError(
            f"{path} is not trusted: it is neither in ensdistill.models nor in torch.nn. If you know it, "
            f"pass trusted=[{path!r}]"
        )
    module_name, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be imported ({error})") from error
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise ValueError(f"{path}: expected a subclass of torch.nn.Module")
    made = {n: build_module(v[_NESTED], trusted) if _is_nested(v) else v for n, v in arguments.items()}
    try:
        return cls(**made)
    except TypeError as error:
        raise ValueError(f"{path}: does not take these arguments ({error})") from error


def import_function(argument: str, path: str) -> Any:
    """The function that an import path names, ``package.module.function``.

    Raises
    ------
    ValueError
        It can't be imported, or is no function; begins with ``argument``.

    Examples
    --------
    >>> import_function("constraint", "math.sqrt")(9.0)
    3.0
    """
    module, _, name = path.rpartition(".")
    names: list[str] = []
    try:
        place = importlib.import_module(module)
        names = dir(place)
        found = getattr(place, name)
    except (ImportError, AttributeError, ValueError) as error:
        near = difflib.get_close_matches(name, names, 1)
        raise ValueError(
            f"{argument}: expected the import path of a function, package.module.function; got {path!r} "
            f"({error}){f'. Did you mean {module}.{near[0]}?' if near else ''}"
        ) from error
    if not callable(found) or isinstance(found, type):
        raise ValueError(f"{argument}: {path}: expected a function; got {type(found).__name__}")
    return found
