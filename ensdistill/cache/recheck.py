"""Asking the teachers again: does a cache still say what they say?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache.codecs import codec_of, kl_divergence
from ensdistill.cache.encoding import Encoder
from ensdistill.cache.errors import CacheMismatch
from ensdistill.cache.manifest import layout_of, targets_of

if TYPE_CHECKING:
    from ensdistill.augmentation import Augmentation
    from ensdistill.cache.reader import TargetCache
    from ensdistill.cache.writer import Ensemble
    from ensdistill.data import Rows

_BATCH = 1024
# Another batch size, device or library version moves a logit by this share of the largest one's size: float32 sums of some
# thousand terms in another order.
_NOISE = 1e-4


def recheck(
    cache: TargetCache,
    ensemble: Ensemble,
    rows: Rows,
    share: float,
    augment: Augmentation | None,
    progress: Callable[[int, int], None] | None,
) -> int:
    """See `TargetCache.verify_against`."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f"share: expected a number above 0, up to 1; got {share!r}")
    if len(rows) != len(cache):
        raise CacheMismatch(f"rows: the cache {cache.path} was made from {len(cache)}; got {len(rows)}")
    if unknown := [name for name in cache.names if name not in ensemble.names]:
        raise CacheMismatch(
            f"ensemble.names: the cache {cache.path} has {', '.join(cache.names)}; got {', '.join(ensemble.names)}, without "
            f"{', '.join(unknown)}"
        )
    members = [list(ensemble.names).index(name) for name in cache.names]  # of a cache of fewer members, only those
    made_by = cache.manifest["fingerprint"].get("views")
    if (made_by is None) != (augment is None):
        raise CacheMismatch(f"augment: the cache {cache.path} was made with {made_by and made_by['augment']}; got {augment!r}")
    chosen = np.random.default_rng(0).permutation(len(cache))[: max(1, round(share * len(cache)))]
    order = np.argsort(rows.uids)
    for view in range(cache.views):
        for start in range(0, len(chosen), _BATCH):
            uids = np.sort(chosen[start : start + _BATCH])
            inputs = rows.inputs[order[uids]]
            if augment is not None:
                from ensdistill.views import view_inputs

                inputs = view_inputs(augment, inputs, uids, view, made_by["seed"])
            cache.verify_inputs(uids, inputs, view)
            _compare(cache, ensemble.predict_logits(inputs)[members], uids, view)
            if progress is not None:
                progress(view * len(chosen) + start + len(uids), cache.views * len(chosen))
    return len(chosen)


def _compare(cache: TargetCache, value: Any, uids: np.ndarray, view: int) -> None:
    """The stored records against the same encoding of what the teachers say now."""
    manifest = cache.manifest
    lengths = cache.lengths(uids, view) if manifest["sequences"] else None
    fields, _ = Encoder(manifest)(value, view, uids, lengths)
    layout, codec = layout_of(manifest), codec_of(manifest["codec"])
    classes = len(cache.classes)
    stored = layout.views(cache.gather_records(uids, view))
    owners = uids if lengths is None else np.repeat(uids, lengths)
    if all(np.array_equal(stored[name], field) for name, field in fields.items()):
        return
    # Not the same bits, as on another machine: then as far apart as two roundings of nearly the same logits may be.
    now, then = (codec.decode({n: np.ascontiguousarray(f) for n, f in part.items()}, classes) for part in (fields, stored))
    if codec.name.startswith("counts"):
        # A draw turns out otherwise where a cumulative probability moved across it: one in many.
        now, then = np.logaddexp(now, np.float32(-30)), np.logaddexp(then, np.float32(-30))
        apart, allowed = np.abs(np.exp(now) - np.exp(then)).sum(-1), 2 * 2 / codec.draws  # type: ignore[attr-defined]
        what = "shares apart by"
    else:
        with np.errstate(invalid="ignore"):
            apart = kl_divergence(now, then)
        scale = np.nanmax(np.where(np.isfinite(now), np.abs(now), np.nan), axis=-1, initial=1.0)
        allowed = 4 * manifest["statistics"]["kl"]["max"] + (_NOISE * scale) ** 2 / 2 if codec.name != "fp32" else (_NOISE * scale) ** 2 / 2
        what = "KL"
    wrong = np.argwhere(~(apart <= allowed))
    if len(wrong):
        n, k = map(int, wrong[0])
        explained = float(np.broadcast_to(allowed, apart.shape)[n, k])
        raise CacheMismatch(
            f"{cache.path}: uid {int(owners[n])} (view {view}, {targets_of(manifest)[k]!r}): what is stored is not what the teachers say "
            f"now: {what} {float(apart[n, k]):.3g}, of which storing explains {explained:.3g}; "
            f"{len(np.unique(owners[wrong[:, 0]]))} of {len(uids)} samples differ"
        )
