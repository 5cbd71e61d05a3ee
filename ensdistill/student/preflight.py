"""The forecast before a student is trained: the ensemble's lead on held-out rows, the disagreement of its
members on the transfer set, and the share of the lead that a student is expected to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ensdistill.student.retention import Expectation, Features, RetentionRule, rule
from ensdistill.teachers import Ensemble
from ensdistill.teachers.fitting.uncertainty import decompose

QUANTILE = 1.96  # of the normal distribution, for 95 % intervals
NARROW = 0.5  # a share of the members' disagreement on held-out rows, below which rows show little of it
ROUNDING = 1e-6
LABELLED, POOL, HELD_OUT = "labelled", "pool", "labelled, held out"
LARGER = 10  # rows of a pool for each labelled row, for the forecast of a job that has fewer
WORTH = 0.05  # the least difference of a share that is advice


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

    @property
    def errors(self) -> float:
        """The mean in standard errors."""
        error = (self.high - self.low) / (2 * QUANTILE)
        return self.mean / error if error > 0 else 0.0

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
    expected : dict of str to Expectation
        The share of the gain in NLL over *direct* that each student keeps.
    features : dict of str to Features
        By student, from which the share is predicted.
    source : str
        Where these shares come from, in words.
    """

    best_member: str
    over_best_member: Leads
    over_direct: Mapping[str, Leads]
    spreads: Mapping[str, Spread]
    advice: tuple[str, ...]
    expected: Mapping[str, Expectation] = field(default_factory=dict)
    features: Mapping[str, Features] = field(default_factory=dict)
    source: str = ""


def preflight(
    held_out: Sequence[HeldOut],
    origins: Mapping[str, Spread],
    counts: Mapping[str, int] | None = None,
    sizes: Mapping[str, float | None] | None = None,
    learned: RetentionRule | None = None,
) -> Preflight:
    """Judge an ensemble before students are trained.

    The ensemble's temperatures and weights were fitted to the same held-out rows, so its lead is a little too
    large where these are few.

    Parameters
    ----------
    held_out : sequence of HeldOut
        One for each seed.
    origins : dict of str to Spread
        Of the transfer set's rows; empty where the cache holds no members.
    counts : dict of str to int, optional
        Rows of the transfer set by origin; by default those of ``origins``.
    sizes : dict of str to float or None
        Each student's parameters, over those of the median member; None where unknown.
    learned : RetentionRule, optional
        By default this version's.

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
    by, rows = learned or rule(), counts or {name: spread.rows for name, spread in origins.items()}
    known = _features(held_out, over_best, spreads, rows)
    features = {name: replace(known, size=size) for name, size in (sizes or {}).items()}
    expected = {name: by.expect(one) for name, one in features.items()}
    made = Preflight(" or ".join(found), over_best, over_direct, spreads, (), expected, features, by.source)
    advice = [*_advice(made), *_pool_advice(made, by, next(iter(features.values()), known), rows)]
    return replace(made, advice=tuple(advice))


def _features(
    held_out: Sequence[HeldOut], over_best: Leads, spreads: Mapping[str, Spread], counts: Mapping[str, int]
) -> Features:
    labelled, classes = held_out[0].logits.shape[1:]
    unlike = [1 / float(np.sum(np.square(one.ensemble.weights))) for one in held_out]
    pool = counts.get(POOL, 0)
    synthetic = sum(count for name, count in counts.items() if name not in (LABELLED, POOL))
    made = [spread for name, spread in spreads.items() if name not in (LABELLED, POOL, HELD_OUT)]
    there = spreads[HELD_OUT]
    asked = _asked(spreads)
    entropy = _mean(made, "entropy") / there.entropy if made and there.entropy > 0 else None
    return Features(
        members=float(np.mean(unlike)),
        rows_per_class=labelled / classes,
        pool=pool / labelled,
        synthetic=synthetic / labelled,
        lead=over_best.nll.errors,
        epistemic=_mean(asked, "epistemic") / there.epistemic if asked and there.epistemic > 0 else None,
        entropy=entropy,
    )


def _asked(spreads: Mapping[str, Spread]) -> list[Spread]:
    """The spreads on rows of the transfer set."""
    return [spread for name, spread in spreads.items() if name != HELD_OUT]


def _mean(spreads: Sequence[Spread], name: str) -> float:
    """The mean of one figure over all rows."""
    rows = sum(spread.rows for spread in spreads)
    return sum(spread.rows * getattr(spread, name) for spread in spreads) / max(rows, 1)


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
    asked = _asked(found.spreads)
    mean, there = _mean(asked, "epistemic"), found.spreads[HELD_OUT].epistemic
    if asked and mean < NARROW * there:
        more = (
            "more rows, or broader ones" if len(asked) > 1 else "a pool of unlabelled rows, or synthetic rows"
        )
        advice.append(
            f"On the transfer set members differ by {mean:.3f} nats, on held-out rows by {there:.3f}: the "
            f"student is asked too little where they differ. Add {more}."
        )
    return advice


def _pool_advice(
    found: Preflight, by: RetentionRule, known: Features, counts: Mapping[str, int]
) -> list[str]:
    """The worth of a pool, by the rule's difference between the job with it and as it is.

    Pool rows are like held-out rows, which no member learned from, so members differ on them as much.
    """
    labelled = counts.get(LABELLED, 0)
    lead = next(iter(found.over_direct.values()), found.over_best_member)
    rows = LARGER * labelled
    if not by.useful or not lead.certain or counts.get(POOL, 0) >= rows or not labelled:
        return []
    others = sum(count for name, count in counts.items() if name != POOL)
    share = rows / (rows + others)
    epistemic = None if known.epistemic is None else (1 - share) * known.epistemic + share
    now, then = by.expect(known), by.expect(replace(known, pool=float(LARGER), epistemic=epistemic))
    more = then.share - now.share
    if more < WORTH:
        return []
    return [
        f"A pool of {rows:,} unlabelled rows would be worth about {more:.0%} of the gain: "
        f"{100 * more * max(lead.accuracy.mean, 0.0):.1f} points of accuracy and "
        f"{more * max(lead.nll.mean, 0.0):.3f} nats, by the same rule."
    ]


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
