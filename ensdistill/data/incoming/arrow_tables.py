"""Parquet and Arrow files, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.data.arrow import ArrowSamples
from ensdistill.data.arrow_types import as_frame, columns_of, form_of
from ensdistill.data.incoming.base import Fault, Piece, Wanted
from ensdistill.data.incoming.names import check_table
from ensdistill.data.incoming.typed import check_types, typed
from ensdistill.data.parquet import ParquetSamples
from ensdistill.data.table_files import no_rows


class ArrowRows:
    """Rows of a ``.parquet``, ``.feather`` or ``.arrow`` file, see
    :class:`ensdistill.data.incoming.text_tables.CsvRows`."""

    def __init__(self, path: Path, kind: str, types: dict[str, str], wanted: Wanted) -> None:
        import pyarrow as pa

        self.types, self.wanted = types, wanted
        self.folder: Any = None
        """Holds the file of a stream as long as it is read."""
        self._parquet = kind == "Parquet"
        self._file: Any
        if self._parquet:
            import pyarrow.parquet as pq

            ParquetSamples(path, [])  # raises where it is no Parquet
            self._file = pq.ParquetFile(path)
            schema, self.total = self._file.schema_arrow, self._file.metadata.num_rows
        else:
            self._file = ArrowSamples(path).table
            schema, self.total = self._file.schema, self._file.num_rows
        self.names = columns_of(schema)
        self.unused = check_table(wanted, list(types), self.names)
        # A column without a value has no type.
        known = [one.name for one in schema if one.name in types and not pa.types.is_null(one.type)]
        inputs = pa.schema([schema.field(name) for name in known], schema.metadata)
        check_types(types, form_of(inputs, {})["columns"])
        if not self.total:
            raise ValueError(no_rows(path, self.names))

    def pieces(self) -> Iterator[Piece]:
        import pandas as pd

        carried = self.wanted.carried(self.names)
        columns = list(dict.fromkeys([*self.types, *carried]))
        start = 0
        for table in self._tables(columns, self.wanted.rows_of(len(columns))):
            rows = np.arange(start, start + table.num_rows)
            start += table.num_rows
            frame = as_frame(table.select(list(self.types)), {})
            ready, wrong = typed(frame, self.types, parse=False)
            kept = table.select(carried).replace_schema_metadata() if carried else None
            piece = Piece(pd.DataFrame(ready, frame.index), rows, kept)
            if wrong:
                bad = np.array([place for place, _ in wrong], np.int64)
                piece = piece.without(bad, [Fault(int(rows[place]), text) for place, text in wrong])
            yield piece

    def _tables(self, columns: list[str], size: int) -> Iterator[Any]:
        import pyarrow as pa

        if self._parquet:
            for batch in self._file.iter_batches(size, columns=columns):
                yield pa.Table.from_batches([batch])
            return
        for start in range(0, self.total, size):
            yield self._file.slice(start, size).select(columns)
