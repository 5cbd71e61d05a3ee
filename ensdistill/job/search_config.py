"""Settings of students whose model is searched for, and the rows that judge them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ensdistill.common.optimizers import StudentOptimization
from ensdistill.common.random import derive_seed
from ensdistill.data import Rows, Split
from ensdistill.data.copies import draw_stratified, equal_inputs, merged
from ensdistill.data.tasks import strata_of
from ensdistill.data.transfer import TransferSet
from ensdistill.job.rows_config import StudentRows
from ensdistill.loss.settings import LossSettings, check_trained
from ensdistill.student.search.build import class_at, made
from ensdistill.student.search.families import import_family
from ensdistill.student.search.rows import LEAST, SHARE
from ensdistill.student.search.settings import MINUTES, SearchSettings, check_budget

HELD_BACK = 0.2  # of the labelled rows at most
MOST = 2000
GOALS = ("keep", "max_latency", "max_bytes", "max_parameters")


@dataclass(frozen=True, kw_only=True)
class SearchedStudent:
    """A student whose model may be searched for.

    Parameters
    ----------
    keep : float, optional
        In place of a model: the smallest student is chosen that keeps this share of the ensemble's gain over
        *direct* on validation rows, and trained by the settings that the search found. See ``minutes``.
    max_latency : float or str, optional
        The largest time of one row, such as ``50us``; without ``keep`` the student within it is chosen that
        keeps the most.
    max_bytes : int or str, optional
        The student's largest size, such as ``200kB``.
    max_parameters : int, optional
        Its largest number of parameters.
    families : list of str
        The kinds of models that are searched, ``mlp``, ``embeddings``, ``cnn``, ``ngrams``, ``transformer``,
        ``boosted``, or import paths of your own; empty for all that fit the samples.
    loss : LossSettings, optional
        This student's own loss, in place of ``distill.loss``. A search chooses it.
    """

    keep: float | None = None
    max_latency: float | str | None = None
    max_bytes: int | str | None = None
    max_parameters: int | None = None
    families: list[str] = field(default_factory=list)
    loss: LossSettings | None = None

    @property
    def searched(self) -> bool:
        """Whether the model is searched for."""
        return any(getattr(self, name) is not None for name in GOALS)

    def check_search(self, given: Mapping[str, tuple[Any, Any]]) -> bool:
        """Whether the model is searched for.

        Parameters
        ----------
        given : mapping
            The settings beside the goals that differ from their defaults, and that no search takes, each with
            its default.

        Raises
        ------
        ValueError
            A goal that is none, settings that a search finds itself, or families without a search.
        """
        if self.loss is not None:
            check_trained("loss", self.loss)
        if not self.searched:
            if self.families:
                raise ValueError(
                    "families: expected keep or max_* beside them, by which a search chooses; got "
                    f"{self.families}"
                )
            return False
        self.search_settings()
        for name in self.families:
            import_family(name)
        if given:
            name, (value, _) = next(iter(given.items()))
            without = ", ".join(f"{one}: {_in_yaml(default)}" for one, (_, default) in given.items())
            raise ValueError(
                f"{name}: expected none beside keep or max_*, by which model and settings are searched for; "
                f"got {value!r}: leave out either keep and max_* or {' and '.join(given)} ({without})"
            )
        return True

    def search_settings(self, minutes: float = MINUTES, trials: int | None = None) -> SearchSettings:
        return SearchSettings(
            keep=self.keep,
            max_latency=self.max_latency,
            max_bytes=self.max_bytes,
            max_parameters=self.max_parameters,
            families=tuple(self.families),
            minutes=minutes,
            trials=trials,
        )


def _in_yaml(default: Any) -> str:
    """A default as the command line takes it; null stands for that of settings with names of their own."""
    plain = isinstance(default, str | bool | int | list)
    return json.dumps(default).strip('"') if plain else "null"


@dataclass(frozen=True, kw_only=True)
class SearchBudget:
    """The time for searches.

    Parameters
    ----------
    minutes : float, optional
        Of all searches for students of the job together, those of all seeds, 10 by default; half of them is
        *direct*'s.
    trials : int, optional
        So many trials of each searched student and as many of its *direct*, in place of the minutes.
    refit : bool
        Where labelled rows judge the searched students, teachers train twice: first without these rows, for
        the search, and then on all labelled rows, for the students that it found. Otherwise teachers and
        students never learn from these rows.
    """

    minutes: float | None = None
    trials: int | None = None
    refit: bool = True

    @property
    def search_minutes(self) -> float:
        """The minutes, or the default."""
        return MINUTES if self.minutes is None else self.minutes

    def check_search_budget(self, searched: bool) -> None:
        """Raise ValueError for a budget that is none, or that nothing would use."""
        check_budget(self.search_minutes, self.trials)
        given = {"minutes": self.minutes, "trials": self.trials}
        for name, value in given.items():
            if value is not None and not searched:
                raise ValueError(
                    f"{name}: expected none where no student is searched for; got {value}: leave it out, or "
                    "give a student keep or max_* in place of its model (data in place of CONFIG: --keep "
                    "0.95). The budget of teachers: auto is teachers.minutes"
                )
        check_one_budget(self.minutes, self.trials)


def check_one_budget(minutes: float | None, trials: int | None) -> None:
    """Raise ValueError where both are given."""
    if minutes is not None and trials is not None:
        raise ValueError(
            f"minutes: expected none beside trials, which end a search in place of them; got {minutes} and "
            f"{trials} trials: leave one of the two out"
        )


def held_back(split: Split, seed: int) -> tuple[Split, Rows | None]:
    """A split without the labelled rows that judge searched students, and these rows.

    A fifth of the labelled rows, 2 000 at most, of which no teacher learns. None where that is fewer than
    203: then rows of the pool judge, by the ensemble's own probabilities.
    """
    rows = split.labelled
    count = min(int(HELD_BACK * len(rows)), MOST)
    if count < LEAST:
        return split, None
    alike = merged(equal_inputs(rows.inputs)[0], rows.groups)
    drawn, rest = draw_stratified(
        np.arange(len(rows)),
        strata_of(rows.labels),
        alike,
        count,
        derive_seed("validation of a search", seed),
    )
    return replace(split, labelled=rows.take(np.sort(rest))), rows.take(np.sort(drawn))


def predictions(ensemble: Any, samples: Any) -> Any:
    """The ensemble's probabilities [V, C], or Moments [V, D], of the rows that judge."""
    if ensemble.task == "regression":
        return ensemble.predict_distribution(samples)
    return np.asarray(ensemble.predict_proba(samples), np.float64)


