"""The rows of a search: those that students learn from, and those that judge them. No test row is among
them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from ensdistill.cache import TargetCache
from ensdistill.common.combiners import Combiner
from ensdistill.common.random import random_generator
from ensdistill.common.tasks import Task, task_of
from ensdistill.data import UNLABELLED, Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.samples import as_samples, form, joined
from ensdistill.loss import targets
from ensdistill.student.search.families import About, Candidate
from ensdistill.student.search.space import TEMPERATURES, Role, Space
from ensdistill.student.sources import CachedTargets, RowTargets, Versions
from ensdistill.student.units import rows_of_task, units_of
from ensdistill.teachers.fitting.calibration import log_mixture
from ensdistill.teachers.fitting.gaussian import mixture_moments
from ensdistill.teachers.fitting.multilabel import mixture_of_labels
from ensdistill.teachers.members.moments import Moments, as_moments, check_moments

# A floor, no promise: what is kept is a ratio of two differences, whose interval widens without bound as the
# ensemble's gain nears 0. The result has the interval.
LEAST = 203
SHARE = 0.25  # of the rows that may be held out
TINY = 1e-12  # the least probability


class TooFewRows(ValueError):
    """There are too few rows to judge students by."""


@dataclass(frozen=True, eq=False)
class Judged:
    """The rows that judge: never learned from by a student, their labels never by a member.

    Parameters
    ----------
    rows : Rows
        V samples, with uids of their own; some have no label.
    ensemble : ndarray [V, C], float64, or Moments [V, D]
        The ensemble's probabilities, or means and variances.
    """

    rows: Rows
    ensemble: Any

    @property
    def task(self) -> Task:
        return self.rows.task

    @property
    def labelled(self) -> np.ndarray:
        return self.rows.known


@dataclass(frozen=True, eq=False)
class Lessons:
    """Everything that students of a search learn from and are judged by.

    Parameters
    ----------
    mixtures : dict of str to (Rows, TargetCache)
        Transfer sets by name, without the rows that judge.
    direct : Rows
        The rows with a label, for the direct student.
    judged : Judged
    augment : Augmentation or None
        Of the caches.
    asked : int
        Rows that judge and are not of the caches: the ensemble predicted them besides.
    synthetic : int
        Synthetic rows among those that judge.
    """

    mixtures: Mapping[str, tuple[Rows, TargetCache]]
    direct: Rows
    judged: Judged
    augment: Augmentation | None = None
    asked: int = 0
    synthetic: int = 0

    @property
    def first(self) -> tuple[Rows, TargetCache]:
        return next(iter(self.mixtures.values()))

    @property
    def about(self) -> About:
        rows, cache = self.first
        most = max(len(own) for own, _ in self.mixtures.values())
        return about_of(rows.inputs, most, len(self.direct), len(cache.classes), self.judged.task)

    @property
    def variances(self) -> bool:
        """Whether the ensemble has variances, which a network may learn."""
        return self.judged.task == "regression" and self.judged.ensemble.variance is not None

    def source(self, mixture: str) -> JudgedSource:
        return JudgedSource(self.mixtures[mixture][1], self.judged, self.augment)

    def space(self, candidate: Candidate, role: Role, steps: int) -> Space:
        """The values that a trial of a candidate may have; ``steps`` are those of an ordinary training."""
        rows, cache = self.first
        most = math.inf if cache.max_temperature is None else cache.max_temperature
        warm = tuple(t for t in TEMPERATURES if cache.temperature in (None, t) and t <= most)
        task, network = self.judged.task, candidate.estimator is None
        return Space(
            candidate,
            role,
            steps,
            bool(rows.known.any()),
            tuple(self.mixtures),
            (1.0,) if task == "regression" else warm,
            task,
            self.variances and network,
        )


def about_of(inputs: Any, rows: int, labelled: int, classes: int, task: Task) -> About:
    """The data of these samples, by which families have candidates."""
    described = form(as_samples(inputs))
    shape = tuple(described.get("shape") or ())
    gaps = isinstance(inputs, np.ndarray) and inputs.dtype.kind == "f" and bool(np.isnan(inputs).any())
    return About(
        described["kind"], shape, rows, labelled, classes, gaps, task, str(described.get("dtype", ""))
    )


def lessons(
    mixtures: Mapping[str, tuple[Rows, TargetCache]],
    validation: Rows | None,
    ensemble: Any,
    augment: Augmentation | None,
    seed: int,
    real: int | None = None,
) -> Lessons:
    """Divide the rows.

    Labelled rows of ``validation`` judge. Where they are fewer than ``LEAST``, rows without a label are held
    out of the transfer sets, the same rows of each: those that come first in the rows, which is the pool
    where there is one. The rows of the first mixture after the first ``real`` ones are synthetic.

    Raises
    ------
    TooFewRows
        Fewer than 203 rows; says how many are needed.
    ValueError
        Validation rows that are learned from, a label or predictions that don't fit, or no labelled row for
        the direct student.
    """
    rows, cache = next(iter(mixtures.values()))
    task, classes = task_of(cache), len(cache.classes)
    for name, (_, target) in mixtures.items():
        if tuple(target.classes) != tuple(cache.classes) or task_of(target) != task:
            raise ValueError(f"mixtures: expected caches of the same classes; those of {name!r} differ")
    mixtures = {
        name: (rows_of_task(own, task, classes, "rows.labels"), target)
        for name, (own, target) in mixtures.items()
    }
    rows = next(iter(mixtures.values()))[0]
    made = rows.uids[len(rows) if real is None else real :]
    if cache.temperature not in (None, 1.0):
        raise ValueError(
            f"cache: expected every member's logits, or the mixture at temperature 1; {cache.path} holds the "
            f"mixture at {cache.temperature:g} only"
        )
    given = _given(validation, ensemble, mixtures, cache)
    held = np.zeros(0, np.int64)
    short = LEAST - (0 if given is None else len(given.rows))
    if short > 0:
        held = _held_out(rows, mixtures, short, seed)
    parts = [] if given is None else [given]
    if len(held):
        places = np.flatnonzero(np.isin(rows.uids, held))
        own = rows.take(places).without_labels()
        parts.append(Judged(own, mixture_of(cache, own.uids)))
    first = 1 + max(int(own.uids.max(initial=0)) for own, _ in mixtures.values())
    samples = joined([part.rows.inputs for part in parts])
    labels = np.concatenate([part.rows.labels for part in parts])
    judged = Judged(
        Rows(samples, first + np.arange(len(labels), dtype=np.int64), labels),
        _joined([part.ensemble for part in parts]),
    )
    remaining = {
        name: (own.take(~np.isin(own.uids, held)), target) for name, (own, target) in mixtures.items()
    }
    learned, _ = remaining[next(iter(remaining))]
    direct = learned.take(learned.known)
    if not len(direct):
        raise ValueError(
            "rows.labels: expected rows with a label, from which the direct student learns that the search "
            f"compares with; none of the {len(learned)} rows has one"
        )
    if task == "classification" and (direct.labels.max() >= classes or direct.labels.min() < 0):
        raise ValueError(f"rows.labels: expected 0..{classes - 1} or {UNLABELLED}")
    asked = 0 if given is None or ensemble is None else len(given.rows)
    return Lessons(remaining, direct, judged, augment, asked, int(np.isin(held, made).sum()))


def _joined(parts: Sequence[Any]) -> Any:
    if not isinstance(parts[0], Moments):
        return np.concatenate(parts)
    variances = [one.variance for one in parts if one.variance is not None]
    variance = np.concatenate(variances) if len(variances) == len(parts) else None
    return Moments(np.concatenate([one.mean for one in parts]), variance)


def _given(
    validation: Rows | None,
    ensemble: Any,
    mixtures: Mapping[str, tuple[Rows, TargetCache]],
    cache: TargetCache,
) -> Judged | None:
    """The rows that the caller has for the judgement, checked."""
    if validation is None:
        if ensemble is not None:
            raise ValueError("ensemble: expected none without validation; got predictions")
        return None
    if not isinstance(validation, Rows):
        raise TypeError(
            f"validation: expected Rows that the ensemble did not learn from; got {type(validation).__name__}"
        )
    for name, (own, _) in mixtures.items():
        both = np.intersect1d(own.uids, validation.uids)
        if ensemble is None and len(both):
            raise ValueError(
                f"validation: uid {both[0]} is among the rows of {name!r} that students learn from, too "
                f"({len(both)} such uids); take them out"
            )
    task, count = task_of(cache), len(cache.classes)
    validation = rows_of_task(validation, task, count, "validation")
    if ensemble is None:
        missing = ~np.isin(validation.uids, cache.uids)
        if missing.any():
            what, method = "probabilities", "predict_proba"
            if task == "regression":
                what, method = "means and variances", "predict_distribution"
            raise ValueError(
                f"ensemble: expected the ensemble's {what} [{len(validation)}, {count}] of the validation "
                f"rows, because the cache has no targets for {int(missing.sum())} of them (uid "
                f"{validation.uids[missing][0]}): pass ensemble.{method}(validation.inputs)"
            )
        ensemble = mixture_of(cache, validation.uids)
    if task == "regression":
        mean, variance = ensemble if isinstance(ensemble, tuple) else (ensemble, None)
        moments = as_moments("ensemble", mean, variance)
        return Judged(validation, check_moments(moments, "ensemble", len(validation), cache.classes))
    values = np.asarray(ensemble, np.float64)
    wanted = (len(validation), count)
    if values.shape != wanted:
        raise ValueError(f"ensemble: expected probabilities {list(wanted)}; got {list(values.shape)}")
    if not np.isfinite(values).all() or (values < 0).any() or (values > 1 + 1e-6).any():
        raise ValueError("ensemble: expected probabilities, from 0 to 1; got other numbers")
    if task == "multilabel":
        return Judged(validation, np.clip(values, 0.0, 1.0))
    if (abs(values.sum(1) - 1) > 1e-3).any():
        raise ValueError("ensemble: expected probabilities, whose rows sum to one; got other numbers")
    known = validation.labels[validation.known]
    if len(known) and (known.min() < 0 or known.max() >= count):
        raise ValueError(f"validation: expected labels 0..{count - 1} or {UNLABELLED}")
    return Judged(validation, values)


def _held_out(
    rows: Rows, mixtures: Mapping[str, tuple[Rows, TargetCache]], needed: int, seed: int
) -> np.ndarray:
    """The uids of rows without a label that judge, of those that all transfer sets have."""
    common = rows.uids[~rows.known]
    for own, _ in mixtures.values():
        common = common[np.isin(common, own.uids)]
    if SHARE * len(common) < needed:
        raise TooFewRows(
            f"validation: expected at least {LEAST} rows that judge; {LEAST - needed} were given, and a "
            f"quarter of the {len(common)} rows without a label is {int(SHARE * len(common))}: pass {needed} "
            "more labelled rows that the ensemble did not learn from, or a transfer set with "
            f"{math.ceil(needed / SHARE)} rows without a label"
        )
    # The first rows are the pool where there is one; they are real, synthetic ones are not.
    start = common[: math.ceil(needed / SHARE)]
    drawn = random_generator("rows that judge", seed).permutation(len(start))[:needed]
    return np.sort(start[drawn])


def mixture_of(cache: TargetCache, uids: np.ndarray) -> Any:
    """The mixture's probabilities at temperature 1, float64 [N, C], or its Moments [N, D]."""
    weights, combiner = cache.weights / cache.weights.sum(), cast(Combiner, cache.combiner)
    if cache.temperature is not None:  # the cache holds the mixture alone
        weights, combiner = np.ones(1), "prob"
    if (task := task_of(cache)) == "regression":
        members, variances = cache.gather_moments(uids)
        weights = weights if len(weights) == len(members) else np.ones(1)
        mean, within, between = mixture_moments(members, variances, weights)
        silent = variances is None and len(members) == 1
        return Moments(mean, None if silent else within + between)
    logits = cache.gather_logits(uids)
    if task == "multilabel":
        return mixture_of_labels(logits, weights, combiner)
    return np.exp(log_mixture(logits, weights, combiner))


