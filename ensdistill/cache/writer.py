"""Writing a target cache: run the teachers once over the rows, in uid order, one shard after the other.

A shard is published by a rename, then committed by a small file with its hash; the manifest comes last. A writer that dies at
any moment leaves finished shards and no manifest, and the next call goes on with the first shard that has no valid commit.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from ensdistill.cache import manifest as m
from ensdistill.cache.codecs import CODECS, kl_divergence, layout
from ensdistill.cache.errors import CacheCorrupt, CacheError, CacheIncomplete, CacheLocked, CacheMismatch
from ensdistill.cache.fingerprint import as_json, differences, input_hashes, root_hash
from ensdistill.cache.reader import TargetCache
from ensdistill.data import BadRows, Rows
from ensdistill.files import FolderLocked, atomic_path, exclusive
from ensdistill.processes import Processes, processes

# Sixteen bins to an octave (4.4 % wide) from 2^-60 nats: mergeable over shards and writers, unlike a quantile.
_BINS, _LOWEST = 16, 2.0**-60
# Sums and differences of logits within it stay finite in float32. A larger one is a mask in disguise: -inf says that exactly.
_LARGEST = 1e38
_OURS = re.compile(r"(manifest\.json|plan\.json|shard-\d{5,}\.(safetensors|commit\.json))(\.\d+\.part)?")


class Ensemble(Protocol):
    """What a cache needs of its teachers."""

    weights: np.ndarray

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def classes(self) -> Sequence[str] | None: ...

    @property
    def combiner(self) -> str: ...

    def predict_logits(self, inputs: np.ndarray) -> Any:
        """Calibrated logits, float32 [K, N, C], as an array or a tensor on any device."""

    def fingerprint(self) -> dict[str, Any]:
        """Plain JSON that changes with whatever changes the logits: members, weights, combiner, calibration."""


def cache_targets(
    ensemble: Ensemble,
    rows: Rows,
    path: Path | str,
    *,
    codec: str = "uint8",
    batch_size: int = 1024,
    shard_rows: int = 4096,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TargetCache:
    """Run the ensemble over ``rows`` and keep its members' logits in the folder ``path``.

    Under ``torchrun`` every process calls it with the same arguments, writes the shards that are its own, and gets the whole cache.

    If the folder holds a finished cache of the same things it is opened and returned; an unfinished one is resumed. With the
    same ``batch_size`` and teachers that give the same bits, a resumed cache equals an undisturbed one byte for byte.

    Parameters
    ----------
    ensemble : Ensemble
        The teachers: ``predict_logits``, ``names``, ``classes``, ``weights``, ``combiner`` and ``fingerprint()``.
    rows : Rows
        The transfer set. Its uids must be 0 ... N-1, each once and in any order: a uid is a place in the cache, and what ``gather``
        asks by. Rows drawn from a data set have other uids; give them new ones, ``Rows(inputs, np.arange(len(inputs)), labels)``.
    path : path
        A folder; made if it isn't there.
    codec : {"uint8", "fp16", "fp32"}
        How logits are stored; see ``ensdistill.cache.codecs``.
    batch_size : int
        Samples for one call of ``predict_logits``.
    shard_rows : int
        Samples in one file.
    overwrite : bool
        Build again instead of refusing a folder that holds something else, or a damaged cache (everything is read to see that).
        A sound cache of the same things is still opened, and an unfinished one resumed.
    progress : callable, optional
        Called with ``(samples done, samples in all)``.

    Returns
    -------
    TargetCache

    Raises
    ------
    ValueError, TypeError
        An argument, or the logits: NaN, ``+inf``, or a row of ``-inf`` only (``-inf`` elsewhere masks a class). The message names
        the uid and the member; the shard is not published.
    CacheMismatch
        The folder holds a cache of something else; the message says what differs, field by field.
    CacheLocked
        Another process is writing the folder.
    CacheCorrupt, CacheIncomplete
        A finished cache in the folder is damaged; ``overwrite=True`` builds it again.

    Examples
    --------
    >>> import tempfile, types
    >>> n = np.arange(6)
    >>> rows = Rows(inputs=np.eye(6, dtype=np.float32), uids=n, labels=n % 3)
    >>> teachers = types.SimpleNamespace(
    ...     names=("a", "b"), classes=("x", "y", "z"), weights=np.array([0.75, 0.25]), combiner="prob",
    ...     predict_logits=lambda inputs: np.stack([inputs[:, :3], inputs[:, 3:]]), fingerprint=lambda: {"members": ["a", "b"]})
    >>> folder = tempfile.TemporaryDirectory()
    >>> cache = cache_targets(teachers, rows, folder.name)
    >>> len(cache), cache.names, cache.manifest["statistics"]["kl"]["max"] < 1e-6
    (6, ('a', 'b'), True)
    >>> cache.gather(np.array([4, 0])).to_logits()[1]
    tensor([[0., 1., 0.],
            [0., 0., 0.]])
    >>> folder.cleanup()
    """
    path = Path(path)
    for name, value in (("batch_size", batch_size), ("shard_rows", shard_rows)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a positive integer; got {value!r}")
    hashes = _input_hashes(rows)
    plan = _plan(ensemble, _classes(ensemble, rows), hashes, codec, shard_rows)
    with processes() as group:
        if (cache := _finished(path, plan, overwrite)) is None:
            group.wait()  # nobody may write before everybody has seen what there is
            try:
                with exclusive(path) if group.rank == 0 else nullcontext():
                    if (cache := _finished(path, plan, overwrite) if group.count == 1 else None) is not None:  # by another writer, since
                        return cache
                    if group.rank == 0:
                        _prepare(path, plan, overwrite)
                    group.wait()
                    _write(ensemble, rows, path, plan, hashes, batch_size, progress, group)
                    group.wait()
                    if group.rank == 0:
                        _finish(path, plan)
            except FolderLocked as error:
                raise CacheLocked(str(error)) from error
            group.wait()
            cache = TargetCache.open(path)
    return cache


def _input_hashes(rows: Rows) -> np.ndarray:
    """The input hashes in uid order; checks the uids on the way."""
    n = len(rows)
    if n == 0:
        raise ValueError("rows: expected at least one; got none")
    if not np.array_equal(np.sort(rows.uids), np.arange(n)):
        low, high = int(rows.uids.min()), int(rows.uids.max())
        raise ValueError(
            f"rows.uids: expected each of 0 to {n - 1} once, because a uid is a place in the cache; got {n} uids from {low} to {high}; "
            "number the transfer set anew with Rows(inputs, np.arange(len(inputs)), labels)"
        )
    return input_hashes(rows.inputs)[np.argsort(rows.uids)]


def _classes(ensemble: Ensemble, rows: Rows) -> list[str]:
    """The classes' names; numbers where no teacher knows names."""
    if ensemble.classes is not None:
        return list(ensemble.classes)
    return list(map(str, range(np.shape(ensemble.predict_logits(rows.inputs[:1]))[-1])))


