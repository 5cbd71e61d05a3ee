"""Arrow files (Feather 2, IPC) that are mapped into memory: rows are read in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.errors import WrongArgument
from ensdistill.data.arrow_types import as_frame, columns_of, extents_of, form_of, types_of
from ensdistill.data.parquet import Chosen
from ensdistill.data.samples import fingerprint_of


class ArrowSamples:
    """The rows of an Arrow file, as pandas frames; the file is mapped, so its size does not matter.

    Parameters
    ----------
    path : path
        An uncompressed file of Arrow's IPC format, as ``pyarrow.feather.write_feather(table, path,
        compression="uncompressed")`` writes it. A compressed one is decompressed into memory as a whole.

    Raises
    ------
    ValueError
        There is no such file, or it is no Arrow.
    """

    mapped = True  # see ensdistill.data.samples.read_by_thread

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._table: Any = None
        self.columns: list[str] = self.table.column_names
        self.types = types_of(self.table.schema, extents_of(self.table))
        """Column -> pandas type, of integers and booleans with gaps."""

    @property
    def table(self) -> Any:
        """The mapped ``pyarrow.Table``."""
        if self._table is None:
            try:
                import pyarrow as pa
            except ImportError as error:
                raise ImportError("reading Arrow needs pyarrow: pip install 'ensdistill[table]'") from error
            try:
                table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
            except FileNotFoundError as error:
                raise WrongArgument(f"path: there is no file {str(self.path)!r}") from error
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(f"path: {self.path} is not Arrow that can be read ({error})") from error
            self._table = table.select(columns_of(table.schema))
        return self._table

    @property
    def form(self) -> dict[str, Any]:
        """Kind of the samples and types of the columns, which are those of all rows."""
        return form_of(self.table.schema, self.types)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: np.ndarray | slice) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return as_frame(self.table.slice(start, stop - start), self.types)
            index = np.arange(start, stop, step)
        index = np.asarray(index)
        if len(index) and index[0] >= 0 and (np.diff(index) == 1).all():  # a run of rows is not copied
            return self[int(index[0]) : _end(index, len(self))]
        return as_frame(self.table.take(index), self.types)

    def subset(self, index: np.ndarray) -> Chosen:
        return Chosen(self, np.asarray(index, np.int64))

    def fingerprint(self) -> list[Any]:
        """Name, size and columns of the file."""
        return [self.path.name, self.path.stat().st_size, self.columns]

    def __fingerprint__(self) -> Any:
        return fingerprint_of(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # a worker process maps the file for itself


def _end(index: np.ndarray, rows: int) -> int:
    """The end of a run of rows.

    Raises
    ------
    IndexError
        It is behind the last row.
    """
    if index[-1] >= rows:
        raise IndexError(f"index: expected positions in 0..{rows - 1}; got {index[0]} to {index[-1]}")
    return int(index[-1]) + 1
