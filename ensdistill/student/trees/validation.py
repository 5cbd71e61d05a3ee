"""Rows that a student is not fitted to, by which its rounds and its way are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.special import log_softmax, xlogy

from ensdistill.common.random import random_generator
from ensdistill.common.scalars import plain_fields
from ensdistill.data import Rows
from ensdistill.data.copies import equal_inputs, merged
from ensdistill.student.trees.objective import Objective

Metric = Literal["agreement", "kl"]
TIE = 1e-9  # of a nat: rows that agree come first, and of equals the least KL


@dataclass(frozen=True)
class Validation:
    """The choice of rounds, and of the way in which an estimator learns probabilities.

    Parameters
    ----------
    share : float
        The share of the transfer set that is held out for it, in (0, 1). Equal rows are on one side.
    patience : int, optional
        Boosters stop after so many rounds without a better one, and keep the best. None: all rounds are
        kept, and no row is held out for a booster.
    metric : {"kl", "agreement"}
        ``kl``: the KL from the ensemble. ``agreement``: the share of held-out rows whose likeliest class is
        the ensemble's; of equals the least KL. It moves in steps of one row, and stands still for many rounds
        in which the probabilities still improve, so a booster may stop long before these are right.
    """

    share: float = 0.1
    patience: int | None = 50
    metric: Metric = "kl"

    def __post_init__(self) -> None:
        plain_fields(self)
        if not 0 < self.share < 1:
            raise ValueError(f"share: expected a number between 0 and 1, neither of them; got {self.share}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience: expected at least 1, or None; got {self.patience}")
        if self.metric not in ("agreement", "kl"):
            raise ValueError(f"metric: expected kl or agreement; got {self.metric!r}")


@dataclass(eq=False)
class Judge:
    """Compares scores with the ensemble's targets on held-out rows.

    Parameters
    ----------
    samples : samples of V rows
    objective : Objective
        Of these rows.
    metric : {"agreement", "kl"}
    patience : int, optional
    """

    samples: Any
    objective: Objective
    metric: Metric
    patience: int | None
    _first: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._first = self.objective.targets.argmax(1)

    def figures(self, scores: np.ndarray) -> tuple[float, float]:
        """The agreement with the ensemble, and the KL from it in nats, for scores [V, C]."""
        one = self.objective
        weights = one.soft + one.hard
        divergence = xlogy(one.targets, one.targets) - one.targets * log_softmax(
            np.asarray(scores, np.float64) / one.temperature, axis=1
        )
        same = scores.argmax(1) == self._first
        return float(np.average(same, weights=weights)), float(np.average(divergence.sum(1), weights=weights))

    def value(self, scores: np.ndarray) -> float:
        """A number that is larger for better scores [V, C]."""
        agreement, divergence = self.figures(scores)
        return -divergence if self.metric == "kl" else agreement - TIE * divergence


def held_out(rows: Rows, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the rows to learn from, and of a share of the rows to judge by; equal rows and those of
    one group are on one side.

    Raises
    ------
    ValueError
        All rows are equal, or of one group.
    """
    sets = np.unique(merged(equal_inputs(rows.inputs)[0], rows.groups), return_inverse=True)[1]
    order = random_generator("student validation", seed).permutation(sets.max() + 1)
    sizes = np.cumsum(np.bincount(sets)[order])
    chosen = order[: max(1, int(np.searchsorted(sizes, round(share * len(rows)), side="right")))]
    away = np.isin(sets, chosen)
    if away.all():
        raise ValueError(
            f"validation: expected rows of which some can be held out; got {len(rows)} that are all equal or "
            "of one group"
        )
    return np.flatnonzero(~away), np.flatnonzero(away)