def _plan(ensemble: Ensemble, classes: list[str], hashes: np.ndarray, codec: str, shard_rows: int) -> m.Manifest:
    """Everything of the manifest that is known before the teachers run."""
    names = list(ensemble.names)
    weights = np.asarray(ensemble.weights)
    if codec not in CODECS:
        raise ValueError(f"codec: expected one of {list(CODECS)}; got {codec!r}")
    for field, value in (("names", names), ("classes", classes)):
        if not value or not all(isinstance(name, str) for name in value):
            raise ValueError(f"ensemble.{field}: expected strings, at least one; got {value!r}")
    if weights.dtype != np.float64 or weights.shape != (len(names),):
        raise ValueError(f"ensemble.weights: expected float64 [{len(names)}] (members); got {weights.dtype} {list(weights.shape)}")
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise ValueError(f"ensemble.weights: expected finite, non-negative and with a positive sum; got {weights.tolist()}")
    if ensemble.combiner not in m.COMBINERS:
        raise ValueError(f"ensemble.combiner: expected one of {list(m.COMBINERS)}; got {ensemble.combiner!r}")
    made_from = as_json("ensemble.fingerprint()", ensemble.fingerprint())
    return {
        "format": m.FORMAT,
        "format_version": m.FORMAT_VERSION,
        "codec": codec,
        "rows": len(hashes),
        "members": names,
        "weights": weights.tolist(),
        "combiner": ensemble.combiner,
        "classes": classes,
        "temperature": "any",
        "shard_rows": shard_rows,
        "record": layout(codec, len(names), len(classes)).describe(),
        "fingerprint": {"ensemble": made_from, "inputs": {"rows": len(hashes), "hash": root_hash(hashes)}, "codec": codec},
    }


