"""The code that classes and functions use, part by part, so that a fingerprint changes with it and with no
other code.

A class counts with its bases and all its attributes; a function with its instructions, defaults and closure;
both with the functions, classes and values that their code refers to by a global name, in whichever file
those stand, and so on. Instructions are read from the running process, so a file that was edited since it was
imported does not matter. Comments, docstrings and layout don't count.

Python and well-known libraries count by their version. Another installed package counts by its version and by
the code of those of its classes and functions that are referred to; names are not followed any further there.
This package counts by that code alone. An import inside a function counts by its name.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import inspect
import logging
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.fingerprint import digest

_LIBRARIES = frozenset(
    [
        "torch",
        "torchvision",
        "torchaudio",
        "transformers",
        "numpy",
        "scipy",
        "sklearn",
        "pandas",
        "PIL",
        "timm",
    ]
).union(["einops", "accelerate", "peft", "safetensors"])
_STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"]).resolve()
_INSTALLED = {"site-packages", "dist-packages"}
# Attributes that Python itself sets on a class; annotations and docstrings don't decide its results.
_OF_EVERY_CLASS = frozenset(
    [
        "__dict__",
        "__weakref__",
        "__doc__",
        "__module__",
        "__qualname__",
        "__firstlineno__",
        "__static_attributes__",
        "__slotnames__",  # set by the first copy or pickle of an object
    ]
).union(
    [
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__orig_bases__",
        "__parameters__",
    ],
    ["__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__", "__match_args__"],
)


class Used:
    """The parts by name: ``source of nets.Net.forward``, ``value of nets.SCALE``, ``version of torch``."""

    def __init__(self) -> None:
        self.parts: dict[str, Any] = {}
        # By id: objects that are parts already, and values with their data. Kept alive, so that no id is
        # given to another object.
        self._seen: dict[int, Any] = {}
        self._known: dict[int, tuple[Any, Any]] = {}

    def refer(self, value: Any, where: str) -> Any:
        """``value`` as data that `digest` takes. The code behind it is added to the parts.

        Plain data, arrays, tensors, functions, classes and modules are taken by content, in containers and as
        attributes of objects too. An object without attributes is taken by its type, with a warning.
        """
        if isinstance(value, enum.Enum):
            return [self.refer(type(value), where), value.name]
        if value is None or isinstance(value, (bool, int, float, str, bytes, Path, np.generic)):
            return value
        if isinstance(value, Tensor):
            return tensor_data(value)
        if isinstance(value, np.ndarray):
            return (
                value
                if not value.dtype.hasobject
                else ["objects", list(value.shape), self.refer(value.ravel().tolist(), where)]
            )
        if isinstance(value, (complex, range, slice, type(...), torch.dtype, torch.device, np.dtype)):
            return [type(value).__name__, str(value)]
        if isinstance(value, (re.Pattern, logging.Logger)):
            return [value.pattern, value.flags] if isinstance(value, re.Pattern) else value.name
        if inspect.isclass(value):
            return self._class(value)
        if isinstance(value, ModuleType):
            return self._module(value, frozenset())
        if isinstance(value, functools.partial):
            return [
                "partial",
                *(self.refer(part, where) for part in (value.func, value.args, value.keywords)),
            ]
        if isinstance(value, property):
            return ["property", *(self.refer(part, where) for part in (value.fget, value.fset, value.fdel))]
        if isinstance(value, (classmethod, staticmethod)):
            return [type(value).__name__, self.refer(value.__func__, where)]
        if inspect.isdatadescriptor(value) and not hasattr(value, "__dict__"):  # of a slot
            return _path(type(value))
        if inspect.isroutine(value) or hasattr(value, "__code__"):
            return self._function(getattr(value, "__func__", value), where)
        if type(value).__module__ == "typing" or isinstance(value, inspect.Signature):
            return repr(value)
        if id(value) not in self._known:
            self._known[id(value)] = (
                value,
                ["again", _path(type(value))],
            )  # until its content is known: it may hold itself
            self._known[id(value)] = value, digest(self._content(value, where))
        return self._known[id(value)][1]

    def _content(self, value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            return ["map", *([self.refer(part, where) for part in item] for item in value.items())]
        if isinstance(value, (list, tuple)):
            return [self.refer(part, where) for part in value]
        if isinstance(value, (set, frozenset)):
            return ["set", *sorted(digest(self.refer(part, where)) for part in value)]
        if isinstance(value, nn.Module):
            return self.module(value, where)
        if dataclasses.is_dataclass(value):
            return [
                self._class(type(value)),
                {f.name: self.refer(getattr(value, f.name), where) for f in dataclasses.fields(value)},
            ]
        if hasattr(value, "__wrapped__"):  # of functools.cache
            return [_path(type(value)), self.refer(value.__wrapped__, where)]
        if hasattr(value, "__dict__"):
            return [
                self._class(type(value)),
                {name: self.refer(part, f"{where}.{name}") for name, part in vars(value).items()},
            ]
        warnings.warn(
            f"{where}: a {_path(type(value))} has no content that a fingerprint could be made of; only its "
            "type counts, so a cache won't "
            "notice when it changes",
            stacklevel=2,
        )
        return self._class(type(value))

    def module(self, module: nn.Module, where: str) -> Any:
        """A torch module that is no submodule: its class, its attributes without those of every module, and
        its tensors."""
        own = {
            name: self.refer(value, where)
            for name, value in vars(module).items()
            if name not in vars(nn.Module())
        }
        return [self._class(type(module)), own, state_data(module)]

    def _class(self, cls: type) -> list[str]:
        for part in cls.__mro__[:-1]:
            if not self._is_library(part.__module__) and id(part) not in self._seen:
                self._seen[id(part)] = part
                path = self._free(f"source of {_path(part)}")
                own = {name: value for name, value in vars(part).items() if name not in _OF_EVERY_CLASS}
                content = {
                    name: self.refer(value, f"{_path(part)}.{name}") for name, value in sorted(own.items())
                }
                self.parts[path] = digest([[_path(base) for base in part.__bases__], content])
        return [_path(part) for part in cls.__mro__[:-1]]

    def _function(self, function: Any, where: str) -> str:
        module, name = (
            getattr(function, "__module__", None) or "",
            getattr(function, "__qualname__", repr(type(function))),
        )
        path, code = f"{module}.{name}", getattr(function, "__code__", None)
        if id(function) in self._seen:
            return path
        self._seen[id(function)] = function
        if not isinstance(code, CodeType):
            self._is_library(module)
            return f"{path} {getattr(function, 'code', '')}"  # a scripted function has its text there
        library = self._is_library(module)
        key = None if library else self._free(f"source of {path}")
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=False))
        closure = {name: self.refer(_cell(cell), f"{path}.{name}") for name, cell in cells.items()}
        if key is None:
            return f"{path} {digest(closure)}"
        defaults = self.refer([function.__defaults__, function.__kwdefaults__], path)
        self.parts[key] = digest([instructions(code), defaults, closure])
        for name, value in () if self._is_installed(module) else _globals(code, function.__globals__):
            if isinstance(value, ModuleType):
                self._module(value, _attributes(code))
            else:
                self._value(module, name, value)
        return path

    def _module(self, module: ModuleType, used: frozenset[str]) -> str:
        """Of a module that is no library those attributes whose names the code has."""
        if not self._is_library(module.__name__) and not self._is_installed(module.__name__):
            for name in sorted(used & vars(module).keys()):
                value = vars(module)[name]
                if not isinstance(value, ModuleType):
                    self._value(module.__name__, name, value)
                elif (key := id(value)) not in self._seen:
                    self._seen[key] = value
                    self._module(value, used)
        return module.__name__

    def _value(self, module: str, name: str, value: Any) -> None:
        """The value of a global name; functions and classes are parts of their own."""
        referred = self.refer(value, f"{module}.{name}")
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            self.parts[f"value of {module}.{name}"] = digest(referred)
        elif getattr(value, "__name__", None) != name or getattr(value, "__module__", None) != module:
            self.parts[f"value of {module}.{name}"] = digest(
                referred
            )  # which one it is: another may be imported by this name

    def _is_library(self, module: str | None) -> bool:
        """Whether a module is of Python or of a library whose version stands for its source; that version is
        a part."""
        root = (module or "").partition(".")[0]
        if root in _LIBRARIES:
            self._version(root)
            return True
        file = _file(root)  # a file of one's own may have the name of a standard module
        return root in sys.stdlib_module_names and (file is None or file.is_relative_to(_STANDARD_LIBRARY))

    def _is_installed(self, module: str) -> bool:
        root = module.partition(".")[0]
        if root == "ensdistill":
            return True
        file = _file(root)
        if file is None or not _INSTALLED & {*file.parts}:
            return False
        self._version(root)
        return True

    def _version(self, root: str) -> None:
        self.parts.setdefault(f"version of {root}", str(getattr(sys.modules.get(root), "__version__", "")))

    def _free(self, name: str) -> str:
        """The name, numbered where another part has it: a property's functions have one name."""
        count = 1
        while (numbered := name if count == 1 else f"{name} ({count})") in self.parts:
            count += 1
        self.parts[numbered] = ""
        return numbered


