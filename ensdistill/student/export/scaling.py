"""Scalers and imputers of scikit-learn in float64, in which they compute themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.student.export.graph import DOUBLE, INT64, ML, OTHERWISE, Graph
from ensdistill.student.export.lookups import encode
from ensdistill.student.export.values import Values, filled, numbers, side_by_side


def standard(graph: Graph, scaler: Any, values: Values) -> Values:
    """(x - mean) / scale."""
    return _affine(graph, scaler, values, scaler.mean_, scaler.scale_)


def robust(graph: Graph, scaler: Any, values: Values) -> Values:
    """(x - median) / range."""
    return _affine(graph, scaler, values, scaler.center_, scaler.scale_)


def largest(graph: Graph, scaler: Any, values: Values) -> Values:
    """x / largest absolute value."""
    made = _affine(graph, scaler, values, None, scaler.scale_)
    if not getattr(scaler, "clip", False):
        return made
    return numbers(clipped(graph, str(made.matrix), -1.0, 1.0), made.width)


def to_range(graph: Graph, scaler: Any, values: Values) -> Values:
    """x * scale + minimum, clipped where the scaler clips."""
    x = values.numbers(graph, scaler)
    made = graph.op("Add", graph.op("Mul", x, row(graph, scaler.scale_)), row(graph, scaler.min_))
    if scaler.clip:
        made = clipped(graph, made, *scaler.feature_range)
    return numbers(made, values.width)


def power(graph: Graph, scaler: Any, values: Values) -> Values:
    """Yeo and Johnson's, or Box and Cox's power."""
    x, exponents = values.numbers(graph, scaler), np.asarray(scaler.lambdas_, np.float64)
    if scaler.method == "box-cox":
        made = _powers(graph, x, row(graph, exponents), bool((exponents == 0).any()))
    else:
        positive = graph.op("GreaterOrEqual", x, graph.constant(0.0))
        chosen = graph.op("Where", positive, row(graph, exponents), row(graph, 2 - exponents))
        larger = graph.op("Add", graph.op("Abs", x), graph.constant(1.0))
        zero = bool(np.isin(exponents, (0.0, 2.0)).any())
        magnitude = _powers(graph, larger, chosen, zero)
        made = graph.op("Where", positive, magnitude, graph.op("Neg", magnitude))
    scaled = numbers(made, values.width)
    return standard(graph, scaler._scaler, scaled) if scaler.standardize else scaled


def _powers(graph: Graph, x: str, exponents: str, zero: bool) -> str:
    """(x^e - 1) / e = expm1(e log x) / e, and log x for e = 0."""
    logs = graph.op("Log", x)
    raised = graph.op("Sub", graph.op("Pow", x, exponents), graph.constant(1.0))
    if not zero:
        return graph.op("Div", raised, exponents)
    none = graph.op("Equal", exponents, graph.constant(0.0))
    safe = graph.op("Where", none, graph.constant(1.0), exponents)
    return graph.op("Where", none, logs, graph.op("Div", raised, safe))


def impute(graph: Graph, imputer: Any, values: Values) -> Values:
    """The statistic of each column in place of missing values, and the imputer's flags of these, if any."""
    wanted = imputer.missing_values
    statistics = list(imputer.statistics_)
    # A column without any value at the fit is dropped, unless the imputer keeps it.
    kept = [
        i for i, value in enumerate(statistics)
        if value is not None and (isinstance(value, str) or value == value)
    ]  # fmt: skip
    if len(kept) < len(statistics) and imputer.keep_empty_features:
        raise ValueError(
            "preprocess: ONNX can't express a SimpleImputer that keeps a column without any value: "
            f"leave the column out, or {OTHERWISE}"
        )
    if not (wanted is None or wanted != wanted or "NA" in str(wanted)):
        raise ValueError(
            f"preprocess: ONNX can't express SimpleImputer(missing_values={wanted!r}): take NaN for what "
            f"is missing, or {OTHERWISE}"
        )
    if values.matrix is not None:
        fill = np.array([statistics[i] for i in kept], np.float64)
        if getattr(imputer, "_fit_dtype", None) == np.float32:  # in which scikit-learn fills float32 columns
            fill = fill.astype(np.float32).astype(np.float64)
        x = str(values.take(graph, kept).matrix)
        made = numbers(graph.op("Where", graph.op("IsNaN", x), row(graph, fill), x), len(kept))
    elif any(column.texts for column in values.columns):
        made = Values.of([filled(graph, values.columns[i], statistics[i]) for i in kept])
    else:
        joined = numbers(values.numbers(graph, imputer), values.width)
        return impute(graph, imputer, joined)
    if imputer.add_indicator:
        return side_by_side(graph, [made, flags(graph, imputer.indicator_, values)], imputer)
    return made


