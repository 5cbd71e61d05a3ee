"""A fitted preprocess, tried on the rows of the pool and of the test set before any model is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ensdistill.data import Split
from ensdistill.data import batches as b
from ensdistill.data.preprocess import ModuleTransform, Preprocess
from ensdistill.data.samples import form, in_memory
from ensdistill.teachers.members.inputs import as_batch, count

CHUNK = 4096  # rows that are preprocessed at once
FEW = 128  # rows of a part that are tried where all would take long


def check_rows(preprocess: Preprocess | None, split: Split, *, pool: bool) -> None:
    """Preprocess all rows of the test set and of the pool; of lazy samples, images, and for a torch module
    the first 128.

    Parameters
    ----------
    preprocess : Preprocess or None
        Fitted to labelled rows.
    split : Split
    pool : bool
        Whether the members and the student are asked about the pool.

    Raises
    ------
    ValueError
        The preprocess raises an error, or returns another number of rows; begins with the preprocess's class
        and names the first such row and, of a table or an array [N, D], the column.
    """
    if preprocess is None:
        return
    parts = {"pool": split.pool.inputs} if pool else {}
    for name, samples in (parts | {"test rows": split.test.inputs}).items():
        for start, batch in _batches(preprocess, samples):
            if (error := _failure(preprocess, batch)) is None:
                continue
            row, error = _first(preprocess, batch, error)
            where = "rows" if row is None else f"row {start + row}"
            cause = "" if row is None else _column(preprocess, split.labelled.inputs[:1], _row(batch, row))
            raise ValueError(
                f"{type(preprocess).__name__}: it was fitted to other rows, and does not take {where} of the "
                f"{name}{cause}: {error}. Choose a preprocess that takes such values (an encoder's "
                "handle_unknown='ignore', for example), or correct the row or leave it out"
            ) from error


def _batches(preprocess: Preprocess, samples: Any) -> Iterator[tuple[int, Any]]:
    rows = len(samples)
    if rows and (
        not in_memory(samples) or form(samples)["kind"] == "images" or isinstance(preprocess, ModuleTransform)
    ):
        rows = min(rows, FEW)
    for start in range(0, rows, CHUNK):
        yield start, samples[slice(start, min(start + CHUNK, rows))]


def _failure(preprocess: Preprocess, batch: Any) -> Exception | None:
    """The error of the preprocess for a batch, if there is one."""
    try:
        made = count(as_batch(preprocess(batch)))
    except Exception as error:  # a function of the user's can raise anything
        return error
    expected = count(batch)
    return None if made == expected else ValueError(f"expected {expected} rows of the result; got {made}")


def _first(preprocess: Preprocess, batch: Any, error: Exception) -> tuple[int | None, Exception]:
    """The first row that fails by itself, and its error; None where rows fail only together."""
    start, stop = 0, count(batch)
    while stop - start > 1:
        middle = (start + stop) // 2
        halves = [(start, middle), (middle, stop)]
        found = [(half, _failure(preprocess, b.take(batch, slice(*half)))) for half in halves]
        failing = next(((half, one) for half, one in found if one is not None), None)
        if failing is None:
            return None, error
        (start, stop), error = failing
    return start, error


def _row(batch: Any, row: int) -> Any:
    return b.take(batch, slice(row, row + 1))


def _column(preprocess: Preprocess, good: Any, bad: Any) -> str:
    """The first column whose value in ``bad``, put into the row ``good``, makes the preprocess fail."""
    for column, value, mixed in _mixed(good, bad):
        if _failure(preprocess, mixed) is not None:
            return f" (column {column!r} holds {value!r})"
    return ""


def _mixed(good: Any, bad: Any) -> Iterator[tuple[Any, Any, Any]]:
    """For each column its name, its value in ``bad``, and the row ``good`` with that value."""
    if isinstance(bad, np.ndarray):
        for column in range(bad.shape[1] if bad.ndim == 2 else 0):
            mixed = good.copy()
            mixed[:, column] = bad[:, column]
            yield column, bad[0, column].item(), mixed
    elif b.kind_of(bad).name == "table":
        import narwhals.stable.v2 as nw

        own, other = (nw.from_native(frame, eager_only=True) for frame in (good, bad))
        for column in other.columns:
            value = other[column].to_list()[0]
            yield column, value, own.with_columns(other[column]).to_native()
