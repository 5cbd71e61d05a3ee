"""The inputs of a graph: how raw samples become the tensors that a student takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ensdistill.data import batches as b
from ensdistill.data.preprocess import (
    Categorical,
    HashedNgrams,
    ImageTransform,
    ModuleTransform,
    Named,
    Tokens,
    Transformer,
)
from ensdistill.student.export.graph import DOUBLE, FLOAT, INT64, Graph
from ensdistill.student.export.pixels import resized
from ensdistill.student.export.transformers import transform
from ensdistill.student.export.values import Column, Values, numbers

SIDES = ("height", "width")


@dataclass
class Prepared:
    """The graph's inputs and the values made of them.

    Parameters
    ----------
    tensors : dict of str to str
        For each input of the student a tensor; of a single one under ``inputs``.
    values : Values, optional
        The columns or numbers themselves, for an estimator.
    about : dict
        The facts by which a program feeds the graph, as plain JSON.
    files : dict of str to bytes
        Files that stand beside the model's.
    refused : str, optional
        A tensor [N, 1], 0 or, in rows that the preprocess refuses, NaN.
    before : Module, optional
        A module that makes the student's input of the tensors.
    pixels : bool
        See :class:`ensdistill.student.export.networks.Logits`.
    """

    tensors: dict[str, str]
    about: dict[str, Any]
    values: Values | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    refused: str | None = None
    before: nn.Module | None = None
    pixels: bool = False


def prepare(graph: Graph, preprocess: Any, samples: Any, form: Mapping[str, Any]) -> Prepared:
    """Declare the inputs for samples of this form, and add the nodes of the preprocess.

    Raises
    ------
    ValueError
        ONNX can't express the preprocess; names the part.
    """
    kind = b.kind_of(samples).name
    if isinstance(preprocess, Transformer):
        prepared = _table(graph, preprocess, samples, form) if kind == "table" else _array(graph, samples)
        return _transformed(graph, preprocess, prepared)
    if preprocess is None:
        if kind == "table":
            return _table(graph, None, samples, form)
        if kind in ("text", "images"):
            raise ValueError(
                f"preprocess: expected one that makes numbers of samples of kind {kind!r}; the student has "
                "none: texts become ids by HashedNgrams or Tokens, images numbers by ImageTransform"
            )
        return _fields(graph, samples) if kind == "mapping" else _array(graph, samples)
    if isinstance(preprocess, ImageTransform):
        return _images(graph, preprocess, samples)
    if isinstance(preprocess, ModuleTransform):
        if kind == "images":
            prepared = _pixels(graph, samples, None)
            prepared.pixels = True
        else:
            prepared = _fields(graph, samples) if kind == "mapping" else _array(graph, samples)
        prepared.before = preprocess.module
        return prepared
    if isinstance(preprocess, HashedNgrams):
        ids = graph.input("ids", "int64", [preprocess.length])
        settings = {"kind": "hashed_ngrams"} | {
            name: getattr(preprocess, name) for name in ("buckets", "length", "words", "characters")
        }
        return Prepared({"inputs": ids}, {"kind": "text", "text": settings})
    if isinstance(preprocess, Tokens):
        tensors = {n: graph.input(n, "int64", [preprocess.length]) for n in ("input_ids", "attention_mask")}
        settings = {"kind": "tokens", "file": "tokenizer.json"}
        settings |= {"length": preprocess.length, "padding": preprocess.padding}
        files = {"tokenizer.json": preprocess.tokenizer.to_str(pretty=True).encode()}
        return Prepared(tensors, {"kind": "text", "text": settings}, files=files)
    raise _inexpressible(preprocess)


def _inexpressible(preprocess: Any) -> ValueError:
    if isinstance(preprocess, Categorical):
        return ValueError(
            "preprocess: categories are for boosted trees, which keep their own format: keep the folder that "
            "save wrote"
        )
    name = preprocess.path if isinstance(preprocess, Named) else type(preprocess).__qualname__
    return ValueError(
        f"preprocess: ONNX can't express {name}, which is Python code: apply it to the samples "
        "before they reach the student and train one without it, or keep the folder that save wrote"
    )


def _transformed(graph: Graph, preprocess: Transformer, prepared: Prepared) -> Prepared:
    values = prepared.values or Values()
    raw = prepared.refused
    made = transform(graph, preprocess.transformer, values)
    features = graph.cast(made.numbers(graph, preprocess.transformer), FLOAT)
    # NaN and infinity times 0 are NaN, so the sum marks every row that the transformer refuses.
    wrong = graph.op("ReduceSum", graph.op("Mul", features, graph.constant(0.0, np.float32)),
                     graph.constant([1]), keepdims=1)  # fmt: skip
    prepared.refused = wrong if raw is None else graph.op("Add", wrong, raw)
    prepared.tensors = {"inputs": features}
    prepared.values = numbers(graph.cast(features, DOUBLE), made.width)
    return prepared


def _table(graph: Graph, preprocess: Transformer | None, frame: Any, form: Mapping[str, Any]) -> Prepared:
    """One input [N, 1] for each column: float64, or a text."""
    types = dict(form["columns"])
    names = getattr(getattr(preprocess, "transformer", None), "feature_names_in_", None)
    columns, about = [], []
    for number, name in enumerate(types if names is None else [str(name) for name in names]):
        texts = types[name] in ("text", "category")
        if types[name] in ("time", "duration"):
            raise ValueError(f"column {name!r}: ONNX can't express a {types[name]}: make numbers of it")
        own = name if name and name not in graph.reserved else f"column {number}"
        tensor = graph.input(own, "string" if texts else "float64", [1])
        empty = "(empty text)" if texts else None
        columns.append(Column(name, tensor, texts, empty=empty))
        entry = {"name": name, "type": types[name]}
        about.append(entry | ({"input": own} if own != name else {}) | ({"empty": empty} if texts else {}))
    values = Values.of(columns)
    plain = [column.tensor for column in columns if not column.texts]
    return Prepared({}, {"kind": "table", "columns": about}, values, refused=_infinite(graph, plain))


def _infinite(graph: Graph, tensors: list[str]) -> str | None:
    """[N, 1]: NaN where a row holds an infinite number, else 0."""
    if not tensors:
        return None
    infinite = graph.cast(graph.op("IsInf", graph.join(tensors)), INT64)
    any_of_them = graph.op("ReduceMax", infinite, graph.constant([1]), keepdims=1)
    some = graph.op("Equal", any_of_them, graph.constant(1))
    return graph.op("Where", some, graph.constant(np.float32(np.nan)), graph.constant(np.float32(0)))


def _array(graph: Graph, array: Any) -> Prepared:
    array = np.asarray(array)
    x = graph.input("inputs", str(array.dtype), array.shape[1:])
    width = int(np.prod(array.shape[1:]))
    about = {"kind": "array", "dtype": str(array.dtype), "shape": list(array.shape[1:])}
    flat = x if array.ndim == 2 else graph.op("Flatten", x, axis=1)
    wide = flat if array.dtype == np.float64 else graph.cast(flat, DOUBLE)
    return Prepared({"inputs": x}, about, numbers(wide, width))


def _fields(graph: Graph, fields: Mapping[str, Any]) -> Prepared:
    arrays = {name: np.asarray(part) for name, part in fields.items()}
    tensors = {name: graph.input(name, str(part.dtype), part.shape[1:]) for name, part in arrays.items()}
    about = {name: {"dtype": str(part.dtype), "shape": list(part.shape[1:])} for name, part in arrays.items()}
    return Prepared(tensors, {"kind": "mapping", "fields": about})


def _pixels(graph: Graph, images: Any, size: int | None) -> Prepared:
    """uint8 [N, H, W, C], of any size, or of the samples' size where the model has none."""
    shapes = {np.asarray(image).shape for image in images}
    channels = {1 if len(shape) == 2 else shape[2] for shape in shapes}.pop()
    sides = {shape[:2] for shape in shapes}
    if size is None and len(sides) > 1:
        raise ValueError(f"samples: expected images of one size; got {sorted(sides)[:3]}")
    shape = [*(SIDES if size is not None else sides.pop()), channels]
    x = graph.input("images", "uint8", shape)
    return Prepared({"inputs": x}, {"kind": "images", "shape": _sizes(shape)})


