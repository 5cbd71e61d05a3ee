"""A cache that is filled in any order, before its shards can be written.

Two files in the cache's folder hold the members' logits, and a mark for each row that is there. Once all rows
are there, the shards are written from them, and the two files are removed. Until then the folder is that of
an unfinished cache, which no reader opens. A writer that dies leaves its rows to the next one.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache import manifest as m
from ensdistill.cache.codecs import Fields, class_paths
from ensdistill.cache.codecs.layout import INPUT_HASH
from ensdistill.cache.errors import CacheLocked
from ensdistill.cache.files.locks import alone
from ensdistill.cache.fingerprint import input_hashes
from ensdistill.cache.folder import DRAFT_LOGITS, DRAFT_MARKS
from ensdistill.cache.planned import Planned
from ensdistill.cache.publishing import finished, identity_of, make_folder, prepare, publish
from ensdistill.cache.reader import TargetCache
from ensdistill.cache.targets import targets_from

if TYPE_CHECKING:
    from ensdistill.loss.targets import Moments, Targets

_ODD = np.uint64(0x9E3779B97F4A7C15)
_SCANNED = 4096  # marks that are looked at together
_CHUNK = 1 << 24  # bytes of logits that are compared with their marks at a time


class Draft:
    """The rows of an unfinished cache, which several processes of one machine may fill together.

    Parameters
    ----------
    path : Path
        The cache's folder.
    planned : Planned
        Of samples, not of sequences.
    batch_size : int
        Rows whose cost of storing is summed up together, as :func:`ensdistill.cache.cache_targets` does.
    overwrite : bool
        Begin anew where the folder holds something else, instead of refusing it.

    Attributes
    ----------
    cache : TargetCache or None
        The finished cache, once there is one; the draft's rows are gone then.

    Raises
    ------
    CacheMismatch
        The folder holds a cache of something else.
    CacheLocked
        Another process writes the folder.
    OSError
        The disk has no space for the logits.
    """

    def __init__(self, path: Path, planned: Planned, batch_size: int, overwrite: bool = False) -> None:
        from ensdistill.cache.encoding import Encoder  # imports torch

        self.path, self.planned = path, planned
        self.batch_size, self.uids = batch_size, planned.uids  # as a Source of `publish`
        self.spent: dict[str, float] = {}
        self._trusted = class_paths(planned.codec)
        records = self.plan["rows"] * self.plan["views"]
        self.cache = finished(path, self.plan, overwrite, self._trusted)
        if self.cache is not None:
            return
        make_folder(path)
        with alone(path) as writer:
            self.cache = finished(path, self.plan, overwrite, self._trusted)  # by another writer, since
            if self.cache is not None:
                return
            prepare(path, self.plan, overwrite, writer, self.settle)
            shape = (records, len(self.plan["members"]), m.width_of(self.plan))
            files = {path / DRAFT_LOGITS: 4 * math.prod(shape), path / DRAFT_MARKS: 16 * records}
            self.encoder = Encoder(self.plan, planned.codec, planned.uids)
            self._layout = m.record_for(planned.codec, self.plan)
            # Rows of another plan are no rows of this one, though they may have its shape.
            self._salt = np.uint64(int(identity_of(self.plan)[:16], 16))
            kept = all(file.is_file() and file.stat().st_size == size for file, size in files.items())
            for file, size in files.items():
                if not kept:
                    _allocate(file, size)
            self._logits = np.memmap(path / DRAFT_LOGITS, "<f4", "r+", shape=shape)
            self._marks = np.memmap(path / DRAFT_MARKS, "<u8", "r+", shape=(records, 2))
            if kept:
                self._check()
        self._filled = 0  # places before this one are filled

    @property
    def plan(self) -> m.Manifest:
        return self.planned.plan

    def settle(self, plan: m.Manifest) -> m.Manifest:
        """As a Source of `publish`; the second time with the plan that it returned before."""
        if "location" not in self.plan:
            self.planned = self.planned.settled(plan, self.batch_size)
        return self.plan

    def ids(self, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        """The places of these rows' versions, int64 [M]."""
        return views * self.plan["rows"] + rows

    def missing(self, ids: np.ndarray) -> np.ndarray:
        """Which of these places are empty, bool [M]."""
        return np.asarray(self._marks[ids, 1] == 0)

    def hashes(self, ids: np.ndarray) -> np.ndarray:
        """The hashes of the samples at these places, uint64 [M]; 0 where one is empty."""
        return np.asarray(self._marks[ids, 0])

    @property
    def complete(self) -> bool:
        """Whether all places are filled. None becomes empty again, so the search goes on where it ended."""
        while self._filled < len(self._marks):
            empty = self._marks[self._filled : self._filled + _SCANNED, 1] == 0
            if empty.any():
                self._filled += int(empty.argmax())
                return False
            self._filled += len(empty)
        return True

    def write(self, ids: np.ndarray, logits: np.ndarray, hashes: np.ndarray) -> None:
        """Fill places, none of them twice.

        Parameters
        ----------
        ids : ndarray [M], int64
        logits : ndarray [K, M, C], float32
            As ``planned.predict`` returns them and the encoder has checked them.
        hashes : ndarray [M], uint64
            Of the samples that the members were given.
        """
        values = np.ascontiguousarray(logits.swapaxes(0, 1), np.float32)
        self._logits[ids] = values
        # After the logits: a writer may be killed between the two.
        self._marks[ids] = np.stack([hashes, self._checksums(values, hashes)], 1)

    def target(self, rows: np.ndarray, views: np.ndarray) -> Targets | Moments:
        """The targets of these rows' versions, which are there: with the bits that the finished cache's
        have."""
        records = np.zeros((len(rows), self._layout.bytes), np.uint8)
        views_of = self._layout.views(records)
        for name, field in self._fields(rows, views)[0].items():
            views_of[name][:] = field
        return targets_from(self.plan, self.planned.codec, views_of)

    def find(self) -> TargetCache | None:
        """The finished cache, where this process or another has written it."""
        if self.cache is None:
            self.cache = finished(self.path, self.plan, False, self._trusted)
        return self.cache

    def publish(self) -> None:
        """Write the cache from the draft, which is complete; another process may be just doing so."""
        with suppress(CacheLocked):
            self.cache = publish(self.path, self.plan, self, trusted=self._trusted)

    def lengths(self, view: int, rows: np.ndarray) -> None:
        return None

    def encode(self, view: int, rows: np.ndarray) -> tuple[Fields, dict[str, Any]]:
        views = np.full(len(rows), view)
        fields, costs = self._fields(rows, views)
        return {**fields, INPUT_HASH: self.hashes(self.ids(rows, views))}, costs

    def _fields(self, rows: np.ndarray, views: np.ndarray) -> tuple[Fields, dict[str, Any]]:
        logits = np.ascontiguousarray(self._logits[self.ids(rows, views)].swapaxes(0, 1))
        return self.encoder(logits, views, rows, None)

    def _check(self) -> None:
        """Empty the places whose logits are not those of their mark: a power cut may leave some."""
        step = max(1, _CHUNK // max(1, self._logits[0].nbytes))
        for start in range(0, len(self._marks), step):
            marks = self._marks[start : start + step]
            right = self._checksums(self._logits[start : start + step], marks[:, 0]) == marks[:, 1]
            marks[(marks[:, 1] != 0) & ~right] = 0

    def _checksums(self, values: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Of logits [M, K, C], their samples' hashes and the plan: uint64 [M]."""
        return input_hashes(np.asarray(values)) ^ (hashes.astype(np.uint64) * _ODD) ^ self._salt


def _allocate(file: Path, size: int) -> None:
    """Make a file of zeros whose space is the file's own: a full disk is an error here, and not the end of a
    process that writes to a mapped file."""
    try:
        with open(file, "wb") as opened:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, size)
            else:
                opened.truncate(size)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{file}: no room for its {size} bytes ({error.strerror}): free some space, choose another "
            "path, or call cache_targets, which writes the codec's bytes alone",
        ) from error
