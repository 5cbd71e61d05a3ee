"""Running the members again for some samples, and comparing their predictions with the stored targets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ensdistill.cache.codecs import NOISE, Batch, Tolerance, stored_codec
from ensdistill.cache.encoding import Encoder, padded
from ensdistill.cache.errors import CacheMismatch
from ensdistill.cache.fingerprint import as_json, differences
from ensdistill.cache.floors import floor_in_use
from ensdistill.cache.manifest import conversions, measure_of, targets_of, width_of
from ensdistill.cache.standard import Standard
from ensdistill.cache.teachers import predictor
from ensdistill.cache.uids import Places
from ensdistill.common.progress import Progress
from ensdistill.common.scalars import real
from ensdistill.common.tasks import task_of

if TYPE_CHECKING:
    from ensdistill.cache.reader import TargetCache
    from ensdistill.cache.teachers import Ensemble
    from ensdistill.data import Rows
    from ensdistill.data.augmentation import Augmentation

_BATCH = 1024
_ROUNDING = 1e-6  # of a mean in the data's units, which members compute in float32


def recheck(
    cache: TargetCache,
    ensemble: Ensemble,
    rows: Rows,
    share: float,
    augment: Augmentation | None,
    progress: Progress | None,
) -> int:
    """See `TargetCache.verify_against`."""
    if isinstance(share, bool) or not real(share) or not 0 < share <= 1:
        raise ValueError(f"share: expected a number above 0, up to 1; got {share!r}")
    if (task := task_of(ensemble)) != cache.task:
        raise CacheMismatch(
            f"ensemble: the cache {cache.path} is of the task {cache.task}; got one of {task}"
        )
    if len(rows) != len(cache):
        raise CacheMismatch(f"rows: the cache {cache.path} was made from {len(cache)}; got {len(rows)}")
    if unknown := [name for name in cache.names if name not in ensemble.names]:
        raise CacheMismatch(
            f"ensemble.names: the cache {cache.path} has {', '.join(cache.names)}; got "
            f"{', '.join(ensemble.names)}, without {', '.join(unknown)}"
        )
    members = [list(ensemble.names).index(name) for name in cache.names]  # the cache may have fewer
    made_by = cache.manifest["fingerprint"].get("views")
    if (made_by is None) != (augment is None):
        raise CacheMismatch(
            f"augment: the cache {cache.path} was made with {made_by and made_by['augment']}; got {augment!r}"
        )
    chosen = np.random.default_rng(0).permutation(len(cache))[: max(1, round(share * len(cache)))]
    positions, missing = Places(rows.uids).of(cache.uids)
    if missing.size:
        raise CacheMismatch(
            f"rows.uids: expected those of the cache {cache.path}; its uid {cache.uids[missing[0]]} is not "
            f"among them ({missing.size} of {len(cache)} are not)"
        )
    predict = predictor(ensemble, rows, augment)
    if (standard := Standard.of(cache.manifest)) is not None:
        predict = standard.wrap(predict)
    for view in range(cache.views):
        for start in range(0, len(chosen), _BATCH):
            places = np.sort(chosen[start : start + _BATCH])
            uids, inputs = cache.uids[places], rows.inputs[positions[places]]
            if augment is not None:
                from ensdistill.data.versions import view_inputs

                inputs = view_inputs(augment, inputs, uids, view, made_by["seed"])
            cache.verify_inputs(uids, inputs, view)
            try:
                _compare(cache, predict(inputs, uids)[members], places, view)
            except CacheMismatch as error:
                raise CacheMismatch(str(error), _reasons(cache, ensemble)) from None
            if progress is not None:
                progress(view * len(chosen) + start + len(uids), cache.views * len(chosen))
    return len(chosen)


def _reasons(cache: TargetCache, ensemble: Ensemble) -> list[str]:
    """How the ensemble differs from the one that made the cache; empty for a derived cache."""
    made = cache.manifest["fingerprint"]
    if "derived" in made:
        return []
    return differences(made["ensemble"], as_json("ensemble.fingerprint()", ensemble.fingerprint()))


def _compare(cache: TargetCache, value: Any, rows: np.ndarray, view: int) -> None:
    """Compare the stored records of these rows with a new encoding of the members' logits."""
    manifest, uids = cache.manifest, cache.uids[rows]
    lengths = cache.lengths(uids, view) if manifest["sequences"] else None
    logits = _as_in_the_source(cache, torch.as_tensor(value).detach().cpu().numpy(), view, rows, lengths)
    encoder = Encoder(manifest, cache.codec, cache.uids)
    batch = encoder.batch(logits, view, rows, lengths)
    fields, _ = encoder.encode(batch)
    stored = cache.layout.views(cache.gather_records(uids, view))
    if all(np.array_equal(stored[name], field) for name, field in fields.items()):
        return
    # The bits differ, for instance on another machine. Two roundings of nearly the same logits may be so far
    # apart.
    quantity, distance, allowed = cache.codec.compare(batch, fields, stored, _tolerance(cache, batch))
    wrong = np.argwhere(~(distance <= allowed))
    if len(wrong):
        n, k = map(int, wrong[0])
        predictions = "moments" if cache.task == "regression" else "logits"
        raise CacheMismatch(
            f"{cache.path}: uid {int(batch.uids[n])} (view {view}, {targets_of(manifest)[k]!r}): the stored "
            f"target differs from that of the ensemble's present {predictions}: {quantity} "
            f"{float(distance[n, k]):.3g}, of which storing explains {float(allowed[n, k]):.3g}; "
            f"{len(np.unique(batch.uids[wrong[:, 0]]))} of {len(uids)} samples differ"
        )


