"""A cache's logits before the ensemble's calibration, so that an ensemble can be fitted to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache.codecs import stored_codec
from ensdistill.cache.errors import CacheError, CacheMismatch
from ensdistill.cache.fingerprint import differences
from ensdistill.cache.manifest import conversions
from ensdistill.common.tasks import task_of

if TYPE_CHECKING:
    from ensdistill.cache.reader import TargetCache


def raw_logits(
    cache: TargetCache, ensemble: Any, uids: np.ndarray | None, count: int, unshifted: bool
) -> np.ndarray:
    """Raw logits [K, N, C], float64, of the ensemble's members for the samples ``uids`` [N].

    Raises
    ------
    ValueError
        No uids, or another number of them than ``count``, the number of labels.
    CacheError
        The cache is of other members (CacheMismatch), holds a mixture only, or rows that were changed when
        they were stored.
    """
    if uids is None:
        raise ValueError(
            "uids: expected those of the rows that `labels` are of, because a cache has an order of its own "
            "and labels may be in another; got None: pass uids=rows.uids beside rows.labels"
        )
    if (task := task_of(ensemble)) != cache.task:
        raise CacheMismatch(
            f"logits: the cache {cache.path} is of the task {cache.task}; got an ensemble of {task}"
        )
    made = cache.manifest["fingerprint"]["ensemble"]
    mine = ensemble.fingerprint()
    theirs = made["members"] if isinstance(made.get("members"), dict) else {}
    # The logits of an added member are an array of unknown origin, also where its name is an earlier
    # member's.
    added = {
        step["add"]["name"] for step in cache.manifest["fingerprint"].get("derived", []) if "add" in step
    }
    kept = [name for name in mine["members"] if name in cache.names and name not in added]
    theirs = {name: theirs[name] for name in kept if name in theirs}
    found = {"members": theirs, "parts": made.get("parts", {})}
    if differing := differences(found, {"members": mine["members"], "parts": mine["parts"]}):
        raise CacheMismatch(
            f"logits: the cache {cache.path} has the members {list(cache.names)}; expected those of the "
            "ensemble",
            differing,
        )
    if mine["classes"] is not None and list(cache.classes) != mine["classes"]:
        raise CacheMismatch(
            f"logits: the cache {cache.path} has the classes {list(cache.classes)}; expected "
            f"{mine['classes']}"
        )
    require_members(cache, "choosing among members")
    where = np.asarray(uids)
    if len(where) != count:
        raise ValueError(f"labels: expected {len(where)}, one for each uid; got {count}")
    if unshifted or made.get("vectors") is not None:
        _require_unshifted(cache)
    if cache.max_temperature is not None:
        raise CacheError(
            f"logits: the cache {cache.path} ({cache.manifest['codec']}) has rows without the logits of "
            "classes far below the likeliest, which a fit would take for impossible; pass logits, or a "
            "cache with codec fp32"
        )
    mine_there = [cache.names.index(name) for name in ensemble.names]
    # The stored logits are calibrated. The cache's own record of that calibration undoes it.
    z = cache.gather_logits(where).astype(np.float64)[mine_there] * made["temperature"]
    z *= np.array(made["temperatures"])[mine_there, None, None]
    if made.get("vectors") is not None:
        scale, bias = np.array(made["vectors"])[:, mine_there]
        z = (z - bias[:, None]) / scale[:, None]
    return z


def _require_unshifted(cache: TargetCache) -> None:
    steps = [step for name in cache.names for step in conversions(cache.manifest, name)]
    sources = (stored_codec(step["from"], cache.trusted, cache.path, cache.task) for step in steps)
    codecs = [cache.codec, *sources]
    shifted = sorted({codec.name for codec in codecs if codec.shifts_rows})
    if shifted:
        raise CacheError(
            f"logits: the cache {cache.path} was stored as {shifted[0]}, which keeps a row only up to a "
            "shift, and a scale for each class gives other probabilities for a shifted row; pass logits, or "
            "a cache with codec uint8 or fp32"
        )


def require_members(cache: TargetCache, use: str) -> None:
    """Raise CacheError where a cache holds the mixture only, and so has no logits for ``use``."""
    if cache.temperature is not None:
        rows, codecs = "logits", "uint8, fp16, bf16 or fp32"
        if cache.task == "regression":
            rows, codecs = "moments", "fp32, fp16, affine16 or uint8"
        raise CacheError(
            f"{cache.path}: holds the mixture at T = {cache.temperature:g} only ({cache.manifest['codec']}), "
            f"and {use} needs each member's {rows}; build a cache with codec {codecs} and without "
            "`mixture_at`"
        )
