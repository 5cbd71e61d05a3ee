"""Arrow files (Feather 2, IPC) that are mapped into memory: rows are read in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

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

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._table: Any = None
        self.columns: list[str] = list(self.table.column_names)

    @property
    def table(self) -> Any:
        """The mapped ``pyarrow.Table``."""
        if self._table is None:
            try:
                import pyarrow as pa
            except ImportError as error:
                raise ImportError("reading Arrow needs pyarrow: pip install 'ensdistill[table]'") from error
            try:
                self._table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
            except FileNotFoundError as error:
                raise ValueError(f"path: there is no file {str(self.path)!r}") from error
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(f"path: {self.path} is not Arrow that can be read ({error})") from error
        return self._table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: np.ndarray | slice) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self.table.slice(start, stop - start).to_pandas()
            index = np.arange(start, stop, step)
        return self.table.take(np.asarray(index)).to_pandas()

    def subset(self, index: np.ndarray) -> Chosen:
        return Chosen(self, np.asarray(index, np.int64))

    def fingerprint(self) -> list[Any]:
        """Name, size and columns of the file."""
        return [self.path.name, self.path.stat().st_size, self.columns]

    def __fingerprint__(self) -> Any:
        return fingerprint_of(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # a worker process maps the file for itself
