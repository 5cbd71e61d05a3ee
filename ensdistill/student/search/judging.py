"""What students keep of the ensemble's gain over the direct student, on the rows that judge."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import log_softmax

from ensdistill.report.bootstrap import interval, ratio_interval, resampled_means
from ensdistill.report.frontier import kept_text
from ensdistill.student.search.journal import Journal, Record
from ensdistill.student.search.rows import Judged, Lessons
from ensdistill.teachers.fitting.calibration import closest_temperature, fit_temperature

TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Figures:
    """A model's losses on each row that judges, after its temperature was fitted to these rows.

    Parameters
    ----------
    kl, agreement, expected : ndarray [V]
        KL from the ensemble in nats; whether both have the same likeliest class; the ensemble's probability
        of the model's likeliest class.
    nll, correct : ndarray [L]
        Of the rows with a label.
    temperature : float
    """

    kl: np.ndarray
    agreement: np.ndarray
    expected: np.ndarray
    nll: np.ndarray
    correct: np.ndarray
    temperature: float

    def means(self) -> dict[str, float]:
        """As plain numbers; those of labels where there are any."""
        found = {"kl": self.kl, "agreement": self.agreement, "expected_accuracy": self.expected}
        if len(self.nll):
            found |= {"nll": self.nll, "accuracy": self.correct}
        return {name: float(values.mean()) for name, values in found.items()} | {
            "temperature": self.temperature
        }


@dataclass(frozen=True, eq=False)
class Judgement:
    """The figures of trials so far, computed once for each."""

    lessons: Lessons
    journal: Journal
    ensemble: Figures
    figures: dict[str, Figures]

    def of(self, record: Record) -> Figures:
        if record.key not in self.figures:
            self.figures[record.key] = figures_of(self.journal.logits(record), self.lessons.judged)
        return self.figures[record.key]


def figures_of(logits: np.ndarray, judged: Judged, temperature: float | None = None) -> Figures:
    """A model's figures from its logits [V, C]; ``temperature`` None has it fitted."""
    labelled = judged.labelled
    labels = judged.rows.labels[labelled]
    if temperature is None:
        if labelled.any():
            temperature = fit_temperature(logits[labelled], labels)
        else:
            temperature = closest_temperature(logits[None], np.ones(1), judged.ensemble)
    log_q = log_softmax(np.asarray(logits, np.float64) / temperature, axis=1)
    p = judged.ensemble
    chosen = log_q.argmax(1)
    entropy = (p * np.log(np.maximum(p, TINY))).sum(1)
    return Figures(
        kl=entropy - (p * np.maximum(log_q, np.log(TINY))).sum(1),
        agreement=(chosen == p.argmax(1)).astype(np.float64),
        expected=p[np.arange(len(p)), chosen],
        nll=-log_q[labelled][np.arange(len(labels)), labels],
        correct=(chosen[labelled] == labels).astype(np.float64),
        temperature=float(temperature),
    )


def ensemble_figures(judged: Judged) -> Figures:
    """The ensemble's own; its temperature is fitted as those of the students are."""
    return figures_of(np.log(np.maximum(judged.ensemble, TINY)), judged)


@dataclass(frozen=True)
class Kept:
    """The share of the ensemble's gain over the direct student that a student keeps in one metric.

    Parameters
    ----------
    share : float or None
        (student - direct) / (ensemble - direct); None where the ensemble is no better than the direct
        student.
    low, high : float or None
        The 95 % interval; None where the ensemble's gain is not beyond its own interval.
    basis : {"labels", "ensemble"}
        On the rows' labels; or by the ensemble's own probabilities, as if the labels were drawn from these:
        where there are no labels, or too few to show the gain.
    worse : bool
        Where the ensemble is no better: whether the student is worse than the direct one, beyond the 95 %
        interval.
    """

    share: float | None
    low: float | None
    high: float | None
    basis: str
    worse: bool = False

    def __str__(self) -> str:
        return kept_text(asdict(self))


def kept(student: Figures, direct: Figures, ensemble: Figures) -> dict[str, Kept]:
    """What a student keeps in NLL and in accuracy.

    The labels decide where they show a gain of the ensemble over the direct student, beyond the 95 % interval
    of a bootstrap of the rows, or no gain at all. Where they show one within the interval, and where there
    are none, the ensemble's own probabilities decide: with labels drawn from these, the excess NLL of a model
    is its KL from the ensemble, and its accuracy the mean probability of its choice. That is likeness to the
    ensemble, not the truth.
    """
    models, found = (student, direct, ensemble), {}
    for metric, on_labels, by_ensemble, sign in (
        ("nll", "nll", "kl", -1.0),
        ("accuracy", "correct", "expected", 1.0),
    ):
        one = Kept(None, None, None, "labels")
        if len(student.nll):
            one = _share([sign * getattr(model, on_labels) for model in models], "labels")
        if one.low is None and (one.share is not None or not len(student.nll)):
            one = _share([sign * getattr(model, by_ensemble) for model in models], "ensemble")
        found[metric] = one
    return found


def gain(direct: Figures, ensemble: Figures) -> dict[str, tuple[float, float, float] | None]:
    """The ensemble's gain over the direct student on the labels, in NLL and in accuracy, each with its 95 %
    interval."""
    if not len(direct.nll):
        return {"nll": None, "accuracy": None}
    found: dict[str, tuple[float, float, float] | None] = {}
    for metric, values in (
        ("nll", direct.nll - ensemble.nll),
        ("accuracy", ensemble.correct - direct.correct),
    ):
        draws = resampled_means([values[:, None]])[:, 0]
        found[metric] = (float(values.mean()), *interval(draws))
    return found


def _share(models: list[np.ndarray], basis: str) -> Kept:
    """Of values of each row, larger ones better, by student, direct and ensemble."""
    student, direct, ensemble = models
    above, whole = student - direct, ensemble - direct
    mean = float(whole.mean())
    if mean <= 0:
        worse = float(above.mean()) < 0 and interval(resampled_means([above[:, None]])[:, 0])[1] < 0
        return Kept(None, None, None, basis, worse)
    share = float(above.mean()) / mean
    draws = resampled_means([np.stack([above, whole], 1)])
    low, high = ratio_interval(draws[:, 0], draws[:, 1]) or (None, None)
    return Kept(share, low, high, basis)