def _sizes(shape: Sequence[int | str]) -> list[int | None]:
    """A shape as JSON; None for an axis of any length."""
    return [None if isinstance(length, str) else length for length in shape]


def _images(graph: Graph, preprocess: ImageTransform, samples: Any) -> Prepared:
    if b.kind_of(samples).name == "images":
        prepared, last = _pixels(graph, samples, preprocess.size), True
    else:
        array, last = np.asarray(samples), preprocess.layout == "channels_last"
        shape = list(array.shape[1:])
        if preprocess.size is not None:
            for axis, side in zip((0, 1) if last or array.ndim == 3 else (1, 2), SIDES, strict=True):
                shape[axis] = side
        x = graph.input("images", "uint8", shape)
        prepared = Prepared({"inputs": x}, {"kind": "images", "shape": _sizes(shape)})
        if array.ndim == 3:
            prepared.tensors["inputs"] = graph.op("Unsqueeze", x, graph.constant([3 if last else 1]))
    x = prepared.tensors["inputs"]
    pixels = graph.cast(graph.op("Transpose", x, perm=[0, 3, 1, 2]) if last else x, FLOAT)
    if preprocess.size is not None:
        pixels = resized(graph, pixels, preprocess.size, preprocess.resize or preprocess.size)
    scaled = graph.op("Div", pixels, graph.constant(np.float32(255)))
    mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (preprocess.mean, preprocess.std))
    made = graph.op("Div", graph.op("Sub", scaled, graph.constant(mean)), graph.constant(std))
    prepared.tensors = {"inputs": made}
    return prepared
