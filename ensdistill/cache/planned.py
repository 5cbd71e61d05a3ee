"""The arguments of a cache that is to be made from an ensemble's predictions, checked before the members
run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache import manifest as m
from ensdistill.cache.codecs import Codec, codec_of
from ensdistill.cache.fingerprint import as_json, input_hashes, made_from
from ensdistill.cache.plan import make_plan, with_standard
from ensdistill.cache.standard import Standard
from ensdistill.cache.teachers import Ensemble, Predict, class_names, predictor
from ensdistill.cache.uids import row_order
from ensdistill.common.scalars import plain
from ensdistill.common.tasks import Task, task_of
from ensdistill.data import Rows
from ensdistill.data.samples import in_memory, whole

if TYPE_CHECKING:
    from ensdistill.data.augmentation import Augmentation

_LONGEST = 2**24


@dataclass(frozen=True)
class Planned:
    """A cache that is to be made from an ensemble's predictions.

    Attributes
    ----------
    plan : dict
        The manifest's fields that are set before the members run. Of regression those that follow from their
        predictions are missing until `settled`.
    codec : Codec
    predict : callable
        Of regression in the plan's units, once it is settled; in the data's before.
    parts : callable
        The same of a batch of sequences in parts, [K, M, C] each; returns None where the ensemble has none.
    rows : Rows
    order : ndarray [N]
        The position among ``rows`` of each row of the cache.
    hashes, lengths, uids : ndarray [N]
        In the order of the cache. Hashes of lazy samples are None until they are read.
    augment : Augmentation or None
    seed : int
    """

    plan: m.Manifest
    codec: Codec
    predict: Predict
    rows: Rows
    order: np.ndarray
    hashes: np.ndarray | None
    lengths: np.ndarray | None
    uids: np.ndarray | None
    augment: Augmentation | None
    seed: int
    parts: Callable[[Any], Iterable[Any] | None] = lambda inputs: None

    def settled(self, plan: m.Manifest, batch_size: int) -> Planned:
        """The same with this plan: one's own, or that of an unfinished cache of the same things.

        Of regression the members predict for some rows, unless the plan has their location and scale already.
        """
        if m.task_of_plan(plan) != "regression":
            return replace(self, plan=plan)
        standard = Standard.of(plan)
        if standard is None:
            mixture = plan["temperature"] != "any"
            weights = np.array(plan["weights"], np.float64)
            standard = Standard.measured(
                lambda positions: self._moments(positions, batch_size),
                len(self.rows),
                weights,
                mixture=mixture,
            )
        own = {field: value for field, value in plan.items() if field not in m.MEASURED}
        plan = with_standard(own, self.codec, standard)
        return replace(self, plan=plan, predict=standard.wrap(self.predict))

    def _moments(self, positions: np.ndarray, batch_size: int) -> Any:
        """The members' moments for these positions among the rows, in their first version."""
        parts = []
        for start in range(0, len(positions), batch_size):
            chosen = positions[start : start + batch_size]
            inputs, uids = self.rows.inputs[chosen], self.rows.uids[chosen]
            if self.augment is not None:
                from ensdistill.data.versions import view_inputs

                inputs = view_inputs(self.augment, inputs, uids, 0, self.seed)
            parts.append(self.predict(inputs, uids))
        means, variances = zip(*parts, strict=True)
        return np.concatenate(means, 1), None if variances[0] is None else np.concatenate(variances, 1)


