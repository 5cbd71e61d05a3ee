"""Inputs of members: batches of any kind, counted, cut and brought into the form that a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.data import batches as b
from ensdistill.data.preprocess.tables import with_columns
from ensdistill.data.reading import default_workers
from ensdistill.data.samples import Held, as_samples, in_memory, positions, stream

FEW = 4096  # so many lazy samples are read before worker processes would have started


def count(inputs: Any) -> int:
    """Number of samples of a batch; of an array of Python objects too, which other parts don't take."""
    return len(inputs) if isinstance(inputs, (np.ndarray, Tensor, list, tuple)) else b.count(inputs)


def take(inputs: Any, index: slice | np.ndarray) -> Any:
    """The samples at these positions, in the same kind of container."""
    return inputs[index] if isinstance(inputs, np.ndarray) else b.take(inputs, index)


def batches(inputs: Any, size: int) -> Iterator[Any]:
    """At most ``size`` rows at a time; for no rows one empty batch, whose outputs have a width."""
    rows = count(inputs)
    if 0 < rows <= size:
        yield inputs
        return
    for start in range(0, max(rows, 1), size):
        yield take(inputs, slice(start, start + size))


def kind(inputs: Any) -> str:
    """The kind of a batch: array, table, text, images or mapping."""
    return "array" if isinstance(inputs, np.ndarray) else b.kind_of(inputs).name


def as_batch(inputs: Any) -> Any:
    """A batch in the container that members take: tensors become arrays, held samples their container.

    Raises
    ------
    TypeError
        No batch of any kind; a single column of a frame, or one text.
    """
    if isinstance(inputs, np.ndarray):
        return inputs
    if isinstance(inputs, Tensor):
        values = inputs.detach().cpu()
        array: np.ndarray = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return array
    if isinstance(inputs, Held):
        return as_batch(inputs.batch)
    if isinstance(inputs, Mapping):
        b.kind_of(inputs)
        return {name: as_batch(part) for name, part in inputs.items()}
    if (texts := _column(inputs)) is not None:
        return texts
    b.kind_of(inputs)
    return inputs


def check_array(name: str, inputs: Any) -> None:
    """Raise TypeError for a batch that is no array; names the member."""
    if not isinstance(inputs, np.ndarray):
        raise TypeError(
            f"inputs: {name} takes an array; got a batch of kind {kind(inputs)!r}: give it a preprocess, "
            "Ensemble.from_members([(model, preprocess)])"
        )


def lazy(inputs: Any) -> Any:
    """Samples that have to be read, such as a torch ``Dataset``; None for a batch in memory."""
    if isinstance(inputs, (np.ndarray, Tensor, Mapping, list, tuple, str, bytes, Held)):
        return None
    if _column(inputs) is not None:
        return None
    samples = as_samples(inputs)
    return None if in_memory(samples) else samples


def read(samples: Any, size: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Batches of lazy samples in order, with their positions, int64; many samples are read ahead by workers.

    Raises
    ------
    ValueError
        There is no sample.
    """
    if len(samples) == 0:
        raise ValueError("inputs: expected at least one sample; got none")
    parts = positions(len(samples), size)
    workers = default_workers(samples) if len(samples) > FEW else 0
    for part, batch in zip(parts, stream(samples, parts, workers=workers), strict=True):
        yield part, as_batch(batch)


def _column(inputs: Any) -> list[str] | None:
    """A frame's column of texts as a list; None for anything that is no column.

    Raises
    ------
    TypeError
        A column of numbers, which may be one sample or many.
    """
    if not hasattr(inputs, "to_frame") and type(inputs).__name__ != "ChunkedArray":
        return None
    import narwhals.stable.v2 as nw

    series = nw.from_native(inputs, series_only=True, pass_through=True)
    if not isinstance(series, nw.Series):
        return None
    values = series.to_list()
    if not all(isinstance(value, str) for value in values):
        raise TypeError(
            "inputs: expected a frame, or a column of texts without gaps; got a single column of "
            f"{series.dtype}: pass frame[[name]] for one feature"
        )
    return values


def columns_of(name: str, frame: Any, names: Any, *, pandas: bool = False) -> Any:
    """A frame's columns by name and in this order.

    Raises
    ------
    ValueError
        A column is missing; names the member and the column.
    """
    try:
        return with_columns(frame, list(names), pandas)
    except ValueError as error:
        raise ValueError(str(error).replace("inputs: expected", f"inputs: {name} expects", 1)) from None


def refused(name: str, frame: Any, error: Exception | None) -> ValueError:
    """The error of a member whose library raised ``error`` for a frame; it lists the columns' types."""
    types = b.describe(frame)["columns"]
    listed = ", ".join(f"{column}: {one}" for column, one in list(types.items())[:20])
    more = f" and {len(types) - 20} more" if len(types) > 20 else ""
    cause = f"({error}){advice(error, frame)}"
    return ValueError(f"inputs: {name} can't predict a table with the columns {listed}{more} {cause}")


def advice(error: Exception | None, inputs: Any) -> str:
    """The place and the remedy of values that a library refused, for the end of a message; empty for other
    errors."""
    text = str(error)
    if "infinity" in text or "`inf`" in text:
        return infinite_column(inputs)
    if "cat_feature" in text and "NaN" in text:
        return (
            ". Fill the gaps of columns of categories with a text, the same as at the fit: "
            'frame[column].fillna("(missing)"), or preprocess=Categories(missing="(missing)")'
        )
    return ""


def infinite_column(inputs: Any) -> str:
    """The first column of a frame that holds inf, with its row, for the end of a message; empty for none."""
    samples = inputs.batch if isinstance(inputs, Held) else inputs
    if samples is None or lazy(samples) is not None or kind(samples) != "table":
        return ""
    import narwhals.stable.v2 as nw

    for column in nw.from_native(samples, eager_only=True).iter_columns():
        if column.dtype.is_float():
            rows = np.flatnonzero(np.isinf(column.to_numpy()))
            if len(rows):
                return f"; column {column.name!r} holds inf in row {rows[0]} ({len(rows)} such rows)"
    return ""
