"""The journal of a search: its trials, in a file of JSON lines that several processes append to and that
survives a kill at any moment. Nothing in it is pickled."""

from __future__ import annotations

import math
import os
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from safetensors.numpy import load_file

from ensdistill.common.files import read_json, write_arrays, write_json
from ensdistill.common.random import derive_seed
from ensdistill.student.search.space import ROLES, Role, Space
from ensdistill.student.search.trial import Outcome
from ensdistill.teachers.members.moments import as_arrays, of_arrays

if TYPE_CHECKING:
    import optuna

STARTUP = 4  # trials of one candidate that are drawn at random before the others are modelled
FIRST = 5  # evaluations after which a trial may end early; then after 10
JOURNAL, ABOUT = "trials.jsonl", "search.json"


class OtherSearch(ValueError):
    """The folder holds the journal of another search."""


@dataclass(frozen=True)
class Record:
    """A trial that has ended.

    Parameters
    ----------
    role : {"student", "direct"}
    candidate : str
        The key of the candidate.
    number : int
        Of the candidate's trials in this role.
    values : dict
    state : {"done", "ended", "failed"}
        Judged, ended early, or diverged.
    seconds : float
    parameters, bytes, steps : int
        0 where the trial was not judged.
    losses : dict of str to float
        Means over the rows that judge.
    value : float
        The value that the search lowers; infinite where the trial was not judged.
    started : float
        Seconds since 1970.
    worker : str
        The process.
    final : bool
        Whether it was one of the long trainings in the last part of a search.
    latency : dict, optional
        The fields of a :class:`Latency`, of a student that is no network.
    """

    role: Role
    candidate: str
    number: int
    values: Mapping[str, Any]
    state: str
    seconds: float
    parameters: int = 0
    bytes: int = 0
    steps: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    value: float = math.inf
    started: float = 0.0
    worker: str = ""
    final: bool = False
    latency: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        return f"{self.role}/{self.candidate}/{self.number}"


def study_name(role: Role, candidate: str) -> str:
    return f"{role}/{candidate}"


