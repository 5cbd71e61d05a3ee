"""Predictions of a job's models on test rows, by task: as files hold them, and as the report takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from scipy.special import expit

from ensdistill.common.tasks import Task, task_of
from ensdistill.data.tasks import known_rows
from ensdistill.report.multilabel_metrics import LabelProbabilities, tuned_thresholds
from ensdistill.report.regression_metrics import Forecasts
from ensdistill.report.results import Predicted
from ensdistill.teachers.choices import HELD_OUT, scaling_of
from ensdistill.teachers.fitting.calibration import log_mixture
from ensdistill.teachers.fitting.calibration import probabilities as probabilities_of
from ensdistill.teachers.fitting.multilabel import mixture_of_labels
from ensdistill.teachers.fitting.scaling import Scaling
from ensdistill.teachers.members import Member, Moments
from ensdistill.teachers.members.moments import as_arrays, of_arrays
from ensdistill.teachers.predict import over_parts, predicted

INTERVAL = 0.9  # the probability of the ensemble's intervals


def served(member: Member) -> Any:
    """The method that predicts, of which latencies are measured."""
    return getattr(member, "predict_moments" if task_of(member) == "regression" else "predict_logits")


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's prediction of one seed's test rows.

    Parameters
    ----------
    values : ndarray [N, C], LabelProbabilities or Forecasts
    """

    values: Any

    @classmethod
    def of(cls, task: Task, outputs: Any, scaling: Scaling | None = None) -> Prediction:
        """That of a model's logits [N, C] or Moments [N, D], calibrated where there is a ``scaling``."""
        scaling = scaling or Scaling()
        if task == "regression":
            return cls(Forecasts(*scaling.moments(outputs)))
        logits = scaling.logits(np.asarray(outputs, np.float64))
        if task == "multilabel":
            return cls(LabelProbabilities(expit(logits)))
        return cls(probabilities_of(logits))

    def with_thresholds(self, probabilities: np.ndarray | None, labels: np.ndarray) -> Prediction:
        """The same with thresholds of labels, tuned on other rows' probabilities and labels, int8, or the
        labels' own probabilities; of other tasks, and without such rows, as it is."""
        if not isinstance(self.values, LabelProbabilities) or probabilities is None or not len(labels):
            return self
        p = np.asarray(probabilities, np.float64)
        by = tuned_thresholds if labels.dtype == np.int8 else expected_thresholds
        return Prediction(LabelProbabilities(self.values.values, by(p, labels)))


