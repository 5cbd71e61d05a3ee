"""The preflight of a run: its ensemble's lead and its members' spread, from the files of its first stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ensdistill.cache import TargetCache
from ensdistill.common.random import random_generator
from ensdistill.job.run_folder import RunFolder, Unit
from ensdistill.student.choices import HELD_OUT
from ensdistill.student.preflight import HeldOut, Preflight, Spread, mean_spread, preflight
from ensdistill.teachers import Ensemble

ROWS = 4096  # of each origin, by which the members' spread is measured


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
    return preflight([_held_out(run, seed) for seed in seeds], _spreads(run, seeds))


def _held_out(run: RunFolder, seed: int) -> HeldOut:
    unit = Unit("teachers", seed)
    stored = load_file(run.held_out(seed))
    ensemble = Ensemble.load(run.of(unit) / "ensemble", run.trusted)
    direct = {}
    for name in run.config.distill.students:
        file = _direct_file(run, seed, name)
        if file is not None:
            direct[name] = load_file(file)["logits"]
    best = run.record(unit)["best_member"]
    return HeldOut(ensemble, best, stored["logits"], stored["labels"], direct)


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
            spread = Spread.of(cache.gather_logits(chosen), cache.weights, count)
            found.setdefault(name, []).append(spread)
    return {name: mean_spread(parts) for name, parts in found.items()}
