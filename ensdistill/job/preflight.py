"""The preflight of a run: its ensemble's lead and its members' spread, from the files of its first stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ensdistill.cache import TargetCache
from ensdistill.common.random import random_generator
from ensdistill.job.prepared import prepare_student
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.unit import Unit
from ensdistill.student.preflight import HeldOut, Preflight, Spread, mean_spread, preflight
from ensdistill.student.units import Units
from ensdistill.teachers import Ensemble
from ensdistill.teachers.choices import HELD_OUT
from ensdistill.teachers.members.moments import Moments, of_arrays

ROWS = 4096  # of each origin, by which the members' spread is measured
PREPARED = 2000  # rows that a preprocess is fitted to where only the student's size is needed


def run_preflight(run: RunFolder) -> Preflight:
    """Judge the run's ensemble by its stages ``teachers`` and ``cache``, and by ``direct`` where it is
    finished.

    Raises
    ------
    ValueError
        No seed has a finished cache, or a member has no held-out predictions.
    """
    seeds = [s for s in range(run.config.seeds) if run.is_finished(Unit("cache", s))]
    if not seeds:
        raise ValueError(f"run: {run.path} has no finished cache; `ensdistill cache build` makes it")
    held_out = [_held_out(run, seed) for seed in seeds]
    return preflight(held_out, _spreads(run, seeds), _counts(run, seeds[0]), _sizes(run, seeds[0], held_out))


def _counts(run: RunFolder, seed: int) -> dict[str, int]:
    """Rows of the transfer set by origin."""
    found: dict[str, int] = {}
    for name, count in run.record(Unit("cache", seed))["origin"]:
        found[name] = found.get(name, 0) + count
    return found


def _sizes(run: RunFolder, seed: int, held_out: Sequence[HeldOut]) -> dict[str, float | None]:
    """Each student's parameters, over those of the median member with weight; None of an estimator. A student
    that is yet to be found or made has no entry."""
    members = held_out[0].ensemble.weighted().members
    median = float(np.median([member.parameters for member in members]))
    found: dict[str, float | None] = {}
    for name in run.config.distill.students:
        if all(run.is_finished(one) for one in run.makers(Unit("direct", seed, name))):
            count = _parameters(run, seed, name)
            found[name] = count / median if count and median > 0 else None
    return found


def _parameters(run: RunFolder, seed: int, name: str) -> int | None:
    student = run.student(name, seed)
    if student.estimator is not None:
        return None
    split = run.config.split(seed)
    some: Any = split.labelled.take(np.arange(min(len(split.labelled), PREPARED)))
    small = replace(split, labelled=some, pool=split.pool.take(np.arange(0)))
    return sum(p.numel() for p in prepare_student(student, small, seed).factory().parameters())


def _held_out(run: RunFolder, seed: int) -> HeldOut:
    unit = Unit("teachers", seed)
    stored = load_file(run.held_out(seed))
    ensemble = Ensemble.load(run.of(unit) / "ensemble", run.trusted)
    direct = {}
    for name in run.config.distill.students:
        file = _direct_file(run, seed, name)
        if file is not None:
            direct[name] = of_arrays(load_file(file))
    best = run.record(unit)["best_member"]
    return HeldOut(ensemble, best, of_arrays(stored), stored["labels"], direct)


def _scale(run: RunFolder, seed: int) -> np.ndarray:
    """The deviations of the labelled rows' numbers."""
    return Units.of_labels(run.config.split(seed).labelled.labels).scale


def _direct_file(run: RunFolder, seed: int, name: str) -> Path | None:
    unit = Unit("direct", seed, name)
    file = run.of(unit) / HELD_OUT
    return file if run.is_finished(unit) and file.is_file() else None


def _spreads(run: RunFolder, seeds: list[int]) -> dict[str, Spread]:
    """The spread on the rows of each origin of the transfer set; none where the cache holds no members."""
    found: dict[str, list[Spread]] = {}
    for seed in seeds:
        folder, first = run.of(Unit("cache", seed)), 0
        cache = TargetCache.open(folder / "targets", trusted=run.trusted)
        if cache.temperature is not None:
            continue
        for name, count in run.record(Unit("cache", seed))["origin"]:
            uids = first + np.arange(count)
            first += count
            if not count:
                continue
            random = random_generator("preflight", seed, name)
            chosen = np.sort(random.choice(uids, min(count, ROWS), replace=False))
            if cache.task == "regression":
                moments, scale = Moments(*cache.gather_moments(chosen)), _scale(run, seed)
                spread = Spread.of_moments(moments, cache.weights, count, scale)
            else:
                spread = Spread.of(cache.gather_logits(chosen), cache.weights, count, cache.task)
            found.setdefault(name, []).append(spread)
    return {name: mean_spread(parts) for name, parts in found.items()}
