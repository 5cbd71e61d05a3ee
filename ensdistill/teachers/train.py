"""The training of ensembles: of any recipes, with or without folds, by one process or by many, resumed after
a kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ensdistill.common.files import read_json, write_arrays, write_json
from ensdistill.common.fingerprint import digest
from ensdistill.common.processes import Processes, processes
from ensdistill.data import BadRows
from ensdistill.data.samples import subset
from ensdistill.teachers.jobs import Job, TrainingRows
from ensdistill.teachers.members import Member, TorchMember, inner, load_member
from ensdistill.teachers.predict import over_parts, predicted
from ensdistill.teachers.recipes import Recipe
from ensdistill.teachers.stack import Watch
from ensdistill.teachers.stack.validation import Seen, check_own
from ensdistill.teachers.training_view import TrainingView
from ensdistill.teachers.validation import plain_name

Result = TypeVar("Result")
Planned = list[tuple[Recipe, list[Job]]]
"""What is to be trained: the jobs of each recipe."""


@dataclass(frozen=True, eq=False)
class Training:
    """Jobs of recipes, and the rows by which they are judged.

    Parameters
    ----------
    planned : list of (Recipe, list of Job)
    data : TrainingRows
    held : dict of int to ndarray, int64
        The rows that each fold holds out; empty without folds.
    """

    planned: Planned
    data: TrainingRows
    held: Mapping[int, np.ndarray]

    def __post_init__(self) -> None:
        keys = [job.key for job in self.jobs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(
                f"name: expected different names; {keys.count(twice[0])} are called {twice[0]!r}; give each "
                "its own name: name="
            )

    @property
    def jobs(self) -> list[Job]:
        return [job for _, jobs in self.planned for job in jobs]

    def fingerprints(self) -> dict[str, str]:
        """By job, the digest of everything that its result depends on. The other members are not among
        that."""
        data, found = self.data, {}
        common = digest(
            [data.inputs, data.labels, list(data.classes), *([] if data.weights is None else [data.weights])]
        )
        for recipe, jobs in self.planned:
            shared = digest([common, recipe.fingerprint()])
            for job in jobs:
                held = None if job.part is None else self.held[job.part]
                found[job.key] = digest([shared, job.key, job.seed, job.rows, job.spare, held])
        return found

    def results(
        self, jobs: Container[str], folder: Path | None, watch: Watch | None, finished: Container[str] = ()
    ) -> Iterator[tuple[Job, Recipe, Member | np.ndarray]]:
        """Train these jobs: members as they are done, and of folds the predictions for the rows that they
        hold out, see :func:`ensdistill.teachers.predict.predicted`."""
        seen: Seen = {}
        for recipe, planned in self.planned:
            own = [job for job in planned if job.key in jobs]
            if all(job.key in finished for job in own):
                continue
            home = None if folder is None else folder / recipe.name
            for job, member in recipe.fit(self.data, own, checkpoint=home, watch=watch, finished=finished):
                if isinstance(network := inner(member), TorchMember):
                    check_own([(job.key, network.module)], seen)
                yield job, recipe, member if job.part is None else self._held_out(job, member)

    def _held_out(self, job: Job, member: Member) -> np.ndarray:
        rows = self.held[job.part if job.part is not None else -1]
        try:
            samples = subset(self.data.inputs, rows)
            return over_parts(samples, lambda batch: predicted(member, batch, self.data.classes))
        except BadRows as error:
            raise BadRows(
                f"{error}; that row is row {rows[error.rows[0]]} of the labelled rows", rows[error.rows]
            ) from error


def train(
    training: Training,
    combine: Callable[[dict[str, Any]], Result],
    *,
    device: str,
    folder: Path | None,
    progress: bool | Watch | None,
    write: Callable[[Result, Path], None] | None = None,
) -> Result:
    """Train the members, and return the result of ``combine`` for them.

    Parameters
    ----------
    training : Training
    combine : callable
        From the members by name, and what a fold's member predicts for the rows held out, by the jobs' keys:
        logits [M, C], or of a regressor [M, 2, D]; see :func:`ensdistill.teachers.predict.predicted`.
    device : str
        By which several processes talk to each other.
    folder : path, optional
        Every result is kept there as soon as it is there, and the state of long trainings: the same call
        resumes from it.
    progress : bool, or callable
        True: a live view. A callable gets every Status; its method ``finished(keys)``, if it has one, the
        jobs that are done already.
    write : callable, optional
        By which the first process writes the result into the folder, before any process returns.
    """
    with processes(device) as group:
        if folder is not None:
            result = combine(_on_disk(training, folder, group, progress))
            if group.rank == 0:
                shutil.rmtree(
                    folder / "training", ignore_errors=True
                )  # of a run with another number of processes
                if write is not None:
                    write(result, folder)
            group.wait()
            return result
        if group.count > 1:
            raise ValueError(
                f"folder: expected one that all {group.count} processes see, where they put their members; "
                "got None"
            )
        with _watched(progress, training.jobs) as watch:
            made = {
                job.key: result
                for job, _, result in training.results([job.key for job in training.jobs], None, watch)
            }
    return combine(made)


def _watched(
    progress: bool | Watch | None, jobs: Sequence[Job], **view: Any
) -> AbstractContextManager[Watch | None]:
    return (
        TrainingView([job.key for job in jobs], **view) if progress is True else nullcontext(progress or None)
    )


def _on_disk(
    training: Training, folder: Path, group: Processes, progress: bool | Watch | None
) -> dict[str, Any]:
    """Every result is put into the folder by the process whose job it is, and taken from there by all."""
    for recipe, _ in training.planned:
        recipe.check_storable()
    prints, jobs = training.fingerprints(), {job.key: job for job in training.jobs}

    def done(key: str) -> bool:
        record = read_json(_place(folder, jobs[key]) / "trained.json")
        return isinstance(record, dict) and record.get("fingerprint") == prints[key]

    finished = {key for key in prints if done(key)}
    homes = [folder / "training" / f"{rank}-of-{group.count}" for rank in range(group.count)]
    shares = _shares(training, prints, finished, homes)
    group.wait()  # no process may write before all have seen which results there are
    home, mine = homes[group.rank], shares[group.rank]
    if mine:
        write_json(home / "share.json", {key: prints[key] for key in mine})
    ranks = {key: rank for rank, share in enumerate(shares) if rank != group.rank for key in share}
    shown = None if progress is True and group.rank > 0 else progress  # one view of all members
    if callable(tell := getattr(progress, "finished", None)):
        tell(sorted(finished))
    with _watched(shown, training.jobs, ranks=ranks, finished=done) as watch:
        for job, recipe, result in training.results(mine, home / "checkpoint", watch, finished):
            _keep(_place(folder, job), job, recipe, result, prints[job.key])
        shutil.rmtree(home, ignore_errors=True)
        group.wait()
    # Read back by all: a result that was just made and one that comes from disk can't differ.
    return {
        job.key: _read(_place(folder, job), job, recipe) for recipe, jobs in training.planned for job in jobs
    }


def _shares(
    training: Training, prints: dict[str, str], finished: set[str], homes: Sequence[Path]
) -> list[list[str]]:
    """The keys of each process's jobs: those it was at when it was killed, for their checkpoint's sake, or
    its part of the rest."""
    units = [[job.key for job in unit] for recipe, jobs in training.planned for unit in recipe.units(jobs)]
    shares = []
    for rank, home in enumerate(homes):
        before = read_json(home / "share.json")
        if isinstance(before, dict) and all(prints.get(key) == value for key, value in before.items()):
            shares.append(list(before))
        else:
            left = [
                unit
                for i, unit in enumerate(units)
                if i % len(homes) == rank and not finished.issuperset(unit)
            ]
            shares.append([key for unit in left for key in unit if len(unit) > 1 or key not in finished])
    return shares


def _place(folder: Path, job: Job) -> Path:
    """Where a job's result is kept: the members as a saved ensemble has them."""
    name = plain_name(job.name, folder)
    return folder / "members" / name if job.part is None else folder / "folds" / name / str(job.part + 1)


