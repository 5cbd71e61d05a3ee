"""A cache's targets as an objective for estimators: all in memory, as probabilities."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from ensdistill.cache import TargetCache
from ensdistill.common.combiners import Combiner
from ensdistill.data import Rows
from ensdistill.data import batches as b
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.samples import Held, in_memory, whole
from ensdistill.data.versions import view_inputs
from ensdistill.loss.settings import LossSettings
from ensdistill.student.methods import SoftTargets
from ensdistill.student.sources import check_rows_only, versions_of
from ensdistill.student.trees.objective import Objective
from ensdistill.teachers.fitting.calibration import log_mixture


def of_cache(
    settings: LossSettings,
    rows: Rows,
    cache: TargetCache,
    member: str | None = None,
    augment: Augmentation | None = None,
) -> tuple[Any, Objective]:
    """Samples and objective of some rows of a cache; of one with versions all versions, one after the other.

    Raises
    ------
    CacheMismatch
        Other rows than the cache's, or another augmentation.
    ValueError
        Targets or labels that the loss can't be computed from.
    """
    loss = SoftTargets.of_member(settings, cache, member)
    loss.check(rows, len(cache.classes), cache)
    check_rows_only(cache)
    versions = versions_of(cache, rows, augment)
    if versions is None and not in_memory(rows.inputs):
        cache.verify_inputs(rows.uids, rows.inputs)
    p = np.concatenate([probabilities(settings, rows, cache, member, view) for view in range(cache.views)])
    labels = np.tile(rows.labels, cache.views)
    weights = None if rows.weights is None else np.tile(rows.weights, cache.views)
    objective = Objective.of(settings, p, labels, weights)
    if versions is None:
        return rows.inputs, objective
    inputs = whole(rows.inputs) if in_memory(rows.inputs) else rows.inputs[np.arange(len(rows))]
    made = [
        view_inputs(versions.augment, inputs, rows.uids, view, versions.seed) for view in range(cache.views)
    ]
    if not in_memory(rows.inputs):
        cache.verify_inputs(rows.uids, made[0])
    joined = b.join(made)
    return (joined if isinstance(joined, np.ndarray) else Held(joined)), objective


def probabilities(
    settings: LossSettings, rows: Rows, cache: TargetCache, member: str | None = None, view: int = 0
) -> np.ndarray:
    """The mixture's probabilities at the loss's temperature, or a member's: float64 [N, C]."""
    logits = cache.gather_logits(rows.uids, view)
    if cache.temperature is not None:  # log-probabilities of the mixture, at this temperature already
        return np.exp(log_mixture(logits, np.ones(1)))
    weights = cache.weights / cache.weights.sum()
    if member is not None:
        logits, weights = logits[[cache.names.index(member)]], np.ones(1)
    combiner = cast(Combiner, settings.combiner or cache.combiner)
    return np.exp(log_mixture(logits, weights, combiner, settings.temperature))
