"""Members' logits that are there already: an array, or a cache, from which nobody has to be run again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ensdistill.cache import CacheError, CacheMismatch, TargetCache
from ensdistill.cache.codecs import SHIFTED
from ensdistill.cache.fingerprint import differences
from ensdistill.cache.manifest import conversions
from ensdistill.cache.reader import require_members
from ensdistill.teachers.validation import check_logits

if TYPE_CHECKING:
    from ensdistill.teachers.ensemble import Ensemble

Known = np.ndarray | Tensor | TargetCache


def raw_logits(ensemble: Ensemble, logits: Known, labels: np.ndarray, uids: np.ndarray | None, *, unshifted: bool = False) -> np.ndarray:
    """Checked raw logits [K, N, C], float64, of the rows that ``labels`` are of.

    Parameters
    ----------
    ensemble, logits, labels, uids
        As for ``Ensemble.calibrate``.
    unshifted : bool
        Whether what follows is changed by a shift of a row: a scale for each class is, a temperature isn't.

    Raises
    ------
    ValueError
        Shapes, labels or values don't fit; or a cache without ``uids``.
    CacheError
        The cache is of other members (CacheMismatch), holds a mixture only, or shifted rows where they have to be as they were.
    """
    labels = check_labels(labels)
    if isinstance(logits, TargetCache):
        raw = _from_cache(ensemble, logits, len(labels), uids, unshifted)
    elif uids is not None:
        raise ValueError("uids: expected a cache beside them, in which they are places; got an array of logits")
    else:
        raw = np.asarray(logits, np.float64)
    count = len(ensemble)
    if raw.ndim != 3 or len(raw) != count or raw.shape[1] != len(labels) or len(labels) == 0:
        raise ValueError(f"logits: expected [{count}, {len(labels)}, C] for {len(labels)} labels; got {list(raw.shape)}")
    if labels.min() < 0 or labels.max() >= raw.shape[2]:
        hint = "; rows without a label (-100) can be left out by uids" if isinstance(logits, TargetCache) and labels.min() == -100 else ""
        raise ValueError(f"labels: expected 0..{raw.shape[2] - 1}; got {labels.min()}..{labels.max()}{hint}")
    for name, z in zip(ensemble.names, raw, strict=True):
        check_logits(z, name, len(labels), ensemble.classes)
    return raw


def check_labels(labels: Any) -> np.ndarray:
    """Labels as an array [N] of integers."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels: expected integers [N], class indices; got {labels.dtype} {list(labels.shape)}")
    return labels.astype(np.int64)


def _from_cache(ensemble: Ensemble, cache: TargetCache, count: int, uids: np.ndarray | None, unshifted: bool) -> np.ndarray:
    if uids is None:
        raise ValueError(
            "uids: expected those of the rows that `labels` are of, because a cache is in the order of its uids and labels may be in "
            "another; got None: pass uids=rows.uids beside rows.labels"
        )
    made = cache.manifest["fingerprint"]["ensemble"]
    mine = ensemble.fingerprint()
    theirs = made["members"] if isinstance(made.get("members"), dict) else {}
    # The logits of a member that was added to a cache are an array of unknown origin, also where its name is an earlier member's.
    added = {step["add"]["name"] for step in cache.manifest["fingerprint"].get("derived", []) if "add" in step}
    theirs = {name: theirs[name] for name in mine["members"] if name in theirs and name in cache.names and name not in added}
    found = {"members": theirs, "parts": made.get("parts", {})}
    if differing := differences(found, {"members": mine["members"], "parts": mine["parts"]}):
        raise CacheMismatch(
            f"logits: the cache {cache.path} has the members {list(cache.names)}; expected those of the ensemble", differing
        )
    if mine["classes"] is not None and list(cache.classes) != mine["classes"]:
        raise CacheMismatch(f"logits: the cache {cache.path} has the classes {list(cache.classes)}; expected {mine['classes']}")
    require_members(cache, "choosing among members")
    where = np.asarray(uids)
    if len(where) != count:
        raise ValueError(f"labels: expected {len(where)}, one for each uid; got {count}")
    if unshifted or made.get("vectors") is not None:
        _require_unshifted(cache)
    if cache.max_temperature is not None:
        raise CacheError(
            f"logits: the cache {cache.path} ({cache.manifest['codec']}) has rows without the logits of classes far below the likeliest, "
            "which a fit would take for impossible; pass logits, or a cache with codec fp32"
        )
    mine_there = [cache.names.index(name) for name in ensemble.names]
    # What is stored was calibrated by what the ensemble was then; that is undone by the cache's own record of it.
    z = cache.gather_logits(where).astype(np.float64)[mine_there] * made["temperature"]
    z *= np.array(made["temperatures"])[mine_there, None, None]
    if made.get("vectors") is not None:
        scale, bias = np.array(made["vectors"])[:, mine_there]
        z = (z - bias[:, None]) / scale[:, None]
    return z


def _require_unshifted(cache: TargetCache) -> None:
    steps = [step for name in cache.names for step in conversions(cache.manifest, name)]
    shifted = sorted(SHIFTED & {cache.manifest["codec"], *(step["from"] for step in steps)})
    if shifted:
        raise CacheError(
            f"logits: the cache {cache.path} was stored as {shifted[0]}, which shifts each row so that its largest logit is 0, and a scale "
            "for each class gives other probabilities for a shifted row; pass logits, or a cache with codec uint8 or fp32"
        )
