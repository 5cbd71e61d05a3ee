"""Objects of classes that a user may write, from settings and type hints of every kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
from pydantic import ValidationError

from ensdistill.cli.classes import parse

HERE = __name__


class Scale(Protocol):
    def scale(self, x: float) -> float: ...


@dataclass
class Double:
    factor: float = 2.0

    def scale(self, x: float) -> float:
        return self.factor * x


@dataclass
class Inner:
    steps: int = 3


class Base:
    pass


class Open(Base):
    """Takes any argument, some of them without a type."""

    def __init__(self, first, *rest, kind: Literal["a", "b"] = "a", **others):
        self.given = (first, rest, kind, others)


@dataclass
class Outer:
    inner: Inner
    path: Path = Path("here")
    sizes: tuple[int, ...] = (1, 2)
    either: int | Sequence[int | str] = 0
    by_name: dict[str, Inner] = field(default_factory=dict)
    scales: list[Scale] = field(default_factory=list)
    make: Callable[[], Base] | None = None
    base: Base | None = None
    anything: Any = None
    raw_or_built: dict[str, Any] | Base | None = None
    table: Mapping[str, float] = field(default_factory=dict)


def test_every_kind_of_hint():
    double = {"class_path": f"{HERE}.Double", "init_args": {"factor": 3}}
    settings = {
        "path": "x/y",
        "sizes": [3, 4],
        "either": [1, "a"],
        "by_name": {"b": {"steps": 5}},
        "scales": [f"{HERE}.Double", double],
        "make": {"class_path": f"{HERE}.Open", "init_args": {"first": 1}},
        "base": {"class_path": f"{HERE}.Open", "init_args": {"first": double, "more": 3}},
        "anything": [{"deep": {"class_path": f"{HERE}.Inner", "init_args": {"steps": 7}}}, 2],
        "raw_or_built": {"class_path": f"{HERE}.Open", "init_args": {"first": [double]}},
        "table": {"x": 1},
    }
    made = parse(Outer, settings)
    assert (made.path, made.sizes, made.either) == (Path("x/y"), (3, 4), [1, "a"])
    assert (made.inner.steps, made.by_name["b"].steps) == (3, 5)
    assert [scale.scale(1.0) for scale in made.scales] == [2.0, 3.0]
    assert (made.make.func, made.make.keywords["first"]) == (Open, 1)
    assert made.base.given == (Double(3.0), (), "a", {"more": 3})
    assert made.anything == [{"deep": Inner(7)}, 2]
    assert made.raw_or_built.given[0] == [Double(3.0)]


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        (
            {"anything": [{"deep": {"class_path": f"{HERE}.Inner", "init_args": {"steps": "x"}}}]},
            "anything.0.deep.init_args.steps",
        ),
        ({"raw_or_built": {"class_path": f"{HERE}.Opn"}}, "raw_or_built.class_path"),
        (
            {"raw_or_built": {"class_path": f"{HERE}.Double", "init_args": {"fctor": 3}}},
            "raw_or_built.init_args.fctor",
        ),
        (
            {"base": {"class_path": f"{HERE}.Open", "init_args": {"first": 1, "kind": "c"}}},
            "base.init_args.kind",
        ),
    ],
)
def test_an_error_within_nested_classes_has_its_path(settings, path):
    with pytest.raises(ValidationError) as caught:
        parse(Outer, settings)
    assert [".".join(str(key) for key in error["loc"]) for error in caught.value.errors()] == [path]


def test_lists_are_tuples_where_a_class_without_type_hints_has_one_by_default():
    vectorizer = "sklearn.feature_extraction.text.TfidfVectorizer"
    arguments = {"ngram_range": [1, 2], "stop_words": ["a"]}
    made = parse(Any, {"class_path": vectorizer, "init_args": arguments})
    assert (made.ngram_range, made.stop_words) == ((1, 2), ["a"])
