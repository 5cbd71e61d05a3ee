"""The search for the smallest student that keeps enough, or for the best one within a budget."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import ensdistill
from ensdistill.cache import TargetCache
from ensdistill.common.fingerprint import digest
from ensdistill.common.progress import Progress
from ensdistill.common.random import derive_seed
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.student.search.choosing import chosen_of
from ensdistill.student.search.clock import Clock
from ensdistill.student.search.families import families_for
from ensdistill.student.search.figures import ensemble_figures, figures_of, objective
from ensdistill.student.search.finals import SHARE, Plan, final_plan
from ensdistill.student.search.journal import Journal, Record, best_of
from ensdistill.student.search.judging import Judgement, kept
from ensdistill.student.search.ladders import Ladders
from ensdistill.student.search.ordinary import LEAST_STEPS, steps_of_roles
from ensdistill.student.search.pace import Pace
from ensdistill.student.search.policy import Policy, mixture_of_best, untried_mixture
from ensdistill.student.search.result import SearchResult, least
from ensdistill.student.search.rows import Lessons, lessons
from ensdistill.student.search.settings import SearchSettings
from ensdistill.student.search.space import ROLES, Role, Space
from ensdistill.student.search.trial import Ended, Work

KEEP = 0.95  # where neither a share nor a budget is given
FAILURES = 3  # trainings of a role that diverge, after which none is tried beyond the minutes
OVERTIME = 0.1  # of the minutes, in which a long training may come to its end


def search_student(
    rows: Rows,
    cache: TargetCache,
    *,
    validation: Rows | None = None,
    ensemble: Any = None,
    mixtures: Mapping[str, tuple[Rows, TargetCache]] | None = None,
    augment: Augmentation | None = None,
    real: int | None = None,
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
    none of them learns from: by NLL and accuracy, of several labels by BCE and mAP, of numbers by NLL and
    RMSE. Trials of networks for numbers learn variances, or means alone. Several processes that call it with
    the same arguments and folder share the work. A search that was killed goes on when it is called again; by
    ``trials``, in one process, to the same result.

    Parameters
    ----------
    rows : Rows
        The transfer set of the cache; the direct student learns from those with a label.
    cache : TargetCache
    validation : Rows, optional
        Rows that judge, not among ``rows``: their labels must be unknown to the ensemble's members, and they
        must not be test rows, which have no place here. Fewer than 203, or none: rows of ``rows`` without a
        label are held out as well, and the ensemble's own probabilities judge.
    ensemble : ndarray [V, C], or pair of ndarray [V, D], optional
        The ensemble's probabilities for them, or of a regression its means and variances
        (``predict_distribution``); not needed where the cache has their targets.
    mixtures : mapping of str to (Rows, TargetCache), optional
        Other transfer sets with their caches, among which the search chooses; ``rows`` and ``cache`` are the
        one called ``"given"``. Rows of a mixture have the uids that they have in ``rows``.
    augment : Augmentation, optional
        That of the caches.
    real : int, optional
        The first rows of ``rows`` that are not synthetic; without it, all. A note of the result counts the
        synthetic rows that judged.
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
        Budgets that no candidate meets together; names the nearest.
    ModuleNotFoundError
        Optuna is not installed.
    """
    if settings is not None and keywords:
        raise TypeError(f"settings: expected either settings or {', '.join(keywords)}; got both")
    if not isinstance(cache, TargetCache):
        raise TypeError(
            f"cache: expected a TargetCache; got {type(cache).__name__}: store its targets by "
            "ensdistill.cache_targets"
        )
    own = settings or SearchSettings(**keywords)
    if own.keep is None and not own.limits:
        own = replace(own, keep=KEEP)
    known = {"given": (rows, cache), **(mixtures or {})}
    found = lessons(known, validation, ensemble, augment, seed, real)
    if folder is not None:
        return _Search(found, own, Path(folder), seed, progress).run()
    with tempfile.TemporaryDirectory() as temporary:
        return _Search(found, own, Path(temporary), seed, progress).run()