class JudgedSource:
    """A cache's targets, and those of the rows that judge; see
    :class:`ensdistill.student.sources.TargetSource`."""

    def __init__(self, cache: TargetCache, judged: Judged, augment: Augmentation | None) -> None:
        self.cache, self.judged, self.augment = cache, judged, augment
        self.names, self.weights, self.combiner = cache.names, cache.weights, cache.combiner
        self.temperature, self.max_temperature = cache.temperature, cache.max_temperature
        self.task = judged.task

    def for_rows(self, rows: Rows, augment: Augmentation | None) -> RowTargets:
        if len(rows) and rows.uids[0] >= self.judged.rows.uids[0]:
            return JudgedTargets(self.judged, self.cache)
        return CachedTargets(self.cache, rows, self.augment)


class JudgedTargets:
    """The targets of the rows that judge, of a regression in the units of a cache; see
    :class:`ensdistill.student.sources.RowTargets`."""

    versions: Versions | None = None
    needs_samples = False
    compared: Any = "none"

    def __init__(self, judged: Judged, cache: TargetCache) -> None:
        self.classes, self.task = len(cache.classes), judged.task
        self.first = int(judged.rows.uids[0])
        units = units_of(judged.task, cache)
        self.location = None if units is None else units.location
        self.scale = None if units is None else units.scale
        values, spread = judged.ensemble, None
        if units is not None:
            values, variance = (judged.ensemble.mean - units.location) / units.scale, judged.ensemble.variance
            spread = None if variance is None else variance / np.square(units.scale)
        if judged.task == "multilabel":
            least = np.clip(values, TINY, 1 - TINY)
            values = np.log(least) - np.log1p(-least)
        self.values = torch.from_numpy(values.astype(np.float32))
        self.spread = None if spread is None else torch.from_numpy(spread.astype(np.float32))

    def of(self, uids: np.ndarray, epochs: np.ndarray, samples: Any) -> Any:
        at = torch.from_numpy(uids - self.first)
        if self.task == "classification":
            return targets.Probs(self.values[at], temperature=1.0)
        alone = torch.ones(1, dtype=torch.float64)
        if self.task == "multilabel":
            return targets.EnsembleLogits(self.values[None, at], alone)
        spread = None if self.spread is None else self.spread[None, at]
        return targets.Moments(self.values[None, at], spread, alone)

    def check(self, uids: np.ndarray, epochs: np.ndarray, hashes: np.ndarray, form: dict[str, Any]) -> None:
        pass

    def fingerprint(self) -> list[Any]:
        spread = [] if self.spread is None else [self.spread.numpy()]
        return [self.values.numpy(), *spread]

    def close(self) -> None:
        pass


def some_samples(rows: Rows, count: int) -> Any:
    """The first samples, in the container that models take."""
    return as_samples(rows.inputs)[np.arange(min(count, len(rows)))]
