"""Encoders of categories as lookups: the encoder itself computes the row of each category, of a value that it
never saw, and of a gap; the graph looks the row up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdistill.student.export.graph import INT64, ML, Graph
from ensdistill.student.export.values import EXACT, Column, Values, numbers


def encode(graph: Graph, encoder: Any, values: Values) -> Values:
    """The columns of a fitted ``OneHotEncoder``, ``OrdinalEncoder`` or ``TargetEncoder``.

    A value that the encoder refuses (``handle_unknown="error"``) becomes a row of NaN, which marks the whole
    row as refused.
    """
    categories = [list(values) for values in encoder.categories_]
    parts, width = [], 0
    for index, known in enumerate(categories):
        column = values.column(graph, index)
        keys, gap = _keys(known, column)
        rows = _rows_of(encoder, categories, index, [*keys, _unseen(known), gap])
        parts.append(_looked_up(graph, column, keys, rows))
        width += rows.shape[1]
    return numbers(graph.join(parts), width)


def _is_gap(value: Any) -> bool:
    return value is None or bool(value != value)


def _keys(known: Sequence[Any], column: Column) -> tuple[list[Any], Any]:
    """The categories that are no gap, and the value that a gap of the column is for the encoder."""
    gaps = [value for value in known if _is_gap(value)]
    keys = [value for value in known if not _is_gap(value)]
    for value in keys:
        if isinstance(value, str) != column.texts:
            expected = "texts" if isinstance(value, str) else "numbers"
            found = "texts" if column.texts else "numbers"
            raise ValueError(
                f"preprocess: the encoder of column {column.name!r} was fitted to {expected}; the samples "
                f"have {found} there"
            )
        if not column.texts and abs(float(value)) > EXACT:
            raise ValueError(
                f"preprocess: column {column.name!r} has the category {value}, which float64 can't hold: "
                "make texts of these numbers (astype(str))"
            )
    if any(value is None for value in gaps):  # imputers fill NaN alone, so a gap was None at the fit
        return keys, None
    return keys, column.gap if column.gap is not None else np.nan


def _unseen(known: Sequence[Any]) -> Any:
    """A value that is no category."""
    if any(isinstance(value, str) for value in known):
        text = "unseen"
        while text in known:
            text += "_"
        return text
    present = [float(value) for value in known if not _is_gap(value)]
    return max(present, default=0.0) + 1.5


def _rows_of(encoder: Any, categories: list[list[Any]], index: int, wanted: list[Any]) -> np.ndarray:
    """float64 [len(wanted), width]: the encoder's result for each value of one column.

    The last two values are no categories: the encoder may refuse them.
    """
    widths = _widths(encoder, categories)
    start, end = sum(widths[:index]), sum(widths[: index + 1])
    rows = []
    for part in (wanted[:-2], wanted[-2:-1], wanted[-1:]):
        cells = [[known[0] for known in categories] for _ in part]
        for row, value in zip(cells, part, strict=True):
            row[index] = value
        made = _transformed(encoder, cells)
        rows.append(np.full((len(part), end - start), np.nan) if made is None else made[:, start:end])
    return np.concatenate(rows)


def _transformed(encoder: Any, cells: list[list[Any]]) -> np.ndarray | None:
    """The encoder's rows; None where it refuses a value."""
    if not cells:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names of columns, and of values that were never seen
        try:
            made = encoder.transform(_batch(encoder, cells))
        except ValueError:
            return None
    return np.asarray(made.todense() if hasattr(made, "todense") else made, np.float64)


def _batch(encoder: Any, cells: list[list[Any]]) -> Any:
    kinds = [np.asarray(known).dtype.kind for known in encoder.categories_]
    if set(kinds) <= {*"iuf"}:
        return np.array(cells, np.float64)
    import pandas as pd

    names = getattr(encoder, "feature_names_in_", [str(i) for i in range(len(kinds))])
    columns = zip(names, kinds, zip(*cells, strict=True), strict=True)
    return pd.DataFrame(
        {
            name: pd.Series(values, dtype=np.float64 if kind in "iuf" else object)
            for name, kind, values in columns
        }
    )


def _widths(encoder: Any, categories: list[list[Any]]) -> list[int]:
    """Columns that the encoder makes of each of its own."""
    counts = getattr(encoder, "_n_features_outs", None)
    if counts is not None:
        return [int(count) for count in counts]
    each = len(encoder.get_feature_names_out()) // len(categories)
    return [each] * len(categories)


def _looked_up(graph: Graph, column: Column, keys: list[Any], rows: np.ndarray) -> str:
    """[N, width]: ``rows`` has those of all keys, then of an unseen value, then of a gap."""
    unseen, gap = len(keys), len(keys) + 1
    if column.texts:
        texts = [column.empty if key == "" and column.empty is not None else key for key in keys]
        code = graph.op(
            "LabelEncoder",
            column.tensor,
            domain=ML,
            keys_strings=[*texts, ""],
            values_int64s=[*range(len(keys)), gap],
            default_int64=unseen,
        )
    else:
        # The first that is true: equal to a key, or missing, or neither.
        tests = [graph.cast(graph.op("IsNaN", column.tensor), INT64)]
        if keys:
            known = graph.constant([[float(key) for key in keys]], np.float64)
            tests.insert(0, graph.cast(graph.op("Equal", column.tensor, known), INT64))
        weights = graph.constant([np.arange(len(keys) + 1, 0, -1)], np.int64)
        first = graph.op(
            "ReduceMax", graph.op("Mul", graph.join(tests), weights), graph.constant([1]), keepdims=1
        )
        code = graph.op("Sub", graph.constant([[len(keys) + 1]]), first)
        rows = rows[[*range(unseen), gap, unseen]]
    return graph.op("Squeeze", graph.op("Gather", graph.constant(rows), code, axis=0), graph.constant([1]))
