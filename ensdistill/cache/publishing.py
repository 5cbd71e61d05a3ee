"""Writing a cache's shards so that any process may die at any moment.

A shard is published by a rename, then committed by a small file with its hash; the manifest comes last. A
writer that dies leaves finished shards and no manifest, and the next one goes on with the first shard of its
own that has no valid commit.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from ensdistill.cache import manifest as m
from ensdistill.cache import statistics
from ensdistill.cache.codecs import Fields
from ensdistill.cache.errors import CacheCorrupt, CacheError, CacheIncomplete, CacheMismatch
from ensdistill.cache.files.checked import open_regular, read_checked, write_checked
from ensdistill.cache.files.locks import Writer, writing
from ensdistill.cache.folder import leftovers, own_files, remove, require_no_folders, require_same
from ensdistill.cache.native import shards as native
from ensdistill.cache.reader import TargetCache
from ensdistill.cache.uids import write_uids
from ensdistill.cache.validation import check_plan, read_manifest, same_fields
from ensdistill.common.files import atomic_path, fsync
from ensdistill.common.progress import Advance, Progress, shifted

PATIENCE = 60.0
"""Seconds that a writer that is done waits while no other writer's process is seen."""

Costs = statistics.Cost | statistics.Part


class Source(Protocol):
    """A producer of records."""

    batch_size: int
    uids: np.ndarray | None
    """Of the rows, int64 [N]; None where a row is its uid."""
    spent: dict[str, float]
    """The KL or error that earlier conversions cost each member or the mixture; 0 for a missing name."""

    def settle(self, plan: m.Manifest) -> m.Manifest:
        """Take this plan: one's own, or that of an unfinished cache of the same things. Return it with the
        fields that follow from predictions. It is called before the first `encode`."""

    def lengths(self, view: int, rows: np.ndarray) -> np.ndarray | None:
        """Records of each of these rows' samples, int64 [N]; None unless they are sequences."""

    def encode(self, view: int, rows: np.ndarray) -> tuple[Fields, dict[str, Costs]]:
        """The fields of these rows' records, with ``input_hash``, and the cost of each record by member.

        The statistics of copied records are of the whole cache: they come once, with any batch.
        """


def publish(
    path: Path,
    plan: m.Manifest,
    source: Source,
    *,
    rank: int = 0,
    world: int = 1,
    overwrite: bool = False,
    max_cost: float | None = None,
    progress: Progress | None = None,
    trusted: Sequence[str] = (),
) -> TargetCache:
    """The cache of this plan, in the folder ``path``: opened where it is finished, resumed where it is not.

    With several writers (``world``) each returns when all are done. The cache is opened with ``trusted``.
    """
    if (cache := finished(path, plan, overwrite, trusted)) is not None:
        return _within(cache, max_cost, source.spent)
    make_folder(path)
    with writing(path, rank, world) as writer:
        with writer.alone():
            if (cache := finished(path, plan, overwrite, trusted)) is not None:  # by another writer, since
                return _within(cache, max_cost, source.spent)
            plan = prepare(path, plan, overwrite, writer, source.settle)
            if source.uids is not None:
                write_uids(path, plan["uids"], source.uids)
        try:
            _write(path, plan, source, writer, max_cost, progress)
        except (ValueError, TypeError):
            # Without a commit there is no shard to resume, so the folder is left free for another cache.
            if world == 1 and not any(path.glob("*.commit.json")):
                remove([path / m.PLAN, path / m.UIDS])
            raise
        _finish(path, plan, writer)
    return TargetCache.open(path, trusted=trusted)


