"""Reading a target cache: map the shards, check each before its first value leaves, gather records of any uids.

Needs NumPy only; torch is imported by `TargetCache.gather`, whose tensors are views of the gathered records.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from ensdistill.cache.codecs import CODECS, layout
from ensdistill.cache.errors import CacheCorrupt, CacheMismatch
from ensdistill.cache.fingerprint import as_json, differences, input_hashes, root_hash
from ensdistill.cache.manifest import MANIFEST, Manifest, open_regular, read_manifest, rows_of_shard, shard_header, shard_name

if TYPE_CHECKING:
    from ensdistill.targets import EnsembleLogits, QuantizedLogits

# A mapping keeps a file descriptor, of which a process commonly has 1024.
_MAPPED_SHARDS = 512


class TargetCache:
    """The members' logits for N samples, on disk. Made by `cache_targets`, opened by `TargetCache.open`.

    Any number of processes may read one cache, from a read-only folder too. A shard is compared with its hash once for each
    open, before its first record is handed out.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.layout = layout(manifest["codec"], len(manifest["members"]), len(manifest["classes"]))
        self._manifest = manifest
        self._codec = CODECS[manifest["codec"]]
        self._mapped: dict[int, np.ndarray] = {}
        self._verified: set[int] = set()

    @classmethod
    def open(cls, path: Path | str, *, check: str = "lazy", expect: dict[str, Any] | None = None) -> TargetCache:
        """Open a finished cache.

        Parameters
        ----------
        path : path
            The folder.
        check : {"lazy", "full"}
            ``lazy`` checks manifest and file sizes now and each shard's hash at its first use; ``full`` reads everything now.
        expect : dict, optional
            Fields of ``manifest["fingerprint"]`` (``ensemble``, ``inputs``, ``codec``) that must be equal to these.

        Raises
        ------
        CacheIncomplete
            No manifest, or a shard is missing.
        CacheCorrupt
            A file is not what was written.
        CacheMismatch
            The fingerprint differs from ``expect`` (field by field in the message), or the format is newer than this reader.
        """
        path = Path(path)
        if check not in ("lazy", "full"):
            raise ValueError(f"check: expected 'lazy' or 'full'; got {check!r}")
        manifest = read_manifest(path)
        if expect is not None:
            expect = as_json("expect", expect)
            found = {field: value for field, value in manifest["fingerprint"].items() if field in expect}
            if differing := differences(found, expect):
                raise CacheMismatch(f"{path}: the cache was made from something else:", differing)
        cache = cls(path, manifest)
        for shard in range(len(manifest["shards"])):
            cache._check_size(shard)
        if check == "full":
            cache.verify()
        return cache

    def __len__(self) -> int:
        return self._manifest["rows"]

    def __repr__(self) -> str:
        k, c = len(self.names), len(self.classes)
        return f"TargetCache({str(self.path)!r}, codec={self._codec.name!r}, members={k}, rows={len(self)}, classes={c})"

    @property
    def manifest(self) -> Manifest:
        """The manifest as a dictionary (``ensdistill.cache.manifest`` documents it); to be read only."""
        return self._manifest

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._manifest["members"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self._manifest["classes"])

    @property
    def weights(self) -> np.ndarray:
        """Mixture weights as the ensemble gave them, float64 [K]."""
        return np.array(self._manifest["weights"], np.float64)

    @property
    def combiner(self) -> str:
        return self._manifest["combiner"]

    def gather(self, uids: np.ndarray) -> QuantizedLogits | EnsembleLogits:
        """The members' targets of these samples, as stored: the tensors are strided views of one block of records.

        Parameters
        ----------
        uids : ndarray or Tensor [N], integer
            Any order, repeats allowed.

        Returns
        -------
        QuantizedLogits (codec ``uint8``) or EnsembleLogits (``fp16`` and ``fp32``), [K, N, C], with the ensemble's weights

        Raises
        ------
        TypeError, ValueError, IndexError
            ``uids`` are not integers, not one-dimensional, or not within 0 ... N-1.
        CacheCorrupt
            A shard that is read for the first time does not have its hash.
        """
        return self._codec.target(self.layout.views(self.gather_records(uids)), self.weights)

    def gather_records(self, uids: np.ndarray) -> np.ndarray:
        """The raw records of these samples, uint8 [N, record bytes], without torch; `layout` takes them apart.

        Raises as `gather` does.
        """
        uids = self._check_uids(uids)
        shards, rows = np.divmod(uids, self._manifest["shard_rows"])
        order = np.argsort(shards, kind="stable")
        touched, starts = np.unique(shards[order], return_index=True)
        # Before the buffer: what a shard's file can't back is never allocated for.
        mapped = {int(shard): self._shard(int(shard)) for shard in touched}
        out = np.empty((len(uids), self.layout.bytes), np.uint8)
        for shard, where in zip(touched, np.split(order, starts)[1:], strict=True):
            out[where] = mapped[int(shard)][rows[where]]
        return out

    def verify_inputs(self, uids: np.ndarray, inputs: np.ndarray) -> None:
        """Check that the cache's targets were made from exactly these inputs.

        Parameters
        ----------
        uids : ndarray [N], integer
        inputs : ndarray [N, ...]
            In the dtype and shape that the teachers saw.

        Raises
        ------
        CacheMismatch
            An input has other bytes, dtype or shape: the data were re-ordered, augmented or preprocessed in another way.
        """
        uids, inputs = self._check_uids(uids), np.asarray(inputs)
        if inputs.shape[:1] != uids.shape:
            raise ValueError(f"inputs: expected {len(uids)}, one for each uid; got an array {list(inputs.shape)}")
        stored = self.layout.views(self.gather_records(uids))["input_hash"]
        wrong = np.flatnonzero(stored != input_hashes(inputs))
        if wrong.size:
            raise CacheMismatch(
                f"inputs: uid {int(uids[wrong[0]])} ({inputs.dtype} {list(inputs.shape[1:])}) is not what the cache was made from; "
                f"{wrong.size} of {len(uids)} differ: re-ordered data, another augmentation or another preprocessing"
            )

    def verify(self) -> None:
        """Read everything: every shard against its hash, every input hash against the fingerprint.

        Raises
        ------
        CacheIncomplete, CacheCorrupt
            The first file that is not as it was written.
        """
        hashes = []
        for shard in range(len(self._manifest["shards"])):
            self._mapped.pop(shard, None)
            self._verified.discard(shard)
            hashes.append(self.layout.views(self._shard(shard))["input_hash"])
        recorded = self._manifest["fingerprint"].get("inputs")
        found = {"rows": len(self), "hash": root_hash(np.concatenate(hashes))}
        if recorded != found:
            raise CacheCorrupt(f"{self.path / MANIFEST}: fingerprint.inputs: expected {found}, from the records; got {recorded}")

    def _check_uids(self, uids: Any) -> np.ndarray:
        array = np.asarray(uids)
        if array.size == 0 and array.ndim == 1:
            return array.astype(np.int64)
        if array.dtype.kind not in "iu":
            raise TypeError(f"uids: expected integers; got {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"uids: expected one dimension [N]; got {list(array.shape)}")
        outside = array[(array < 0) | (array >= len(self))]
        if outside.size:
            raise IndexError(f"uids: expected 0 to {len(self) - 1}; got {int(outside[0])}")
        return array.astype(np.int64)

    def _check_size(self, shard: int, size: int | None = None) -> None:
        file, expected = self.path / shard_name(shard), self._manifest["shards"][shard]["bytes"]
        if size is None:
            descriptor = open_regular(file)
            size = os.fstat(descriptor).st_size
            os.close(descriptor)
        if size != expected:
            raise CacheCorrupt(f"{file}: expected {expected} bytes; got {size}: the file was {'cut' if size < expected else 'added to'}")

    def _shard(self, shard: int) -> np.ndarray:
        """The records of a shard, uint8 [rows, bytes], mapped; checked against the manifest at the first call."""
        if shard in self._mapped:
            return self._mapped[shard]
        file = self.path / shard_name(shard)
        with open(open_regular(file), "rb") as handle:
            self._check_size(shard, os.fstat(handle.fileno()).st_size)
            content = np.asarray(np.memmap(handle, np.uint8, mode="r"))
        if shard not in self._verified:
            header = shard_header(self._manifest, shard)
            if xxhash.xxh3_128_hexdigest(content.data) != self._manifest["shards"][shard]["hash"]:
                raise CacheCorrupt(f"{file}: the bytes are not those that were written (hash); delete the cache and build it again")
            if content[: len(header)].tobytes() != header:
                raise CacheCorrupt(f"{file}: the header does not describe the records that the manifest describes")
            self._verified.add(shard)
        rows = rows_of_shard(self._manifest, shard)
        records = content[content.size - rows * self.layout.bytes :].reshape(rows, self.layout.bytes)
        while len(self._mapped) >= _MAPPED_SHARDS:
            self._mapped.pop(next(iter(self._mapped)))
        self._mapped[shard] = records
        return records
