"""Tables in files: CSV, TSV, JSON lines, Parquet and Arrow, as pandas frames."""

from __future__ import annotations

import csv
import difflib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ensdistill.common.errors import WrongArgument
from ensdistill.data.arrow_types import as_frame, columns_of, extents_of, types_of

TABLES = {
    ".csv": "CSV",
    ".tsv": "CSV",
    ".parquet": "Parquet",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".feather": "Arrow",
    ".arrow": "Arrow",
}
MISSING = ("", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaN", "nan", "-NaN", "-nan", "null", "NULL")
NONE = "None"  # missing among numbers; among other texts it may be a category, such as of pain or of children
MOST_COLUMNS = 10_000


def read_table(path: Path | str, columns: Sequence[str] | None = None) -> Any:
    """A table in a file as a pandas frame.

    Parameters
    ----------
    path : path
        ``.csv``, ``.tsv``, ``.parquet``, ``.jsonl``, ``.ndjson``, ``.feather`` or ``.arrow``. In text an
        empty field, ``NA``, ``NaN`` and ``null`` are missing values (all: ``MISSING``), and ``None`` is one
        among numbers.
    columns : sequence of str, optional
        Those to be read; all by default.

    Raises
    ------
    ValueError
        There is no such file, it is empty or malformed (names the line where it is known), two columns have
        one name, a column is not there (names the nearest), or there are more than 10 000.
    """
    return TableFile(path).read(columns)


def check_header(names: Sequence[str], separator: str | None, where: str) -> None:
    """Raise ValueError for columns without or with equal names, and for a text table (with a ``separator``)
    whose header is one field that holds the separators of another format."""
    if not names:
        raise ValueError(f"{where}: expected columns; it begins with an empty line")
    if separator is not None and len(names) == 1:
        for other, noun in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (",", "commas")):
            if other in names[0] and other != separator:
                ours = "tabs" if separator == "\t" else "commas"
                # Where fields are split by semicolons, numbers may have decimal commas.
                decimal = ", decimal=','" if other == ";" else ""
                remedy = ": name it .tsv, or write it" if other == "\t" else ": write it"
                raise ValueError(
                    f"{where}: expected fields between {ours}; the header is one field that holds "
                    f"{noun}, {names[0]!r}{remedy} with {ours} once, for example by pandas' "
                    f"read_csv(..., sep={other!r}{decimal}) and to_csv(..., index=False)"
                )
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{where}: expected columns with different names; {name!r} stands {times} times")