def make_folder(path: Path) -> None:
    """Make a cache's folder, and those above it, where they are missing."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        fsync(folder.parent)  # without its name in there, a folder does not outlive a power cut


def _within(cache: TargetCache, max_cost: float | None, spent: dict[str, float]) -> TargetCache:
    parts = cache.manifest["statistics"]["members"]
    largest = max(part["max"] + spent.get(name, 0.0) for name, part in parts.items())
    if max_cost is not None and largest > max_cost:
        name, unit = _limit_of(cache.manifest)
        raise CacheError(
            f"{name}: expected at most {max_cost:g} {unit}; the cache {cache.path} has a row with "
            f"{largest:.3g}"
        )
    return cache


def finished(path: Path, plan: m.Manifest, overwrite: bool, trusted: Sequence[str]) -> TargetCache | None:
    """The finished cache of this plan in the folder, or None.

    A finished cache of another plan is an error; where it may be overwritten, None is returned.
    """
    if not (path / m.MANIFEST).exists():
        return None
    try:
        # First, so that another codec is a difference, and not one that would have to be trusted.
        require_same(path, *same_fields(read_manifest(path), plan))
        cache = TargetCache.open(path, check="full" if overwrite else "lazy", trusted=trusted)
    except CacheError:
        if overwrite:
            return None
        raise
    if leftovers(path, plan):
        # Its writer died after publishing. The leftovers are never read, so they may stay where they cannot
        # be removed.
        with suppress(OSError, CacheError), writing(path, 0, 1):
            remove(leftovers(path, plan))
    return cache


def prepare(
    path: Path,
    plan: m.Manifest,
    overwrite: bool,
    writer: Writer,
    settle: Callable[[m.Manifest], m.Manifest],
) -> m.Manifest:
    """Leave in the folder only files that may be resumed, under a plan that equals ours, and return it."""
    require_no_folders(path)
    try:
        if (path / m.MANIFEST).exists():
            raise CacheMismatch(f"{path}: the finished cache there is to be overwritten")
        found = read_checked(path / m.PLAN)
        check_plan(path / m.PLAN, found)
        require_same(path, found, plan)
    except CacheIncomplete:
        pass
    except CacheError as error:
        if not overwrite:
            raise
        if others := writer.others_alive():
            raise CacheError(
                f"{error}\nIt can't be overwritten: {', '.join(others)} are held by its other writers"
            ) from error
        remove(own_files(path))
    else:
        # Its location and scale are kept: another run of the members may round them otherwise.
        return settle({**plan, **{field: found[field] for field in m.MEASURED if field in found}})
    settled = settle(plan)
    write_checked(path / m.PLAN, settled)
    return settled


def _write(
    path: Path,
    plan: m.Manifest,
    source: Source,
    writer: Writer,
    max_cost: float | None,
    progress: Progress | None,
) -> None:
    """Publish and commit every shard of this writer."""
    own = range(writer.rank, m.shard_count(plan), writer.world)
    done, total, identity = 0, sum(m.rows_of_shard(plan, shard) for shard in own), identity_of(plan)
    # A shard reaches the disk while the members predict for the next one, so that two are in memory.
    with ThreadPoolExecutor(1, "ensdistill-publisher") as publisher:
        before: Future[None] | None = None
        for shard in own:
            rows = m.rows_of_shard(plan, shard)
            commit = _committed(path, identity, shard, every_byte=True)
            if commit is None and (path / m.MANIFEST).exists():
                break  # another writer found everything committed, and has tidied up
            if commit is None:
                advance = None if progress is None else shifted(progress, done, total)
                made = _encoded_shard(plan, shard, source, max_cost, advance)
                if before is not None:
                    before.result()
                before = publisher.submit(_publish_shard, path, plan, identity, shard, made)
                del made
            else:
                _refuse_worse(max_cost, commit["kl"], plan, shard, None, source.spent)
                if progress is not None:
                    progress(done + rows, total)
            done += rows
        if before is not None:
            before.result()


class _Encoded(NamedTuple):
    """A shard in memory.

    Parameters
    ----------
    records : int
    data : ndarray uint8
        The records, and of sequences their offsets.
    kl : dict of str to list of Part
        The cost of each member's records, by batch.
    """

    records: int
    data: np.ndarray
    kl: dict[str, list[statistics.Part]]


def _encoded_shard(
    plan: m.Manifest, shard: int, source: Source, max_cost: float | None, progress: Advance | None
) -> _Encoded:
    view, first = m.view_and_first_row(plan, shard)
    rows, width = m.rows_of_shard(plan, shard), plan["record"]["bytes"]
    lengths = source.lengths(view, np.arange(first, first + rows))
    offsets = np.arange(rows + 1) if lengths is None else np.concatenate([[0], np.cumsum(lengths)])
    records = int(offsets[-1])
    data = np.zeros(m.data_bytes(plan, shard, records), np.uint8)
    body, layout = data[: records * width].reshape(records, width), m.layout_of(plan)
    if lengths is not None:
        data[records * width :].view("<u8")[:] = offsets
    parts: dict[str, list[statistics.Part]] = {}
    # Batches never cross shards: a resumed writer runs the very batches of an undisturbed one.
    for start in range(0, rows, source.batch_size):
        stop = min(start + source.batch_size, rows)
        batch = np.arange(first + start, first + stop)
        fields, kl = source.encode(view, batch)
        views = layout.views(body[offsets[start] : offsets[stop]])
        for name, field in fields.items():
            views[name][:] = field
        uids = batch if source.uids is None else source.uids[batch]
        owners = uids if lengths is None else np.repeat(uids, lengths[start:stop])
        _refuse_worse(max_cost, kl, plan, shard, owners, source.spent)
        for name, values in kl.items():
            parts.setdefault(name, []).append(values if isinstance(values, dict) else statistics.part(values))
        if progress is not None:
            progress(stop)
    return _Encoded(records, data, parts)


def _publish_shard(path: Path, plan: m.Manifest, identity: str, shard: int, made: _Encoded) -> None:
    """Write the shard, and then its commit."""
    records, data, parts = made
    header, table = (
        m.shard_header(plan, shard, records),
        native.checksums(data, plan["block_bytes"]).astype("<u4"),
    )
    digest = xxhash.xxh3_128(header)
    digest.update(data.data)
    digest.update(table.data)
    with atomic_path(path / m.shard_name(shard)) as part, open(part, "wb") as file:
        for piece in (header, data.data, table.data):
            file.write(piece)
    entry = {
        "file": m.shard_name(shard),
        "rows": m.rows_of_shard(plan, shard),
        "records": records,
        "bytes": len(header) + data.nbytes + table.nbytes,
        "hash": digest.hexdigest(),
        "blocks": xxhash.xxh3_128_hexdigest(table.data),
    }
    kl_parts = {name: statistics.merge(several) for name, several in parts.items()}
    write_checked(path / m.commit_name(shard), {"plan": identity, "shard": entry, "kl": kl_parts})


def _refuse_worse(
    max_cost: float | None,
    costs: dict[str, Costs],
    plan: m.Manifest,
    shard: int,
    owners: np.ndarray | None,
    spent: dict[str, float],
) -> None:
    if max_cost is None:
        return
    for name, cost in costs.items():
        before, where = spent.get(name, 0.0), f"a row of {m.shard_name(shard)}"
        if isinstance(cost, statistics.Cost):
            worst = before + float(cost.kl.max())
            where = where if owners is None else f"uid {owners[np.argmax(cost.kl)]}"
        else:
            worst = before + cost["max"]
        if worst > max_cost:
            share = f" ({before:.3g} of it from the source)" if before else ""
            limit, unit = _limit_of(plan)
            raise CacheError(
                f"{limit}: expected at most {max_cost:g} {unit} for every row; codec {plan['codec']!r} has "
                f"{worst:.3g}{share} for {name!r}, {where}; nothing of its shard was written: choose a more "
                "exact codec, or allow more"
            )


def _finish(path: Path, plan: m.Manifest, writer: Writer) -> None:
    """Write the manifest once every writer has committed its shards."""
    seen, since, identity = -1, time.monotonic(), identity_of(plan)
    while True:
        with writer.alone():
            if (path / m.MANIFEST).exists():
                return
            # Each writer has read its own shards back, and every reader checks them again.
            commits = [
                _committed(path, identity, shard, every_byte=False) for shard in range(m.shard_count(plan))
            ]
            if all(commit is not None for commit in commits):
                parts = [commit["kl"] for commit in commits if commit]
                members = {
                    name: statistics.merge(part[name] for part in parts if name in part)
                    for name in m.targets_of(plan)
                }
                shards = [commit["shard"] for commit in commits if commit]
                figures = statistics.summary(members, m.measure_of(plan))
                finished = {**plan, "shards": shards, "statistics": figures}
                write_checked(path / m.MANIFEST, finished)
                remove(leftovers(path, plan))
                return
            alive = writer.others_alive()
        missing = [shard for shard, commit in enumerate(commits) if commit is None]
        if len(missing) != seen or alive:
            seen, since = len(missing), time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            ranks = sorted({shard % writer.world for shard in missing})
            raise CacheIncomplete(
                f"{path}: {len(missing)} shards of rank {', '.join(map(str, ranks))} of {writer.world} are "
                "missing, and no process that writes them is running; run it again to resume"
            )
        time.sleep(0.05)


def _committed(path: Path, identity: str, shard: int, every_byte: bool) -> m.Manifest | None:
    """The shard's commit, if it is of the plan with this identity and the shard has the bytes that it
    describes."""
    digest = xxhash.xxh3_128()
    try:
        commit = read_checked(path / m.commit_name(shard))
        if commit.get("plan") != identity:
            return None
        with open(open_regular(path / m.shard_name(shard)), "rb") as file:
            if os.fstat(file.fileno()).st_size != commit["shard"]["bytes"]:
                return None
            while every_byte and (chunk := file.read(1 << 24)):
                digest.update(chunk)
    except (CacheIncomplete, CacheCorrupt):
        return None
    return commit if not every_byte or commit["shard"]["hash"] == digest.hexdigest() else None


def _limit_of(plan: m.Manifest) -> tuple[str, str]:
    """The name of the argument that bounds the cost of storing, and its unit."""
    return (
        ("max_error", "of the predictions' spread") if m.measure_of(plan) == "error" else ("max_kl", "nats")
    )


def identity_of(plan: m.Manifest) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(plan).encode())