def _keep(place: Path, job: Job, recipe: Recipe, result: Member | np.ndarray, fingerprint: str) -> None:
    (place / "trained.json").unlink(missing_ok=True)
    if isinstance(result, np.ndarray):
        write_arrays(place / "held_out.safetensors", {"logits": result})
        write_json(place / "trained.json", {"fingerprint": fingerprint, "logits": digest(result)})
        return
    if hasattr(result, "untrusted") and (unknown := result.untrusted(list(recipe.trusted))):
        raise ValueError(
            f"{job.name}: fitted, it holds types that are not trusted, so that the folder would not give it "
            f"back: {unknown}. If you know "
            f"them, give its recipe trusted={unknown}; or train without a folder, save the ensemble, and "
            "read it by "
            f"Ensemble.load(folder, trusted={unknown})"
        )
    result.save(place)
    write_json(place / "trained.json", {"fingerprint": fingerprint})


def _read(place: Path, job: Job, recipe: Recipe) -> Member | np.ndarray:
    if job.part is None:
        return load_member(place, recipe.trusted)
    from safetensors import SafetensorError
    from safetensors.numpy import load

    remedy = "delete this folder to have it trained again"
    try:
        logits: np.ndarray = load((place / "held_out.safetensors").read_bytes())["logits"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"{place}: cannot be read ({error}); {remedy}") from error
    record = read_json(place / "trained.json")
    if not isinstance(record, dict) or digest(logits) != record.get("logits"):
        raise ValueError(f"{place}: held_out.safetensors is not what was written; {remedy}")
    return logits
