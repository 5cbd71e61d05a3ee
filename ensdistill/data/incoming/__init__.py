"""New rows for a finished student: files, folders and streams, read a piece at a time."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

from ensdistill.common.errors import WrongArgument
from ensdistill.data.files import ARRAYS, IMAGES
from ensdistill.data.incoming.arrays import ArrayRows
from ensdistill.data.incoming.arrow_tables import ArrowRows
from ensdistill.data.incoming.base import Fault, Piece, Source, Wanted
from ensdistill.data.incoming.files import Files, Listed
from ensdistill.data.incoming.names import check_names
from ensdistill.data.incoming.text_tables import CsvRows, JsonRows
from ensdistill.data.table_files import TABLES

__all__ = ["FORMATS", "Fault", "Piece", "Source", "Wanted", "check_names", "open_source"]

FORMATS = {"csv": ".csv", "tsv": ".tsv", "jsonl": ".jsonl", "parquet": ".parquet", "arrow": ".arrow"}
"""Names of formats of tables, for streams and files of another suffix."""


def open_source(
    path: Path | None, wanted: Wanted, *, format: str | None = None, stream: BinaryIO | None = None
) -> Source:
    """New samples of the kind that a student takes.

    Parameters
    ----------
    path : path or None
        A table, an array, a folder of images or texts, one of these files; None for ``stream``.
    wanted : Wanted
    format : str, optional
        One of ``FORMATS``; by the file's suffix by default.
    stream : binary stream, optional

    Raises
    ------
    ValueError
        There is no such file, it is empty or of another kind, or its columns are unlike the training's.
    """
    kind = wanted.samples["kind"]
    if kind == "mapping":
        raise ValueError(
            "samples: the student takes several inputs by name, which no file of one table holds; "
            "ensdistill.load_student(...).predict({name: batch, ...}) takes them"
        )
    if path is not None and not path.exists():
        raise WrongArgument(f"there is no file or folder {str(path)!r}")
    suffix = FORMATS[format] if format else "" if path is None else path.suffix.lower()
    if kind in ("array", "tensor"):
        if path is None or suffix not in ARRAYS:
            got = "a stream" if path is None else path.name
            raise ValueError(
                f"samples: expected an array, a file that ends in {', '.join(ARRAYS)}; got {got}"
            )
        return ArrayRows(path, wanted)
    if path is not None and kind in ("images", "text"):
        endings = IMAGES if kind == "images" else (".txt",)
        if path.is_dir() or suffix in endings:
            return Files(path, wanted)
    if suffix not in TABLES or (path is not None and path.is_dir()):
        got = (
            "a stream without a format"
            if path is None
            else f"the folder {path}"
            if path.is_dir()
            else path.name
        )
        raise ValueError(
            f"samples: expected a table ({', '.join(TABLES)}); got {got}: --format names another format"
        )
    if kind == "table":
        return _table(path, suffix, stream, wanted.samples["columns"], wanted)
    column = wanted.data.get("file", "path") if kind == "images" else wanted.data.get("text", "text")
    table = _table(path, suffix, stream, {column: "text"}, wanted)
    return Listed(table, column, Path() if path is None else path.parent, wanted)


def _table(
    path: Path | None, suffix: str, stream: BinaryIO | None, types: dict[str, str], wanted: Wanted
) -> Source:
    kind = TABLES[suffix]
    try:
        import pandas  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"reading tables needs pandas and pyarrow: pip install 'ensdistill[table]' ({error})"
        ) from error
    if kind in ("Parquet", "Arrow"):
        if path is not None:
            return ArrowRows(path, kind, types, wanted)
        folder = _spooled(stream, suffix)
        found = ArrowRows(Path(folder.name) / f"input{suffix}", kind, types, wanted)
        found.folder = folder
        return found
    file = stream if path is None else path.open("rb")
    assert file is not None
    name = "the input" if path is None else str(path)
    if kind == "JSON lines":
        return JsonRows(file, name, types, wanted)
    return CsvRows(file, name, "\t" if suffix == ".tsv" else ",", types, wanted)


def _spooled(stream: BinaryIO | None, suffix: str) -> tempfile.TemporaryDirectory[str]:
    """A folder that holds the stream's bytes as a file: the table of contents of these formats is at their
    end. It is removed with the object."""
    assert stream is not None
    folder = tempfile.TemporaryDirectory(prefix="ensdistill-")
    with (Path(folder.name) / f"input{suffix}").open("wb") as file:
        shutil.copyfileobj(stream, file)
    return folder
