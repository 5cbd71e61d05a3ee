"""Asking the teachers again: does a cache still say what they say?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ensdistill.cache.codecs import Fields, codec_of, kl_divergence, unpack_ids
from ensdistill.cache.encoding import Encoder, padded
from ensdistill.cache.errors import CacheMismatch
from ensdistill.cache.fingerprint import as_json, differences
from ensdistill.cache.floors import floor_in_use
from ensdistill.cache.manifest import Manifest, conversions, layout_of, targets_of
from ensdistill.cache.teachers import asked
from ensdistill.cache.uids import Places
from ensdistill.common.scalars import real

if TYPE_CHECKING:
    from ensdistill.cache.reader import TargetCache
    from ensdistill.cache.teachers import Ensemble
    from ensdistill.data import Rows
    from ensdistill.data.augmentation import Augmentation

_BATCH = 1024
# Another batch size, device or library version moves a logit by this share of the largest one's size: float32 sums of some
# thousand terms in another order.
_NOISE = 1e-4
_HALF = 65504.0
# Between neighbouring codes, as a share of a row's largest logit, whose range is up to twice that.
_STEPS = {"uint8": 2 / 254, "fp16": 2 * 2.0**-10, "bf16": 2 * 2.0**-7, "fp32": 0.0}


def recheck(
    cache: TargetCache,
    ensemble: Ensemble,
    rows: Rows,
    share: float,
    augment: Augmentation | None,
    progress: Callable[[int, int], None] | None,
) -> int:
    """See `TargetCache.verify_against`."""
    if isinstance(share, bool) or not real(share) or not 0 < share <= 1:
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
    positions, missing = Places(rows.uids).of(cache.uids)
    if missing.size:
        raise CacheMismatch(
            f"rows.uids: expected those of the cache {cache.path}; its uid {cache.uids[missing[0]]} is not among them "
            f"({missing.size} of {len(cache)} are not)"
        )
    ask = asked(ensemble, rows, augment)
    for view in range(cache.views):
        for start in range(0, len(chosen), _BATCH):
            places = np.sort(chosen[start : start + _BATCH])
            uids, inputs = cache.uids[places], rows.inputs[positions[places]]
            if augment is not None:
                from ensdistill.data.versions import view_inputs

                inputs = view_inputs(augment, inputs, uids, view, made_by["seed"])
            cache.verify_inputs(uids, inputs, view)
            try:
                _compare(cache, ask(inputs, uids)[members], places, view)
            except CacheMismatch as error:
                raise CacheMismatch(str(error), _reasons(cache, ensemble)) from None
            if progress is not None:
                progress(view * len(chosen) + start + len(uids), cache.views * len(chosen))
    return len(chosen)


def _reasons(cache: TargetCache, ensemble: Ensemble) -> list[str]:
    """How the ensemble differs from the one that the cache was made by. A derived cache's fingerprint is of other members: none then."""
    made = cache.manifest["fingerprint"]
    return [] if "derived" in made else differences(made["ensemble"], as_json("ensemble.fingerprint()", ensemble.fingerprint()))


def _compare(cache: TargetCache, value: Any, rows: np.ndarray, view: int) -> None:
    """The stored records of these rows against the same encoding of what the teachers say now."""
    manifest, uids = cache.manifest, cache.uids[rows]
    lengths = cache.lengths(uids, view) if manifest["sequences"] else None
    logits = _as_in_the_source(manifest, torch.as_tensor(value).detach().cpu().numpy(), view, rows, lengths)
    encoder = Encoder(manifest, cache.uids)
    fields, _ = encoder(logits, view, rows, lengths)
    stored = layout_of(manifest).views(cache.gather_records(uids, view))
    if all(np.array_equal(stored[name], field) for name, field in fields.items()):
        return
    # Not the same bits, as on another machine: then as far apart as two roundings of nearly the same logits may be.
    packed = encoder.shaped(logits, len(uids), lengths).numpy()
    compare = {"topk": _top_k_apart, "counts": _draws_apart}.get(manifest["codec"].partition("-")[0], _dense_apart)
    what, apart, allowed = compare(manifest, packed, fields, stored)
    owners = uids if lengths is None else np.repeat(uids, lengths)
    wrong = np.argwhere(~(apart <= allowed))
    if len(wrong):
        n, k = map(int, wrong[0])
        raise CacheMismatch(
            f"{cache.path}: uid {int(owners[n])} (view {view}, {targets_of(manifest)[k]!r}): what is stored is not what the teachers say "
            f"now: {what} {float(apart[n, k]):.3g}, of which storing explains {float(allowed[n, k]):.3g}; "
            f"{len(np.unique(owners[wrong[:, 0]]))} of {len(uids)} samples differ"
        )


