"""Type hints as pydantic annotations: settings become dataclasses of ours, or objects of a class that they
name."""

from __future__ import annotations

import collections.abc as abc
import difflib
import importlib
import inspect
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, NotRequired, Required

from pydantic import BeforeValidator, GetPydanticSchema, PlainValidator, Strict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, core_schema
from typing_extensions import TypedDict

# A class in one of these modules can be named without its module.
MODULES = [
    f"ensdistill.{m}"
    for m in ("data", "teachers.recipes", "teachers.methods", "data.transfer", "data.augmentation", "models")
]
BRANCH = "|"  # marks a branch of a union in an error's location
KNOWN = (bool, int, float, str, types.NoneType, None, list, tuple, dict)


def parse(hint: Any, settings: Any, plain: str = "") -> Any:
    """Check settings against a type hint and build its object; raise pydantic's ValidationError with every
    fault.

    Where ``plain`` is "all" or "skip_default", return the settings instead, with their defaults or without.
    """
    return TypeAdapter(_annotation(hint)).validate_python(settings, context=plain)


def parameters(cls: Any) -> dict[str, Parameter]:
    """The parameters of a constructor with resolved hints and defaults; where it has no signature, any
    names."""
    try:
        hints = typing.get_type_hints(cls.__init__ if inspect.isclass(cls) and not is_dataclass(cls) else cls)
        found = dict(inspect.signature(cls).parameters)
    except (TypeError, ValueError, NameError):
        return {"arguments": Parameter("arguments", Parameter.VAR_KEYWORD)}
    made = {
        f.name: f.default_factory()
        for f in (fields(cls) if is_dataclass(cls) else ())
        if f.default_factory is not MISSING
    }
    return {
        n: p.replace(annotation=hints.get(n, Any), default=made.get(n, p.default)) for n, p in found.items()
    }


def find_class(path: Any) -> Any:
    """Import ``package.module.Class``, or raise ValueError."""
    module, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    try:
        places = [importlib.import_module(place) for place in ([module] if module else MODULES)]
    except Exception as error:  # a module of the user's can raise anything
        raise ValueError(f"{path} can't be imported: {error}") from error
    if found := [getattr(place, name) for place in places if name and hasattr(place, name)]:
        return found[0]
    text = (
        f"{module} has no {name!r}"
        if module
        else f"expected an import path, package.module.Class; got {path!r}"
    )
    raise ValueError(f"{text}.{nearest(name, [n for place in places for n in dir(place)])}")


def methods(protocol: Any) -> dict[str, str]:
    """The methods that a class of this protocol needs, as they are declared; of any other class, none."""
    own = vars(protocol) if getattr(protocol, "_is_protocol", False) else {}
    functions = {n: f for n, f in own.items() if n[0] != "_" and inspect.isfunction(f)}
    return {n: f"def {n}{inspect.signature(f)}".replace("'", "") for n, f in functions.items()}


def is_kind(cls: Any, base: Any) -> bool:
    """Whether a setting of type ``base`` may name this class."""
    if needed := methods(base):
        return all(hasattr(cls, name) for name in needed)
    return not inspect.isclass(base) or (inspect.isclass(cls) and issubclass(cls, base))


def is_group(hint: Any) -> bool:
    """Whether a setting of this type is a mapping to a dataclass's own fields, without a class_path."""
    return is_dataclass(hint) and not methods(hint)


def nearest(name: str, names: abc.Iterable[str], prefix: str = "") -> str:
    """`` Did you mean ...?``, or nothing where no name is near."""
    near = difflib.get_close_matches(name, sorted({n for n in names if n[0] != "_"}), 1)
    return f" Did you mean {prefix + near[0]!r}?" if near else ""


def _annotation(hint: Any) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if types.NoneType in inner:
        own: Any = typing.Union[tuple(part for part in inner if part is not types.NoneType)]  # noqa: UP007
        return typing.Optional[_annotation(own)]  # noqa: UP045
    if origin in (typing.Union, types.UnionType):
        if any(typing.get_origin(part) is dict for part in inner) and any(_is_class(part) for part in inner):
            return ANY_CLASS  # the owner's constructor checks the class
        return Annotated[
            Any, GetPydanticSchema(lambda _, handler: _union([handler(_annotation(part)) for part in inner]))
        ]
    if origin in (list, tuple, dict, set, frozenset, abc.Sequence, abc.Iterable, abc.Mapping):
        return origin[tuple(part if part is ... else _annotation(part) for part in inner)]
    if origin is typing.Literal:
        return Annotated[Any, GetPydanticSchema(lambda *_: _one_of(inner))]
    if origin is Annotated or hint in KNOWN:
        return Annotated[hint, Strict()] if hint in (bool, int, float, str) else hint
    if origin is not abc.Callable and (not inspect.isclass(hint) or hint in (Any, object, Parameter.empty)):
        return ANYTHING
    if inspect.isclass(hint) and issubclass(hint, (Path, Enum)):
        return hint
    base, factory = (inner[-1], True) if inner else (hint, False)  # Callable[[], X] or X
    return Annotated[Any, PlainValidator(lambda value, info: _build(base, value, info.context, factory))]


