"""Images and texts in files of their own, or listed by a table, a piece at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.data.files import IMAGES, decoded
from ensdistill.data.incoming.base import Fault, Piece, Source, Wanted

TEXTS = (".txt",)
PATH = "path"  # the column of the output that names a file
IMAGES_EACH, TEXTS_EACH = 256, 4096  # files of a piece
THREADS = 8


class Files:
    """The files of a folder (and of its folders) in the order of their paths, or one file.

    Raises
    ------
    ValueError
        There is no such file.
    """

    def __init__(self, path: Path, wanted: Wanted) -> None:
        images = wanted.samples["kind"] == "images"
        suffixes, noun = (IMAGES, "image") if images else (TEXTS, "text")
        if path.is_file():
            self.paths, self._names = [path], [path.name]
        else:
            self.paths = sorted(
                one for one in path.rglob("*") if one.suffix.lower() in suffixes and one.is_file()
            )
            self._names = [str(one.relative_to(path)) for one in self.paths]
        if not self.paths:
            raise ValueError(f"{path} holds no {noun} ({', '.join(suffixes)})")
        self.total: int | None = len(self.paths)
        self.wanted, self.names, self.unused = wanted, list[str](), list[str]()
        self._read = _image_reader(wanted) if images else _text
        self._size = wanted.batch or (IMAGES_EACH if images else TEXTS_EACH)

    def pieces(self) -> Iterator[Piece]:
        import pyarrow as pa

        for start in range(0, len(self.paths), self._size):
            part = slice(start, start + self._size)
            rows = np.arange(start, start + len(self.paths[part]))
            kept = pa.table({PATH: self._names[part]})
            yield read_files(self._read, [str(path) for path in self.paths[part]], rows, kept)


class Listed:
    """Images, or texts, of a column of a table: paths of images relative to the table's folder, and texts
    themselves."""

    def __init__(self, table: Source, column: str, folder: Path, wanted: Wanted) -> None:
        self.table, self.column, self.folder, self.wanted = table, column, folder, wanted
        self.total = table.total
        self.names, self.unused = table.names, table.unused
        self._images = wanted.samples["kind"] == "images"

    def pieces(self) -> Iterator[Piece]:
        for piece in self.table.pieces():
            values = [] if not len(piece) else piece.samples[self.column].tolist()
            if not self._images:
                bad = [i for i, v in enumerate(values) if not isinstance(v, str) or not v.strip()]
                whole = Piece(values, piece.rows, piece.kept, piece.faults)
                text = f"column {self.column!r}: expected a text; it is empty"
                faults = [Fault(int(piece.rows[i]), text) for i in bad]
                yield whole.without(np.array(bad, np.int64), faults) if bad else whole
                continue
            read = _image_reader(self.wanted)
            paths = [str(self.folder / v) if isinstance(v, str) else "" for v in values]
            found = read_files(read, paths, piece.rows, piece.kept)
            found.faults[:0] = piece.faults
            yield found


def read_files(read: Callable[[str], Any], paths: Sequence[str], rows: np.ndarray, kept: Any) -> Piece:
    """The samples of these files, read by threads; those that can't be read are faults."""

    def attempt(path: str) -> Any:
        try:
            return read(path)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as executor:
        results = list(executor.map(attempt, paths))
    bad = [i for i, result in enumerate(results) if isinstance(result, ValueError)]
    piece = Piece(results, rows, kept)
    if not bad:
        return piece
    lost = set(bad)
    good = [i for i in range(len(results)) if i not in lost]
    faults = [Fault(int(rows[i]), str(results[i])) for i in bad]
    return Piece([results[i] for i in good], rows[good], None if kept is None else kept.take(good), faults)


def _image_reader(wanted: Wanted) -> Callable[[str], Any]:
    mode = wanted.data.get("mode") or ("L" if wanted.samples.get("channels") == 1 else "RGB")

    def read(path: str) -> Any:
        if not path:
            raise ValueError("expected the path of an image; it is empty")
        return decoded(path, mode)

    return read


def _text(path: str) -> str:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a text in UTF-8 ({error})") from error
    if not text.strip():
        raise ValueError(f"{path}: expected a text; it is empty")
    return text