class Journal:
    """The trials of a search in a folder.

    Parameters
    ----------
    folder : Path
    fingerprint : dict of str to str
        Digests of what decides on the results, by name.
    seed : int

    Raises
    ------
    OtherSearch
        The folder holds the journal of a search with another fingerprint; names what differs.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, str], seed: int) -> None:
        optuna = optuna_of()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.seed = folder, seed
        self._lock = filelock.FileLock(folder / ".journal.lock")
        with self._lock:
            before = read_json(folder / ABOUT)
            if before is None:
                write_json(folder / ABOUT, {"fingerprint": dict(fingerprint)})
            else:
                _check_same(folder, before, fingerprint)
        self.file = folder / JOURNAL
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        lock: Any = _Lock(self._lock, self.file)
        backend = JournalFileBackend(str(self.file), lock_obj=lock)
        self.storage = JournalStorage(backend)
        self.worker = ""

    def start(self) -> None:
        """Register this process as a worker of the search."""
        # A worker holds the lock of its name while it lives, so a running trial without such a lock is dead.
        # The name begins with the time of registration.
        self.worker = f"{time.time():.3f}-{uuid.uuid4().hex[:12]}"
        (self.folder / "workers").mkdir(exist_ok=True)
        self._alive = filelock.FileLock(self.folder / "workers" / self.worker)
        self._alive.acquire()

    def others(self) -> list[str]:
        """The other processes that are at work now."""
        folder = self.folder / "workers"
        names = [path.name for path in folder.iterdir() if path.name != self.worker]
        return [name for name in names if _lives(folder, name)]

    def leave(self, patience: float) -> None:
        """End this process's part, and wait for the other processes, at most ``patience`` seconds."""
        self._retire()
        until = time.monotonic() + patience
        while self.others() and time.monotonic() < until:
            time.sleep(0.05)

    def close(self) -> None:
        self._retire()

    def _retire(self) -> None:
        if not self.worker:
            return
        self._alive.release()
        (self.folder / "workers" / self.worker).unlink(missing_ok=True)

    def begin(
        self, role: Role, space: Space, given: Mapping[str, Any]
    ) -> tuple[optuna.Trial, dict[str, Any], int]:
        """A trial of a candidate, its values, and its place among the candidate's trials.

        It is the trial of a killed process, if there is one with the values ``given``. Otherwise it is a new
        one: its values are those ``given``; of the others the defaults in the first trial, then those that
        TPE draws.
        """
        from optuna.samplers import PartialFixedSampler
        from optuna.trial import Trial

        with self._lock:
            study = self._study(role, space.candidate.key)
            dead = self._dead(study, given)
            trials = [one for one in study.get_trials(deepcopy=False) if not _buried(one)]
            place = len(trials) if dead is None else int(dead.user_attrs["place"])
            sampler = self._sampler(study.study_name, place)
            first = {} if any(map(_counts, trials)) else space.defaults()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                study.sampler = PartialFixedSampler({**first, **given}, sampler)
            trial = study.ask() if dead is None else Trial(study, dead._trial_id)
            trial.set_user_attr("worker", self.worker)
            values = space.drawn(trial)
            trial.set_user_attr("place", place)
        return trial, values, place

    def end(self, trial: optuna.Trial, role: Role, candidate: str, record: dict[str, Any]) -> None:
        """Write a trial's end. ``record`` has ``state``, ``seconds``, and of a judged one ``value`` and
        figures."""
        from optuna.trial import TrialState

        study = self._study(role, candidate)
        value = record.get("value")
        trial.set_user_attr("record", record)
        if record["state"] == "done":
            study.tell(trial, value)
        elif record["state"] == "ended":
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, state=TrialState.FAIL)

    def records(self) -> list[Record]:
        """All trials that have ended, in the order of their beginning."""
        found: list[Record] = []
        for study in self.storage.get_all_studies():
            role, _, candidate = study.study_name.partition("/")
            for trial in self.storage.get_all_trials(study._study_id, deepcopy=False):
                about = trial.user_attrs.get("record")
                if about is None or role not in ROLES:
                    continue
                own: Role = "direct" if role == "direct" else "student"
                worker = trial.user_attrs.get("worker", "")
                found.append(Record(own, candidate, trial.number, dict(trial.params), worker=worker, **about))
        return sorted(found, key=lambda one: (one.started, one.key))

    def save(self, key: str, outcome: Outcome) -> None:
        """Write a judged trial's outputs, before the journal names it."""
        write_arrays(self._file(key), as_arrays(outcome.outputs))

    def outputs(self, record: Record) -> Any:
        """Of a judged trial: logits, float32 [V, C], or Moments [V, D]."""
        return of_arrays(load_file(self._file(record.key)))

    def spent(self) -> float:
        """Seconds of work: all since the first of the present workers registered, and those of earlier
        trials. Trials side by side count once."""
        now = time.time()
        came = min(_came(name) for name in (self.worker, *self.others()))
        done, until = max(0.0, now - came), -math.inf
        for one in self.records():
            end = min(one.started + one.seconds, came)
            done += max(0.0, end - max(one.started, until))
            until = max(until, end)
        return done

    def setting(self, name: str, make: Callable[[], Any]) -> Any:
        """A number that the first process of the search measures, and all use."""
        with self._lock:
            about = read_json(self.folder / ABOUT)
            if name not in about:
                about[name] = make()
                write_json(self.folder / ABOUT, about)
            return about[name]

    def _file(self, key: str) -> Path:
        return self.folder / "logits" / f"{key.replace('/', '_')}.safetensors"

    def _study(self, role: Role, candidate: str) -> optuna.Study:
        from optuna.pruners import SuccessiveHalvingPruner

        optuna = optuna_of()
        return optuna.create_study(
            study_name=study_name(role, candidate),
            storage=self.storage,
            load_if_exists=True,
            pruner=SuccessiveHalvingPruner(min_resource=FIRST, reduction_factor=2),
        )

    def _sampler(self, name: str, place: int) -> optuna.samplers.BaseSampler:
        # A sampler's state is not in the journal, so each trial has one of its own, seeded by its place. A
        # trial that is marked as failed because its process was killed takes no place.
        optuna = optuna_of()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.samplers.TPESampler(
                n_startup_trials=STARTUP,
                multivariate=True,
                constant_liar=True,
                seed=derive_seed("search", self.seed, name, place) % 2**32,
            )

    def _dead(self, study: optuna.Study, given: Mapping[str, Any]) -> optuna.trial.FrozenTrial | None:
        """The first trial of a killed process whose values are all drawn, and agree with those ``given``.
        Mark the others of killed processes as failed, so that no sampler takes them for running ones."""
        from optuna.trial import TrialState

        found = None
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get("worker")
            if worker == self.worker or _lives(self.folder / "workers", worker):
                continue
            same = "place" in trial.user_attrs and given.items() <= trial.params.items()
            if found is None and same:
                found = trial
            elif not same:
                self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return found