def code_parts(code: type | Callable[..., Any]) -> dict[str, Any]:
    """The parts of one class or function; none of a built-in one.

    >>> from ensdistill.models import MLP
    >>> [name for name in code_parts(MLP) if "MLP" in name]
    ['source of ensdistill.models.MLP', 'source of ensdistill.models.MLP.__init__']
    """
    used = Used()
    used.refer(code, _path(code) if inspect.isclass(code) else getattr(code, "__qualname__", "the function"))
    return used.parts


def instructions(code: CodeType) -> list[Any]:
    """A code object's instructions with names and constants in place of their numbers, which a docstring
    would move."""
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    steps = [[step.opname, _constant(step.argval)] for step in dis.get_instructions(code)]
    return [
        arguments,
        [code.co_argcount, code.co_posonlyargcount, code.co_flags & 0x0F],
        steps,
        getattr(code, "co_exceptiontable", b""),
    ]


def tensor_data(tensor: Tensor) -> Any:
    """A tensor, or a quantised one's numbers, as data that `digest` takes.

    Raises
    ------
    TypeError
        A tensor of a class of its own, as some quantisers have: its bytes are not its values.
    """
    if (
        not isinstance(tensor, nn.Parameter)
        and type(tensor) is not Tensor
        and type(tensor).__module__.partition(".")[0] != "torch"
    ):
        raise TypeError(
            f"a tensor of the type {_path(type(tensor))} (quantised?) has no bytes that a fingerprint could "
            "be made of"
        )
    if tensor.is_quantized:
        return ["quantised", tensor.int_repr(), tensor.dequantize(), str(tensor.qscheme())]
    if tensor.layout != torch.strided:
        return [str(tensor.layout), tensor.to_dense()]
    return tensor


