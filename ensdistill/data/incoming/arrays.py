"""Arrays in files, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ensdistill.data.files import read_array
from ensdistill.data.incoming.base import Fault, Piece, Wanted


class ArrayRows:
    """The rows of a ``.npy`` (mapped), ``.npz`` or ``.safetensors`` file.

    Raises
    ------
    ValueError
        It holds no such array, or one of another shape.
    """

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.array = read_array(path, wanted.data.get("inputs_name"))
        self.wanted, self.names, self.unused = wanted, list[str](), list[str]()
        shape = list(wanted.samples["shape"])
        if list(self.array.shape[1:]) != shape:
            raise ValueError(
                f"{path}: expected an array [N, {', '.join(map(str, shape))}]; got {list(self.array.shape)}"
            )
        self.total: int | None = len(self.array)
        if not self.total:
            raise ValueError(f"{path} has no rows")

    def pieces(self) -> Iterator[Piece]:
        size = self.wanted.rows_of(int(np.prod(self.array.shape[1:])))
        for start in range(0, len(self.array), size):
            part = np.array(self.array[start : start + size])
            rows = np.arange(start, start + len(part))
            piece = Piece(part, rows)
            if part.dtype.kind == "f":
                wrong = np.argwhere(~np.isfinite(part.reshape(len(part), -1)))
                at: dict[int, int] = {}
                for row, column in wrong.tolist():
                    at.setdefault(row, column)
                faults = [
                    Fault(start + row, f"expected finite numbers; got {part[row].flat[column]} at {column}")
                    for row, column in at.items()
                ]
                if faults:
                    piece = piece.without(np.array(list(at), np.int64), faults)
            yield piece
