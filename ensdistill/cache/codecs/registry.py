"""The codec of a name. A class outside the package is imported only if the caller names or trusts it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ensdistill.cache.codecs.base import Codec
from ensdistill.cache.codecs.coded_topk import WIDTHS, CodedTopK
from ensdistill.cache.codecs.counts import LARGEST_DRAWS, Counts
from ensdistill.cache.codecs.draws import Draws
from ensdistill.cache.codecs.floats import BFloat16, Float16, Float32
from ensdistill.cache.codecs.labels import LabelBFloat16, LabelFloat16, LabelFloat32, LabelTopK, LabelUint8
from ensdistill.cache.codecs.names import class_path, parsed_name
from ensdistill.cache.codecs.numbers import Affine16, NumberFloat16, NumberFloat32, NumberUint8
from ensdistill.cache.codecs.topk import TopK
from ensdistill.cache.codecs.uint8 import Uint8
from ensdistill.cache.errors import CacheCorrupt, CacheError, CacheUntrusted
from ensdistill.common.errors import WrongArgument
from ensdistill.common.tasks import Task

# A name that ends in -N is given a number, with which the codec is made.
BUILT_IN: dict[Task, dict[str, Callable[..., Codec]]] = {
    "classification": {
        "uint8": Uint8,
        "fp16": Float16,
        "bf16": BFloat16,
        "fp32": Float32,
        "topk-N": TopK,
        **{f"topk{bits}-N": partial(CodedTopK, bits=bits) for bits in WIDTHS},
        "counts-N": Counts,
        "draws-N": Draws,
    },
    "multilabel": {
        "uint8": LabelUint8,
        "fp16": LabelFloat16,
        "bf16": LabelBFloat16,
        "fp32": LabelFloat32,
        "topk-N": LabelTopK,
    },
    "regression": {
        "fp32": NumberFloat32,
        "fp16": NumberFloat16,
        "affine16": Affine16,
        "uint8": NumberUint8,
    },
}
_OWN = {kind for kinds in BUILT_IN.values() for kind in kinds.values() if inspect.isclass(kind)} | {CodedTopK}
DEFAULT: dict[Task, str] = {"classification": "uint8", "multilabel": "uint8", "regression": "fp32"}
"""The codec of a cache for which none is named."""


def codec_of(codec: str | Codec | None, task: Task = "classification") -> Codec:
    """The codec that a caller names: by a name of the package's own, by an import path, or as an object.

    An import path is imported: the caller is trusted. Use `stored_codec` for the name in a manifest.

    Parameters
    ----------
    codec : str or Codec
        ``"uint8"``, ``"topk-32"``; ``"my_package.my_codec.MyCodec"``, with settings as in
        ``"my_package.my_codec.MyCodec(bits=4)"``; or an instance. None is :data:`DEFAULT`.
    task : {"classification", "multilabel", "regression"}
        Of the targets.

    Raises
    ------
    ValueError
        There is no such codec, or it is of another task, or a cache could not name it, because its class
        cannot be imported by its path.
    TypeError
        A setting is no plain value.

    Examples
    --------
    >>> codec_of("topk-32").fields(1, 1000)["ids"]  # 32 ids of 10 bits
    ('|u1', (40,))
    """
    found: Any = DEFAULT[task] if codec is None else codec
    if not isinstance(found, Codec) and (parsed := parsed_name(found)) is not None:
        found = _built(*parsed)
    if isinstance(found, Codec):
        if type(found) not in _OWN:
            return _of_task(_nameable(found), task)
        found = found.name  # each task has a class of its own under this name
    if (built_in := _built_in(found, task)) is not None:
        return built_in
    if is_built_in(found):
        raise WrongArgument(
            f"codec: expected one of {_names(task)}, which are for {task}; got {found}, which is for "
            f"{' and '.join(_tasks_with(found))}"
        )
    raise WrongArgument(
        f"codec: expected one of {_names(task)} (N a number, for counts at most {LARGEST_DRAWS}), or "
        "the import path of a class derived from ensdistill.cache.Codec, or an instance of one; got "
        f"{codec!r}"
    )


def stored_codec(name: str, trusted: Sequence[str], place: Any, task: Task = "classification") -> Codec:
    """The codec that a cache's manifest names.

    Parameters
    ----------
    name : str
    trusted : sequence of str
        Class paths that may be imported.
    place : path
        The cache, for the message.

    Raises
    ------
    CacheUntrusted
        The codec is a class outside the package that is not among ``trusted``.
    CacheError
        The class cannot be imported, or is no codec, or does not take the settings.
    """
    if (built_in := _built_in(name, task)) is not None:
        return built_in
    if is_built_in(name):
        raise CacheCorrupt(f"{place}: codec: expected one of {_names(task)}, for {task}; got {name}")
    parsed = parsed_name(name)
    assert parsed is not None  # `is_codec_name` has been checked
    # Importing a module runs it, so the name is judged before anything is imported.
    if parsed[0] not in trusted:
        raise CacheUntrusted(
            f"{place}: the codec is the class {parsed[0]}, which is not part of ensdistill; opening the "
            f"cache would run its code. If you trust it, pass trusted=({parsed[0]!r},) (--trust {parsed[0]})"
        )
    try:
        return _of_task(_built(*parsed), task)
    except ValueError as error:
        raise CacheError(f"{place}: {error}") from error


def is_codec_name(value: Any) -> bool:
    """Whether a manifest's value can be a codec's name, of any task; nothing is imported."""
    return is_built_in(value) or parsed_name(value) is not None


def is_built_in(name: Any) -> bool:
    """Whether the name is of one of the package's own codecs, rather than a class path."""
    return bool(_tasks_with(name))


