"""A cache's targets as an objective for estimators: all in memory, as probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ensdistill.cache import TargetCache
from ensdistill.common.combiners import Combiner
from ensdistill.data import Rows
from ensdistill.data import batches as b
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.samples import Held, in_memory, whole
from ensdistill.data.tasks import UNKNOWN, UNLABELLED
from ensdistill.data.versions import view_inputs
from ensdistill.loss.gaussian import gaussian_moments
from ensdistill.loss.regression import RegressionSettings
from ensdistill.loss.settings import LossSettings
from ensdistill.student.comparisons import present
from ensdistill.student.methods import MomentTargets, SoftLabels, SoftTargets, loss_by_task
from ensdistill.student.sources import check_rows_only, versions_of
from ensdistill.student.trees.objective import Objective
from ensdistill.student.units import rows_of_task
from ensdistill.teachers.fitting.calibration import log_mixture


@dataclass(frozen=True, eq=False)
class Numbers:
    """What a regressor is fitted to.

    Parameters
    ----------
    targets : ndarray [N, D], float64
        The mixture's means in the data's units, mixed with the labels where these have a share.
    weights : ndarray [N], float64
    """

    targets: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(
        cls, alpha: float, targets: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> Numbers:
        """Of means [N, D] and labels [N, D], NaN where unknown: the squared errors of both, alpha and
        1 - alpha, are up to a constant that of one target with a weight.

        Examples
        --------
        >>> found = Numbers.of(0.75, np.array([[1.0], [2.0]]), np.array([[3.0], [np.nan]]))
        >>> found.targets.tolist(), found.weights.tolist()
        ([[1.8], [2.0]], [1.25, 0.75])
        """
        relative = np.ones(len(targets)) if weights is None else np.array(weights, np.float64)
        used = relative > 0
        relative /= max(relative[used].mean(), 1e-300) if used.any() else 1
        known = ~np.isnan(labels).any(1) & used
        factor = int(used.sum()) / max(int(known.sum()), 1)
        soft, hard = alpha * relative, (1 - alpha) * factor * relative * known
        total = soft + hard
        mixed = soft[:, None] * targets + hard[:, None] * np.where(known[:, None], labels, 0)
        return cls(mixed / np.where(total > 0, total, 1)[:, None], total)


def numbers_of_cache(
    alpha: float,
    rows: Rows,
    cache: TargetCache,
    member: str | None = None,
    augment: Augmentation | None = None,
) -> tuple[Any, Numbers]:
    """As :func:`of_cache`, for the means of a regression's cache."""
    loss = loss_by_task(RegressionSettings(alpha=alpha), cache, member)
    rows = rows_of_task(rows, "regression", len(cache.classes))
    loss.check(rows, len(cache.classes), cache)
    assert isinstance(loss, MomentTargets)
    assert cache.location is not None
    samples, labels, weights = _of_versions(rows, cache, augment)
    means = []
    for view in range(cache.views):
        targets: Any = cache.gather(rows.uids, view)
        share = targets.weights if loss.weights is None else loss.weights
        means.append(gaussian_moments(targets.mean.double(), weights=share)[0].numpy())
    wanted = cache.location + cache.scale * np.concatenate(means)
    return samples, Numbers.of(alpha, wanted, labels, weights)


def labels_of_cache(
    settings: LossSettings,
    rows: Rows,
    cache: TargetCache,
    member: str | None = None,
    augment: Augmentation | None = None,
) -> tuple[Any, list[Objective]]:
    """As :func:`of_cache`, with an objective of two classes for each label of a multi-label cache."""
    loss = SoftLabels.of_member(settings, cache, member)
    rows = rows_of_task(rows, "multilabel", len(cache.classes))
    loss.check(rows, len(cache.classes), cache)
    samples, labels, weights = _of_versions(rows, cache, augment)
    parts = [
        present(cache.gather(rows.uids, view), settings, loss.weights).double().numpy()
        for view in range(cache.views)
    ]
    p = np.concatenate(parts)
    hard = np.where(labels == UNKNOWN, UNLABELLED, labels.astype(np.int64))
    return samples, [
        Objective.of(settings, np.stack([1 - p[:, c], p[:, c]], 1), hard[:, c], weights)
        for c in range(p.shape[1])
    ]


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
    samples, labels, weights = _of_versions(rows, cache, augment)
    p = np.concatenate([probabilities(settings, rows, cache, member, view) for view in range(cache.views)])
    return samples, Objective.of(settings, p, labels, weights)


def _of_versions(
    rows: Rows, cache: TargetCache, augment: Augmentation | None
) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """The samples of all versions, which are compared with the cache, their labels and their weights."""
    check_rows_only(cache)
    versions = versions_of(cache, rows, augment)
    if versions is None and not in_memory(rows.inputs):
        cache.verify_inputs(rows.uids, rows.inputs)
    labels = np.concatenate([rows.labels] * cache.views)
    weights = None if rows.weights is None else np.tile(rows.weights, cache.views)
    if versions is None:
        return rows.inputs, labels, weights
    inputs = whole(rows.inputs) if in_memory(rows.inputs) else rows.inputs[np.arange(len(rows))]
    made = [
        view_inputs(versions.augment, inputs, rows.uids, view, versions.seed) for view in range(cache.views)
    ]
    if not in_memory(rows.inputs):
        cache.verify_inputs(rows.uids, made[0])
    joined = b.join(made)
    return (joined if isinstance(joined, np.ndarray) else Held(joined)), labels, weights


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