def too_few(split: Split, validation: Rows | None, transfer: TransferSet) -> str:
    """The reason why there are too few rows that judge searched students; empty where there are enough."""
    pool, made = len(split.pool) * transfer.pool, sum(source.rows for source in transfer.synthetic)
    if validation is not None or enough_judge(pool + made):
        return ""
    return (
        f"a search needs {LEAST} rows that judge, a fifth of the labelled rows or a quarter of the pool and "
        f"the synthetic rows; got {len(split.labelled)} labelled rows, a pool of {pool} and {made} synthetic "
        f"rows: have {5 * LEAST} labelled rows, or {4 * LEAST} rows in pool and synthetic rows"
    )


def enough_judge(unlabelled: int) -> bool:
    """Whether so many rows without a label in the transfer set are enough to hold out those that judge."""
    return SHARE * unlabelled >= LEAST


def found_student(section: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the StudentConfig that a search has found, from its section of YAML."""
    found: dict[str, Any] = {"description": section["description"], "preprocess": made(section["preprocess"])}
    if "estimator" in section:
        found["estimator"] = dict(section["estimator"])
    else:
        found["model"] = partial(class_at(section["model"]["class_path"]), **section["model"]["init_args"])
        found["optimization"] = StudentOptimization(**section["optimization"])
        if "direct" in section:
            found["direct"] = StudentOptimization(**section["direct"])
        found["ema"] = section.get("ema")
        found["variance"] = section.get("variance", False)
    if "rows" in section:
        found["rows"] = StudentRows(**section["rows"])
    # A section of an earlier version has no loss where the trial's was the default one.
    found["loss"] = LossSettings(**section.get("loss", {}))
    return found