def _as_in_the_source(
    cache: TargetCache, value: np.ndarray, view: int, rows: np.ndarray, lengths: np.ndarray | None
) -> np.ndarray:
    """The logits as the sources of this cache held them; unchanged if it has none."""
    manifest, parts = cache.manifest, []
    for name, logits in zip(manifest["members"], value[:, None], strict=True):
        for step in conversions(manifest, name):
            codec = stored_codec(step["from"], cache.trusted, cache.path, cache.task)
            plan = {
                **manifest,
                "temperature": "any",
                "members": [name],
                "weights": [1.0],
                "floor": step.get("floor"),
                **({"variance": step["variance"]} if "variance" in step else {}),
            }
            width = width_of(plan)
            fields, _ = Encoder(plan, codec)(logits[..., :width], view, rows, lengths)
            decoded = codec.decode(fields, width).swapaxes(0, 1)
            if width < logits.shape[-1]:  # means alone, and the mixture has a variance
                decoded = np.concatenate([decoded, np.zeros_like(decoded)], -1)
            logits = (
                np.ascontiguousarray(decoded, np.float32) if lengths is None else padded(decoded, lengths)
            )
        parts.append(logits if lengths is None else logits[:, :, : lengths.max()])
    return np.concatenate(parts)


def _tolerance(cache: TargetCache, batch: Batch) -> Tolerance:
    """How far noise may move the batch's targets, through this cache's codes and its sources'."""
    manifest = cache.manifest
    steps = [conversions(manifest, name) for name in manifest["members"]]
    temperature, measure = batch.temperature or 1.0, measure_of(manifest)
    # Where noise moves a logit across the middle between two codes, the code changes. Errors add up, so roots
    # of KL do.
    before = max(sum(math.sqrt(step[measure]["max"]) for step in taken) for taken in steps)
    logits = batch.logits.numpy()
    size = np.max(np.abs(logits), axis=-1, where=np.isfinite(logits), initial=1.0)  # [K, N]
    codes = [
        sum(stored_codec(s["from"], cache.trusted, cache.path, cache.task).step for s in taken)
        for taken in steps
    ]
    moved, moved_by_noise = (
        2 * (size * (NOISE + np.array(shares))[:, None]).max(0) / temperature
        for shares in (codes, [0.0] * len(codes))
    )
    if (standard := Standard.of(manifest)) is not None:
        moved = moved + _ROUNDING * np.max(np.abs(standard.location) / standard.scale)
    return Tolerance(
        root_kl=math.sqrt(manifest["statistics"][measure]["max"]) + before / min(temperature, 1.0),
        floor=floor_in_use(manifest) or manifest.get("floor"),
        moved=moved,
        moved_by_noise=moved_by_noise,
    )
