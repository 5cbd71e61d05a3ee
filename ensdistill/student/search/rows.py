"""The rows of a search: those that students learn from, and those that judge them. No test row is among
them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from ensdistill.cache import TargetCache
from ensdistill.common.combiners import Combiner
from ensdistill.common.random import random_generator
from ensdistill.data import UNLABELLED, Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.samples import as_samples, form, joined, subset
from ensdistill.loss.targets import Probs
from ensdistill.student.search.families import About, Candidate
from ensdistill.student.search.space import TEMPERATURES, Role, Space
from ensdistill.student.sources import CachedTargets, RowTargets, Versions
from ensdistill.teachers.fitting.calibration import log_mixture

# At 203 rows the 95 % interval of a share of 0.95 is ±0.03: 0.95 · 0.05 · (1.96 / 0.03)².
LEAST = math.ceil(0.95 * 0.05 * (1.96 / 0.03) ** 2)
SHARE = 0.25  # of the rows that may be held out


class TooFewRows(ValueError):
    """There are too few rows to judge students by."""


@dataclass(frozen=True, eq=False)
class Judged:
    """The rows that judge: never learned from by a student, their labels never by a member.

    Parameters
    ----------
    rows : Rows
        V samples, with uids of their own; labels of -100 where they have none.
    ensemble : ndarray [V, C], float64
        The ensemble's probabilities.
    """

    rows: Rows
    ensemble: np.ndarray

    @property
    def labelled(self) -> np.ndarray:
        return self.rows.labels != UNLABELLED


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
    """

    mixtures: Mapping[str, tuple[Rows, TargetCache]]
    direct: Rows
    judged: Judged
    augment: Augmentation | None = None
    asked: int = 0

    @property
    def first(self) -> tuple[Rows, TargetCache]:
        return next(iter(self.mixtures.values()))

    @property
    def about(self) -> About:
        rows, cache = self.first
        described = form(as_samples(rows.inputs))
        most = max(len(own) for own, _ in self.mixtures.values())
        shape = tuple(described.get("shape") or ())
        inputs = rows.inputs
        gaps = isinstance(inputs, np.ndarray) and inputs.dtype.kind == "f" and bool(np.isnan(inputs).any())
        return About(described["kind"], shape, most, len(self.direct), len(cache.classes), gaps)

    def source(self, mixture: str) -> JudgedSource:
        return JudgedSource(self.mixtures[mixture][1], self.judged, self.augment)

    def space(self, candidate: Candidate, role: Role, steps: int) -> Space:
        """The values that a trial of a candidate may have; ``steps`` are those of an ordinary training."""
        rows, cache = self.first
        most = math.inf if cache.max_temperature is None else cache.max_temperature
        warm = tuple(t for t in TEMPERATURES if cache.temperature in (None, t) and t <= most)
        labels = bool((rows.labels >= 0).any())
        return Space(candidate, role, steps, labels, tuple(self.mixtures), warm)


def lessons(
    mixtures: Mapping[str, tuple[Rows, TargetCache]],
    validation: Rows | None,
    ensemble: np.ndarray | None,
    augment: Augmentation | None,
    seed: int,
) -> Lessons:
    """Divide the rows.

    Labelled rows of ``validation`` judge. Where they are fewer than ``LEAST``, rows without a label are held
    out of the transfer sets, the same rows of each: those that come first in the rows, which is the pool
    where there is one.

    Raises
    ------
    TooFewRows
        Fewer than 203 rows; says how many are needed.
    ValueError
        Validation rows that are learned from, a label or probabilities that don't fit, or no labelled row for
        the direct student.
    """
    rows, cache = next(iter(mixtures.values()))
    for name, (_, target) in mixtures.items():
        if tuple(target.classes) != tuple(cache.classes):
            raise ValueError(f"mixtures: expected caches of the same classes; those of {name!r} differ")
    if cache.temperature not in (None, 1.0):
        raise ValueError(
            f"cache: expected every member's logits, or the mixture at temperature 1; {cache.path} holds the "
            f"mixture at {cache.temperature:g} only"
        )
    classes = len(cache.classes)
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
        np.concatenate([part.ensemble for part in parts]),
    )
    remaining = {
        name: (own.take(~np.isin(own.uids, held)), target) for name, (own, target) in mixtures.items()
    }
    learned, _ = remaining[next(iter(remaining))]
    direct = learned.take(learned.labels != UNLABELLED)
    if not len(direct):
        raise ValueError(
            "rows.labels: expected rows with a label, from which the direct student learns that the search "
            f"compares with; none of the {len(learned)} rows has one"
        )
    if direct.labels.max() >= classes or direct.labels.min() < 0:
        raise ValueError(f"rows.labels: expected 0..{classes - 1} or {UNLABELLED}")
    asked = 0 if given is None or ensemble is None else len(given.rows)
    return Lessons(remaining, direct, judged, augment, asked)