class _Search:
    """One process's part of a search."""

    def __init__(
        self, found: Lessons, settings: SearchSettings, folder: Path, seed: int, progress: Progress | None
    ) -> None:
        self.lessons, self.settings, self.seed, self.progress = found, settings, seed, progress
        self.families = families_for(settings.families, found.about)
        self.journal = Journal(folder, self._fingerprint(), seed)
        self.clock = Clock(settings, self.journal)
        most = self.clock.seconds_of_each("direct") if self.clock.timed else math.inf
        try:
            self.ladders = Ladders(found, settings, self.families, self.journal, most, seed)
        except BaseException:
            self.journal.close()
            raise
        self.judgement = Judgement(found, self.journal, ensemble_figures(found.judged), {})

    def run(self) -> SearchResult:
        """Trials until the budget is used up, and their result."""
        try:
            self.journal.start()
            self.clock.start()
            self.steps = steps_of_roles(
                self.lessons, self.settings, self.ladders, self.journal, self.clock, self.seed
            )
            policy = Policy(self.ladders.keys, self.settings.keep)
            while True:
                records = self.journal.records()
                self._tell(records)
                missing = self._missing(records)
                if self.clock.late() and not missing:
                    break
                role = policy.role(records, self.clock.timed, self.settings.trials)
                if missing and self.clock.late():
                    role = missing[0]
                plan = None if role is None else self._plan(policy, role, records)
                if role is None or plan is None:
                    break
                self._trial(role, plan)
            self.journal.leave(OVERTIME * self.clock.seconds if self.clock.timed else math.inf)
            return chosen_of(self)
        finally:
            self.journal.close()

    def _plan(self, policy: Policy, role: Role, records: list[Record]) -> Plan | None:
        """The next trial of a role; None where no training fits into the time that is left."""
        sizes = {key: one.parameters for key, one in self.ladders.built.items()}
        pace, kept = Pace(records, role, sizes, self.steps[role]), self._kept(records)
        own = [one for one in records if one.role == role]
        trials, left = self.settings.trials, self.clock.left(records)
        explored = self.clock.used if trials is None else len(own) / trials
        if role == "student" and best_of(own, role) is not None and explored >= 1 - SHARE:
            return final_plan(policy, records, kept, pace, partial(self.space, role), left)
        if role == "student" and (compared := untried_mixture(own, tuple(self.lessons.mixtures))) is not None:
            best, mixture = compared
            return Plan(best.candidate, {**best.values, "mixture": mixture})
        key = policy.candidate(role, records, kept)
        values = self.space(role, key).defaults()
        most = self.clock.seconds_of_each(role) if self.clock.timed else left
        shorter = pace.within(key, values, most)
        given = {name: value for name, value in mixture_of_best(own).items() if name in values}
        if "steps" in values and (role == "student" or shorter["steps"] < values["steps"]):
            given["steps"] = max(shorter["steps"], min(values["steps"], LEAST_STEPS / self.steps[role]))
        return Plan(key, given)

    def space(self, role: Role, key: str) -> Space:
        return self.lessons.space(self.ladders.candidate(key), role, self.steps[role])

    def _trial(self, role: Role, plan: Plan) -> None:
        """Begin, train, judge and write down one trial."""
        key = plan.candidate
        space = self.space(role, key)
        needed = role in self._missing(self.journal.records())
        trial, values, place = self.journal.begin(role, space, plan.values)
        number, begun, started = trial.number, time.perf_counter(), time.time()
        work = Work(
            self.lessons, self.ladders.built[key], space, values, derive_seed("trial", self.seed, key, place)
        )

        def report(value: float, evaluation: int) -> str:
            if not needed and self.clock.late(OVERTIME if plan.final else 0.0):
                return "the time is over"
            if plan.whole:
                return ""
            with warnings.catch_warnings():  # a trial that was killed has reported some values already
                warnings.simplefilter("ignore")
                trial.report(value, evaluation)
            return "it fell behind" if place and trial.should_prune() else ""

        record: dict[str, Any] = {"state": "done", "started": started, "final": plan.final}
        try:
            outcome = work.run(report)
        except Ended:
            record["state"] = "ended"
        except FloatingPointError:
            record["state"] = "failed"
        else:
            figures = figures_of(outcome.outputs, self.lessons.judged)
            record |= {
                "parameters": outcome.parameters,
                "bytes": outcome.bytes,
                "steps": outcome.steps,
                "latency": None if outcome.latency is None else asdict(outcome.latency),
                "losses": figures.means,
                "value": objective(figures, role),
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
        for key in self.ladders.built:
            best = best_of(records, "student", key)
            if best is not None:
                of = self.judgement
                found[key] = least(kept(of.of(best), of.of(direct), of.ensemble))
        return found

    def _missing(self, records: Sequence[Record]) -> list[Role]:
        """The roles without a judged trial, which have one however long it takes, unless trainings fail."""
        done = {one.role for one in records if one.state == "done"}
        failed = [one.role for one in records if one.state == "failed"]
        return [role for role in ROLES if role not in done and failed.count(role) < FAILURES]

    def _tell(self, records: list[Record]) -> None:
        if self.progress is None:
            return
        if self.settings.trials is not None:
            self.progress(len(records), 2 * self.settings.trials)
        else:
            total = self.clock.seconds
            self.progress(round(min(total, self.clock.spent)), round(total))

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
