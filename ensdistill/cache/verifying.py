"""Whether a cache's bytes are those that were written, and whether it was made from given inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache.codecs.layout import INPUT_HASH
from ensdistill.cache.errors import CacheCorrupt, CacheMismatch
from ensdistill.cache.fingerprint import input_hashes, made_from
from ensdistill.cache.manifest import MANIFEST, files_of
from ensdistill.cache.uids import checked_uids
from ensdistill.common.progress import Progress
from ensdistill.data import batches as b
from ensdistill.data.reading import default_workers
from ensdistill.data.samples import as_samples, in_memory, positions, stream

if TYPE_CHECKING:
    from ensdistill.cache.reader import TargetCache

_BATCH = 1024  # lazy samples that are read at a time
_CHUNK = 1 << 26  # bytes of records, whose input hashes are compared at a time


def verify_bytes(cache: TargetCache, progress: Progress | None) -> None:
    """See `TargetCache.verify`."""
    manifest, width = cache.manifest, cache.layout.bytes
    files, done = files_of(manifest), 0
    recorded = manifest["fingerprint"].get("inputs")
    # With views the fingerprint is of the samples before they were augmented, so no record has its hash. That
    # of lazy samples is of some of them.
    hashed = manifest["fingerprint"].get("views") is None and not (
        isinstance(recorded, dict) and "lazy" in recorded
    )
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
        hashes.append(stored_hashes(cache, uids, 0))
        advance(int(cache.lengths(uids).sum()) * width)
    # Caches of format 2 have no lengths there.
    lengths = cache.lengths(cache.uids) if isinstance(recorded, dict) and "lengths" in recorded else None
    own = cache.uids if "uids" in manifest else None
    if recorded != (found := made_from(np.concatenate(hashes), lengths, own)):
        raise CacheCorrupt(
            f"{cache.path / MANIFEST}: fingerprint.inputs: expected {found}, from the records; got {recorded}"
        )


def verify_inputs(cache: TargetCache, uids: np.ndarray, inputs: Any, view: int | np.ndarray) -> None:
    """See `TargetCache.verify_inputs`."""
    uids, samples = checked_uids(uids), as_samples(inputs)
    if len(samples) != len(uids):
        raise ValueError(f"inputs: expected {len(uids)}, one for each uid; got {len(samples)}")
    parts = [np.arange(len(uids))] if in_memory(samples) else positions(len(uids), _BATCH)
    for part, batch in zip(parts, stream(samples, parts, workers=default_workers(samples)), strict=True):
        views = view[part] if isinstance(view, np.ndarray) and view.ndim else view
        verify_hashes(cache, uids[part], input_hashes(batch), views, b.describe(batch))


def verify_hashes(
    cache: TargetCache,
    uids: np.ndarray,
    hashes: np.ndarray,
    view: int | np.ndarray,
    form: dict[str, Any],
) -> None:
    """The same for hashes, uint64 [N], of samples of this form, by whoever read these."""
    wrong = np.flatnonzero(stored_hashes(cache, uids, view) != hashes)
    if wrong.size:
        shown = f"{form['dtype']} {form['shape']}" if "shape" in form else form["kind"]
        raise CacheMismatch(
            f"inputs: uid {int(uids[wrong[0]])} ({shown}) is not what the cache was made from; {wrong.size} "
            f"of {len(uids)} differ: re-ordered data, another augmentation or another preprocessing, or a "
            "data set whose items change between reads"
        )


def stored_hashes(cache: TargetCache, uids: np.ndarray, view: int | np.ndarray) -> np.ndarray:
    """The cache's hash of each sample's input, uint64 [N]."""
    lengths = cache.lengths(uids, view) if cache.manifest["sequences"] else None
    return hashes_of(cache, cache.gather_records(uids, view), lengths)


def hashes_of(cache: TargetCache, records: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """The hashes in records of samples, or of sequences of these lengths, uint64 [N]."""
    hashes = cache.layout.views(records)[INPUT_HASH]
    return hashes if lengths is None else hashes[np.cumsum(lengths) - lengths]  # all positions have theirs
