"""The samples of a cache. A row is a place, 0..N-1; a uid is the sample's number in its data set.

Where the uids are 0..N-1, a row is its uid and no file is kept. Any others are kept beside the shards in
``uids.safetensors``: int64 [N], in row order. The manifest holds the file's size and hash.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ensdistill.cache.errors import CacheCorrupt, CacheError
from ensdistill.cache.files.checked import open_regular
from ensdistill.cache.manifest import UIDS, Manifest, shards_per_view, uids_header
from ensdistill.cache.mapped import MappedShards
from ensdistill.common.files import write_bytes
from ensdistill.common.scalars import whole

_LARGEST = 2**63 - 1


class Places:
    """Where each of these uids stands among them.

    Parameters
    ----------
    uids : ndarray [N], int64
        All different.

    Examples
    --------
    >>> Places(np.array([70, -5, 12])).of(np.array([12, 70, 3]))
    (array([2, 0, 2]), array([2]))
    """

    def __init__(self, uids: np.ndarray) -> None:
        self._order = np.argsort(uids)
        self._sorted = uids[self._order]

    def of(self, uids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The place of each uid [M], and the positions of those that have none, whose places mean nothing."""
        nearest = np.minimum(np.searchsorted(self._sorted, uids), len(self._sorted) - 1)
        return self._order[nearest], np.flatnonzero(self._sorted[nearest] != uids)


class Samples:
    """The samples of an opened cache, by uid and view.

    Parameters
    ----------
    path : Path
        The cache's folder.
    manifest : dict
    shards : MappedShards
        Reads the file of uids at their first use.
    """

    def __init__(self, path: Path, manifest: Manifest, shards: MappedShards) -> None:
        self.path, self.manifest, self.shards = path, manifest, shards

    @cached_property
    def uids(self) -> np.ndarray:
        """The samples' uids in row order, int64 [N], read-only; see `TargetCache.uids`."""
        rows = self.manifest["rows"]
        if "uids" in self.manifest:
            return parse_uids(self.path / UIDS, self.shards.read(self.manifest["uids"]), rows)
        uids = np.arange(rows)
        uids.flags.writeable = False
        return uids

    @cached_property
    def _places(self) -> Places | None:
        """Of the uids; None where a row is its uid."""
        return Places(self.uids) if "uids" in self.manifest else None

    def ids(self, uids: Any, view: Any) -> np.ndarray:
        """Where the samples stand among all shards' rows, int64 [M]; raises as `TargetCache.gather` does."""
        rows = self._rows(checked_uids(uids))
        if whole(view) and view == 0:
            return rows
        views, count = np.asarray(view), self.manifest["views"]
        if views.dtype.kind not in "iu":
            raise TypeError(f"view: expected an integer, or one for each uid; got {view!r}")
        if views.shape not in ((), rows.shape):
            raise ValueError(f"view: expected one for each of the {len(rows)} uids; got {list(views.shape)}")
        if views.size and (views.min() < 0 or views.max() >= count):
            wrong = int(views[(views < 0) | (views >= count)].reshape(-1)[0])
            raise IndexError(f"view: expected 0 to {count - 1}; got {wrong}")
        return rows + views.astype(np.int64) * shards_per_view(self.manifest) * self.manifest["shard_rows"]

    def _rows(self, uids: np.ndarray) -> np.ndarray:
        """The rows of these samples, int64 [M]."""
        if not uids.size:
            return uids
        if self._places is not None:
            rows, unknown = self._places.of(uids)
            if unknown.size:
                raise IndexError(
                    f"uids: expected those of the cache {self.path}; it has no sample with uid "
                    f"{uids[unknown[0]]} ({unknown.size} of {len(uids)} uids are not its own)"
                )
            return rows
        count = self.manifest["rows"]
        if uids.view(np.uint64).max() >= count:  # a negative one is a large one
            raise IndexError(f"uids: expected 0 to {count - 1}; got {uids[(uids < 0) | (uids >= count)][0]}")
        return uids


def checked_uids(uids: Any) -> np.ndarray:
    """As int64 [M], in a copy: the caller may reuse the array."""
    array = np.asarray(uids)
    if array.size == 0 and array.ndim == 1:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"uids: expected integers; got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"uids: expected one dimension [N]; got {list(array.shape)}")
    if array.dtype == np.uint64 and array.max() > _LARGEST:
        raise IndexError(f"uids: expected no more than {_LARGEST}; got {array.max()}")
    return array.astype(np.int64)


def row_order(uids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The order in which samples with these uids become rows, int64 [N], and their uids in it.

    The second is None where a row is its uid.
    """
    rows = np.arange(len(uids))
    if np.array_equal(uids, rows):
        return rows, None
    order = np.argsort(uids)
    return (order, None) if np.array_equal(uids[order], rows) else (rows, uids)


def entry_of(uids: np.ndarray) -> dict[str, Any]:
    """``manifest["uids"]`` of a cache with these uids in row order."""
    content = _content(uids)
    return {"file": UIDS, "bytes": len(content), "hash": xxhash.xxh3_128_hexdigest(content)}


def write_uids(folder: Path, entry: dict[str, Any], uids: np.ndarray) -> None:
    """Write the file atomically, unless the folder has it already, byte for byte."""
    try:
        with open(open_regular(folder / UIDS), "rb") as file:
            if xxhash.xxh3_128_hexdigest(file.read(entry["bytes"] + 1)) == entry["hash"]:
                return
    except CacheError:
        pass
    write_bytes(folder / UIDS, _content(uids))


def parse_uids(file: Path, content: bytes, rows: int) -> np.ndarray:
    """The uids [rows] in the content of such a file, read-only; its size and hash have been checked.

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
        raise CacheCorrupt(
            f"{file}: expected different uids; {ordered[twice[0]]} stands there more than once"
        )
    return uids


def _content(uids: np.ndarray) -> bytes:
    return uids_header(len(uids)) + uids.astype("<i8").tobytes()