def plan_predictions(
    ensemble: Ensemble,
    rows: Rows,
    *,
    codec: str | Codec | None,
    mixture_at: float | None,
    views: int,
    augment: Augmentation | None,
    lengths: np.ndarray | None,
    max_temperature: float,
    seed: int,
    shard_rows: int,
) -> Planned:
    """The plan of a cache with these arguments of :func:`cache_targets`, which are checked."""
    if not len(rows):
        raise ValueError("rows: expected at least one; got none")
    task = task_of(ensemble)
    if rows.task != task and rows.known.any():
        raise ValueError(
            f"rows.labels: expected labels of the ensemble's task, {task}, or none (-100), because a student "
            f"learns from both; got those of {rows.task} ({rows.labels.dtype} {list(rows.labels.shape)})"
        )
    codec = codec_of(codec, task)  # a caller may have the codec of this name of another task
    order, uids = row_order(rows.uids)
    predict = predictor(ensemble, rows, augment)
    if augment is None and views > 1:
        raise ValueError(
            f"augment: expected an augmentation, because {views} views without one would all be the same; "
            "got None"
        )
    plan = make_plan(
        members=list(ensemble.names),
        weights=ensemble.weights,
        combiner=ensemble.combiner,
        classes=class_names(ensemble, predict, rows),
        codec=codec,
        mixture_at=mixture_at,
        rows=len(rows),
        views=views,
        sequences=lengths is not None,
        shard_rows=shard_rows,
        seed=seed,
        max_temperature=max_temperature,
        uids=uids,
        task=task,
    )
    counts = _lengths(lengths, rows, order)
    # Lazy samples are hashed as they are read for the members: reading them all beforehand would double the
    # time.
    hashes = input_hashes(whole(rows.inputs))[order] if in_memory(rows.inputs) else None
    described = None
    if augment is not None:
        from ensdistill.data.versions import describe_views

        described = as_json("augment", describe_views(augment, views, seed))
    plan["fingerprint"] = {
        "ensemble": as_json("ensemble.fingerprint()", ensemble.fingerprint()),
        "inputs": made_from(rows.inputs if hashes is None else hashes, counts, uids),
        "views": described,
    }
    parts = getattr(ensemble, "predict_parts", lambda inputs: None)
    return Planned(plan, codec, predict, rows, order, hashes, counts, uids, augment, seed, parts)


def check_numbers(batch_size: Any, shard_rows: Any, views: Any, rank: Any, world: Any, seed: Any) -> None:
    counts = (("batch_size", batch_size), ("shard_rows", shard_rows), ("views", views), ("world", world))
    for name, value in counts:
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: expected a positive integer; got {value!r}")
    if type(rank) is not int or not 0 <= rank < world:
        raise ValueError(f"rank: expected 0 to {world - 1}, one of the {world} writers; got {rank!r}")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an integer from 0 to 2**63 - 1; got {seed!r}")


def limit_of(task: Task, max_kl: Any, max_error: Any) -> float | None:
    """The largest cost of storing a row: ``max_kl``, or ``max_error`` of regression.

    Raises
    ------
    ValueError
        It is no such number, or the other one is given.
    """
    kl, error = plain(max_kl), plain(max_error)
    if (other := kl if task == "regression" else error) is not None:
        wrong, right = ("max_kl", "max_error") if task == "regression" else ("max_error", "max_kl")
        raise ValueError(
            f"{wrong}: expected None, because the task is {task}, which has {right}; got {other!r}"
        )
    limit = error if task == "regression" else kl
    if limit is not None and not (isinstance(limit, int | float) and limit >= 0):
        name, unit = (
            ("max_error", "in units of the spread") if task == "regression" else ("max_kl", "in nats")
        )
        raise ValueError(f"{name}: expected a number of at least 0, {unit}; got {limit!r}")
    return limit


def _lengths(lengths: Any, rows: Rows, order: np.ndarray) -> np.ndarray | None:
    """In row order."""
    if lengths is None:
        return None
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu" or array.shape != (len(rows),):
        raise ValueError(
            f"lengths: expected one integer for each of the {len(rows)} rows; got {array.dtype} "
            f"{list(array.shape)}"
        )
    if array.min() < 1 or array.max() >= _LONGEST:
        raise ValueError(f"lengths: expected 1 to {_LONGEST - 1}; got {array.min()} to {array.max()}")
    return array.astype(np.int64)[order]
