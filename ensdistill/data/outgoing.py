"""Tables that are written a piece at a time: CSV, TSV, JSON lines, Parquet, Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ensdistill.common.files import atomic_path

SEPARATORS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")
ARROW = (".arrow", ".feather")
SUFFIXES = (*SEPARATORS, *LINES, ".parquet", *ARROW)


class TableWriter:
    """Writes Arrow tables of equal columns one after the other.

    Parameters
    ----------
    stream : binary stream
        Written in order, so it may be a pipe.
    suffix : str
        One of ``SUFFIXES``.
    """

    def __init__(self, stream: BinaryIO, suffix: str) -> None:
        if suffix not in SUFFIXES:
            raise ValueError(f"output: expected a table ({', '.join(SUFFIXES)}); got {suffix!r}")
        self.stream, self.suffix = stream, suffix
        self._writer: Any = None
        self._schema: Any = None

    def write(self, table: Any) -> None:
        """Append a ``pyarrow.Table``.

        Raises
        ------
        ValueError
            A column has another type than in the tables before, and the format has one type for each.
        """
        if self.suffix in LINES:
            self._write_lines(table)
        elif self.suffix in SEPARATORS:
            self._write_text(table)
        else:
            self._write_typed(table)

    def close(self) -> None:
        """Write the end of the format; the stream stays open."""
        if self._writer is not None:
            self._writer.close()

    def _write_text(self, table: Any) -> None:
        import pyarrow as pa
        import pyarrow.csv as arrow_csv

        table = _with_pythons_booleans(table)

        def options(style: str) -> Any:
            return arrow_csv.WriteOptions(
                include_header=self._schema is None,
                delimiter=SEPARATORS[self.suffix],
                quoting_style=style,
                quoting_header=style,
            )

        # Arrow quotes every text where it quotes any. Most tables need no quotes at all.
        text = pa.BufferOutputStream()
        try:
            arrow_csv.write_csv(table, text, options("none"))
        except pa.ArrowInvalid:
            text = pa.BufferOutputStream()
            arrow_csv.write_csv(table, text, options("needed"))
        self._schema = table.schema
        self.stream.write(text.getvalue())

    def _write_lines(self, table: Any) -> None:
        import pyarrow as pa

        doubles = [
            pa.field(one.name, pa.float64()) if one.type == pa.float32() else one for one in table.schema
        ]
        frame = table.cast(pa.schema(doubles)).to_pandas(integer_object_nulls=True)
        frame.to_json(self.stream, orient="records", lines=True, double_precision=15, force_ascii=False)

    def _write_typed(self, table: Any) -> None:
        import pyarrow as pa

        if self._schema is None:
            # Of a column without any value yet no type is known; text can hold any later value.
            self._schema = pa.schema(
                [pa.field(one.name, pa.string()) if one.type == pa.null() else one for one in table.schema]
            )
            if self.suffix == ".parquet":
                import pyarrow.parquet as pq

                self._writer = pq.ParquetWriter(self.stream, self._schema)
            else:
                self._writer = pa.ipc.new_file(self.stream, self._schema)
        try:
            table = table.cast(self._schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"output: a column that is carried changes its type ({error}): write .csv or .jsonl, which "
                "have no types"
            ) from error
        self._writer.write_table(table)


def _with_pythons_booleans(table: Any) -> Any:
    """The table with True and False, as pandas writes them and as the classes are named; Arrow writes
    true and false."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for place, one in enumerate(table.schema):
        if pa.types.is_boolean(one.type):
            texts = pc.if_else(table[place], "True", "False")  # a gap stays one
            table = table.set_column(place, one.name, texts)
    return table


@contextmanager
def table_writer(path: Path | None, suffix: str, stream: BinaryIO | None = None) -> Iterator[TableWriter]:
    """A writer to a file, which is there with all of its rows or not at all; without a path, to a stream."""
    if path is None:
        assert stream is not None
        writer = TableWriter(stream, suffix)
        yield writer
        writer.close()
        stream.flush()
        return
    with atomic_path(path) as part, part.open("wb") as file:
        writer = TableWriter(file, suffix)
        yield writer
        writer.close()
