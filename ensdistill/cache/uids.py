"""Which sample each row of a cache is of. A row is a place, 0..N-1; a uid is the sample's own number in its data set.

Where the uids are 0..N-1 themselves, a row is its uid and nothing is kept. Any others are kept beside the shards in
``uids.safetensors``: int64 [N], in row order. The manifest holds the file's size and hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ensdistill.cache.checked import open_regular
from ensdistill.cache.errors import CacheCorrupt, CacheError
from ensdistill.cache.manifest import UIDS, uids_header
from ensdistill.common.files import write_bytes


class Places:
    """Where each of these uids stands among them.

    Parameters
    ----------
    uids : ndarray [N], int64
        All different.

    Examples
    --------
    >>> Places(np.array([70, -5, 12])).of(np.array([12, 70, 3]))
    (array([2, 0, 1]), array([2]))
    """

    def __init__(self, uids: np.ndarray) -> None:
        self._order = np.argsort(uids)
        self._sorted = uids[self._order]

    def of(self, uids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The place of each uid [M], and the positions of those that have none, whose places mean nothing."""
        nearest = np.minimum(np.searchsorted(self._sorted, uids), len(self._sorted) - 1)
        return self._order[nearest], np.flatnonzero(self._sorted[nearest] != uids)


def row_order(uids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """In which order samples with these uids become a cache's rows, int64 [N], and their uids in it; None where a row is its uid."""
    order = np.argsort(uids)
    rows = np.arange(len(uids))
    return (order, None) if np.array_equal(uids[order], rows) else (rows, uids)


def entry_of(uids: np.ndarray) -> dict[str, Any]:
    """``manifest["uids"]`` of a cache with these uids in row order."""
    content = _content(uids)
    return {"file": UIDS, "bytes": len(content), "hash": xxhash.xxh3_128_hexdigest(content)}


def write_uids(folder: Path, entry: dict[str, Any], uids: np.ndarray) -> None:
    """Write the file atomically, unless it is there already, byte for byte."""
    try:
        with open(open_regular(folder / UIDS), "rb") as file:
            if xxhash.xxh3_128_hexdigest(file.read(entry["bytes"] + 1)) == entry["hash"]:
                return
    except CacheError:
        pass
    write_bytes(folder / UIDS, _content(uids))


def parse_uids(file: Path, content: bytes, rows: int) -> np.ndarray:
    """The uids [rows] that such a file holds, read-only; its size and hash have been compared with the manifest's.

    Raises
    ------
    CacheCorrupt
        The header is not the one of so many uids, or a uid stands twice.
    """
    header = uids_header(rows)
    if not content.startswith(header) or len(header) + 8 * rows != len(content):
        raise CacheCorrupt(f"{file}: the header does not describe {rows} uids")
    uids = np.frombuffer(content, "<i8", offset=len(header)).astype(np.int64, copy=False)
    ordered = np.sort(uids)
    if (twice := np.flatnonzero(ordered[1:] == ordered[:-1])).size:
        raise CacheCorrupt(f"{file}: expected different uids; {ordered[twice[0]]} stands there more than once")
    return uids


def _content(uids: np.ndarray) -> bytes:
    return uids_header(len(uids)) + uids.astype("<i8").tobytes()
