"""The share of the ensemble's gain in NLL that a student is expected to keep, by a linear rule.

The rule is learned from finished jobs: ``python -m benchmarks quality --fit-rule`` trains small ones, fits
the rule, and writes ``retention.json`` beside this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.files import read_json

FILE = Path(__file__).with_name("retention.json")
LEAST, MOST = -0.5, 1.2  # shares beyond these are mostly noise
_SMALL = 1e-4  # nats, and rows for each labelled row


@dataclass(frozen=True)
class Features:
    """The facts of a job before a student is trained; None for an unknown one.

    Parameters
    ----------
    members : float
        The effective number of members, 1 / Σ w².
    rows_per_class : float
        Labelled rows.
    pool, synthetic : float
        Rows of the transfer set for each labelled row.
    lead : float
        The ensemble's lead in NLL over its best member on held-out rows, in standard errors.
    epistemic : float or None
        The members' epistemic uncertainty on the transfer set, over that on held-out rows.
    entropy : float or None
        The mixture's entropy on synthetic rows, over that on real rows that no member learned from.
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
class Rule:
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

    @property
    def useful(self) -> bool:
        """Whether the rule predicts data sets that it left out better than the mean does."""
        return self.error < self.mean_error

    @property
    def source(self) -> str:
        """Where an expectation comes from, in words."""
        learned = f"{self.cases} students on {self.sets} sets"
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
        standard = np.nan_to_num((chosen - self.means) / np.asarray(self.scales))
        # The rule has no examples beyond three deviations, so features are clipped there.
        share = self.mean + float(np.clip(standard, -3, 3) @ np.asarray(self.weights))
        return Expectation(min(max(share, LEAST), MOST), self.error, True)


@cache
def rule() -> Rule:
    """The rule of this version."""
    found = read_json(FILE)
    if not isinstance(found, dict):
        raise ValueError(f"{FILE}: expected the rule that this package has; install it again")
    values = ((one.name, found[one.name]) for one in fields(Rule))
    known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values}
    return Rule(**known)


def standardised(vectors: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [N, F] with means 0 and deviations 1, unknown ones at 0; the means and the deviations [F]."""
    stacked = np.stack(vectors)
    known = np.isfinite(stacked)
    count = np.maximum(known.sum(0), 1)
    means = np.where(known, stacked, 0.0).sum(0) / count
    scales = np.sqrt(np.where(known, np.square(stacked - means), 0.0).sum(0) / count)
    scales = np.where(scales > 0, scales, 1.0)
    return np.nan_to_num((stacked - means) / scales), means, scales


def _log(value: Any) -> float:
    return math.nan if value is None else math.log(max(float(value), _SMALL))
