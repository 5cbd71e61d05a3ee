"""What a module's answers depend on beside its saved tensors: code, plain attributes, buffers that aren't saved, hooks."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.describe import class_path
from ensdistill.fingerprint import digest, source_file

# Of every module, and a mark that training with accelerate leaves.
_OF_EVERY_MODULE = frozenset({*vars(nn.Module()), "_is_accelerate_prepared"})
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# Libraries whose classes are known by name and version; the version stands for their source.
_LIBRARIES = ("torch", "transformers")
# What Hugging Face notes on its models: where they came from, which a saved one does not know; and the config, which the recipe has.
_OF_HUGGING_FACE = frozenset({"config", "generation_config", "name_or_path", "warnings_issued", "_is_hf_initialized"})


def behaviour(module: nn.Module) -> list[Any]:
    """Of the module and its submodules: classes by their source, attributes of each, forward hooks, and buffers that aren't saved.

    Plain data, arrays, tensors, functions, classes, dataclasses and modules are taken by content, in containers too; what else an
    attribute may be is taken by its type, with a warning. Modules that the source imports, and globals of other files, don't count.
    """
    saved, seen = module.state_dict().keys(), {id(module)}
    buffers = {name: tensor for name, tensor in module.named_buffers() if name not in saved}
    return [buffers, *([name, _module(part, seen)] for name, part in module.named_modules())]


def _module(module: nn.Module, seen: set[int]) -> list[Any]:
    seen.add(id(module))
    root = _root(type(module))
    skipped = _OF_EVERY_MODULE
    if any(_root(cls) == "transformers" for cls in type(module).__mro__):
        skipped = frozenset(vars(module)) if root == "transformers" else skipped | _OF_HUGGING_FACE
    where = class_path(type(module))
    own = {name: _value(value, f"{where}.{name}", seen) for name, value in vars(module).items() if name not in skipped}
    hooks = [_value(list(getattr(module, hooks, {}).values()), f"a hook of {where}", seen) for hooks in _HOOKS]
    return [_class(type(module)), own, hooks]


def _value(value: Any, where: str, seen: set[int]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, bytes, Path, np.generic, np.ndarray, Tensor)):
        return value
    if isinstance(value, (complex, torch.dtype, torch.device)):
        return [type(value).__name__, str(value)]
    if isinstance(value, enum.Enum):
        return [_class(type(value)), value.name]
    if isinstance(value, Mapping):
        return ["map", *([_value(part, where, seen) for part in item] for item in value.items())]
    if isinstance(value, (list, tuple)):
        return [_value(part, where, seen) for part in value]
    if isinstance(value, (set, frozenset)):
        return ["set", *sorted(digest(_value(part, where, seen)) for part in value)]
    if isinstance(value, nn.Module):  # a part that isn't registered, or one of the tree
        return class_path(type(value)) if id(value) in seen else [_module(value, seen), dict(value.state_dict())]
    if inspect.isclass(value):
        return _class(value)
    if isinstance(value, functools.partial):
        return ["partial", *(_value(part, where, seen) for part in (value.func, value.args, value.keywords))]
    if inspect.isroutine(value):
        function = getattr(value, "__func__", value)
        return [f"{function.__module__}.{function.__qualname__}", _source(function)]
    if dataclasses.is_dataclass(value):
        return [_class(type(value)), {f.name: _value(getattr(value, f.name), where, seen) for f in dataclasses.fields(value)}]
    warnings.warn(
        f"{where}: a {class_path(type(value))} has no content that a fingerprint could be made of; only its type counts, so a cache won't "
        "notice when it changes",
        stacklevel=2,
    )
    return _class(type(value))


def _root(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _class(cls: type) -> list[Any]:
    """A library's classes by name and version, others by name and source, each base by itself."""
    parts: list[Any] = []
    for part in cls.__mro__[:-1]:
        root = _root(part)
        parts.append([class_path(part), str(sys.modules[root].__version__) if root in _LIBRARIES else _source(part)])
    return parts


def _source(part: Any) -> Any:
    """Digest of the file; where there is none, as of what was typed into a shell, the instructions."""
    if (file := source_file(part)) is not None:
        return digest(file.read_bytes())
    functions = [part] if not inspect.isclass(part) else [getattr(value, "__func__", value) for value in vars(part).values()]
    return [_code(function.__code__) for function in functions if hasattr(function, "__code__")]


def _code(code: CodeType) -> list[Any]:
    return [code.co_code, list(code.co_names), [_constant(value) for value in code.co_consts]]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)  # a set's order differs from process to process