class TableFile:
    """A table in a file, whose columns are known before it is read; see :func:`read_table`.

    Attributes
    ----------
    names : list of str
        The columns.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in TABLES:
            raise WrongArgument(f"path: expected a table, {', '.join(TABLES)}; got {self.path.name!r}")
        if not self.path.is_file():
            raise WrongArgument(f"path: there is no file {str(path)!r}")
        if self.path.stat().st_size == 0:
            raise ValueError(f"path: {path} is empty; expected a header and rows")
        self.kind, self.separator = TABLES[suffix], "\t" if suffix == ".tsv" else ","
        self._frame: Any = None
        with self._errors():
            self.names = self._names()
        check_header(self.names, self.separator if self.kind == "CSV" else None, f"path: {path}")

    def column(self, name: str, argument: str = "columns") -> str:
        """The name itself.

        Raises
        ------
        ValueError
            There is no such column; names the nearest.
        """
        if name in self.names:
            return name
        near = difflib.get_close_matches(name, self.names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise WrongArgument(
            f"{argument}: {self.path.name} has no column {name!r}, but {', '.join(self.names[:10])}{hint}"
        )

    def read(
        self,
        columns: Sequence[str] | None = None,
        *,
        missing: Sequence[str] = MISSING,
        verbatim: Sequence[str] = (),
        text: Sequence[str] = (),
    ) -> Any:
        """A pandas frame.

        Parameters
        ----------
        columns : sequence of str, optional
            All by default.
        missing : sequence of str
            The fields of a text table that hold no value.
        verbatim : sequence of str
            Columns of a text table in which only an empty field holds no value.
        text : sequence of str
            Columns that hold strings, even where all look like numbers.

        Raises
        ------
        ValueError
            See :func:`read_table`.
        """
        wanted = list(self.names) if columns is None else [self.column(name) for name in columns]
        self.check_number(wanted)
        with self._errors():
            frame = self._read(wanted, missing, verbatim, text)
        if self.kind == "CSV":
            for name in set(wanted) - {*verbatim, *text}:
                frame = _without_none(frame, name)
        if not len(frame):
            raise ValueError(f"path: {no_rows(self.path, self.names)}")
        return frame[wanted]

    def groups(self, most: int) -> list[list[str]]:
        """The columns in groups that can be read one after the other: of Parquet each of at most so many
        bytes, or one column; of other formats, which are read as a whole, one group."""
        if self.kind != "Parquet":
            return [list(self.names)]
        import pyarrow.parquet as pq

        with self._errors():
            metadata = pq.read_metadata(self.path)
        sizes = dict.fromkeys(self.names, 0)
        for group in range(metadata.num_row_groups):
            for place in range(metadata.num_columns):
                column = metadata.row_group(group).column(place)
                path = column.path_in_schema
                name = path if path in sizes else path.partition(".")[0]  # of a list or a structure
                sizes[name] = sizes.get(name, 0) + column.total_uncompressed_size
        groups: list[list[str]] = [[]]
        size = 0
        for name in self.names:
            if groups[-1] and size + sizes[name] > most:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += sizes[name]
        return groups

    def head(self, rows: int) -> Any:
        """The first rows as a pandas frame; of Parquet the others are not read."""
        if self.kind != "Parquet":
            return self.read().iloc[:rows]
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self._errors(), pq.ParquetFile(self.path) as file:
            batches = list(islice(file.iter_batches(rows, columns=self.names), 1))
            return as_frame(pa.Table.from_batches(batches, file.schema_arrow), {})[self.names]

    def check_number(self, columns: Sequence[str]) -> None:
        """Raise ValueError where these are more columns than a table may have."""
        if len(columns) > MOST_COLUMNS:
            raise ValueError(
                f"columns: expected at most {MOST_COLUMNS}, because each column is handled alone; got "
                f"{len(columns)} in {self.path.name}. Name those that are needed, or store numbers as one "
                "array (.npy, .npz, .safetensors) for ArrayDataset"
            )

    def _names(self) -> list[str]:
        if self.kind == "CSV":
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                return next(csv.reader(file, delimiter=self.separator))
        if self.kind == "JSON lines":
            import pandas as pd

            # Keys may differ from line to line, so the columns are known when all lines have been read. Dates
            # are left alone: by their columns' names pandas would convert numbers too.
            old = {"convert_dates": False} if pd.__version__ < "3" else {}
            self._frame = pd.read_json(self.path, lines=True, dtype=False, precise_float=True, **old)
            return [str(name) for name in self._frame.columns]
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.kind == "Parquet":
            return columns_of(pq.read_schema(self.path))
        with pa.memory_map(str(self.path)) as source:
            return columns_of(pa.ipc.open_file(source).schema)

    def _read(
        self, columns: list[str], missing: Sequence[str], verbatim: Sequence[str], text: Sequence[str]
    ) -> Any:
        import pandas as pd

        if self.kind in ("Parquet", "Arrow"):
            import pyarrow.feather as feather
            import pyarrow.parquet as pq

            read = pq.read_table if self.kind == "Parquet" else feather.read_table
            table = read(self.path, columns=columns)
            # Of no columns, the number of rows remains.
            types = types_of(table.schema, extents_of(table))
            return as_frame(table, types) if columns else pd.DataFrame(index=range(table.num_rows))
        if self.kind == "JSON lines":
            self._frame.columns = self.names
            return self._frame
        old = {"float_precision": "round_trip"} if pd.__version__ < "3" else {}
        with warnings.catch_warnings():
            # A first row that is longer than the header: pandas would cut the rows, or make an index of the
            # first column.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            try:
                return pd.read_csv(
                    self.path,
                    sep=self.separator,
                    header=0,
                    names=self.names,
                    # pandas counts no fields where it reads some columns alone.
                    usecols=columns if len(self.names) > MOST_COLUMNS else None,
                    index_col=False,
                    low_memory=False,  # one type for the whole column, not one for each part of the file
                    encoding="utf-8-sig",
                    keep_default_na=False,
                    na_values={
                        name: [""] if name in (*verbatim, *text) else list(missing) for name in self.names
                    },
                    dtype=dict.fromkeys(text, str),
                    **old,
                )
            except pd.errors.ParserWarning:
                raise ValueError(
                    f"expected {len(self.names)} fields in each row, as in the first; line 2 has more"
                ) from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the libraries as errors of this file."""
        try:
            yield
        except ImportError as error:
            raise ValueError(
                f"path: reading {self.path.name} needs pandas and pyarrow: pip install 'ensdistill[table]' "
                f"({error})"
            ) from error
        except (ValueError, OSError, UnicodeError, csv.Error, StopIteration) as error:
            # pandas' and pyarrow's errors are of these classes
            remedy = (
                ": save it as UTF-8" if isinstance(error, UnicodeError) else ": mend it, or write it anew"
            )
            raise ValueError(
                f"path: {self.path} is not {self.kind} that can be read ({str(error).strip()}){remedy}"
            ) from error


def no_rows(name: Any, columns: Sequence[str]) -> str:
    """The error of a table that has a header alone."""
    shown = f"{', '.join(columns[:5])}{', ...' * (len(columns) > 5)}"
    return f"{name} has columns ({shown}) but no rows: add rows, or name another file"


def _without_none(frame: Any, name: str) -> Any:
    """The frame, with a column that holds numbers and ``None`` as numbers with gaps."""
    import pandas as pd

    column = frame[name]
    if pd.api.types.is_numeric_dtype(column) or not (none := column == NONE).any():
        return frame
    try:
        return frame.assign(**{name: pd.to_numeric(column.mask(none))})
    except (ValueError, TypeError):
        return frame