def expected_thresholds(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The threshold with the largest expected F1 of each label, [C], where a label applies with the
    probability in ``targets``, as :func:`tuned_thresholds` does it for known labels.

    Parameters
    ----------
    probabilities, targets : ndarray [N, C]

    Examples
    --------
    >>> expected_thresholds(np.array([[0.1], [0.2], [0.4], [0.3]]), np.array([[0.0], [0.1], [0.9], [0.8]]))
    array([0.25])
    """
    found = np.full(probabilities.shape[1], 0.5)
    for c, (p, target) in enumerate(zip(probabilities.T, targets.T, strict=True)):
        if target.sum() <= 0:
            continue
        scores, group = np.unique(p, return_inverse=True)
        # From each score on, the rows that are predicted to have the label, and those of them that have it.
        predicted = np.bincount(group, minlength=len(scores))[::-1].cumsum()[::-1]
        right = np.bincount(group, target, len(scores))[::-1].cumsum()[::-1]
        best = int((2 * right / (predicted + target.sum())).argmax())
        found[c] = ((scores[best - 1] if best else 0.0) + scores[best]) / 2
    return found


def fields_of(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The predictions of all seeds as arguments of a ``ModelResult``."""
    values = [one.values for one in predictions]
    if isinstance(values[0], Forecasts):
        return {"probabilities": [], "forecasts": values}
    if not isinstance(values[0], LabelProbabilities):
        return {"probabilities": values}
    thresholds = [one.thresholds for one in values]
    known = all(one is not None for one in thresholds)
    return {"probabilities": [one.values for one in values], "thresholds": thresholds if known else []}


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The members' held-out predictions of a seed's labelled rows.

    Parameters
    ----------
    predictions : ndarray [K, N, C], or Moments [K, N, D]
        NaN where a member has none.
    labels : ndarray
    """

    predictions: Any
    labels: np.ndarray

    @classmethod
    def read(cls, file: Path) -> HeldOut:
        """From the file that the stage ``teachers`` wrote."""
        stored = load_file(file)
        return cls(of_arrays(stored), stored["labels"])

    def arrays(self) -> dict[str, np.ndarray]:
        """As the file holds them."""
        return as_arrays(self.predictions) | {"labels": self.labels}

    @property
    def judged(self) -> np.ndarray:
        """Whether each member has held-out predictions: bool [K]."""
        values = self.predictions.mean if isinstance(self.predictions, Moments) else self.predictions
        known: np.ndarray = ~np.isnan(values).any((1, 2))
        return known

    def of_members(self, chosen: np.ndarray) -> Any:
        """The predictions of some members, by a mask [K]."""
        if isinstance(self.predictions, Moments):
            return self.predictions.take(chosen)
        return self.predictions[chosen]

    def squared_error(self, ensemble: Any) -> np.ndarray | None:
        """The mean squared error [D] of the weighted members' means.

        None of another task than regression, and where a weighted member has no held-out predictions.
        """
        chosen = ensemble.weights > 0
        if ensemble.task != "regression" or not self.judged[chosen].all():
            return None
        mean = ensemble.weighted().combine(self.of_members(chosen)).mean
        found: np.ndarray = np.square(mean - self.labels)[known_rows(self.labels)].mean(0)
        return found


@dataclass(frozen=True, eq=False)
class Mixed:
    """Predictions of an ensemble for the samples of a test set.

    Parameters
    ----------
    members : list of Prediction
        Of each member alone.
    mixture : Prediction
    others : list of Prediction or None
        Of the mixture without each member; None where the others have no weight.
    subset : callable
        From a mask [K] of members with weight, one at least, to the prediction of their mixture.
    """

    members: list[Prediction]
    mixture: Prediction
    others: list[Prediction | None]
    subset: Callable[[np.ndarray], Prediction]


def others_of(seeds: Sequence[Mixed], k: int) -> Predicted | None:
    """The mixture without member ``k`` in all seeds; None where some seed has none."""
    found = [one.others[k] for one in seeds]
    there = [one for one in found if one is not None]
    return Predicted(**fields_of(there)) if len(there) == len(found) else None


def _without_each(weights: np.ndarray) -> list[np.ndarray | None]:
    """The weights without each member, in the same proportions; None where no weight is left."""
    found: list[np.ndarray | None] = []
    for k in range(len(weights)):
        rest = np.where(np.arange(len(weights)) == k, 0.0, weights)
        found.append(rest / rest.sum() if rest.sum() > 0 else None)
    return found


def of_ensemble(ensemble: Any, samples: Any, held_out: HeldOut) -> Mixed:
    """The predictions of an ensemble's members and mixtures; ``ensemble`` is the one for the samples'
    uids."""
    if ensemble.task == "regression":
        return _of_regressors(ensemble, samples)
    logits = np.asarray(ensemble.predict_logits(samples), np.float64)
    # A member alone has its own temperature; the mixture's is a correction to the mixture.
    own = [Prediction.of(ensemble.task, z * ensemble.temperature) for z in logits]
    mixture = ensemble.combine(logits)
    others = [
        None if weights is None else _mixed(ensemble, logits, weights)
        for weights in _without_each(ensemble.weights)
    ]

    def subset(chosen: np.ndarray) -> Prediction:
        weights = np.where(chosen, ensemble.weights, 0.0)
        return _mixed(ensemble, logits, weights / weights.sum())

    if ensemble.task == "classification":
        return Mixed(own, Prediction(mixture), others, subset)
    known = ensemble.apply_temperatures(held_out.predictions).astype(np.float64)
    judged, labels = held_out.judged, held_out.labels
    own = [
        one.with_thresholds(expit(z * ensemble.temperature) if there else None, labels)
        for one, z, there in zip(own, known, judged, strict=True)
    ]
    whole_mixture = Prediction(LabelProbabilities(mixture))
    tuned = whole_mixture.with_thresholds(ensemble.combine(known) if judged.all() else None, labels)
    return Mixed(own, tuned, others, subset)


def _mixed(ensemble: Any, logits: np.ndarray, weights: np.ndarray) -> Prediction:
    """The mixture of a classifier's members by other weights."""
    if ensemble.task == "multilabel":
        return Prediction(LabelProbabilities(mixture_of_labels(logits, weights, ensemble.combiner)))
    return Prediction(np.exp(log_mixture(logits, weights, ensemble.combiner)))


def _of_regressors(ensemble: Any, samples: Any) -> Mixed:
    own = []
    for member in ensemble.members:
        values = over_parts(samples, partial(predicted, member, names=ensemble.classes))
        variance = None if np.isnan(values[:, 1]).any() else values[:, 1]
        own.append(Prediction(Forecasts(values[:, 0], variance)))
    chosen = ensemble.weighted()
    given = chosen.predict_moments(samples)
    moments = chosen.combine(given)
    interval = None if chosen.interval is None else chosen.interval_of(moments)
    others = [
        Prediction(Forecasts(*moments)) if weight == 0 else _without(chosen, given, name)
        for name, weight in zip(ensemble.names, ensemble.weights, strict=True)
    ]
    places = np.flatnonzero(ensemble.weights > 0)

    def subset(mask: np.ndarray) -> Prediction:
        return _of_some(chosen, given, np.flatnonzero(mask[places]).tolist())

    return Mixed(own, Prediction(Forecasts(moments.mean, moments.variance, interval)), others, subset)


def _without(ensemble: Any, moments: Moments, name: str) -> Prediction | None:
    """The mixture of regressors without one of them; None where it is the only one."""
    kept = [k for k, other in enumerate(ensemble.names) if other != name]
    return _of_some(ensemble, moments, kept) if kept else None


def _of_some(ensemble: Any, moments: Moments, kept: Sequence[int]) -> Prediction:
    """The mixture of the regressors at some places."""
    variance = None if moments.variance is None else moments.variance[kept]
    rest = ensemble.only(*(ensemble.names[k] for k in kept))
    return Prediction(Forecasts(*rest.combine(Moments(moments.mean[kept], variance))))


def direct_held_out(folder: Path) -> np.ndarray | None:
    """The calibrated held-out probabilities [N, C] of labels that the stage ``direct`` kept in its folder;
    None where there are none."""
    file = folder / HELD_OUT
    return expit(load_file(file)["logits"].astype(np.float64)) if file.is_file() else None


def direct_scaling(record: dict[str, Any], kind: str) -> Scaling | None:
    """The calibration of a baseline among the entries of its stage's record."""
    if kind == "direct":
        return scaling_of(record)
    if kind == "direct_label_smoothing" and record.get("label_smoothing_temperature"):
        return Scaling(record["label_smoothing_temperature"])
    return None