def state_data(module: nn.Module) -> dict[str, Any]:
    """A module's state as data that `digest` takes; plain tensors as they are."""
    used = Used()
    return {
        name: tensor_data(v) if isinstance(v, Tensor) else used.refer(v, name)
        for name, v in module.state_dict().items()
    }


def _file(root: str) -> Path | None:
    file = getattr(sys.modules.get(root), "__file__", None)
    return None if file is None else Path(file).resolve()


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return instructions(value)
    if isinstance(value, (tuple, list)):
        return [_constant(part) for part in value]
    return (
        sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)
    )  # a set's order differs from process to process


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _globals(code: CodeType, scope: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names of the function's file that its code reads, with their values now."""
    steps = (
        step
        for part in _codes(code)
        for step in dis.get_instructions(part)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    )
    return [
        (name, scope[name])
        for name in sorted({step.argval for step in steps} - {"__name__", "__file__"})
        if name in scope
    ]


def _attributes(code: CodeType) -> frozenset[str]:
    return frozenset(name for part in _codes(code) for name in part.co_names)


def attributes_read(function: Any) -> frozenset[str]:
    """Names in a function's code that may be those of attributes, ``getattr(x, "name")`` included."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return frozenset()
    texts = (constant for part in _codes(code) for constant in part.co_consts if isinstance(constant, str))
    return _attributes(code) | frozenset(texts)


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def source_digest(code: type | Callable[..., Any]) -> str | None:
    """Digest of the code that a class or a function uses, its own included; None where none of it is written
    in Python.

    Code that stands in the same file, but is not used, does not count.
    """
    return digest(parts) if (parts := code_parts(code)) else None