def _finished(path: Path, plan: m.Manifest, overwrite: bool) -> TargetCache | None:
    """The finished cache in the folder, if there is one; one that is not of this plan is an error or, to be overwritten, None."""
    if not (path / m.MANIFEST).exists():
        return None
    try:
        cache = TargetCache.open(path, check="full" if overwrite else "lazy")
        _require_same(path, {field: cache.manifest[field] for field in plan}, plan)
    except CacheError:
        if overwrite:
            return None
        raise
    if _leftovers(path, plan):
        # Its writer died after publishing. The leftovers are never read; where they can't be removed they do no harm.
        with suppress(OSError, FolderLocked), exclusive(path):
            _remove(_leftovers(path, plan))
    return cache


def _require_same(path: Path, found: m.Manifest, plan: m.Manifest) -> None:
    # The record follows from other fields, and a difference in it would only repeat theirs.
    found, plan = ({field: value for field, value in body.items() if field != "record"} for body in (found, plan))
    if differing := differences(found, plan):
        raise CacheMismatch(f"{path}: the folder holds a cache of something else; choose another folder or pass overwrite=True:", differing)


def _prepare(path: Path, plan: m.Manifest, overwrite: bool) -> None:
    """Leave in the folder what may be resumed, under a plan that equals ours."""
    try:
        if (path / m.MANIFEST).exists():
            raise CacheMismatch(f"{path}: the finished cache there is to be overwritten")
        found = m.read_checked(path / m.PLAN)
        m.check_plan(path / m.PLAN, found)
        _require_same(path, found, plan)
    except CacheIncomplete:
        m.write_checked(path / m.PLAN, plan)
    except CacheError:
        if not overwrite:
            raise
        _remove(file for file in path.iterdir() if _OURS.fullmatch(file.name))
        m.write_checked(path / m.PLAN, plan)


def _write(
    ensemble: Ensemble,
    rows: Rows,
    path: Path,
    plan: m.Manifest,
    hashes: np.ndarray,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
    group: Processes,
) -> None:
    """Publish the shards that are this process's and aren't there."""
    order, total = np.argsort(rows.uids), plan["rows"]
    for shard in range(group.rank, m.shard_count(plan), group.count):
        first, size = shard * plan["shard_rows"], m.rows_of_shard(plan, shard)
        commit = _committed(path, plan, shard)
        if commit is None:
            records, kl = np.zeros((size, plan["record"]["bytes"]), np.uint8), []
            records[:, :8] = hashes[first : first + size, None].view(np.uint8)
            # Batches never cross shards: a resumed writer runs the very batches of an undisturbed one.
            for start in range(0, size, batch_size):
                stop = min(start + batch_size, size)
                uids = np.arange(first + start, first + stop)
                kl.append(_encode(_predict(ensemble, rows.inputs[order[uids]], uids), uids, plan, records[start:stop]))
                if progress is not None:
                    progress(first + stop, total)
            _publish(path, plan, shard, records, np.concatenate(kl, axis=None))
        elif progress is not None:
            progress(first + size, total)


def _finish(path: Path, plan: m.Manifest) -> None:
    """Publish the manifest, once all shards are there."""
    commits = [m.read_checked(path / m.commit_name(shard)) for shard in range(m.shard_count(plan))]
    shards = [commit["shard"] for commit in commits]
    m.write_checked(path / m.MANIFEST, {**plan, "shards": shards, "statistics": {"kl": _merge([commit["kl"] for commit in commits])}})
    _remove(_leftovers(path, plan))


def _predict(ensemble: Ensemble, inputs: np.ndarray, uids: np.ndarray) -> Any:
    try:
        return ensemble.predict_logits(inputs)
    except BadRows as error:  # it counts the rows of this batch
        bad = uids[error.rows]
        raise BadRows(f"{error}; that row has uid {bad[0]}", bad) from error


def _encode(value: Any, uids: np.ndarray, plan: m.Manifest, records: np.ndarray) -> np.ndarray:
    """Fill the fields of one batch of records with predicted logits; returns the KL of each row and member."""
    names, classes = plan["members"], plan["classes"]
    logits = _checked_logits(value, uids, names, len(classes))
    codec, layout_ = CODECS[plan["codec"]], layout(plan["codec"], len(names), len(classes))
    views = layout_.views(records)
    for name, field in codec.encode(logits).items():
        views[name][:] = field
    decoded = codec.decode(views)  # from the record itself: what is certified is what a reader gets
    # A member at a time, for the float64 copies' sake.
    return np.stack([kl_divergence(logits[:, k], decoded[:, k]) for k in range(len(names))])