def best_of(records: Sequence[Record], role: Role, candidate: str | None = None) -> Record | None:
    """The judged trial of the lowest value."""
    own = [
        one
        for one in records
        if one.role == role and one.state == "done" and candidate in (None, one.candidate)
    ]
    return min(own, key=lambda one: (one.value, one.key)) if own else None


def optuna_of() -> Any:
    """The package optuna.

    Raises
    ------
    ModuleNotFoundError
        It is not installed; the message has the command that installs it.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a search needs optuna: pip install 'ensdistill[search]'", name="optuna"
        ) from error
    return optuna


def _buried(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial was killed, and is not trained again."""
    return trial.state.name == "FAIL" and "record" not in trial.user_attrs


def _counts(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial runs or has come to its own end: one that ended with the time is begun again."""
    record = trial.user_attrs.get("record", {})
    return trial.state.name == "RUNNING" or record.get("state") in ("done", "failed")


class _Lock:
    """A lock of the operating system, which is free again when its process is killed; Optuna's own ones are
    files, for which other processes wait half a minute then."""

    def __init__(self, lock: filelock.BaseFileLock, file: Path) -> None:
        self._lock, self._file = lock, file

    def acquire(self) -> bool:
        self._lock.acquire()
        _cut_unfinished_line(self._file)
        return True

    def release(self) -> None:
        self._lock.release()


def _came(worker: str) -> float:
    """The time at which a worker registered, in seconds since 1970."""
    return float(worker.partition("-")[0])


def _lives(folder: Path, worker: str | None) -> bool:
    if worker is None or not (folder / worker).exists():
        return False
    lock = filelock.FileLock(folder / worker)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    (folder / worker).unlink(missing_ok=True)
    return False


def _cut_unfinished_line(file: Path) -> None:
    """Remove the half of a line that a killed process left; the next one would be appended to it."""
    if not file.exists() or not file.stat().st_size:
        return
    with open(file, "rb+") as handle:
        handle.seek(-1, os.SEEK_END)
        if handle.read(1) == b"\n":
            return
        handle.seek(0)
        handle.truncate(handle.read().rfind(b"\n") + 1)
        os.fsync(handle.fileno())


def _check_same(folder: Path, before: Any, fingerprint: Mapping[str, str]) -> None:
    known = before.get("fingerprint") if isinstance(before, dict) else None
    if not isinstance(known, dict):
        raise OtherSearch(f"folder: {folder / ABOUT} is damaged: remove {folder}, and the search starts anew")
    names = sorted({*known, *fingerprint})
    differing = [name for name in names if known.get(name) != fingerprint.get(name)]
    if differing:
        raise OtherSearch(
            f"folder: {folder} holds the journal of another search, whose {', '.join(differing)} "
            f"differ{'s' if len(differing) == 1 else ''}: choose another folder, or remove it"
        )
