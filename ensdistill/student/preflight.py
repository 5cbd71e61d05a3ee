"""The forecast before a student is trained: the ensemble's lead on held-out rows, and how much its
members differ where the student is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ensdistill.teachers import Ensemble
from ensdistill.teachers.fitting.uncertainty import decompose

QUANTILE = 1.96  # of the normal distribution, for 95 % intervals
NARROW = 0.5  # a share of the members' disagreement on held-out rows, below which rows show little of it
ROUNDING = 1e-6
LABELLED, HELD_OUT = "labelled", "labelled, held out"


@dataclass(frozen=True)
class Lead:
    """A difference of means over held-out rows, positive where the ensemble is better, with its 95 %
    interval."""

    mean: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval lies above 0, by more than float32's rounding."""
        return self.low > ROUNDING

    @classmethod
    def of(cls, differences: Sequence[np.ndarray]) -> Lead:
        """The lead over seeds, from one difference [N_s] for each row of each seed.

        Seeds share rows, so more of them make the interval no narrower than that of one seed.
        """
        mean = float(np.mean([d.mean() for d in differences]))
        errors = [d.std(ddof=1) / math.sqrt(len(d)) if len(d) > 1 else math.inf for d in differences]
        half = QUANTILE * math.sqrt(float(np.mean(np.square(errors))))
        return cls(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Leads:
    """The ensemble's lead over another model: in accuracy (a share) and in NLL (nats)."""

    accuracy: Lead
    nll: Lead

    @property
    def certain(self) -> bool:
        """Whether one of the two is certain."""
        return self.accuracy.certain or self.nll.certain


@dataclass(frozen=True)
class Spread:
    """How much the members differ on rows of one origin: means over the rows.

    Parameters
    ----------
    rows : int
        In the transfer set.
    entropy : float
        Of the mixture, in nats.
    epistemic : float
        Mutual information of the label and the member, in nats; see
        :func:`ensdistill.teachers.fitting.uncertainty.decompose`.
    disagreement : float
        The probability that two different members name different classes.
    """

    rows: int
    entropy: float
    epistemic: float
    disagreement: float

    @classmethod
    def of(cls, logits: np.ndarray, weights: np.ndarray, rows: int) -> Spread:
        """From members' logits [K, M, C] for some of ``rows`` rows."""
        found = decompose(logits, weights)
        parts = (found.total, found.epistemic, found.disagreement)
        return cls(rows, *(float(np.mean(part)) for part in parts))


@dataclass(frozen=True)
class HeldOut:
    """One seed's predictions for labelled rows, by models that did not learn from them.

    Parameters
    ----------
    logits : ndarray [K, N, C]
        Of the members, not calibrated.
    labels : ndarray [N], int64
    direct : dict of str to ndarray [N, C]
        Calibrated logits of each student's architecture, trained on labels.
    """

    ensemble: Ensemble
    best_member: str
    logits: np.ndarray
    labels: np.ndarray
    direct: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Preflight:
    """The forecast of a job.

    Parameters
    ----------
    best_member : str
    over_best_member : Leads
    over_direct : dict of str to Leads
        By student.
    spreads : dict of str to Spread
        By origin of the rows: "labelled", "pool", each source of synthetic rows; and "labelled, held out".
    advice : tuple of str
    """

    best_member: str
    over_best_member: Leads
    over_direct: Mapping[str, Leads]
    spreads: Mapping[str, Spread]
    advice: tuple[str, ...]


def preflight(held_out: Sequence[HeldOut], origins: Mapping[str, Spread]) -> Preflight:
    """Judge an ensemble before students are trained.

    The ensemble's temperatures and weights were fitted to the same held-out rows, so its lead is a little too
    large where these are few.

    Parameters
    ----------
    held_out : sequence of HeldOut
        One for each seed.
    origins : dict of str to Spread
        Of the transfer set's rows.

    Raises
    ------
    ValueError
        A member has no held-out predictions.
    """
    if any(np.isnan(one.logits).any() for one in held_out):
        names = [n for n, z in zip(held_out[0].ensemble.names, held_out[0].logits, strict=True)
                 if np.isnan(z).any()]  # fmt: skip
        raise ValueError(
            f"members: {', '.join(names) or 'some'} have no held-out predictions for the labelled rows, on "
            "which the lead is measured; add held_out: true to members that did not learn from these rows"
        )
    spreads = {**origins, HELD_OUT: _held_out_spread(held_out)}
    best = [_member(one, one.ensemble.names.index(one.best_member)) for one in held_out]
    over_best = _leads(held_out, best)
    names = list(held_out[0].direct)
    over_direct = {name: _leads(held_out, [_log_softmax(one.direct[name]) for one in held_out])
                   for name in names}  # fmt: skip
    found = list(dict.fromkeys(one.best_member for one in held_out))
    made = Preflight(" or ".join(found), over_best, over_direct, spreads, ())
    return replace(made, advice=tuple(_advice(made)))


def _advice(found: Preflight) -> list[str]:
    advice = []
    if not found.over_best_member.certain:
        advice.append(
            f"The ensemble is not certainly better than {found.best_member} alone: distil that member, or "
            "train members that differ more."
        )
    for name, leads in found.over_direct.items():
        if not leads.certain:
            advice.append(
                f"Don't distil into {name}: the same model, trained directly on the labels, is as good as "
                "the ensemble on held-out rows."
            )
    asked = {name: spread for name, spread in found.spreads.items() if name != HELD_OUT}
    rows = sum(spread.rows for spread in asked.values())
    mean = sum(spread.rows * spread.epistemic for spread in asked.values()) / max(rows, 1)
    there = found.spreads[HELD_OUT].epistemic
    if there > 0 and mean < NARROW * there:
        others = [name for name in asked if name != LABELLED]
        more = "more rows, or broader ones" if others else "a pool of unlabelled rows, or synthetic rows"
        advice.append(
            f"On the transfer set members differ by {mean:.3f} nats, on held-out rows by {there:.3f}: the "
            f"student is asked too little where they differ. Add {more}."
        )
    return advice


def _leads(held_out: Sequence[HeldOut], others: Sequence[np.ndarray]) -> Leads:
    accuracy, nll = [], []
    for one, other in zip(held_out, others, strict=True):
        mixture = np.log(
            np.maximum(one.ensemble.combine(one.ensemble.apply_temperatures(one.logits)), 1e-300)
        )
        place = np.arange(len(one.labels)), one.labels
        accuracy.append((mixture.argmax(1) == one.labels) * 1.0 - (other.argmax(1) == one.labels))
        nll.append(mixture[place] - other[place])
    return Leads(Lead.of(accuracy), Lead.of(nll))


def _member(one: HeldOut, index: int) -> np.ndarray:
    """Log-probabilities [N, C] of one calibrated member, alone."""
    return _log_softmax(one.ensemble.apply_temperatures(one.logits)[index] * one.ensemble.temperature)


def _held_out_spread(held_out: Sequence[HeldOut]) -> Spread:
    parts = [
        Spread.of(one.ensemble.apply_temperatures(one.logits), one.ensemble.weights, len(one.labels))
        for one in held_out
    ]
    return mean_spread(parts)


def mean_spread(parts: Sequence[Spread]) -> Spread:
    """The mean of several seeds' spreads."""
    means = (float(np.mean([getattr(part, name) for part in parts]))
             for name in ("entropy", "epistemic", "disagreement"))  # fmt: skip
    return Spread(round(float(np.mean([part.rows for part in parts]))), *means)


def _log_softmax(logits: np.ndarray) -> Any:
    z = np.asarray(logits, np.float64)
    shifted = z - z.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