def flags(graph: Graph, indicator: Any, values: Values) -> Values:
    """1 where a value is missing."""
    chosen = values.take(graph, [int(i) for i in indicator.features_])
    parts = []
    if chosen.matrix is not None:
        parts.append(graph.op("IsNaN", chosen.matrix))
    for column in chosen.columns:
        if not column.texts:
            parts.append(graph.op("IsNaN", column.tensor))
        else:
            parts.append(
                graph.op(
                    "LabelEncoder",
                    column.tensor,
                    domain=ML,
                    keys_strings=[""],
                    values_int64s=[int(column.gap is None)],
                    default_int64=0,
                )
            )
    return numbers(graph.join([graph.cast(part, DOUBLE) for part in parts]), chosen.width)


def polynomial(graph: Graph, features: Any, values: Values) -> Values:
    """Products of powers of the columns."""
    x, powers = values.numbers(graph, features), np.asarray(features.powers_)
    first = graph.op("Gather", x, graph.constant([0]), axis=1)
    one = graph.op("Add", graph.op("Mul", first, graph.constant(0.0)), graph.constant(1.0))
    extended = graph.join([x, one])
    # The columns that each product has as factors, filled up with that of ones.
    factors = [np.repeat(np.arange(values.width), row) for row in powers]
    most = max(1, *(len(row) for row in factors))
    filled_up = np.array([[*row, *[values.width] * (most - len(row))] for row in factors], np.int64)
    product = graph.op("Gather", extended, graph.constant(filled_up[:, 0]), axis=1)
    for place in range(1, most):
        product = graph.op(
            "Mul", product, graph.op("Gather", extended, graph.constant(filled_up[:, place]), axis=1)
        )
    return numbers(product, len(powers))


def bins(graph: Graph, binner: Any, values: Values) -> Values:
    """The number of the bin, or a column for each."""
    x = graph.op("Unsqueeze", values.numbers(graph, binner), graph.constant([2]))
    inner = [np.asarray(edges, np.float64)[1:-1] for edges in binner.bin_edges_]
    table = np.full((len(inner), max(1, *(len(edges) for edges in inner))), np.inf)
    for row, edges in zip(table, inner, strict=True):
        row[: len(edges)] = edges
    at_least = graph.cast(graph.op("LessOrEqual", graph.constant(table[None]), x), INT64)
    number = graph.op("ReduceSum", at_least, graph.constant([2]), keepdims=0)
    made = numbers(graph.cast(number, DOUBLE), values.width)
    return made if binner.encode == "ordinal" else encode(graph, binner._encoder, made)


def binary(graph: Graph, binarizer: Any, values: Values) -> Values:
    """1 above the threshold, else 0."""
    x = values.numbers(graph, binarizer)
    above = graph.cast(graph.op("Greater", x, graph.constant(float(binarizer.threshold))), DOUBLE)
    # NaN, which is no answer, stays.
    return numbers(graph.op("Where", graph.op("IsNaN", x), x, above), values.width)


def _affine(graph: Graph, scaler: Any, values: Values, shift: Any, scale: Any) -> Values:
    x = values.numbers(graph, scaler)
    if shift is not None and getattr(scaler, "with_mean", True) and getattr(scaler, "with_centering", True):
        x = graph.op("Sub", x, row(graph, shift))
    if scale is not None:
        x = graph.op("Div", x, row(graph, scale))
    return numbers(x, values.width)


def clipped(graph: Graph, x: str, low: float, high: float) -> str:
    """The numbers, at least ``low`` and at most ``high``."""
    return graph.op("Clip", x, graph.constant(float(low)), graph.constant(float(high)))


def row(graph: Graph, numbers_of_columns: Any) -> str:
    """A constant [1, width] of float64."""
    return graph.constant(np.asarray(numbers_of_columns, np.float64)[None])
