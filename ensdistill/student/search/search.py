"""The search for the smallest student that keeps enough, or for the best one within a budget."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ensdistill
from ensdistill.cache import TargetCache
from ensdistill.common.fingerprint import digest
from ensdistill.common.progress import Progress
from ensdistill.common.random import derive_seed
from ensdistill.common.tasks import task_of
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.student.search.build import Builder, Built
from ensdistill.student.search.choosing import chosen_of
from ensdistill.student.search.families import Candidate, families_for
from ensdistill.student.search.finals import SHARE, Plan, final_plan
from ensdistill.student.search.journal import Journal, Record, best_of
from ensdistill.student.search.judging import Figures, ensemble_figures, figures_of, kept
from ensdistill.student.search.latency import Latency, latency_of
from ensdistill.student.search.pace import Pace
from ensdistill.student.search.policy import Policy, mixture_of_best, untried_mixture
from ensdistill.student.search.result import SearchResult, least
from ensdistill.student.search.rows import Lessons, lessons, some_samples
from ensdistill.student.search.settings import SearchSettings
from ensdistill.student.search.space import ROLES, Role, Space, ordinary_steps
from ensdistill.student.search.trial import Ended, Work
from ensdistill.teachers.members import Preprocessed, TorchMember

KEEP = 0.95  # where neither a share nor a budget is given
TRAININGS = 5  # of an ordinary length that fit into each role's share of the minutes
SHORT, LONG = 64, 320  # steps of the trainings that are timed
LEAST_STEPS = 256  # of a training
FAILURES = 3  # trainings of a role that diverge, after which none is tried beyond the minutes
OVERTIME = 0.1  # of the minutes, in which a long training may come to its end


def search_student(
    rows: Rows,
    cache: TargetCache,
    *,
    validation: Rows | None = None,
    ensemble: np.ndarray | None = None,
    mixtures: Mapping[str, tuple[Rows, TargetCache]] | None = None,
    augment: Augmentation | None = None,
    settings: SearchSettings | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **keywords: Any,
) -> SearchResult:
    """Find the smallest student that keeps enough of the ensemble's gain, or the best one within a budget.

    Students of several families are trained from the cache with various settings (Optuna's TPE; trials that
    fall behind at a quarter or half of their training end there, by successive halving). Then the best
    settings are trained longer, and sizes are compared by these long trainings. Half of the budget is a
    search of the same space for the strongest *direct* student, on labels alone. All are judged on rows that
    none of them learns from. Several processes that call it with the same arguments and folder share the
    work; a search that was killed goes on when it is called again.

    Parameters
    ----------
    rows : Rows
        The transfer set of the cache; the direct student learns from those with a label.
    cache : TargetCache
    validation : Rows, optional
        Rows that judge, not among ``rows``: their labels must be unknown to the ensemble's members, and they
        must not be test rows, which have no place here. Fewer than 203, or none: rows of ``rows`` without a
        label are held out as well, and the ensemble's own probabilities judge.
    ensemble : ndarray [V, C], optional
        The ensemble's probabilities for them; not needed where the cache has their targets.
    mixtures : mapping of str to (Rows, TargetCache), optional
        Other transfer sets with their caches, among which the search chooses; ``rows`` and ``cache`` are the
        one called ``"given"``. Rows of a mixture have the uids that they have in ``rows``.
    augment : Augmentation, optional
        That of the caches.
    settings : SearchSettings, optional
        **keywords are its fields: ``keep=0.95, max_latency="50us", max_bytes="200kB", max_parameters=5000,
        minutes=3``. Without any of the first four, ``keep=0.95``.
    folder : path, optional
        Of the journal; without it nothing is kept.
    seed : int
    progress : callable (done, total), optional
        In seconds, or in trials.

    Returns
    -------
    SearchResult
        ``print(result)`` shows the frontier; ``result.yaml()`` is the chosen student for a job.

    Raises
    ------
    TooFewRows
        (a ValueError) Too few rows to judge; the message holds the number that is needed.
    OtherSearch
        (a ValueError) The folder holds the journal of other data or settings; names what differs.
    ValueError
        A budget below every candidate's size; names the smallest.
    ModuleNotFoundError
        Optuna is not installed.
    """
    if settings is not None and keywords:
        raise TypeError(f"settings: expected either settings or {', '.join(keywords)}; got both")
    if (task := task_of(cache)) != "classification":
        raise ValueError(
            f"cache: expected one of the task classification, the only one that a search takes; got {task}: "
            "name the student's model, and train it by StudentTrainer.distill"
        )
    own = settings or SearchSettings(**keywords)
    if own.keep is None and not own.limits:
        own = replace(own, keep=KEEP)
    known = {"given": (rows, cache), **(mixtures or {})}
    found = lessons(known, validation, ensemble, augment, seed)
    if folder is not None:
        return _Search(found, own, Path(folder), seed, progress).run()
    with tempfile.TemporaryDirectory() as temporary:
        return _Search(found, own, Path(temporary), seed, progress).run()


@dataclass(frozen=True, eq=False)
class Judgement:
    """The figures of trials so far, computed once for each."""

    lessons: Lessons
    journal: Journal
    ensemble: Figures
    figures: dict[str, Figures]

    def of(self, record: Record) -> Figures:
        if record.key not in self.figures:
            self.figures[record.key] = figures_of(self.journal.logits(record), self.lessons.judged)
        return self.figures[record.key]


class _Search:
    """One process's part of a search."""

    def __init__(
        self, found: Lessons, settings: SearchSettings, folder: Path, seed: int, progress: Progress | None
    ) -> None:
        self.lessons, self.settings, self.seed, self.progress = found, settings, seed, progress
        self.builder = Builder(found, seed)
        self.families = families_for(settings.families, found.about)
        self.journal = Journal(folder, self._fingerprint(), seed)
        try:
            self.built, self.ladders = self._candidates()
        except BaseException:
            self.journal.close()
            raise
        self.judgement = Judgement(found, self.journal, ensemble_figures(found.judged), {})

    def run(self) -> SearchResult:
        """Trials until the budget is used up, and their result."""
        try:
            self.journal.start()
            self.begun, self.spent = time.monotonic(), self.journal.spent()
            timed = self.settings.trials is None
            self.steps = self._steps()
            policy = Policy(self.ladders, self.settings.keep)
            while True:
                records = self.journal.records()
                self._tell(records)
                missing = self._missing(records)
                if self._late() and not missing:
                    break
                role = policy.role(records, timed, self.settings.trials)
                if missing and self._late():
                    role = missing[0]
                plan = None if role is None else self._plan(policy, role, records)
                if role is None or plan is None:
                    break
                self._trial(role, plan)
            self.journal.leave(60 * OVERTIME * self.settings.minutes if timed else math.inf)
            return chosen_of(self)
        finally:
            self.journal.close()

    def _plan(self, policy: Policy, role: Role, records: list[Record]) -> Plan | None:
        """The next trial of a role; None where no training fits into the time that is left."""
        sizes = {key: one.parameters for key, one in self.built.items()}
        pace, kept = Pace(records, role, sizes, self.steps[role]), self._kept(records)
        own = [one for one in records if one.role == role]
        trials, left = self.settings.trials, self._left(records)
        explored = self._used() if trials is None else len(own) / trials
        if role == "student" and best_of(own, role) is not None and explored >= 1 - SHARE:
            return final_plan(policy, records, kept, pace, partial(self.space, role), left)
        if role == "student" and (compared := untried_mixture(own, tuple(self.lessons.mixtures))) is not None:
            best, mixture = compared
            return Plan(best.candidate, {**best.values, "mixture": mixture})
        key = policy.candidate(role, records, kept)
        values = self.space(role, key).defaults()
        most = left if trials is not None else self._seconds_of_each(role)
        shorter = pace.within(key, values, most)
        given = {name: value for name, value in mixture_of_best(own).items() if name in values}
        if "steps" in values and (role == "student" or shorter["steps"] < values["steps"]):
            given["steps"] = max(shorter["steps"], min(values["steps"], LEAST_STEPS / self.steps[role]))
        return Plan(key, given)

    def space(self, role: Role, key: str) -> Space:
        cache = self.lessons.first[1]
        warm = tuple(
            t
            for t in (1.0, 2.0, 4.0)
            if (cache.temperature in (None, t))
            and (cache.max_temperature is None or t <= cache.max_temperature)
        )
        rows = self.lessons.first[0]
        labels = bool((rows.labels >= 0).any())
        return Space(
            self.built[key].candidate, role, self.steps[role], labels, tuple(self.lessons.mixtures), warm
        )

    def latency(self, key: str) -> Latency | None:
        """Of a network, measured untrained, because its weights have no part in it, by the first process of
        the search. None of other students."""
        built = self.built[key]
        if built.model is None:
            return None
        return Latency(**self.journal.setting(f"latency of {key}", partial(self._measured, built)))

    def _measured(self, built: Built) -> dict[str, Any]:
        assert built.model is not None
        member: Any = TorchMember(built.model().eval(), output="logits")
        if built.preprocess is not None:
            member = Preprocessed(member, built.preprocess)
        classes = tuple(map(str, self.lessons.first[1].classes))
        return asdict(latency_of(member, some_samples(self.lessons.judged.rows, 8), classes))

    def _trial(self, role: Role, plan: Plan) -> None:
        """Begin, train, judge and write down one trial."""
        key = plan.candidate
        space = self.space(role, key)
        needed = role in self._missing(self.journal.records())
        trial, values = self.journal.begin(role, space, plan.values)
        number, begun, started = trial.number, time.perf_counter(), time.time()
        work = Work(
            self.lessons, self.built[key], space, values, derive_seed("trial", self.seed, key, number)
        )

        def report(value: float, place: int) -> str:
            if not needed and self._late(OVERTIME if plan.final else 0.0):
                return "the time is over"
            if plan.whole:
                return ""
            trial.report(value, place)
            return "it fell behind" if number and trial.should_prune() else ""

        record: dict[str, Any] = {"state": "done", "started": started, "final": plan.final}
        try:
            outcome = work.run(report)
        except Ended:
            record["state"] = "ended"
        except FloatingPointError:
            record["state"] = "failed"
        else:
            figures = figures_of(outcome.logits, self.lessons.judged)
            means = figures.means()
            record |= {
                "parameters": outcome.parameters,
                "bytes": outcome.bytes,
                "steps": outcome.steps,
                "losses": means,
                "value": _value(means, role),
            }
            self.journal.save(f"{role}/{key}/{number}", outcome)
        record["seconds"] = time.perf_counter() - begun
        self.journal.end(trial, role, key, record)

    def _kept(self, records: list[Record]) -> dict[str, float | None]:
        """The share that the best trial of each candidate keeps, over the best direct student so far."""
        direct = best_of(records, "direct")
        if direct is None:
            return {}
        found: dict[str, float | None] = {}
        for key in self.built:
            best = best_of(records, "student", key)
            if best is not None:
                of = self.judgement
                found[key] = least(kept(of.of(best), of.of(direct), of.ensemble))
        return found

    def _candidates(self) -> tuple[dict[str, Built], dict[str, tuple[str, ...]]]:
        """The candidates within the budgets, and each family's from the smallest to the largest."""
        about, limits = self.lessons.about, self.settings.limits
        built: dict[str, Built] = {}
        ladders: dict[str, tuple[str, ...]] = {}
        smallest: dict[str, float] = {}
        for family in self.families:
            ladder = []
            for candidate in self._in_time(family.candidates(about)):
                one = self.builder(candidate)
                self.built = {candidate.key: one}
                sizes = self._sizes(candidate.key, limits)
                for name, size in sizes.items():
                    smallest[name] = min(size, smallest.get(name, size))
                if all(size <= limits[name] for name, size in sizes.items()):
                    built[candidate.key] = one
                    ladder.append(candidate.key)
            if ladder:
                ordered = sorted(ladder, key=lambda key: built[key].parameters or 0)
                ladders[family.name] = tuple(ordered)
        if not built and not smallest:
            names = ", ".join(family.name for family in self.families)
            raise ValueError(
                f"minutes: expected time for several fits of {names}; got {self.settings.minutes:g}: give "
                "more, or name other families"
            )
        if not built:
            name = next(name for name in limits if smallest.get(name, 0) > limits[name])
            label = {"seconds": "max_latency", "bytes": "max_bytes", "parameters": "max_parameters"}[name]
            raise ValueError(
                f"{label}: expected at least {smallest[name]:g}, that of the smallest candidate of "
                f"{', '.join(family.name for family in self.families)}; got {limits[name]:g}"
            )
        return built, ladders

    def _in_time(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that can be fitted several times in the minutes."""
        if self.settings.trials is not None:
            return list(candidates)
        most = self._seconds_of_each("direct")
        return [one for one in candidates if one.seconds <= most]

    def _seconds_of_each(self, role: Role) -> float:
        """The seconds of an ordinary training at most: several fit into the role's share of the minutes, and
        as many of the student's into its share without the long trainings."""
        return 30 * self.settings.minutes * (1.0 if role == "direct" else 1 - SHARE) / TRAININGS

    def _used(self) -> float:
        """The share of the minutes that is used up."""
        return (time.monotonic() - self.begun + self.spent) / (60 * self.settings.minutes)

    def _left(self, records: Sequence[Record]) -> float:
        """The seconds that the student has left: half of the time of all processes goes to each role."""
        if self.settings.trials is not None:
            return math.inf
        left = 60 * self.settings.minutes * (1 - self._used())
        spent = {role: sum(one.seconds for one in records if one.role == role) for role in ROLES}
        ahead = spent["direct"] - spent["student"]
        return max(0.0, min(left, (left * (1 + len(self.journal.others())) + ahead) / 2))

    def _sizes(self, key: str, limits: Mapping[str, float]) -> dict[str, float]:
        """A network's sizes for which there is a limit; those of a booster are known after its fit."""
        one = self.built[key]
        if one.model is None:
            return {}
        found = {"parameters": float(one.parameters or 0), "bytes": float(one.bytes or 0)}
        if "seconds" in limits and (latency := self.latency(key)) is not None:
            found["seconds"] = latency.seconds
        return {name: size for name, size in found.items() if name in limits}

    def _steps(self) -> dict[Role, int]:
        """Steps of an ordinary training of each role: by the number of rows, but few enough that several
        trainings fit into the minutes. A search that goes on keeps them."""
        wanted: dict[Role, int] = {
            role: self.settings.steps or ordinary_steps(self.lessons.about, role) for role in ROLES
        }
        if self.settings.trials is None and self.settings.steps is None:
            begin, step = self.journal.setting("seconds of a training's begin and of a step", self._timed)
            for role in ROLES:
                most = 32 * round((self._seconds_of_each(role) - begin) / max(step, 1e-6) / 32)
                wanted[role] = max(LEAST_STEPS, min(wanted[role], most))
        found: dict[Role, int] = self.journal.setting("steps", lambda: wanted)
        return found

    def _timed(self) -> tuple[float, float]:
        """Seconds of a training's begin and of a step, of the middle network by the student's defaults; those
        of *direct*, whose batches are smaller, take no longer."""
        networks = [key for ladder in self.ladders.values() for key in ladder if self.built[key].model]
        if not networks:
            return 0.0, 0.0
        key = networks[len(networks) // 2]

        def seconds(steps: int) -> float:
            self.steps = dict.fromkeys(ROLES, steps)
            space, begun = self.space("student", key), time.perf_counter()
            work = Work(self.lessons, self.built[key], space, space.defaults(), self.seed)
            work.run(lambda value, place: "")
            return time.perf_counter() - begun

        seconds(SHORT)  # the first training loads code
        begin, whole = seconds(SHORT), seconds(LONG)
        return begin, (whole - begin) / (LONG - SHORT)

    def _missing(self, records: Sequence[Record]) -> list[Role]:
        """The roles without a judged trial, which have one however long it takes, unless trainings fail."""
        done = {one.role for one in records if one.state == "done"}
        failed = [one.role for one in records if one.state == "failed"]
        return [role for role in ROLES if role not in done and failed.count(role) < FAILURES]

    def _late(self, beyond: float = 0.0) -> bool:
        return self.settings.trials is None and self._used() >= 1 + beyond

    def _tell(self, records: list[Record]) -> None:
        if self.progress is None:
            return
        if self.settings.trials is not None:
            self.progress(len(records), 2 * self.settings.trials)
        else:
            total = 60 * self.settings.minutes
            self.progress(round(min(total, time.monotonic() - self.begun + self.spent)), round(total))

    def _fingerprint(self) -> dict[str, str]:
        """Digests of what decides on a search's results, by name. Its budget of time does not: a search may
        go on for longer."""
        lessons, goal = self.lessons, self.settings
        caches = [
            [name, cache.manifest["fingerprint"], cache.manifest["weights"], cache.manifest["codec"]]
            for name, (_, cache) in lessons.mixtures.items()
        ]
        return {
            "version": ensdistill.__version__,
            "cache": digest(caches),
            "rows": digest([[name, rows.uids, rows.labels] for name, (rows, _) in lessons.mixtures.items()]),
            "validation": digest([lessons.judged.rows, lessons.judged.ensemble]),
            "candidates": digest([repr(list(one.candidates(lessons.about))) for one in self.families]),
            "goal": digest([goal.keep, goal.limits, goal.steps, goal.trials is None]),
            "seed": str(self.seed),
        }


def _value(means: Mapping[str, float], role: Role) -> float:
    """What the search lowers: of the direct student the NLL, as one would tune it; of the other one NLL and
    KL from the ensemble together. The KL alone where there are no labels."""
    if "nll" not in means:
        return means["kl"]
    return means["nll"] if role == "direct" else means["nll"] + means["kl"]
