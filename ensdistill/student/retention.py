"""The share of the ensemble's gain in likelihood that a student is expected to keep, by a linear rule.

The gain is that in NLL, of several labels in BCE. The rules are learned from finished jobs: ``python -m
benchmarks quality --fit-rule`` trains small ones, fits the rules, and writes ``retention.json`` beside this
file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.files import read_json
from ensdistill.common.tasks import Task

FILE = Path(__file__).with_name("retention.json")
LEAST, MOST = -0.5, 1.2  # shares beyond these are mostly noise
_SMALL = 1e-4  # nats, rows for each labelled row, and deviations


@dataclass(frozen=True)
class Features:
    """The facts of a job before a student is trained; None for an unknown one.

    Parameters
    ----------
    members : float
        The effective number of members, 1 / Σ w².
    rows_per_class : float
        Labelled rows for each class; of several labels the mean number of rows that have one, of numbers all.
    pool, synthetic : float
        Rows of the transfer set for each labelled row.
    lead : float
        The ensemble's lead in likelihood over its best member on held-out rows, in standard errors.
    epistemic : float or None
        The members' epistemic uncertainty on the transfer set, over that on held-out rows.
    entropy : float or None
        The mixture's entropy (of numbers its variance) on synthetic rows, over that on real rows that no
        member learned from.
    size : float or None
        The student's parameters, over those of the median member.
    """

    members: float
    rows_per_class: float
    pool: float
    synthetic: float
    lead: float
    epistemic: float | None = None
    entropy: float | None = None
    size: float | None = None

    def vector(self) -> np.ndarray:
        """The rule's inputs, float64 [8]; NaN for an unknown feature. Ratios are logarithms."""
        ratio = {
            name: _log(getattr(self, name))
            for name in ("members", "rows_per_class", "epistemic", "entropy", "size")
        }
        more = {name: math.log1p(getattr(self, name)) for name in ("pool", "synthetic")}
        found = ratio | more | {"lead": math.log1p(max(self.lead, 0.0))}
        return np.array([found[name] for name in NAMES])


NAMES = tuple(one.name for one in fields(Features))


@dataclass(frozen=True)
class Expectation:
    """A share with its standard error.

    Parameters
    ----------
    share, error : float
    learned : bool
        Whether a rule predicts it; else it is the mean of all cases.
    """

    share: float
    error: float
    learned: bool

    def __str__(self) -> str:
        return f"{self.share:.0%} ± {self.error:.0%}"


@dataclass(frozen=True)
class RetentionRule:
    """A ridge regression of the share on standardised features.

    Parameters
    ----------
    names : tuple of str
        The features in use, of `NAMES`.
    means, scales, weights : tuple of float
        One for each. An unknown feature counts as the mean.
    mean : float
        Of the shares.
    error : float
        Root mean squared error on data sets that the fit left out.
    mean_error : float
        The same of a prediction by the mean of the other data sets.
    cases, sets : int
        Students and data sets that the rule is learned from.
    tasks : tuple of str
        The tasks of these.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    mean: float
    error: float
    mean_error: float
    cases: int
    sets: int
    tasks: tuple[str, ...] = ("classification",)

    @property
    def useful(self) -> bool:
        """Whether the rule predicts data sets that it left out better than the mean does."""
        return self.error < self.mean_error

    @property
    def source(self) -> str:
        """Where an expectation comes from, in words."""
        learned = f"{self.cases} students on {self.sets} sets of {', '.join(self.tasks)}"
        if self.useful:
            return f"rule learned from {learned}; ± is its error on sets left out"
        return (
            f"mean of {learned}, ± its error on sets left out; no rule learned from them is better there, "
            "so this job's own figures have no part in it"
        )

    def expect(self, features: Features) -> Expectation:
        """The share that a student with these features is expected to keep."""
        if not self.useful:
            return Expectation(self.mean, self.mean_error, False)
        chosen = features.vector()[[NAMES.index(name) for name in self.names]]
        share = shares(chosen, self.mean, self.means, self.scales, self.weights)
        return Expectation(float(share), self.error, True)


@cache
def rule(task: Task = "classification") -> RetentionRule | None:
    """This version's rule for a task; None where it was learned from no job of that task."""
    found = read_json(FILE)
    if not isinstance(found, dict) or "rules" not in found:
        raise ValueError(f"{FILE}: expected the rules that this package has; install it again")
    own = found["rules"].get(task)
    return None if own is None else from_record(own)


def from_record(record: Mapping[str, Any]) -> RetentionRule:
    """A rule from the JSON of its fields."""
    values = ((one.name, record[one.name]) for one in fields(RetentionRule))
    known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values}
    return RetentionRule(**known)


def moments(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means and the deviations [F] of features [N, F] over the rows where they are known (not NaN), by
    the rows' weights [N]; a feature that does not vary has a deviation of 1."""
    share = np.where(np.isfinite(x), weights[:, None], 0.0)
    share = share / np.where((total := share.sum(0)) > 0, total, 1.0)
    means = (share * np.nan_to_num(x)).sum(0)
    scales = np.sqrt((share * np.square(np.nan_to_num(x - means))).sum(0))
    return means, np.where(scales > _SMALL, scales, 1.0)


def standardised(x: np.ndarray, means: Any, scales: Any) -> np.ndarray:
    """Features [..., F] in deviations from their means; an unknown one (NaN) counts as the mean."""
    return np.nan_to_num((x - np.asarray(means)) / np.asarray(scales))


def shares(x: np.ndarray, mean: float, means: Any, scales: Any, weights: Any) -> np.ndarray:
    """The shares [...] that a linear rule predicts for features [..., F].

    The rule has no examples beyond three deviations, so features end there.
    """
    z = np.clip(standardised(x, means, scales), -3, 3)
    found: np.ndarray = np.clip(mean + z @ np.asarray(weights), LEAST, MOST)
    return found


def _log(value: Any) -> float:
    return math.nan if value is None else math.log(max(float(value), _SMALL))