def _is_class(hint: Any) -> bool:
    return inspect.isclass(hint) and typing.get_origin(hint) is None and hint not in KNOWN


def _anything(value: Any, info: Any) -> Any:
    """A value without a type hint, in which mappings with a class_path become objects."""
    if isinstance(value, dict) and "class_path" in value:
        return _build(object, value, info.context, False)
    kind = WITHIN.get(type(value))
    return TypeAdapter(kind).validate_python(value, context=info.context) if kind else value


ANY_CLASS: Any = Annotated[
    Any, PlainValidator(lambda value, info: _build(object, value, info.context, False))
]
ANYTHING: Any = Annotated[Any, PlainValidator(_anything)]
WITHIN: dict[type, Any] = {list: list[ANYTHING], dict: dict[Any, ANYTHING]}


def _one_of(values: tuple[Any, ...]) -> Any:
    names = {"names": [str(value) for value in values]}
    schema = core_schema.literal_schema(list(values))
    return core_schema.custom_error_schema(
        schema, "one_of", custom_error_message="one of names", custom_error_context=names
    )


def _union(choices: list[Any]) -> Any:
    return core_schema.union_schema([(choice, BRANCH) for choice in choices], mode="left_to_right")


def _build(base: Any, value: Any, plain: str, factory: bool) -> Any:
    """An object of ``base``, or a factory of one, from its settings."""
    named = isinstance(value, dict) and "class_path" in value
    if is_group(base) and not named:
        arguments = TypeAdapter(_mapping(parameters(base))).validate_python(value, context=plain)
        return _completed(base, arguments, plain) if plain else _call(base, arguments)
    path = value.get("class_path") if isinstance(value, dict) else value
    try:
        cls = find_class(path)
        if not is_kind(cls, base):
            needed = (
                f"a class with {'; '.join(methods(base).values())}" if methods(base) else "a subclass of it"
            )
            raise ValueError(f"{path} is no {base.__name__}: expected {needed}")
    except ValueError as error:
        raise _fault(str(error), *["class_path"] * named) from error
    hints = {"class_path": str, "init_args": _mapping(parameters(cls)), "dict_kwargs": dict[str, Any]}
    outer = {
        n: Parameter(n, Parameter.KEYWORD_ONLY, annotation=hint, default=None) for n, hint in hints.items()
    }
    settings = {"init_args": {}, **(value if named else {"class_path": path})}
    checked = TypeAdapter(_mapping(outer)).validate_python(settings, context=plain)
    arguments = {**checked["init_args"], **checked.get("dict_kwargs", {})}
    if plain:
        return {"class_path": path, "init_args": _completed(cls, arguments, plain)}
    return partial(cls, **_completed(cls, arguments)) if factory else _call(cls, arguments, "init_args")


def _mapping(known: dict[str, Parameter]) -> Any:
    """The annotation of a mapping from the names of these parameters to their values."""
    single = {n: p for n, p in known.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    required = {n for n, p in single.items() if p.default is Parameter.empty}

    def check(value: Any) -> Any:
        if not isinstance(value, dict | None):
            raise _fault(f"expected a mapping of names to values; got {value!r}")
        unknown = [name for name in value or () if name not in single]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            raise _fault(
                f"there is no such setting; known: {', '.join(single)}.", str(unknown[0]), names=list(single)
            )
        return {n: {} for n in required if is_group(known[n].annotation)} | (value or {})

    kinds = {
        n: (Required if n in required else NotRequired)[_annotation(p.annotation)] for n, p in single.items()
    }
    kind = TypedDict("kind", kinds)  # type: ignore[misc]
    kind.__pydantic_config__ = {"extra": "allow"}  # type: ignore[attr-defined]
    return Annotated[kind, BeforeValidator(check)]


def _call(cls: Any, arguments: dict[str, Any], *place: str) -> Any:
    """Construct an object; an error gets the place of the argument whose name begins its message."""
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        head, colon, text = str(error).partition(": ")
        keys, known = head.split("."), parameters(cls)
        while keys and keys[0] not in known:  # a class may name itself first: "optimization.steps: ..."
            keys.pop(0)
        raise (_fault(text, *place, *keys) if keys and colon else _fault(str(error))) from error


def _completed(cls: Any, arguments: dict[str, Any], plain: str = "all") -> dict[str, Any]:
    """The arguments with the defaults that can be written down, or without those that equal their
    defaults."""
    known = parameters(cls)
    if plain == "skip_default":
        return {n: value for n, value in arguments.items() if n not in known or value != known[n].default}
    return {n: p.default for n, p in known.items() if type(p.default) in (*KNOWN, p.annotation)} | arguments


def _fault(text: str, *place: str, names: abc.Sequence[str] = ()) -> ValidationError:
    fault = PydanticCustomError("fault", "{text}", {"text": text, "names": names})
    return ValidationError.from_exception_data("settings", [{"type": fault, "loc": place, "input": None}])
