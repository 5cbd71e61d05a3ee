"""Arrow tables as pandas frames whose columns have one type, whichever rows are read together.

Where a batch has a gap, pandas makes floats of integers and objects of booleans. Content hashes and forms
would then depend on the batch, so the type of such a column is decided once, for the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LARGEST = 2**53  # up to here every integer is a float64


@dataclass(frozen=True)
class Extent:
    """What decides the type of a column of integers or booleans, over all of its rows.

    Parameters
    ----------
    gaps : bool
        Whether a value is missing.
    large : bool
        Whether an integer is too large for a float64.
    """

    gaps: bool = False
    large: bool = False

    def __or__(self, other: Extent) -> Extent:
        return Extent(self.gaps or other.gaps, self.large or other.large)


def columns_of(schema: Any) -> list[str]:
    """The columns of an Arrow schema, without the row numbers that pandas writes."""
    return [name for name in schema.names if not name.startswith("__index_level_")]


def as_frame(table: Any, types: Mapping[str, str]) -> Any:
    """An Arrow table as a pandas frame, in which an index that pandas had written is a column like the
    others.

    Parameters
    ----------
    table : pyarrow.Table
    types : dict of str to str
        The pandas types of columns that may have gaps; see :func:`types_of`.
    """
    import pandas as pd

    about = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    if about:
        metadata = {**table.schema.metadata, b"pandas": json.dumps({**about, "index_columns": []}).encode()}
        table = table.replace_schema_metadata(metadata)
    frame = table.to_pandas(date_as_object=False)
    columns = {}
    for name, dtype in types.items():
        if name in frame:
            exact = pd.api.types.pandas_dtype(dtype)
            columns[name] = (
                frame[name].astype(exact)
                if dtype == "float64"
                else pd.Series(exact.__from_arrow__(table[name]), frame.index)
            )
    return frame.assign(**columns) if columns else frame


def types_of(schema: Any, extents: Mapping[str, Extent]) -> dict[str, str]:
    """Column -> pandas type, of the integers and booleans that have gaps.

    Integers become floats, as pandas makes of them, or ``Int64`` where a float would round them. Columns
    whose type pandas itself had written keep it.

    Parameters
    ----------
    schema : pyarrow.Schema
    extents : dict of str to Extent
        Of whole columns.
    """
    import pyarrow as pa

    frame = as_frame(schema.empty_table(), {})
    types = {}
    for name, extent in extents.items():
        kind = schema.field(name).type
        if not extent.gaps or not isinstance(frame.dtypes[name], np.dtype):
            continue
        unsigned = pa.types.is_unsigned_integer(kind)
        large = ("UInt64" if unsigned else "Int64") if extent.large else "float64"
        types[name] = "boolean" if pa.types.is_boolean(kind) else large
    return types


def form_of(schema: Any, types: Mapping[str, str]) -> dict[str, Any]:
    """Kind and columns of the frames, as :func:`ensdistill.data.batches.describe` has them, by the schema
    alone.

    Raises
    ------
    TypeError
        A column of lists, structures or bytes; names it and the remedy.
    """
    import narwhals.stable.v2 as nw

    from ensdistill.data.batches.tables import column_type

    empty = schema.empty_table()
    frame, table = nw.from_native(as_frame(empty, types), eager_only=True), nw.from_native(empty)
    columns = {}
    for name in frame.columns:
        series = table[name] if frame[name].dtype == nw.Object else frame[name]
        columns[name] = column_type(series, name)
    return {"kind": "table", "columns": columns}


def _judged(schema: Any) -> list[str]:
    import pyarrow as pa

    return [one.name for one in schema if pa.types.is_integer(one.type) or pa.types.is_boolean(one.type)]


def extents_of(table: Any) -> dict[str, Extent]:
    """Those of a table's columns of integers and booleans, by their values."""
    return {name: _extent(table[name]) for name in _judged(table.schema)}


def _extent(column: Any) -> Extent:
    import pyarrow as pa
    import pyarrow.compute as pc

    integers = pa.types.is_integer(column.type) and len(column) > column.null_count
    ends = pc.min_max(column).as_py().values() if integers else ()
    return Extent(column.null_count > 0, any(abs(value) > LARGEST for value in ends))


def extents_of_parquet(file: Any, columns: Iterable[str]) -> dict[str, Extent]:
    """Those of these columns of a ``pyarrow.parquet.ParquetFile``: by the statistics of its row groups, and
    by the values of the groups that have none."""
    about = file.metadata
    places = {file.schema.column(i).path: i for i in range(len(file.schema))}
    wanted = set(columns)
    extents = {}
    for name in _judged(file.schema_arrow):
        if name not in wanted:
            continue
        extent = Extent()
        for group in range(about.num_row_groups):
            found = about.row_group(group).column(places[name]).statistics
            if found is None or not found.has_null_count or not found.has_min_max:
                extent |= _extent(file.read_row_group(group, columns=[name])[name])
            else:
                extent |= Extent(found.null_count > 0, max(abs(found.min), abs(found.max)) > LARGEST)
        extents[name] = extent
    return extents
