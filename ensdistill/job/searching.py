"""The stage ``search``: the model and the settings of a student that has a goal in place of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file

from ensdistill.cache.errors import CacheError
from ensdistill.common.files import write_arrays
from ensdistill.common.progress import UnitProgress
from ensdistill.job.config import Config
from ensdistill.job.rows_config import StudentRows
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.search_config import GOALS, predictions, too_few
from ensdistill.job.student_config import WATCHING, StudentConfig, default_of
from ensdistill.job.student_rows import choices, real_rows, student_rows
from ensdistill.job.unit import Unit
from ensdistill.student.search import OtherSearch, Point, SearchResult, search_student
from ensdistill.student.search.journal import ABOUT, optuna_of
from ensdistill.student.search.ladders import check_sizes
from ensdistill.student.search.rows import LEAST, SHARE
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members.moments import as_arrays, of_arrays

JOURNAL, TARGETS, VALIDATION = "journal", "targets", "validation.safetensors"
TRIES = 50  # to remove a journal, a tenth of a second apart


def search(run: RunFolder, unit: Unit, folder: Path, report: UnitProgress) -> dict[str, Any]:
    """Search for one student on one seed's rows; the record has its ``section`` of YAML.

    Teachers and cache are those of the run's trial, which has no rows that judge, where the job has one. The
    journal in ``folder/journal`` outlives a kill. One of another cache or other settings is begun anew:
    the stage's digest has found it out of date. Other processes join by :func:`assist`.
    """
    validation, asked, source = run.config.validation(unit.seed), None, run.searching(unit.seed)
    if validation is not None:
        ensemble = Ensemble.load(source.of(Unit("teachers", unit.seed)) / "ensemble", run.trusted)
        asked = predictions(ensemble.for_uids(validation.uids), validation.inputs)
        write_arrays(folder / VALIDATION, as_arrays(asked))
    progress = partial(report, "search")
    try:
        found = _search(run, unit, asked, progress)
    except OtherSearch:
        _remove(folder / JOURNAL)
        found = _search(run, unit, asked, progress)
    found = _with_rows(found, choices(source, unit.seed))
    found.save(folder / "result.json")
    point = found.student
    (folder / "student.yaml").write_text(_without_search(run.config, unit.student, point.section))
    _remove(folder / JOURNAL)
    shutil.rmtree(folder / TARGETS, ignore_errors=True)
    (folder / VALIDATION).unlink(missing_ok=True)
    return {"section": dict(point.section), "kept": found.chosen is not None}


def _without_search(config: Config, name: str, section: Mapping[str, Any]) -> str:
    """Settings as YAML that follow the job's own as a second ``--config``: the found student in place of the
    search for it. Defaults remove the goals that the job has."""
    student: dict[str, Any] = {**dict.fromkeys(GOALS), "families": []}
    if "estimator" in section:  # which takes no setting of a network's training
        student |= {one.name: default_of(one) for one in fields(StudentConfig) if one.name in WATCHING}
    # Nothing uses a budget where this was the only student that is searched for.
    budget = dict.fromkeys(("minutes", "trials")) if config.searched == [name] else {}
    settings = {**budget, "distill": {"students": {name: {**student, **section}}}}
    return yaml.safe_dump(settings, sort_keys=False)


def _remove(journal: Path) -> None:
    """Remove a journal into which a helper that came late may still write: it is ended with the unit."""
    for _ in range(TRIES):
        shutil.rmtree(journal, ignore_errors=True)
        if not journal.exists():
            return
        time.sleep(0.1)


def assist(run: RunFolder, unit: Unit) -> None:
    """Join the search of a unit that another process has begun, until it ends."""
    folder = run.of(unit)
    while not run.is_finished(unit):
        if (folder / JOURNAL / ABOUT).exists():
            file, asked = folder / VALIDATION, None
            if run.config.validation(unit.seed) is not None and file.exists():
                asked = of_arrays(load_file(file))
            with suppress(OtherSearch, CacheError):  # of an earlier search, which its own process replaces
                _search(run, unit, asked, None, write=False)
                return
        time.sleep(0.2)


def _search(run: RunFolder, unit: Unit, asked: Any, progress: Any, write: bool = True) -> SearchResult:
    config, seed, folder = run.config, unit.seed, run.of(unit)
    student, source = config.distill.students[unit.student], run.searching(seed)
    mixtures = {
        name: student_rows(source, seed, given, folder / TARGETS / name.replace(" ", "_"), write=write)
        for name, given in judgeable(source, seed).items()
    }
    return search_student(
        *mixtures.pop("given"),
        mixtures=mixtures,
        validation=config.validation(seed),
        ensemble=asked,
        augment=config.cache.augment,
        real=real_rows(source, seed),
        settings=student.search_settings(minutes_of_each(config), config.trials),
        folder=folder / JOURNAL,
        seed=seed,
        progress=progress,
    )


def judgeable(run: RunFolder, seed: int) -> dict[str, StudentRows | None]:
    """The parts of the transfer set among which the search chooses.

    Each has the rows that judge. Where these are of a transfer set with a small pool, some are synthetic.
    """
    found, config = choices(run, seed), run.config
    if config.validation(seed) is None and SHARE * len(config.split(seed).pool) < LEAST:
        return {name: one for name, one in found.items() if one is None or one.synthetic > 0}
    return found


def _with_rows(found: SearchResult, known: Mapping[str, StudentRows | None]) -> SearchResult:
    """The result with each student's part of the transfer set in its section."""

    def named(point: Point) -> Point:
        given = known[point.values.get("mixture", "given")]
        return point if given is None else replace(point, section={**point.section, "rows": asdict(given)})

    chosen, nearest, untried = (
        None if one is None else named(one) for one in (found.chosen, found.nearest, found.untried)
    )
    points = tuple(map(named, found.points))
    return replace(found, points=points, chosen=chosen, nearest=nearest, untried=untried)


def minutes_of_each(config: Config) -> float:
    """The share of the minutes that each search has."""
    return config.search_minutes / max(1, config.seeds * len(config.searched))


def check_search(config: Config) -> None:
    """Refuse, before the teachers are trained, searches that have too few rows, or lack a package, and
    budgets of a size that no candidate meets.

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
        rest = config.trial().split(seed)
        if reason := too_few(rest, config.validation(seed), config.cache.transfer):
            raise ValueError(
                f"distill.students.{config.searched[0]}: {reason} (seed {seed}), or name a model in place of "
                "keep and max_*"
            )
    split = config.trial().split(0)
    for name in config.searched:
        settings = config.distill.students[name].search_settings()
        try:
            check_sizes(settings, split.labelled, len(split.classes), 0)
        except ValueError as error:
            raise ValueError(f"distill.students.{name}.{error}") from error