def class_paths(codec: Codec) -> tuple[str, ...]:
    """The class paths to be trusted for reading what this codec stored; none for the package's own codecs."""
    return () if is_built_in(codec.name) else (class_path(type(codec)),)


def _tasks_with(name: Any) -> list[Task]:
    return [task for task in BUILT_IN if _built_in(name, task) is not None]


def _names(task: Task) -> str:
    return ", ".join(BUILT_IN[task])


def _of_task(codec: Codec, task: Task) -> Codec:
    if codec.task != task:
        raise WrongArgument(
            f"codec: expected one for the task {task}; got {codec.name}, whose attribute task is {codec.task}"
        )
    return codec


def _built_in(name: Any, task: Task) -> Codec | None:
    match = (
        re.fullmatch(r"([a-z]+\d*)(?:-([1-9]\d{0,6}))?", name, re.ASCII) if isinstance(name, str) else None
    )
    if match is None:
        return None
    kind = BUILT_IN[task].get(match[1] if match[2] is None else f"{match[1]}-N")
    try:
        return None if kind is None else kind() if match[2] is None else kind(int(match[2]))
    except ValueError:  # the number is too large
        return None


def _built(path: str, settings: dict[str, Any]) -> Codec:
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"codec: {path} cannot be imported ({error}): install the package that has it, or put its folder "
            "on PYTHONPATH"
        ) from error
    if not inspect.isclass(cls) or not issubclass(cls, Codec):
        raise ValueError(f"codec: {path}: expected a class derived from ensdistill.cache.Codec; got {cls!r}")
    try:
        return cls(**settings)
    except TypeError as error:
        raise ValueError(f"codec: {path} does not take the settings {settings!r} ({error})") from error


def _nameable(codec: Codec) -> Codec:
    """The codec, if a cache that names it can be read in another process."""
    cls = type(codec)
    path = class_path(cls)
    module = inspect.getmodule(cls)
    if cls.__module__ == "__main__" or module is None or getattr(module, cls.__qualname__, None) is not cls:
        raise ValueError(
            f"codec: expected a class at the top level of a module that can be imported; got {path}, which "
            "another process could not import: move the class into a module of its own"
        )
    if parsed_name(codec.name) != (path, codec.settings):
        raise ValueError(
            f"codec: {path}: expected the name {path} with its settings; got {codec.name!r}: don't override "
            "name"
        )
    plain = not dataclasses.is_dataclass(cls) and cls.settings is Codec.settings
    if plain and inspect.signature(cls).parameters:
        raise ValueError(
            f"codec: {path} takes arguments, without which a cache could not build it again: make it a "
            "frozen dataclass, or define the property settings"
        )
    _built(path, codec.settings)
    return codec
