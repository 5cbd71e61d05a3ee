"""Whether a cache's bytes are those that were written, and whether it was made from given inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensdistill.cache.codecs.layout import INPUT_HASH
from ensdistill.cache.errors import CacheCorrupt, CacheMismatch
from ensdistill.cache.fingerprint import input_hashes, made_from
from ensdistill.cache.manifest import MANIFEST, files_of
from ensdistill.cache.uids import checked_uids
from ensdistill.common.progress import Progress

if TYPE_CHECKING:
    from ensdistill.cache.reader import TargetCache

_CHUNK = 1 << 26  # bytes of records, whose input hashes are compared at a time


def verify_bytes(cache: TargetCache, progress: Progress | None) -> None:
    """See `TargetCache.verify`."""
    manifest, width = cache.manifest, cache.layout.bytes
    files, done = files_of(manifest), 0
    # With views the fingerprint is of the samples before they were augmented, so no record has its hash.
    hashed = manifest["fingerprint"].get("views") is None
    total = sum(entry["bytes"] + hashed * entry.get("records", 0) * width for entry in files)

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, total)

    cache.shards.unmap()
    for entry in files:
        cache.shards.check_whole(entry, advance)
    if not hashed:
        return
    step = max(1, _CHUNK // width)
    hashes = []
    for start in range(0, len(cache), step):
        uids = cache.uids[start : start + step]
        hashes.append(_input_hashes(cache, uids, 0))
        advance(int(cache.lengths(uids).sum()) * width)
    recorded = manifest["fingerprint"].get("inputs")
    # Caches of format 2 have no lengths there.
    lengths = cache.lengths(cache.uids) if isinstance(recorded, dict) and "lengths" in recorded else None
    own = cache.uids if "uids" in manifest else None
    if recorded != (found := made_from(np.concatenate(hashes), lengths, own)):
        raise CacheCorrupt(
            f"{cache.path / MANIFEST}: fingerprint.inputs: expected {found}, from the records; got {recorded}"
        )


def verify_inputs(cache: TargetCache, uids: np.ndarray, inputs: np.ndarray, view: int | np.ndarray) -> None:
    """See `TargetCache.verify_inputs`."""
    uids, inputs = checked_uids(uids), np.asarray(inputs)
    if inputs.shape[:1] != uids.shape:
        raise ValueError(f"inputs: expected {len(uids)}, one for each uid; got an array {list(inputs.shape)}")
    wrong = np.flatnonzero(_input_hashes(cache, uids, view) != input_hashes(inputs))
    if wrong.size:
        raise CacheMismatch(
            f"inputs: uid {int(uids[wrong[0]])} ({inputs.dtype} {list(inputs.shape[1:])}) is not what the "
            f"cache was made from; {wrong.size} of {len(uids)} differ: re-ordered data, another augmentation "
            "or another preprocessing"
        )


def _input_hashes(cache: TargetCache, uids: np.ndarray, view: int | np.ndarray) -> np.ndarray:
    hashes = cache.layout.views(cache.gather_records(uids, view))[INPUT_HASH]
    if not cache.manifest["sequences"]:
        return hashes
    lengths = cache.lengths(uids, view)
    return hashes[np.cumsum(lengths) - lengths]  # every position has its sequence's
