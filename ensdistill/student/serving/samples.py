"""New samples compared with those that a student was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensdistill.data import BadRows
from ensdistill.data import batches as b
from ensdistill.data.batches.arrays import is_tensor
from ensdistill.data.batches.tables import is_gap
from ensdistill.data.incoming.names import check_names
from ensdistill.data.preprocess.tables import with_columns

NUMBERS = ("integer", "float")
TEXTS = ("text", "category")
_EXPECTED = {
    "integer": "numbers",
    "float": "numbers",
    "boolean": "True or False",
    "text": "texts",
    "category": "texts",
}


def fitting(batch: Any, expected: Mapping[str, Any]) -> Any:
    """The batch, with a frame's columns in the order of the training.

    Parameters
    ----------
    batch : batch of any kind
    expected : dict
        The training samples' form, of :func:`ensdistill.data.samples.form`.

    Raises
    ------
    ValueError
        Another kind of samples, another shape or dtype, or a column that is missing, not expected or of
        another type; names it, and the nearest.
    """
    kind, wanted = b.kind_of(batch).name, expected["kind"]
    arrays = {"array", "tensor"}
    if wanted != kind and not (wanted in arrays and kind in arrays) and not _pixels(wanted, batch):
        raise ValueError(f"samples: expected {NOUNS.get(wanted, wanted)}; got {NOUNS.get(kind, kind)}")
    if wanted == "table":
        return _table(batch, expected["columns"])
    if wanted in arrays:
        _check_array(batch, expected)
    if wanted == "mapping":
        fields = expected["fields"]
        check_names(list(fields), list(batch), "field")
        return {name: fitting(batch[name], fields[name]) for name in fields}
    return batch


NOUNS = {
    "table": "a frame with named columns",
    "array": "an array of numbers",
    "tensor": "an array of numbers",
    "text": "a list of strings",
    "images": "a list of images",
    "mapping": "a mapping of names to batches",
}


def _table(batch: Any, types: Mapping[str, str]) -> Any:
    import narwhals.stable.v2 as nw

    check_names(list(types), nw.from_native(batch, eager_only=True).columns)
    frame = with_columns(batch, list(types))
    for name, wanted in types.items():
        _check_column(nw.from_native(frame, eager_only=True)[name], name, wanted)
    return frame


def _check_column(series: Any, name: str, wanted: str) -> None:
    """Raise ValueError where the column holds another type; names the first row whose value is at fault."""
    from ensdistill.data.batches.tables import column_type

    try:
        found = column_type(series, name)
    except TypeError:
        found = "values of several types"
    alike = found == wanted or any({found, wanted} <= {*names} for names in (NUMBERS, TEXTS))
    if alike and not (wanted in NUMBERS and series.dtype.is_float()):
        return
    values = series.to_numpy() if alike else series.to_list()
    if alike:
        bad = np.flatnonzero(np.isinf(values))
        if not len(bad):
            return
    else:
        gaps = [is_gap(value) for value in values]
        if all(gaps):  # a column without a value has no type of its own
            return
        fits = {"integer": _is_number, "float": _is_number, "boolean": _is_boolean}.get(wanted, _is_text)
        bad = np.flatnonzero([not gap and not fits(v) for v, gap in zip(values, gaps, strict=True)])
    value = values[bad[0]] if len(bad) else None
    shown = value.item() if isinstance(value, np.generic) else value
    row = f"; row {bad[0]} has {shown!r} ({len(bad)} such rows)" if len(bad) else f"; got {found}"
    raise BadRows(f"samples: column {name!r}: expected {_EXPECTED.get(wanted, wanted)}{row}", bad)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))


def _is_boolean(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _pixels(wanted: str, batch: Any) -> bool:
    """Whether an array stands for a list of images of one size."""
    return wanted == "images" and isinstance(batch, np.ndarray) and batch.dtype == np.uint8


def _check_array(batch: Any, expected: Mapping[str, Any]) -> None:
    shape = list(batch.shape[1:])
    if shape != list(expected["shape"]):
        raise ValueError(
            f"samples: expected an array [N, {', '.join(map(str, expected['shape']))}]; got "
            f"{list(batch.shape)}" + ("" if shape else ": one row is an array of one row, x[None]")
        )
    # Integers 0..255 and floats 0..1 could both be meant, so the kind of numbers has to be that of the fit.
    kind = "f" if is_tensor(batch) and batch.dtype.is_floating_point else np.dtype(_plain(batch)).kind
    wanted = "f" if expected["dtype"] == "bfloat16" else np.dtype(expected["dtype"]).kind
    if kind != wanted and {kind, wanted} != {"i", "u"}:
        raise ValueError(
            f"samples: expected {expected['dtype']}, as in training; got {_plain(batch)}: make numbers as "
            "those of the training were made"
        )
    values = batch if isinstance(batch, np.ndarray) else None
    if kind == "f" and values is not None and not np.isfinite(values).all():
        rows = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
        raise BadRows(
            f"samples: expected finite numbers; row {rows[0]} holds NaN or infinity ({len(rows)} such rows)",
            rows,
        )


def _plain(batch: Any) -> str:
    return str(batch.dtype).removeprefix("torch.")
