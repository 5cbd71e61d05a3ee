"""The forecast before a student is trained: the ensemble's lead on held-out rows, the disagreement of its
members on the transfer set, and the share of the lead that a student is expected to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task, task_of
from ensdistill.report.frontier import goals_of
from ensdistill.report.measures import Metric
from ensdistill.student.quality import Quality, by_labels
from ensdistill.student.retention import Expectation, Features, RetentionRule, rule
from ensdistill.student.units import Units
from ensdistill.teachers.fitting.gaussian import mixture_moments
from ensdistill.teachers.fitting.multilabel import decompose_labels
from ensdistill.teachers.fitting.scaling import scaling_by_labels
from ensdistill.teachers.fitting.uncertainty import decompose
from ensdistill.teachers.members.moments import Moments

QUANTILE = 1.96  # of the normal distribution, for 95 % intervals
NARROW = 0.5  # a share of the members' disagreement on held-out rows, below which rows show little of it
ROUNDING = 1e-6
LEAST = 1e-300  # of a probability, before its logarithm is taken
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
        errors = [d.std(ddof=1) / math.sqrt(len(d)) if len(d) > 1 else math.inf for d in differences]
        return cls.from_errors([float(d.mean()) for d in differences], errors)

    @classmethod
    def from_errors(cls, means: Sequence[float], errors: Sequence[float]) -> Lead:
        """The lead over seeds, from the difference and its standard error of each."""
        mean = float(np.mean(means))
        half = QUANTILE * math.sqrt(float(np.mean(np.square(errors))))
        return cls(mean, mean - half, mean + half)


class Leads(dict[str, Lead]):
    """The ensemble's lead over another model by the names of the task's goals: ``accuracy`` (a share) and
    ``nll`` (nats), of several labels ``map`` and ``bce``, of numbers ``rmse`` (in deviations of the labels)
    and ``nll``."""

    @property
    def certain(self) -> bool:
        """Whether one of the two is certain."""
        return any(lead.certain for lead in self.values())


@dataclass(frozen=True)
class Spread:
    """How much the members differ on rows of one origin: means over the rows.

    Parameters
    ----------
    rows : int
        In the transfer set.
    entropy : float
        Of the mixture, in nats; of several labels the sum of theirs. Of numbers the mixture's variance, in
        squared deviations of the labels, the mean over the numbers.
    epistemic : float
        Mutual information of the label and the member, in nats; see
        :func:`ensdistill.teachers.fitting.uncertainty.decompose`. Of numbers the variance between the
        members' means, in the same unit.
    disagreement : float
        The probability that two different members name different classes, or differ on a label. Of numbers
        the mean distance of a member from the mixture's mean, in deviations of the labels.
    """

    rows: int
    entropy: float
    epistemic: float
    disagreement: float

    @classmethod
    def of(cls, logits: np.ndarray, weights: np.ndarray, rows: int, task: Task = "classification") -> Spread:
        """From members' logits, or log-odds, [K, M, C] for some of ``rows`` rows."""
        found = (decompose_labels if task == "multilabel" else decompose)(logits, weights)
        parts = (found.total, found.epistemic, found.disagreement)
        return cls(rows, *(float(np.mean(part)) for part in parts))

    @classmethod
    def of_moments(cls, moments: Moments, weights: np.ndarray, rows: int, scale: np.ndarray) -> Spread:
        """From members' calibrated means and variances [K, M, D]; ``scale`` [D] are the labels'
        deviations."""
        share = weights / weights.sum()
        middle, within, between = mixture_moments(*moments, share)
        distance = np.einsum("k,knd->nd", share, np.abs(moments.mean - middle)) / scale
        unit = np.square(scale)
        parts = ((within + between) / unit, between / unit, distance)
        return cls(rows, *(float(np.mean(part)) for part in parts))