def _as_in_the_source(manifest: Manifest, value: np.ndarray, view: int, rows: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """The teachers' logits as the caches gave them from which this one was made; as they are, if it was made from none."""
    parts = []
    for name, logits in zip(manifest["members"], value[:, None], strict=True):
        for step in conversions(manifest, name):
            plan = {**manifest, "codec": step["from"], "temperature": "any", "members": [name], "weights": [1.0]}
            plan["floor"] = step.get("floor")
            fields, _ = Encoder(plan)(logits, view, rows, lengths)
            decoded = codec_of(step["from"]).decode(fields, len(manifest["classes"])).swapaxes(0, 1)
            logits = np.ascontiguousarray(decoded, np.float32) if lengths is None else padded(decoded, lengths)
        parts.append(logits if lengths is None else logits[:, :, : lengths.max()])
    return np.concatenate(parts)


def _noise(logits: np.ndarray) -> np.ndarray:
    """By how much another machine may move a row's largest logit [K, N]."""
    return _NOISE * np.max(np.abs(logits), axis=-1, where=np.isfinite(logits), initial=1.0)


Comparison = tuple[str, np.ndarray, np.ndarray]
"""What is compared, how far the records' targets are apart, and how far they may be: [N, K]."""


def _dense_apart(manifest: Manifest, logits: np.ndarray, fields: Fields, stored: Fields) -> Comparison:
    then = codec_of(manifest["codec"]).decode({n: np.ascontiguousarray(f) for n, f in stored.items()}, len(manifest["classes"]))
    if manifest["temperature"] == "any":
        now, at = logits.swapaxes(0, 1), 1.0
    else:
        now, at = Encoder(manifest).mixture(torch.from_numpy(logits)).numpy()[:, None], float(manifest["temperature"])
    if (floor := floor_in_use(manifest) or manifest.get("floor")) is not None:
        # Noise moves logits across the floor, too.
        near = now < now.max(-1, keepdims=True) - 0.99 * floor
        now = np.where(near & np.isneginf(then), -np.inf, now)
    with np.errstate(invalid="ignore"):
        apart = kl_divergence(now, then)
    # Where noise moved a logit across the middle between two codes, in this cache or one it was made from. Errors add up, so roots do.
    before = [sum(math.sqrt(step["kl"]["max"]) for step in conversions(manifest, name)) for name in manifest["members"]]
    root = math.sqrt(manifest["statistics"]["kl"]["max"]) + max(before) / min(at, 1.0)
    return "KL", apart, 4 * root**2 + _noise(now) ** 2 / 2


def _top_k_apart(manifest: Manifest, logits: np.ndarray, fields: Fields, stored: Fields) -> Comparison:
    """How far the log-probability of a listed class, or the mass of the others, is from what the teachers say; a KL would hide it."""
    log_p, classes = Encoder(manifest).mixture(torch.from_numpy(logits)).numpy(), len(manifest["classes"])
    then = stored["log_probs"].astype(np.float64)
    ids = unpack_ids(stored["ids"], then.shape[1], classes)
    now, rest = np.take_along_axis(log_p, ids, 1), log_p.copy()
    np.put_along_axis(rest, ids, -np.inf, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.abs(np.maximum(now, -_HALF) - np.maximum(then, -_HALF)) - 2.0**-11 * np.abs(np.maximum(then, -_HALF))  # half precision
        tail = np.logaddexp.reduce(rest, axis=1)
        off_tail = np.where(tail == stored["tail_log_mass"], 0.0, np.abs(tail - stored["tail_log_mass"])) - 2.0**-22 * np.abs(tail)
        off_tail[np.isneginf(tail) & np.isneginf(stored["tail_log_mass"])] = 0.0
        unlisted = np.where(np.isneginf(rest.max(1)), 0.0, rest.max(1) - now.min(1))  # the likeliest are listed
    apart = np.maximum(np.maximum(off.max(1), off_tail), unlisted)
    return "log-probabilities apart by", np.maximum(apart, 0.0)[:, None], _moved(manifest, logits, steps=True)[:, None]


def _draws_apart(manifest: Manifest, logits: np.ndarray, fields: Fields, stored: Fields) -> Comparison:
    """The draws are the same, but where a cumulative probability moved across one: one in many, so two in a record, and few in all."""
    codec, classes = codec_of(manifest["codec"]), len(manifest["classes"])
    draws = int(codec.draws)  # type: ignore[attr-defined]
    now, then = (np.exp(codec.decode({n: np.ascontiguousarray(f) for n, f in part.items()}, classes)) for part in (fields, stored))
    moved = np.abs(now - then).sum(-1) * draws / 2
    allowed = 2 + draws * _moved(manifest, logits, steps=True)[:, None]
    if moved.sum() > 2 + draws * _moved(manifest, logits, steps=False).sum():
        allowed = np.zeros_like(allowed)  # too many of them: each that moved tells of other teachers
    return "draws that turn out otherwise:", moved, allowed


def _moved(manifest: Manifest, logits: np.ndarray, *, steps: bool) -> np.ndarray:
    """How far noise moves a record's log-probabilities [N]; with ``steps`` also where it changed the codes of a cache on the way here."""
    size = np.max(np.abs(logits), axis=-1, where=np.isfinite(logits), initial=1.0)
    shares = [_NOISE + (sum(_STEPS[step["from"]] for step in conversions(manifest, name)) if steps else 0) for name in manifest["members"]]
    return 2 * (size * np.array(shares)[:, None]).max(0) / float(manifest["temperature"])
