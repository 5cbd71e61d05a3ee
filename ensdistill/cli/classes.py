"""Type hints as pydantic annotations: settings become dataclasses of ours, or objects of a class that they
name."""

from __future__ import annotations

import collections.abc as abc
import importlib
import inspect
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

from pydantic import GetPydanticSchema, PlainValidator, Strict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_core import core_schema as s
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ensdistill.cli.messages import nearest
from ensdistill.common.completion import PARAMETERS as SIZES
from ensdistill.common.completion import with_tuples

# A class in one of these modules can be named without its module.
MODULES = [
    f"ensdistill.{m}"
    for m in (
        "data",
        "teachers.recipes",
        "teachers.existing",
        "teachers.methods",
        "data.preprocess",
        "data.transfer",
        "data.augmentation",
        "models",
    )
]
BOOSTERS = ("catboost", "lightgbm", "xgboost")
BRANCH = "|"  # marks a branch of a union in an error's location
KNOWN = (bool, int, float, str, types.NoneType, None, list, tuple, dict)


def parse(hint: Any, settings: Any, plain: bool = False) -> Any:
    """Check settings against a type hint and build its object; raise pydantic's ValidationError with every
    fault.

    Where ``plain`` is set, return the settings instead, with their defaults.
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
        extra = ": pip install 'ensdistill[trees]'" if getattr(error, "name", None) in BOOSTERS else ""
        raise ValueError(f"{path} can't be imported: {error}{extra}") from error
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
        return all(
            hasattr(cls, name) and _takes(getattr(cls, name), getattr(base, name), inspect.isclass(cls))
            for name in needed
        )
    return not inspect.isclass(base) or (inspect.isclass(cls) and issubclass(cls, base))


def _takes(method: Any, declared: Any, unbound: bool) -> bool:
    """Whether a method needs no more arguments than the declared one, or has those first.

    A method of another meaning may have the same name, and would fail in the middle of the work.
    """
    try:
        own = [*inspect.signature(method).parameters.values()]
    except (TypeError, ValueError):  # of compiled code
        return True
    static = inspect.ismethod(method) or not unbound
    required = [p for p in own if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    names = [*inspect.signature(declared).parameters][1:]
    given = required if static else required[1:]
    return len(given) <= len(names) or [p.name for p in given[: len(names)]] == names


def is_group(hint: Any) -> bool:
    """Whether a setting of this type is a mapping to a dataclass's own fields, without a class_path."""
    return is_dataclass(hint) and not methods(hint)


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
    later = len(inner[0]) if inner and isinstance(inner[0], list) else 0
    return Annotated[
        Any, PlainValidator(lambda value, info: _build(base, value, info.context, factory, later))
    ]


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
    schema = s.literal_schema(list(values))
    return s.custom_error_schema(
        schema, "one_of", custom_error_message="one of names", custom_error_context=names
    )


def _union(choices: list[Any]) -> Any:
    return s.union_schema([(choice, BRANCH) for choice in choices], mode="left_to_right")


def _build(base: Any, value: Any, plain: bool, factory: bool, later: int = 0) -> Any:
    """An object of ``base``, or a factory of one, from its settings; ``later`` first arguments are given to
    the factory."""
    named = isinstance(value, dict) and "class_path" in value
    if is_group(base) and not named:
        arguments = TypeAdapter(_mapping(parameters(base))).validate_python(value, context=plain)
        return _completed(base, arguments) if plain else _call(base, arguments)
    path = value.get("class_path") if isinstance(value, dict) else value
    if isinstance(value, dict) and not named:
        given = ", ".join(map(str, value)) or "no setting"
        raise _fault(f"expected a class_path, because no class is named here; got {given} alone")
    try:
        cls = find_class(path)
        if not is_kind(cls, base):
            needed = (
                f"a class with {'; '.join(methods(base).values())}" if methods(base) else "a subclass of it"
            )
            raise ValueError(f"{path} is no {base.__name__}: expected {needed}")
    except ValueError as error:
        raise _fault(str(error), *["class_path"] * named) from error
    known = parameters(cls)
    if all(p.kind is not p.VAR_KEYWORD for p in known.values()):
        known = dict([*known.items()][later:])
    if factory:  # sizes that are not given follow from the data, a schedule's length from the steps
        own = (*SIZES, "T_max")
        known |= {n: p.replace(default=None) for n, p in known.items() if n in own and p.default is p.empty}
    hints = {"class_path": str, "init_args": _mapping(known), "dict_kwargs": dict[str, Any]}
    outer = {
        n: Parameter(n, Parameter.KEYWORD_ONLY, annotation=hint, default=None) for n, hint in hints.items()
    }
    settings = {"init_args": {}, **(value if named else {"class_path": path})}
    checked = TypeAdapter(_mapping(outer)).validate_python(settings, context=plain)
    arguments = {**checked["init_args"], **checked.get("dict_kwargs", {})}
    completed = _completed(cls, arguments)
    if factory:
        completed = {n: v for n, v in completed.items() if n in arguments or n not in SIZES}
    if factory and issubclass(cls, (Optimizer, LRScheduler)):
        completed = arguments  # some of their defaults, such as lr, are settings of the optimisation
    if plain:
        return {"class_path": path, "init_args": completed}
    return partial(cls, **completed) if factory else _call(cls, arguments, "init_args")


def _mapping(known: dict[str, Parameter]) -> Any:
    """The annotation of a mapping from the names of these parameters to their values."""
    single = {n: p for n, p in known.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}

    def refuse(_: Any) -> Any:
        names = list(single)
        text = f"there is no such setting; known: {', '.join(names)}."
        raise PydanticCustomError("fault", "{text}", {"text": text, "names": names})

    def schema(_: Any, handler: Any) -> Any:
        kinds = {}
        for name, parameter in single.items():
            kind, required = handler(_annotation(parameter.annotation)), parameter.default is Parameter.empty
            if required and is_group(parameter.annotation):  # its own settings may all have defaults
                kind, required = s.with_default_schema(kind, default={}, validate_default=True), False
            kinds[name] = s.typed_dict_field(kind, required=required)
        is_open = any(p.kind is p.VAR_KEYWORD for p in known.values())
        more = s.any_schema() if is_open else s.no_info_plain_validator_function(refuse)
        mapping = s.typed_dict_schema(kinds, extra_behavior="allow", extras_schema=more)
        return s.no_info_before_validator_function(lambda value: {} if value is None else value, mapping)

    return Annotated[Any, GetPydanticSchema(schema)]


def _call(cls: Any, arguments: dict[str, Any], *place: str) -> Any:
    """Construct an object; an error gets the place of the argument whose name begins its message."""
    try:
        return cls(**with_tuples(cls, arguments))
    except (ValueError, TypeError) as error:
        head, colon, text = str(error).partition(": ")
        keys, known = head.split("."), parameters(cls)
        while keys and keys[0] not in known:  # a class may name itself first: "optimization.steps: ..."
            keys.pop(0)
        raise (_fault(text, *place, *keys) if keys and colon else _fault(str(error))) from error


def _completed(cls: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the defaults that can be written down."""
    known = parameters(cls)
    return {n: p.default for n, p in known.items() if type(p.default) in (*KNOWN, p.annotation)} | arguments


def _fault(text: str, *place: str) -> ValidationError:
    fault = PydanticCustomError("fault", "{text}", {"text": text})
    return ValidationError.from_exception_data("settings", [{"type": fault, "loc": place, "input": None}])
