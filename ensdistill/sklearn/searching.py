"""The search for the student of an estimator, where it has a goal (``keep``, ``max_*``) in place of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ensdistill.cache import TargetCache
from ensdistill.data import Rows, Split
from ensdistill.data.transfer import TransferSet
from ensdistill.job.search_config import check_one_budget, found_student, held_back, predictions, too_few
from ensdistill.job.student_config import StudentConfig
from ensdistill.loss.settings import LossSettings
from ensdistill.sklearn.students import Estimator, Network, Student
from ensdistill.student.search import SearchResult, SearchSettings, search_student
from ensdistill.student.search.families import import_family
from ensdistill.student.search.journal import optuna_of
from ensdistill.student.search.settings import MINUTES

GOALS = ("keep", "max_latency", "max_bytes", "max_parameters")
FOUND = ("optimization", "temperature", "alpha", "loss")


@dataclass(frozen=True)
class Search:
    """A search for the student, before it runs.

    Parameters
    ----------
    settings : SearchSettings
    """

    settings: SearchSettings

    def divided(self, split: Split, transfer: TransferSet, seed: int) -> tuple[Split, Rows | None]:
        """The split without the labelled rows that judge students, and these rows.

        Raises
        ------
        ValueError
            There are too few rows to judge by; the message holds the number that is needed.
        """
        rest, validation = held_back(split, seed)
        if reason := too_few(rest, validation, transfer):
            raise ValueError(f"{self.goal}: {reason}, or name a student in place of keep and max_*")
        return rest, validation

    @property
    def goal(self) -> str:
        """The name of the first goal."""
        return next(name for name in GOALS if getattr(self.settings, name) is not None)

    def run(
        self, rows: Rows, cache: TargetCache, validation: Rows | None, ensemble: Any, seed: int
    ) -> tuple[SearchResult, Student, LossSettings]:
        """The result, the chosen student (or the nearest), and its loss."""
        asked = None if validation is None else predictions(ensemble, validation.inputs)
        found = search_student(
            rows, cache, validation=validation, ensemble=asked, settings=self.settings, seed=seed
        )
        config = StudentConfig(**found_student(found.student.section))
        student: Student = Network(config)
        if config.estimator is not None:
            student = Estimator(config.estimator, config.held_out)
        return found, student, config.loss or LossSettings()


def search_of(estimator: Any) -> Search | None:
    """The search that an estimator's parameters define, checked; None where they name no goal.

    Raises
    ------
    TypeError, ValueError
        An invalid goal or budget, or a setting beside it that the search finds itself.
    ModuleNotFoundError
        Optuna is not installed.
    """
    goals = {name: getattr(estimator, name) for name in GOALS}
    families = estimator.families
    if all(value is None for value in goals.values()):
        for name in ("families", "minutes", "trials"):
            if (given := getattr(estimator, name)) is not None:
                more = "; the time of teachers='auto' is teacher_minutes" * (name == "minutes")
                raise ValueError(
                    f"{name}: expected None without keep or max_*, by which a search chooses; got "
                    f"{given!r}{more}"
                )
        return None
    check_one_budget(estimator.minutes, estimator.trials)
    settings = SearchSettings(
        **goals,
        minutes=MINUTES if estimator.minutes is None else estimator.minutes,
        trials=estimator.trials,
        families=() if families is None else families,
    )
    for name in settings.families:
        import_family(name)
    if not isinstance(estimator.student, str) or estimator.student != "auto":
        raise ValueError(
            f"student: expected 'auto' beside {', '.join(n for n, v in goals.items() if v is not None)}, by "
            f"which a student is searched for; got {estimator.student!r}"
        )
    for name in FOUND:
        if getattr(estimator, name) is not None:
            raise ValueError(
                f"{name}: expected None beside keep or max_*, because the search finds it; got "
                f"{getattr(estimator, name)!r}"
            )
    optuna_of()
    return Search(settings)