@dataclass(frozen=True)
class HeldOut:
    """One seed's predictions for labelled rows, by models that did not learn from them.

    Parameters
    ----------
    predictions : ndarray [K, N, C], or Moments [K, N, D]
        Logits, or means and variances, of the members, not calibrated.
    labels : ndarray
        In a form of :mod:`ensdistill.data.tasks`.
    direct : dict of str to ndarray [N, C], or Moments [N, D]
        Calibrated predictions of each student's architecture, trained on labels.
    """

    ensemble: Any
    best_member: str
    predictions: Any
    labels: np.ndarray
    direct: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        return task_of(self.ensemble)

    @property
    def values(self) -> np.ndarray:
        """The members' logits or means, [K, N, C]."""
        found: Any = self.predictions.mean if isinstance(self.predictions, Moments) else self.predictions
        return np.asarray(found)

    @property
    def scale(self) -> np.ndarray:
        """The deviations of a regression's labels, [D]."""
        return Units.of_labels(self.labels).scale

    def mixture(self) -> Any:
        """The ensemble's calibrated log-probabilities [N, C], log-odds, or Moments [N, D]."""
        if self.task == "regression":
            return self._with_variance(self.ensemble.combine(self.predictions))
        p = self.ensemble.combine(self.ensemble.apply_temperatures(self.predictions))
        logs = np.log(np.maximum(p, LEAST))
        return logs if self.task == "classification" else logs - np.log(np.maximum(1 - p, LEAST))

    def member(self, index: int) -> Any:
        """The same of one calibrated member, alone."""
        if self.task != "regression":
            tempered = self.ensemble.apply_temperatures(self.predictions)[index]
            return tempered * self.ensemble.temperature
        own = self.predictions.take(index)
        return scaling_by_labels("regression", own, self.labels).moments(own)

    def _with_variance(self, moments: Moments) -> Moments:
        """One member alone, which gives no variance, has a noise that is fitted to these rows."""
        if moments.variance is not None:
            return moments
        return scaling_by_labels("regression", moments, self.labels).moments(moments)

    def quality(self, outputs: Any) -> Quality:
        """Of calibrated predictions [N, C], by the labels."""
        return by_labels(self.task, outputs, self.labels)

    def spread(self) -> Spread:
        """How much the calibrated members differ on these rows."""
        weights, rows = self.ensemble.weights, len(self.labels)
        if self.task == "regression":
            calibrated = self.ensemble.calibrated(self.predictions)
            return Spread.of_moments(calibrated, weights, rows, self.scale)
        return Spread.of(self.ensemble.apply_temperatures(self.predictions), weights, rows, self.task)


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
        The share of the gain in NLL (of several labels BCE) over *direct* that each student keeps.
    features : dict of str to Features
        By student, from which the share is predicted.
    source : str
        Where these shares come from, in words; the reason where there are none.
    task : {"classification", "multilabel", "regression"}
    """

    best_member: str
    over_best_member: Leads
    over_direct: Mapping[str, Leads]
    spreads: Mapping[str, Spread]
    advice: tuple[str, ...]
    expected: Mapping[str, Expectation] = field(default_factory=dict)
    features: Mapping[str, Features] = field(default_factory=dict)
    source: str = ""
    task: Task = "classification"


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
        By default this version's for the task.

    Raises
    ------
    ValueError
        A member has no held-out predictions.
    """
    if any(np.isnan(one.values).any() for one in held_out):
        names = [n for n, z in zip(held_out[0].ensemble.names, held_out[0].values, strict=True)
                 if np.isnan(z).any()]  # fmt: skip
        raise ValueError(
            f"members: {', '.join(names) or 'some'} have no held-out predictions for the labelled rows, on "
            "which the lead is measured; add held_out: true to members that did not learn from these rows"
        )
    spreads = {**origins, HELD_OUT: mean_spread([one.spread() for one in held_out])}
    best = [one.member(one.ensemble.names.index(one.best_member)) for one in held_out]
    mixtures = [one.quality(one.mixture()) for one in held_out]
    over_best = _leads(held_out, mixtures, best)
    over_direct = {
        name: _over_direct(name, held_out, mixtures)
        for name in dict.fromkeys(name for one in held_out for name in one.direct)
    }
    found = list(dict.fromkeys(one.best_member for one in held_out))
    rows = counts or {name: spread.rows for name, spread in origins.items()}
    task = held_out[0].task
    known = _features(held_out, over_best, spreads, rows)
    features = {name: replace(known, size=size) for name, size in (sizes or {}).items()}
    made = Preflight(" or ".join(found), over_best, over_direct, spreads, (), features=features, task=task)
    by = learned or rule(task)
    if by is None:
        made = replace(made, source=f"no rule for the task {task} yet, for lack of finished jobs")
        return replace(made, advice=tuple(_advice(made)))
    expected = {name: by.expect(one) for name, one in features.items()}
    made = replace(made, expected=expected, source=by.source)
    advice = [*_advice(made), *_pool_advice(made, by, next(iter(features.values()), known), rows)]
    return replace(made, advice=tuple(advice))


