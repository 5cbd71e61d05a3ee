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
from ensdistill.cache.new_member import rows_of_new_member
from ensdistill.cache.plan import check_mixture_at
from ensdistill.cache.planned import limit_of
from ensdistill.cache.publishing import publish
from ensdistill.cache.reader import TargetCache
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
    max_error: float | None = None,
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
    codec, mixture_at, max_kl, max_error, max_temperature, seed, overwrite, progress
        As for :func:`ensdistill.cache.cache_targets`. The statistics are of the step from the source, whose
        own KL or error stands in ``fingerprint.derived``; ``max_kl`` and ``max_error`` bound the sum of both.

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
    task, manifest = source.task, source.manifest
    codec, max_cost = codec_of(codec, task), limit_of(task, max_kl, max_error)
    if codec.mixture_only and mixture_at is None:
        raise ValueError(
            f"mixture_at: expected a temperature, because {codec.name} holds the mixture at one only; got "
            "None"
        )
    if mixture_at is not None:
        check_mixture_at(mixture_at, task)
    check_temperature("max_temperature", max_temperature)
    check_int("seed", seed, 0, 2**63 - 1, "what int64 holds")
    usable = source.max_temperature
    if mixture_at is not None and usable is not None and mixture_at > usable * (1 + 1e-6):
        raise CacheError(
            f"mixture_at: expected at most {usable:g}, up to which the cache {source.path} "
            f"({source.manifest['codec']}) has all classes that have a share; got {mixture_at:g}"
        )
    measure = m.measure_of(manifest)
    changes: dict[str, Any] = {}
    about: dict[str, Any] = {"from": manifest["codec"], measure: manifest["statistics"][measure]}
    if task == "regression":
        about["variance"] = manifest["variance"]
    step = {"convert": about if usable is None else {**about, "floor": floor_in_use(manifest)}}
    if mixture_at is not None and task == "regression":
        # The mixture of several members has a variance, even if they give none.
        changes["variance"] = manifest["variance"] or len(source.names) > 1
    plan = _plan(
        source,
        codec,
        step,
        codec=codec.name,
        seed=int(seed) if codec.seeded else None,
        temperature="any" if mixture_at is None else float(mixture_at),
        **changes,
    )
    plan["floor"] = floor_of(codec, plan, max_temperature)
    records = Converted(source, plan, codec)
    trusted = (*source.trusted, *class_paths(codec))
    return publish(
        folder, plan, records, overwrite=overwrite, max_cost=max_cost, progress=progress, trusted=trusted
    )


def add_member(
    source: TargetCache | Path | str,
    path: Path | str,
    *,
    name: str,
    logits: np.ndarray | None = None,
    moments: np.ndarray | tuple[np.ndarray, np.ndarray | None] | None = None,
    uids: np.ndarray,
    weight: float,
    max_kl: float | None = None,
    max_error: float | None = None,
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
        The new member's logits; of multi-label members its log-odds.
    moments : ndarray [N, D] (of V views [V, N, D]), float; or a pair of these
        Of regression in place of ``logits``: the new member's means in the data's units, and its variances.
        The second may be None. A member without them, beside others with one, has the mean variance of
        these.
    uids : ndarray [N], integer
        The uid of the sample that each row of the predictions is of (of sequences: that each run of positions
        is of), each once.
    weight : float
        The new member's. The other weights do not change; the loss normalises their sum.

    Raises
    ------
    ValueError
        ``path`` is the source's own folder, or a URL; or another argument.
    CacheError
        The source holds a mixture only, or moments with a variance factor; and every error of
        `cache_targets`.
    """
    source = _opened(source)
    folder = _other_folder(source, path)
    require_members(source, "another member")
    _require_unscaled(source, "another member")
    if not isinstance(name, str) or not name or name in source.names:
        raise WrongArgument(f"name: expected one that is none of {', '.join(source.names)}; got {name!r}")
    _check_weight("weight", weight)
    max_cost = limit_of(source.task, max_kl, max_error)
    values = rows_of_new_member(source, logits, moments, uids)
    digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(values).data)
    given = "moments" if source.task == "regression" else "logits"
    plan = _plan(
        source,
        source.codec,
        {"add": {"name": name, given: digest, "weight": float(weight)}},
        members=[*source.names, name],
        weights=[*source.weights.tolist(), float(weight)],
    )
    records = Added(source, plan, values)
    return publish(
        folder,
        plan,
        records,
        overwrite=overwrite,
        max_cost=max_cost,
        progress=progress,
        trusted=source.trusted,
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
    _require_unscaled(source, "leaving one out")
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
    _require_unscaled(source, "another weighting")
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


def _require_unscaled(source: TargetCache, use: str) -> None:
    """Raise CacheError where members' means were moved for the mixture of other weights."""
    made = source.manifest["fingerprint"].get("ensemble")
    factor = made.get("variance_factor", 1.0) if isinstance(made, dict) else 1.0
    if source.task == "regression" and factor != 1:
        raise CacheError(
            f"{source.path}: holds moments with a variance factor of {factor:.3g}, whose root multiplies the "
            f"distances of the members' means from their mixture's; {use} needs them as they were: build the "
            "cache again from an ensemble with the members and weights that you want"
        )


def _check_weight(name: str, weight: Any) -> None:
    if isinstance(weight, bool) or not real(weight) or not 0 <= weight < math.inf:
        raise WrongArgument(f"{name}: expected a finite number of at least 0; got {weight!r}")


def _derived(manifest: m.Manifest, step: dict[str, Any]) -> dict[str, Any]:
    fingerprint = manifest["fingerprint"]
    return {**fingerprint, "derived": [*fingerprint.get("derived", []), step]}


def _plan(source: TargetCache, kind: Codec, step: dict[str, Any], **changes: Any) -> m.Manifest:
    """The plan of a cache of codec ``kind`` made from ``source`` by this step, with these fields changed."""
    old = source.manifest
    optional = ("uids", "task", *m.MEASURED)
    plan = {field: old.get(field) for field in PLAN_FIELDS if field not in optional or field in old}
    if old["format_version"] == 2:  # which had no floors: no logit was changed for one
        plan["floor"] = floor_of(source.codec, plan, TEMPERATURE)
    plan |= {"fingerprint": _derived(old, step), **changes}
    plan["format_version"] = m.format_version_of(plan)
    return {**plan, "record": m.record_for(kind, plan).describe()}
