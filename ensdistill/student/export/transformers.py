"""Fitted transformers of scikit-learn as a graph: a form of our own that is exact for every value, else that
of skl2onnx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ensdistill.student.export import lookups, quantiles, scaling
from ensdistill.student.export.converted import convert
from ensdistill.student.export.graph import OTHERWISE, Graph
from ensdistill.student.export.values import Values, side_by_side

Converter = Callable[[Graph, Any, Values], Values]


def transform(graph: Graph, transformer: Any, values: Values) -> Values:
    """The result of a fitted transformer for some columns.

    Raises
    ------
    ValueError
        ONNX can't express it; names the transformer.
    """
    if transformer is None or (isinstance(transformer, str) and transformer == "passthrough"):
        return values
    name = type(transformer).__name__
    if type(transformer).__module__.partition(".")[0] == "sklearn" and name in _OWN:
        return _OWN[name](graph, transformer, values)
    return convert(graph, transformer, values)


def _pipeline(graph: Graph, pipeline: Any, values: Values) -> Values:
    for _, step in pipeline.steps:
        values = transform(graph, step, values)
    return values


def _by_columns(graph: Graph, columns: Any, values: Values) -> Values:
    parts = []
    for name, part, _ in columns.transformers_:
        indices = list(columns._transformer_to_input_indices[name])
        if (isinstance(part, str) and part == "drop") or not indices:
            continue
        parts.append(transform(graph, part, values.take(graph, indices)))
    return side_by_side(graph, parts, columns)


def _union(graph: Graph, union: Any, values: Values) -> Values:
    if union.transformer_weights:
        return convert(graph, union, values)
    used = [part for _, part in union.transformer_list if not (isinstance(part, str) and part == "drop")]
    return side_by_side(graph, [transform(graph, part, values) for part in used], union)


def _function(graph: Graph, transformer: Any, values: Values) -> Values:
    if transformer.func is None:
        return values
    known = {np.log1p: "Log", np.abs: "Abs", np.sqrt: "Sqrt", np.log: "Log", np.exp: "Exp", np.sign: "Sign"}
    if transformer.func not in known or transformer.kw_args:
        name = getattr(transformer.func, "__name__", repr(transformer.func))
        raise ValueError(
            f"preprocess: ONNX can't express FunctionTransformer({name}), which is Python code: apply it "
            f"before the samples reach the student, or {OTHERWISE}"
        )
    x = values.numbers(graph, transformer)
    if transformer.func is np.log1p:
        x = graph.op("Add", x, graph.constant(1.0))
    return Values((), graph.op(known[transformer.func], x), values.width)


_OWN: dict[str, Converter] = {
    "Pipeline": _pipeline,
    "ColumnTransformer": _by_columns,
    "FeatureUnion": _union,
    "FunctionTransformer": _function,
    "StandardScaler": scaling.standard,
    "RobustScaler": scaling.robust,
    "MaxAbsScaler": scaling.largest,
    "MinMaxScaler": scaling.to_range,
    "PowerTransformer": scaling.power,
    "QuantileTransformer": quantiles.quantile,
    "KBinsDiscretizer": scaling.bins,
    "Binarizer": scaling.binary,
    "PolynomialFeatures": scaling.polynomial,
    "SimpleImputer": scaling.impute,
    "MissingIndicator": scaling.flags,
    "OneHotEncoder": lookups.encode,
    "OrdinalEncoder": lookups.encode,
    "TargetEncoder": lookups.encode,
}