def _given(
    validation: Rows | None,
    ensemble: np.ndarray | None,
    mixtures: Mapping[str, tuple[Rows, TargetCache]],
    cache: TargetCache,
) -> Judged | None:
    """The rows that the caller has for the judgement, checked."""
    if validation is None:
        if ensemble is not None:
            raise ValueError("ensemble: expected none without validation; got probabilities")
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
    if ensemble is None:
        missing = ~np.isin(validation.uids, cache.uids)
        if missing.any():
            raise ValueError(
                f"ensemble: expected the ensemble's probabilities [{len(validation)}, {len(cache.classes)}] "
                f"of the validation rows, because the cache has no targets for {int(missing.sum())} of them "
                f"(uid {validation.uids[missing][0]}): pass ensemble.predict_proba(validation.inputs)"
            )
        ensemble = mixture_of(cache, validation.uids)
    values = np.asarray(ensemble, np.float64)
    wanted = (len(validation), len(cache.classes))
    if values.shape != wanted:
        raise ValueError(f"ensemble: expected probabilities {list(wanted)}; got {list(values.shape)}")
    if not np.isfinite(values).all() or (values < 0).any() or (abs(values.sum(1) - 1) > 1e-3).any():
        raise ValueError("ensemble: expected probabilities, whose rows sum to one; got other numbers")
    known = validation.labels[validation.labels != UNLABELLED]
    if len(known) and (known.min() < 0 or known.max() >= len(cache.classes)):
        raise ValueError(f"validation: expected labels 0..{len(cache.classes) - 1} or {UNLABELLED}")
    return Judged(validation, values)


def _held_out(
    rows: Rows, mixtures: Mapping[str, tuple[Rows, TargetCache]], needed: int, seed: int
) -> np.ndarray:
    """The uids of rows without a label that judge, of those that all transfer sets have."""
    common = rows.uids[rows.labels == UNLABELLED]
    for own, _ in mixtures.values():
        common = common[np.isin(common, own.uids)]
    if SHARE * len(common) < needed:
        raise TooFewRows(
            f"validation: expected at least {LEAST} rows that judge, at which the 95 % interval of a share "
            f"of 0.95 is ±0.03; {LEAST - needed} were given, and a quarter of the {len(common)} rows without "
            f"a label is {int(SHARE * len(common))}: pass {needed} more labelled rows that the ensemble did "
            f"not learn from, or a transfer set with {math.ceil(needed / SHARE)} rows without a label"
        )
    # The first rows are the pool where there is one; they are real, synthetic ones are not.
    start = common[: math.ceil(needed / SHARE)]
    drawn = random_generator("rows that judge", seed).permutation(len(start))[:needed]
    return np.sort(start[drawn])


def mixture_of(cache: TargetCache, uids: np.ndarray) -> np.ndarray:
    """The mixture's probabilities at temperature 1, float64 [N, C]."""
    logits = cache.gather_logits(uids)
    if cache.temperature is not None:
        return np.exp(log_mixture(logits, np.ones(1)))
    weights = cache.weights / cache.weights.sum()
    return np.exp(log_mixture(logits, weights, cast(Combiner, cache.combiner)))


class JudgedSource:
    """A cache's targets, and those of the rows that judge; see
    :class:`ensdistill.student.sources.TargetSource`."""

    def __init__(self, cache: TargetCache, judged: Judged, augment: Augmentation | None) -> None:
        self.cache, self.judged, self.augment = cache, judged, augment
        self.names, self.weights, self.combiner = cache.names, cache.weights, cache.combiner
        self.temperature, self.max_temperature = cache.temperature, cache.max_temperature

    def for_rows(self, rows: Rows, augment: Augmentation | None) -> RowTargets:
        if len(rows) and rows.uids[0] >= self.judged.rows.uids[0]:
            return JudgedTargets(self.judged)
        return CachedTargets(self.cache, rows, self.augment)


class JudgedTargets:
    """The targets of the rows that judge; see :class:`ensdistill.student.sources.RowTargets`."""

    versions: Versions | None = None
    needs_samples = False
    compared: Any = "none"

    def __init__(self, judged: Judged) -> None:
        self.classes = judged.ensemble.shape[1]
        self.first = int(judged.rows.uids[0])
        self.values = torch.from_numpy(judged.ensemble.astype(np.float32))

    def of(self, uids: np.ndarray, epochs: np.ndarray, samples: Any) -> Probs:
        return Probs(self.values[torch.from_numpy(uids - self.first)], temperature=1.0)

    def check(self, uids: np.ndarray, epochs: np.ndarray, hashes: np.ndarray, form: dict[str, Any]) -> None:
        pass

    def fingerprint(self) -> list[Any]:
        return [self.values.numpy()]

    def close(self) -> None:
        pass


def some_samples(rows: Rows, count: int) -> Any:
    """The first samples."""
    return subset(rows.inputs, np.arange(min(count, len(rows))))
