"""A student's part of the transfer set: the weight of synthetic rows, and the targets of labelled ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensdistill.cache import TargetCache, cache_targets
from ensdistill.cache.floors import TEMPERATURE
from ensdistill.data import Rows
from ensdistill.job.config import other_targets_refused
from ensdistill.job.predictions import HeldOut
from ensdistill.job.rows_config import StudentRows
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.search_config import enough_judge
from ensdistill.job.stored import labelled_targets, of_transfer
from ensdistill.job.unit import Unit
from ensdistill.teachers import Ensemble

REAL = ("labelled", "pool")  # the parts of a transfer set that are no synthetic rows


class Stored:
    """An ensemble that returns logits from a cache of its members, so that no member predicts again."""

    def __init__(self, ensemble: Ensemble, cache: TargetCache) -> None:
        self.ensemble, self.cache = ensemble, cache
        self.weights, self.names, self.classes = ensemble.weights, ensemble.names, ensemble.classes
        self.combiner, self.apply_temperatures = ensemble.combiner, ensemble.apply_temperatures
        self.task = ensemble.task

    def __len__(self) -> int:
        return len(self.ensemble)

    def for_uids(self, uids: np.ndarray, among: np.ndarray | None = None) -> StoredRows:
        return StoredRows(self.cache, uids)

    def weighted(self) -> Stored:
        return Stored(self.ensemble.weighted(), self.cache)  # the cache holds these members alone

    def fingerprint(self) -> dict[str, Any]:
        return {**self.ensemble.fingerprint(), "stored": self.cache.manifest["codec"]}


@dataclass(frozen=True)
class StoredRows:
    """The stored logits of some uids."""

    cache: TargetCache
    uids: np.ndarray

    def predict_logits(self, inputs: Any) -> torch.Tensor:
        return torch.from_numpy(self.cache.gather_logits(self.uids))


def student_rows(
    run: RunFolder, seed: int, given: StudentRows | None, folder: Path, *, write: bool = True
) -> tuple[Rows, TargetCache]:
    """The rows of a seed that a student learns from, and their targets.

    Parameters
    ----------
    run : RunFolder
    seed : int
    given : StudentRows or None
        None: the transfer set as it is.
    folder : path
        Where a cache is written if labelled rows have other targets than in the job's cache.
    write : bool
        False: another process has written it.
    """
    rows = run.transfer(seed)
    cache = TargetCache.open(run.of(Unit("cache", seed)) / "targets", trusted=run.trusted)
    if given is None:
        return rows, cache
    if given.labelled not in (None, run.config.cache.labelled):
        if write:
            cache = _with_labelled(run, seed, given, rows, cache, folder)
        else:
            cache = TargetCache.open(folder, trusted=run.trusted)
    real = real_rows(run, seed)
    if given.synthetic == 0:
        return rows.take(np.arange(real)), cache
    if given.synthetic != 1:
        weights = np.ones(len(rows)) if rows.weights is None else rows.weights.copy()
        weights[real:] *= given.synthetic
        rows = replace(rows, weights=weights)
    return rows, cache


def real_rows(run: RunFolder, seed: int) -> int:
    """The number of rows of the transfer set that are not synthetic; they come first."""
    return sum(count for name, count in run.record(Unit("cache", seed))["origin"] if name in REAL)


def _with_labelled(
    run: RunFolder, seed: int, given: StudentRows, rows: Rows, cache: TargetCache, folder: Path
) -> TargetCache:
    config = run.config.cache
    ensemble: Any = Ensemble.load(run.of(Unit("teachers", seed)) / "ensemble", run.trusted)
    if ensemble.task == "regression":  # a cache holds standardised numbers: the members predict again
        ensemble = of_transfer(ensemble, run.config.split(seed), config)
    else:
        ensemble = Stored(ensemble, cache)
    settings = replace(config, labelled=given.labelled or config.labelled)
    return cache_targets(
        labelled_targets(ensemble, settings, run.held_out(seed)),
        rows,
        folder,
        codec=config.codec,
        max_temperature=max(TEMPERATURE, run.config.distill.max_temperature),
        seed=seed,
        overwrite=True,
    )


def choices(run: RunFolder, seed: int) -> dict[str, StudentRows | None]:
    """The parts of the transfer set among which a search chooses, by name; ``given`` is all of it."""
    config, found = run.config.cache, dict[str, StudentRows | None]({"given": None})
    origin = dict(run.record(Unit("cache", seed))["origin"])
    if any(name not in REAL for name in origin):
        found["a quarter of the synthetic rows' weight"] = StudentRows(synthetic=0.25)
        # The rows that judge come from all parts alike, so the real rows have to be enough for them.
        if run.config.validation(seed) is not None or enough_judge(origin.get("pool", 0)):
            found["no synthetic rows"] = StudentRows(synthetic=0.0)
    if other_targets_refused(config):
        return found
    found["labels mixed in"] = StudentRows(labelled="mixed")
    if HeldOut.read(run.held_out(seed)).judged.all():
        found["out of fold"] = StudentRows(labelled="out_of_fold")
    return found
