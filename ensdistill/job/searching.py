"""The stage ``search``: the model and the settings of a student that has a goal in place of them."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.cache import TargetCache
from ensdistill.common.progress import UnitProgress
from ensdistill.job.config import Config
from ensdistill.job.run_folder import RunFolder, Unit
from ensdistill.job.search_config import too_few
from ensdistill.student.search import OtherSearch, SearchResult, search_student
from ensdistill.student.search.journal import optuna_of
from ensdistill.teachers import Ensemble


def search(run: RunFolder, unit: Unit, folder: Path, report: UnitProgress) -> dict[str, Any]:
    """Search for one student on one seed's rows; the record has its ``section`` of YAML.

    The journal in ``folder/journal`` outlives a kill. One of another cache or other settings is begun anew:
    the stage's digest has found it out of date.
    """
    config, seed = run.config, unit.seed
    student = config.distill.students[unit.student]
    source = run.of(Unit("cache", seed)) / "targets"
    validation, probabilities = config.validation(seed), None
    if validation is not None:
        ensemble = Ensemble.load(run.of(Unit("teachers", seed)) / "ensemble", run.trusted)
        asked = ensemble.for_uids(validation.uids)
        probabilities = np.asarray(asked.predict_proba(validation.inputs), np.float64)
    find = partial(
        search_student,
        run.transfer(seed),
        TargetCache.open(source, trusted=run.trusted),
        validation=validation,
        ensemble=probabilities,
        augment=config.cache.augment,
        settings=student.search_settings(minutes_of_each(config), config.trials),
        folder=folder / "journal",
        seed=seed,
        progress=lambda done, total: report("search", done, total),
    )
    try:
        found: SearchResult = find()
    except OtherSearch:
        shutil.rmtree(folder / "journal")
        found = find()
    found.save(folder / "result.json")
    (folder / "student.yaml").write_text(found.yaml(unit.student), encoding="utf-8")
    point = found.chosen or found.nearest
    assert point is not None
    shutil.rmtree(folder / "journal")
    return {"section": dict(point.section), "kept": found.chosen is not None}


def minutes_of_each(config: Config) -> float:
    """The share of the minutes that each search has."""
    return config.minutes / max(1, config.seeds * len(config.searched))


def check_search(config: Config) -> None:
    """Refuse, before the teachers are trained, searches that have too few rows, or lack a package.

    Raises
    ------
    ValueError
        Names the setting.
    ModuleNotFoundError
        Optuna is not installed.
    """
    if not config.searched:
        return
    optuna_of()
    for seed in range(config.seeds):
        if reason := too_few(config.split(seed), config.validation(seed), config.cache.transfer):
            raise ValueError(
                f"distill.students.{config.searched[0]}: {reason} (seed {seed}), or name a model in place of "
                "keep and max_*"
            )