def _checked_logits(value: Any, uids: np.ndarray, names: list[str], classes: int) -> np.ndarray:
    """Logits as float32 [N, K, C], or an error that says where they are not logits."""
    logits = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    expected = (len(names), len(uids), classes)
    if logits.shape != expected:
        raise ValueError(f"ensemble.predict_logits: expected [members, samples, classes] = {list(expected)}; got {list(logits.shape)}")
    if logits.dtype != np.float32:
        raise TypeError(f"ensemble.predict_logits: expected float32 logits; got {logits.dtype}")
    bad = np.argwhere(np.isnan(logits) | (logits > _LARGEST) | ((logits < -_LARGEST) & ~np.isneginf(logits)))
    if len(bad):
        k, n, c = map(int, bad[0])
        raise BadRows(
            f"ensemble.predict_logits: expected logits within 1e38 of zero, or -inf for a masked class; member {names[k]!r} gave "
            f"{logits[k, n, c]} for uid {int(uids[n])}, class {c} ({len(bad)} such values in this batch)",
            uids[[n]],
        )
    masked = np.argwhere(np.isneginf(logits).all(-1))
    if len(masked):
        k, n = map(int, masked[0])
        at = f"member {names[k]!r} gave -inf for every class of uid {int(uids[n])}"
        raise BadRows(f"ensemble.predict_logits: {at}; expected at least one finite logit", uids[[n]])
    return np.ascontiguousarray(logits.swapaxes(0, 1))


def _publish(path: Path, plan: m.Manifest, shard: int, records: np.ndarray, kl: np.ndarray) -> None:
    header = m.shard_header(plan, shard)
    digest = xxhash.xxh3_128(header)
    digest.update(records.data)
    with atomic_path(path / m.shard_name(shard)) as part, open(part, "wb") as file:
        file.write(header)
        file.write(records.data)
    counts = Counter(np.floor(np.log2(np.maximum(kl, _LOWEST)) * _BINS).astype(int).tolist())
    commit = {
        "plan": _identity(plan),
        "shard": {"file": m.shard_name(shard), "rows": len(records), "bytes": len(header) + records.nbytes, "hash": digest.hexdigest()},
        "kl": {"rows": kl.size, "sum": math.fsum(kl), "max": float(kl.max()), "bins": sorted(counts.items())},
    }
    m.write_checked(path / m.commit_name(shard), commit)


def _committed(path: Path, plan: m.Manifest, shard: int) -> m.Manifest | None:
    """The shard's commit, if it is of this plan and the shard's bytes are those it names."""
    try:
        commit = m.read_checked(path / m.commit_name(shard))
        with open(m.open_regular(path / m.shard_name(shard)), "rb") as file:
            content = file.read()
    except (CacheIncomplete, CacheCorrupt):
        return None
    if commit.get("plan") != _identity(plan) or commit["shard"]["hash"] != xxhash.xxh3_128_hexdigest(content):
        return None
    return commit


def _identity(plan: m.Manifest) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(plan).encode())


def _merge(parts: list[m.Manifest]) -> m.Manifest:
    rows, largest = sum(part["rows"] for part in parts), max(part["max"] for part in parts)
    counts: Counter[int] = Counter()
    for part in parts:
        counts.update(dict(part["bins"]))
    below, p99 = 0, 0.0
    for bin_, count in sorted(counts.items()):
        below += count
        if below >= 0.99 * rows:
            p99 = 2.0 ** ((bin_ + 1) / _BINS)
            break
    return {"rows": rows, "mean": math.fsum(part["sum"] for part in parts) / rows, "p99": min(p99, largest), "max": largest}


def _leftovers(path: Path, finished: m.Manifest) -> list[Path]:
    """What a finished cache does not need: plan, commits, parts, and shards of one that was overwritten."""
    keep = {m.MANIFEST, *(m.shard_name(shard) for shard in range(m.shard_count(finished)))}
    return [file for file in path.iterdir() if _OURS.fullmatch(file.name) and file.name not in keep]


def _remove(files: Iterable[Path]) -> None:
    for file in list(files):  # all named before the folder changes
        file.unlink()
