"""New caches from old ones, without running the members again: another codec, other members or weights.

A derived cache is a folder of its own, written like any other: killed at any moment, the same call resumes
it. Each step is an entry of ``fingerprint.derived``; the rest of the fingerprint remains that of the first
cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ensdistill.cache import manifest as m
from ensdistill.cache.codecs import Codec, class_paths, codec_of
from ensdistill.cache.derived_records import Added, Converted, Kept
from ensdistill.cache.errors import CacheError
from ensdistill.cache.files.checked import write_checked
from ensdistill.cache.files.locks import writing
from ensdistill.cache.floors import TEMPERATURE, floor_in_use, floor_of
from ensdistill.cache.members import require_members
from ensdistill.cache.publishing import publish
from ensdistill.cache.reader import TargetCache
from ensdistill.cache.uids import Places
from ensdistill.cache.validation import PLAN_FIELDS
from ensdistill.common.errors import WrongArgument
from ensdistill.common.files import local_path
from ensdistill.common.progress import Progress
from ensdistill.common.scalars import check_temperature, real


def convert(
    source: TargetCache | Path | str,
    path: Path | str,
    *,
    codec: str | Codec,
    mixture_at: float | None = None,
    max_kl: float | None = None,
    max_temperature: float = TEMPERATURE,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TargetCache:
    """The same targets in another codec, or only their mixture.

    Parameters
    ----------
    source : TargetCache or path
        Holds each member's logits. A cache with a codec outside the package is opened with ``trusted=``
        first.
    path : path
        The new cache's folder, another than the source's.
    codec, mixture_at, max_kl, max_temperature, seed, overwrite, progress
        As for :func:`ensdistill.cache.cache_targets`. The statistics are of the step from the source, whose
        own KL stands in ``fingerprint.derived``; ``max_kl`` bounds the sum of both.

    Raises
    ------
    ValueError
        ``path`` is the source's own folder, or a URL; or another argument.
    CacheError
        The source holds a mixture only; and every error of `cache_targets`.
    """
    from ensdistill.loss.checks import check_int  # imports torch, which reading a cache does not need

    source = _opened(source)
    folder = _other_folder(source, path)
    require_members(source, "another codec")
    codec = codec_of(codec)
    if codec.mixture_only and mixture_at is None:
        raise ValueError(
            f"mixture_at: expected a temperature, because {codec.name} holds the mixture at one only; got "
            "None"
        )
    if mixture_at is not None:
        check_temperature("mixture_at", mixture_at)
    check_temperature("max_temperature", max_temperature)
    check_int("seed", seed, 0, 2**63 - 1, "what int64 holds")
    usable = source.max_temperature
    if mixture_at is not None and usable is not None and mixture_at > usable * (1 + 1e-6):
        raise CacheError(
            f"mixture_at: expected at most {usable:g}, up to which the cache {source.path} "
            f"({source.manifest['codec']}) has all classes that have a share; got {mixture_at:g}"
        )
    about = {"from": source.manifest["codec"], "kl": source.manifest["statistics"]["kl"]}
    step = {"convert": about if usable is None else {**about, "floor": floor_in_use(source.manifest)}}
    plan = _plan(
        source,
        codec,
        step,
        codec=codec.name,
        seed=int(seed) if codec.seeded else None,
        temperature="any" if mixture_at is None else float(mixture_at),
    )
    plan["floor"] = floor_of(codec, plan, max_temperature)
    records = Converted(source, plan, codec)
    trusted = (*source.trusted, *class_paths(codec))
    return publish(
        folder, plan, records, overwrite=overwrite, max_kl=max_kl, progress=progress, trusted=trusted
    )


def add_member(
    source: TargetCache | Path | str,
    path: Path | str,
    *,
    name: str,
    logits: np.ndarray,
    uids: np.ndarray,
    weight: float,
    max_kl: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TargetCache:
    """The same cache with one member more.

    Parameters
    ----------
    source : TargetCache or path
        Holds each member's logits. A cache with a codec outside the package is opened with ``trusted=``
        first.
    path : path
        The new cache's folder, another than the source's.
    name : str
        Of the new member, different from the others'.
    logits : ndarray [N, C] (of V views [V, N, C]; of sequences [M, C], all their positions), float32
        The new member's logits.
    uids : ndarray [N], integer
        The uid of the sample that each row of ``logits`` is of (of sequences: that each run of positions is
        of), each once.
    weight : float
        The new member's. The other weights do not change; the loss normalises their sum.

    Raises
    ------
    ValueError
        ``path`` is the source's own folder, or a URL; or another argument.
    CacheError
        The source holds a mixture only; and every error of `cache_targets`.
    """
    source = _opened(source)
    folder = _other_folder(source, path)
    require_members(source, "another member")
    if not isinstance(name, str) or not name or name in source.names:
        raise WrongArgument(f"name: expected one that is none of {', '.join(source.names)}; got {name!r}")
    _check_weight("weight", weight)
    source_logits = np.asarray(logits)
    if source_logits.dtype != np.float32:
        raise TypeError(f"logits: expected float32; got {source_logits.dtype}")
    counts = [_records(source, view) for view in range(source.views)]
    wanted = (
        (counts[0], len(source.classes))
        if source.views == 1
        else (source.views, counts[0], len(source.classes))
    )
    if source_logits.shape != wanted:
        raise ValueError(
            f"logits: expected {list(wanted)}, one row for each record; got {list(source_logits.shape)}"
        )
    values = _in_row_order(source, source_logits.reshape(source.views, counts[0], -1), uids)
    digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(values).data)
    plan = _plan(
        source,
        source.codec,
        {"add": {"name": name, "logits": digest, "weight": float(weight)}},
        members=[*source.names, name],
        weights=[*source.weights.tolist(), float(weight)],
    )
    records = Added(source, plan, values)
    return publish(
        folder, plan, records, overwrite=overwrite, max_kl=max_kl, progress=progress, trusted=source.trusted
    )


def drop_member(
    source: TargetCache | Path | str,
    path: Path | str,
    *,
    name: str,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TargetCache:
    """The same cache without one of its members; the others' bytes do not change.

    Raises
    ------
    ValueError
        There is no such member, it is the only one, or the others' weights are all 0; or ``path`` is the
        source's own folder, or a URL.
    CacheError
        The source holds a mixture only; and every error of `cache_targets`.
    """
    source = _opened(source)
    folder = _other_folder(source, path)
    require_members(source, "leaving one out")
    if name not in source.names:
        raise WrongArgument(f"name: expected one of {', '.join(source.names)}; got {name!r}")
    keep = [k for k, other in enumerate(source.names) if other != name]
    if not keep or source.weights[keep].sum() <= 0:
        raise ValueError(f"name: {name!r} carries all weight; without it there is no mixture")
    members, weights = [source.names[k] for k in keep], source.weights[keep].tolist()
    plan = _plan(source, source.codec, {"drop": {"name": name}}, members=members, weights=weights)
    return publish(
        folder, plan, Kept(source, keep), overwrite=overwrite, progress=progress, trusted=source.trusted
    )


def reweight(path: TargetCache | Path | str, weights: Mapping[str, float]) -> TargetCache:
    """Give a cache's members other weights, in place: one file is replaced, at once.

    Parameters
    ----------
    path : TargetCache or path
    weights : mapping of every member's name to its weight
        Non-negative, with a positive sum; they need not sum to one.

    Raises
    ------
    ValueError, TypeError
        Not one weight for each member, or not such weights; or ``path`` is a URL.
    CacheError
        The cache holds a mixture only: its weights are in the stored numbers.
    CacheLocked
        Another process is writing the folder.
    """
    source = _opened(path)
    if source.url is not None:
        raise WrongArgument(
            f"path: expected a folder; got {source.url}, of which only the local copy would change; "
            "pull, reweight and push it (overwrite=True, --overwrite)"
        )
    require_members(source, "another weighting")
    if set(weights) != set(source.names):
        got = ", ".join(map(str, weights)) or "none"
        raise WrongArgument(f"weights: expected one for each of {', '.join(source.names)}; got {got}")
    for name, weight in weights.items():
        _check_weight(f"weights[{name!r}]", weight)
    if sum(weights.values()) <= 0:
        raise WrongArgument(f"weights: expected a positive sum; got {dict(weights)!r}")
    with writing(source.path, 0, 1):
        manifest = TargetCache.open(source.path, trusted=source.trusted).manifest
        values = [float(weights[name]) for name in manifest["members"]]
        fingerprint = _derived(manifest, {"reweight": dict(zip(manifest["members"], values, strict=True))})
        write_checked(source.path / m.MANIFEST, {**manifest, "weights": values, "fingerprint": fingerprint})
    return TargetCache.open(source.path, trusted=source.trusted)


def _opened(source: TargetCache | Path | str) -> TargetCache:
    return source if isinstance(source, TargetCache) else TargetCache.open(source)


def _other_folder(source: TargetCache, path: Path | str) -> Path:
    """The new cache's folder. Writing to the source's would remove files that are still to be read."""
    folder = local_path(path)
    if folder.resolve() == source.path.resolve():
        raise WrongArgument(
            f"path: expected another folder than the source's, which is only read; got {path}"
        )
    return folder


def _in_row_order(source: TargetCache, values: np.ndarray, uids: Any) -> np.ndarray:
    """``values`` [views, records, C], whose samples are in the order of ``uids``, in the cache's order."""
    given, everything = np.asarray(uids), source.uids
    sound = given.dtype.kind in "iu" and given.shape == everything.shape
    if not sound or not np.array_equal(np.sort(given), np.sort(everything)):
        span = "" if given.size == 0 else f" from {given.min()} to {given.max()}"
        raise ValueError(
            f"uids: expected each of the cache's ({everything.min()} to {everything.max()}) once, for the "
            f"sample that each row of logits is of; got {given.dtype} {list(given.shape)}{span}"
        )
    if np.array_equal(given, everything):
        return values
    places, _ = Places(everything).of(given.astype(np.int64))
    ordered = np.empty_like(values)
    for view, rows in enumerate(values):
        lengths = source.lengths(everything, view)
        begins = np.empty_like(lengths)  # of each sample's records among ``rows``
        begins[places] = np.cumsum(lengths[places]) - lengths[places]
        shifts = begins - (np.cumsum(lengths) - lengths)
        ordered[view] = rows[np.repeat(shifts, lengths) + np.arange(len(rows))]
    return ordered


def _check_weight(name: str, weight: Any) -> None:
    if isinstance(weight, bool) or not real(weight) or not 0 <= weight < math.inf:
        raise WrongArgument(f"{name}: expected a finite number of at least 0; got {weight!r}")


def _derived(manifest: m.Manifest, step: dict[str, Any]) -> dict[str, Any]:
    fingerprint = manifest["fingerprint"]
    return {**fingerprint, "derived": [*fingerprint.get("derived", []), step]}


def _plan(source: TargetCache, kind: Codec, step: dict[str, Any], **changes: Any) -> m.Manifest:
    """The plan of a cache of codec ``kind`` made from ``source`` by this step, with these fields changed."""
    old = source.manifest
    plan = {field: old.get(field) for field in PLAN_FIELDS if field != "uids" or field in old}
    if old["format_version"] == 2:  # which had no floors: no logit was changed for one
        plan["floor"] = floor_of(source.codec, plan, TEMPERATURE)
    plan |= {"fingerprint": _derived(old, step), **changes}
    plan["format_version"] = m.format_version_of(plan)
    return {**plan, "record": m.record_for(kind, plan).describe()}


def _records(cache: TargetCache, view: int) -> int:
    return int(cache.lengths(cache.uids, view).sum())
