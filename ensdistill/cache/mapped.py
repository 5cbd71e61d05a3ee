"""A cache's shards as one array of samples: mapped and checked at the first use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ensdistill.cache.errors import CacheCorrupt, CacheError, CacheIncomplete, CacheMismatch
from ensdistill.cache.files.checked import open_regular
from ensdistill.cache.manifest import (
    Manifest,
    block_count,
    data_bytes,
    files_of,
    rows_of_shard,
    shard_header,
)
from ensdistill.cache.native import shards as native
from ensdistill.cache.validation import read_manifest

# A system commonly allows a process 65530 mappings. Beyond this number of shards, all are unmapped and mapped
# anew.
_MAPPED_SHARDS = 16384
_CHUNK = 1 << 24
Entry = dict[str, Any]
"""``{file, bytes, hash}``, the manifest's description of a file."""


def default_threads() -> int:
    """One for each core, at most four: copying is bound by memory, and few cores use up its bandwidth."""
    return min(4, os.cpu_count() or 1)


class MappedShards:
    """Records by id, where an id is shard * shard_rows + row.

    Parameters
    ----------
    path : Path
    manifest : dict
        As `read_manifest` returns it.
    threads : int
    url : str, optional
        The URL that the folder is a copy of.
    as_read : bool
        Whether files that the folder does not have are fetched from the URL when they are read.
    """

    def __init__(
        self, path: Path, manifest: Manifest, threads: int, url: str | None = None, as_read: bool = False
    ) -> None:
        self.path, self.manifest, self.url, self.as_read = path, manifest, url, as_read
        self.record_bytes: int = manifest["record"]["bytes"]
        self._reader: Any = native.Reader(
            record_bytes=self.record_bytes,
            shard_rows=manifest["shard_rows"],
            shards=len(manifest["shards"]),
            block_bytes=manifest["block_bytes"],
            sequences=manifest["sequences"],
            threads=threads,
        )

    @property
    def mapped(self) -> int:
        """The number of shards that are mapped."""
        return self._reader.mapped()

    def lengths(self, ids: np.ndarray) -> np.ndarray:
        """The number of records of each sample, int64 [N]."""
        if not self.manifest["sequences"]:
            return np.ones(len(ids), np.int64)
        while True:
            try:
                return self._reader.lengths(ids)
            except LookupError:
                self._map(ids)

    def gather(self, ids: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The samples' records one after the other, uint8 [records, record bytes], in ``out`` if given."""
        while True:
            try:
                return self._gather(ids, out)
            except LookupError:  # a shard's first use, or another thread needed room for its own
                self._map(ids)

    def _gather(self, ids: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        records = int(self._reader.lengths(ids).sum()) if self.manifest["sequences"] else len(ids)
        if out is None:
            out = np.ndarray(
                (records, self.record_bytes), np.uint8, native.Buffer(records * self.record_bytes)
            )
        elif out.dtype != np.uint8 or out.shape != (records, self.record_bytes) or not out.flags.carray:
            raise ValueError(
                f"out: expected a writable contiguous uint8 [{records}, {self.record_bytes}]; got "
                f"{out.dtype} {list(out.shape)}"
            )
        self._raise(self._reader.gather(ids, out))
        return out

    def unmap(self) -> None:
        """Forget all mapped files and the checks of their blocks."""
        self._reader.unmap_all()

    def check_size(self, entry: Entry) -> None:
        """Raise where the file is missing or has another size."""
        descriptor = self._open(entry)
        try:
            self._check_size(entry, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def check_whole(self, entry: Entry, progress: Callable[[int], None]) -> None:
        """Raise where a byte of the file differs; ``progress`` is called with the size of each piece."""
        for chunk in self._chunks(entry):
            progress(len(chunk))

    def read(self, entry: Entry) -> bytes:
        """The file's content; raises where a byte of it differs."""
        return b"".join(self._chunks(entry))

    def _chunks(self, entry: Entry) -> Iterator[bytes]:
        self._fetch([entry])
        digest = xxhash.xxh3_128()
        with open(self._open(entry), "rb") as file:
            self._check_size(entry, os.fstat(file.fileno()).st_size)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != entry["hash"]:
            raise self._corrupt(entry, "the bytes are not those that were written (hash)")

    def _map(self, ids: np.ndarray) -> None:
        missing = self._reader.missing(ids)
        if self._reader.mapped() + len(missing) > _MAPPED_SHARDS:
            self._reader.unmap_all()
            missing = self._reader.missing(ids)
        self._fetch([self.manifest["shards"][shard] for shard in missing])
        for shard in missing:
            self._map_shard(shard)

    def _fetch(self, entries: list[Entry]) -> None:
        if self.as_read and self.url is not None:
            from ensdistill.cache.remote import fetch_missing

            fetch_missing(self.url, self.path, entries)

    def _map_shard(self, shard: int) -> None:
        entry = self.manifest["shards"][shard]
        header = shard_header(self.manifest, shard, entry["records"])
        with open(self._open(entry), "rb") as handle:
            self._check_size(entry, os.fstat(handle.fileno()).st_size)
            if handle.read(len(header)) != header:
                raise self._corrupt(
                    entry, "the header does not describe the records that the manifest describes"
                )
            handle.seek(len(header) + data_bytes(self.manifest, shard, entry["records"]))
            table = handle.read(4 * block_count(self.manifest, shard, entry["records"]))
            if xxhash.xxh3_128_hexdigest(table) != entry["blocks"]:
                raise self._corrupt(entry, "the bytes are not those that were written (table of checksums)")
            try:
                damage = self._reader.map(
                    shard=shard,
                    fd=handle.fileno(),
                    file_bytes=entry["bytes"],
                    data_begin=len(header),
                    records=entry["records"],
                    rows=rows_of_shard(self.manifest, shard),
                    checksums=np.frombuffer(table, "<u4"),
                )
            except ValueError as error:
                raise self._corrupt(entry, str(error)) from None
        self._raise(damage)

    def _raise(self, damage: tuple[int, int, int] | None) -> None:
        if damage is not None:
            shard, begin, end = damage
            raise self._corrupt(
                self.manifest["shards"][shard],
                "the bytes are not those that were written "
                f"(checksum of bytes {begin} to {end} of its records)",
            )

    def _check_size(self, entry: Entry, size: int) -> None:
        expected = entry["bytes"]
        if size != expected:
            change = "cut" if size < expected else "added to"
            raise self._corrupt(entry, f"expected {expected} bytes; got {size}: the file was {change}")

    def _open(self, entry: Entry) -> int:
        try:
            return open_regular(self.path / entry["file"])
        except CacheError as error:
            raise self._replaced(entry) or error from None

    def _corrupt(self, entry: Entry, fault: str) -> CacheError:
        again = "delete the cache and build it again"
        if self.url is not None:
            again = f"this is a local copy: delete the file, and opening {self.url} fetches it again"
        return self._replaced(entry) or CacheCorrupt(f"{self.path / entry['file']}: {fault}; {again}")

    def _replaced(self, entry: Entry) -> CacheError | None:
        """The error about a file that another cache has replaced; None if the file is damaged."""
        try:
            now = files_of(read_manifest(self.path))
        except CacheIncomplete as error:
            if not self.path.exists():
                return CacheIncomplete(
                    f"{self.path}: no such folder: the folder is gone since the cache was opened, or another "
                    "machine opened it; open the cache again where it is"
                )
            return CacheIncomplete(
                f"{error}; the cache that was opened is not there any more: open it again when it is finished"
            )
        except CacheError:
            return None
        if entry in now:
            return None
        return CacheMismatch(
            f"{self.path}: the cache was replaced by another since it was opened ({entry['file']}); open it "
            "again"
        )