def _over_direct(name: str, held_out: Sequence[HeldOut], mixtures: Sequence[Quality]) -> Leads:
    """The lead over a student's direct models on the seeds that have trained one."""
    known = [(one, own) for one, own in zip(held_out, mixtures, strict=True) if name in one.direct]
    seeds, own = zip(*known, strict=True)
    return _leads(seeds, own, [one.direct[name] for one in seeds])


def _features(
    held_out: Sequence[HeldOut], over_best: Leads, spreads: Mapping[str, Spread], counts: Mapping[str, int]
) -> Features:
    labelled = len(held_out[0].labels)
    unlike = [1 / float(np.sum(np.square(one.ensemble.weights))) for one in held_out]
    pool = counts.get(POOL, 0)
    synthetic = sum(count for name, count in counts.items() if name not in (LABELLED, POOL))
    made = [spread for name, spread in spreads.items() if name not in (LABELLED, POOL, HELD_OUT)]
    there = spreads[HELD_OUT]
    asked = _asked(spreads)
    entropy = _mean(made, "entropy") / there.entropy if made and there.entropy > 0 else None
    return Features(
        members=float(np.mean(unlike)),
        rows_per_class=float(np.mean([_rows_per_class(one) for one in held_out])),
        pool=pool / labelled,
        synthetic=synthetic / labelled,
        lead=over_best[goals_of(held_out[0].task)[0].name].errors,
        epistemic=_mean(asked, "epistemic") / there.epistemic if asked and there.epistemic > 0 else None,
        entropy=entropy,
    )


def _rows_per_class(one: HeldOut) -> float:
    """Labelled rows for each class; of several labels those that have one, of numbers all."""
    if one.task == "multilabel":
        return float((one.labels == 1).sum(0).mean())
    return len(one.labels) / (one.values.shape[2] if one.task == "classification" else 1)


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
            called = "the student" if name == "student" else name
            advice.append(
                f"Don't distil into {called}: the same model, trained directly on the labels, is as good as "
                "the ensemble on held-out rows."
            )
    asked = _asked(found.spreads)
    mean, there = _mean(asked, "epistemic"), found.spreads[HELD_OUT].epistemic
    if asked and mean < NARROW * there:
        more = (
            "more rows, or broader ones" if len(asked) > 1 else "a pool of unlabelled rows, or synthetic rows"
        )
        unit = "squared deviations" if found.task == "regression" else "nats"
        advice.append(
            f"On the transfer set members differ by {mean:.3f} {unit}, on held-out rows by {there:.3f}: the "
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
    gains = {metric: more * max(lead[metric.name].mean, 0.0) for metric in reversed(goals_of(found.task))}
    worth = " and ".join(_text(metric, gain) for metric, gain in gains.items())
    return [
        f"A pool of {rows:,} unlabelled rows would be worth about {more:.0%} of the gain: {worth}, by the "
        "same rule."
    ]


def _text(metric: Metric, gain: float) -> str:
    """A gain with the unit of its metric."""
    if metric.percent:
        return f"{100 * gain:.1f} points of {metric.label}"
    return f"{gain:.3f} {metric.unit} of {metric.label}"


def _leads(held_out: Sequence[HeldOut], mixtures: Sequence[Quality], others: Sequence[Any]) -> Leads:
    compared = [one.quality(other) for one, other in zip(held_out, others, strict=True)]
    pairs, found = list(zip(mixtures, compared, strict=True)), Leads()
    for place, metric in reversed(list(enumerate(goals_of(held_out[0].task)))):
        means = [float((own.values - other.values)[place]) for own, other in pairs]
        errors = [own.error_over(other, place) for own, other in pairs]
        found[metric.name] = Lead.from_errors(means, errors)
    return found


def mean_spread(parts: Sequence[Spread]) -> Spread:
    """The mean of several seeds' spreads."""
    means = (float(np.mean([getattr(part, name) for part in parts]))
             for name in ("entropy", "epistemic", "disagreement"))  # fmt: skip
    return Spread(round(float(np.mean([part.rows for part in parts]))), *means)
