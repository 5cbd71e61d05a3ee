"""Methods by which the members of one factory differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ensdistill.common.optimization import Optimization
from ensdistill.common.random import derive_seed, random_generator
from ensdistill.common.scalars import plain_fields
from ensdistill.data.tasks import strata_of
from ensdistill.teachers.jobs import Job


@dataclass(frozen=True)
class Seeds:
    """Initialisation, order of the batches, augmentation and dropout, each by the member's own seed; all rows
    for everybody (Lakshminarayanan et al., 2017, "Simple and Scalable Predictive Uncertainty Estimation using
    Deep Ensembles")."""

    def rows(self, labels: np.ndarray, seed: int) -> np.ndarray:
        return np.arange(len(labels), dtype=np.int64)


@dataclass(frozen=True)
class Bagging:
    """Seeds, and rows of each member's own (Breiman, 1996, "Bagging Predictors"), drawn within each class: a
    class keeps its share, and none is missing. Rows of other tasks are drawn at random.

    Parameters
    ----------
    share : float
        Rows drawn, as a share of those there are, in (0, 1].
    replace : bool
        With replacement (a bootstrap) or without (a subsample; ``share`` below 1 then).

    Examples
    --------
    >>> rows = Bagging(share=0.5, replace=False).rows(np.array([0, 0, 0, 0, 1]), seed=3)
    >>> len(rows), 4 in rows
    (3, True)
    """

    share: float = 1.0
    replace: bool = True

    def __post_init__(self) -> None:
        plain_fields(self)
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a number in (0, 1]; got {self.share}")
        if self.share == 1 and not self.replace:
            raise ValueError(
                "share: expected less than 1 without replacement, or all members would have all rows; got 1"
            )

    def rows(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Positions, int64, in growing order."""
        strata = strata_of(labels)  # rows of other tasks are drawn from one set
        present = np.unique(strata)
        if len(present) < 2 and labels.ndim == 1:
            raise ValueError(
                "labels: expected rows of at least two classes to draw from; all are of class "
                f"{present.tolist()}"
            )
        generator = random_generator("bagging", seed)
        drawn = []
        for value in present:
            places = np.flatnonzero(strata == value)
            drawn.append(
                generator.choice(places, max(1, round(self.share * len(places))), replace=self.replace)
            )
        return np.sort(np.concatenate(drawn)).astype(np.int64)


@dataclass(frozen=True)
class Snapshot:
    """One training with as many cosine cycles of the learning rate as there are members; a member is a copy
    at the end of each cycle.

    All of them together cost as many steps as one (Huang et al., 2017, "Snapshot Ensembles: Train 1, get M
    for free").
    """

    def plan(self, base: Optimization, members: int) -> tuple[Optimization, list[int]]:
        """The optimisation, and the steps after which a member is kept."""
        if base.steps < 2 * members:
            raise ValueError(
                f"optimization.steps: expected at least {2 * members}, two for each cycle; got {base.steps}"
            )
        ends = [math.ceil(base.steps * (k + 1) / members) for k in range(members)]
        return _Cycles(**_values(base), cycles=members), ends


@dataclass(frozen=True)
class FastGeometric:
    """One training, then short triangular cycles of the learning rate; a member is a copy where the rate is
    lowest.

    All of them together cost as many steps as one (Garipov et al., 2018, "Loss Surfaces, Mode Connectivity,
    and Fast Ensembling of DNNs").

    Parameters
    ----------
    share : float
        Of the steps before the first cycle, in (0, 1).
    high, low : float
        The learning rate between and at the members, as shares of ``optimization.learning_rate``.
    """

    share: float = 0.7
    high: float = 0.5
    low: float = 0.005

    def __post_init__(self) -> None:
        plain_fields(self)
        if not 0 < self.share < 1:
            raise ValueError(f"share: expected a number in (0, 1); got {self.share}")
        if not 0 < self.low < self.high <= 1:
            raise ValueError(f"low, high: expected 0 < low < high <= 1; got {self.low} and {self.high}")

    def plan(self, base: Optimization, members: int) -> tuple[Optimization, list[int]]:
        """The optimisation, and the steps after which a member is kept."""
        first = round(self.share * base.steps)
        cycle = (base.steps - first) // members
        if first < 1 or cycle < 2:
            least = math.ceil(2 * members / (1 - self.share)) + 1
            raise ValueError(
                f"optimization.steps: expected at least {least}, for {members} cycles of two steps; got "
                f"{base.steps}"
            )
        triangles = _Triangles(**_values(base), first=first, cycle=cycle, high=self.high, low=self.low)
        return triangles, [first + k * cycle + cycle // 2 + 1 for k in range(members)]


@dataclass(frozen=True)
class _Cycles(Optimization):
    cycles: int = 1

    def _factor(self, step: int) -> float:
        length = math.ceil(self.steps / self.cycles)
        place = step * self.cycles % self.steps / self.cycles if step < self.steps else length
        return 0.5 * (1 + math.cos(math.pi * min(1.0, place / length)))


@dataclass(frozen=True)
class _Triangles(Optimization):
    first: int = 1
    cycle: int = 2
    high: float = 1.0
    low: float = 0.0

    def _factor(self, step: int) -> float:
        if step < self.first:  # down to where the cycles begin, after the warm-up
            warmup = round(self.warmup * self.first)
            if step < warmup:
                return (step + 1) / warmup
            return self.high + (1 - self.high) * 0.5 * (
                1 + math.cos(math.pi * (step - warmup) / max(1, self.first - warmup))
            )
        middle = self.cycle // 2
        away = abs((step - self.first) % self.cycle - middle) / middle  # 0 in the middle of a cycle
        return self.low + (self.high - self.low) * min(1.0, away)


def _values(base: Optimization) -> dict[str, Any]:
    return {f.name: getattr(base, f.name) for f in fields(Optimization)} | {"schedule": "constant"}


Method = Seeds | Bagging | Snapshot | FastGeometric
METHODS: dict[str, Method] = {
    "seeds": Seeds(),
    "bagging": Bagging(),
    "subsample": Bagging(share=0.7, replace=False),
    "snapshot": Snapshot(),
    "fast_geometric": FastGeometric(),
}


def as_method(value: Any) -> Method:
    """A method as it is, or by its name."""
    if isinstance(value, Method):
        return value
    if not isinstance(value, str) or value not in METHODS:
        raise ValueError(
            f"method: expected one of {', '.join(METHODS)}, or Seeds, Bagging, Snapshot or FastGeometric; "
            f"got {value!r}"
        )
    return METHODS[value]


def plan_jobs(
    names: Sequence[str],
    together: str,
    method: Method,
    labels: np.ndarray,
    seed: int,
    allowed: np.ndarray | None = None,
    part: int | None = None,
) -> list[Job]:
    """One job for each name, with a seed made of the ensemble's and the name, and the rows that the method
    draws.

    Snapshots and fast geometric cycles are of one training, whose seed is made of the name ``together``.
    """
    allowed = np.arange(len(labels), dtype=np.int64) if allowed is None else allowed
    found = []
    for name in names:
        if isinstance(method, (Snapshot, FastGeometric)):
            found.append(Job(name, derive_seed("member", seed, together), allowed, allowed, part))
        else:
            own = derive_seed("member", seed, name)
            found.append(Job(name, own, allowed[method.rows(labels[allowed], own)], allowed, part))
    return found
