"""Predictions of a job's models on test rows, by task: as files hold them, and as the report takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from scipy.special import expit

from ensdistill.common.tasks import Task, task_of
from ensdistill.report.multilabel_metrics import LabelProbabilities, tuned_thresholds
from ensdistill.report.regression_metrics import Forecasts
from ensdistill.teachers.choices import HELD_OUT, scaling_of
from ensdistill.teachers.fitting.calibration import probabilities as probabilities_of
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


def of_ensemble(ensemble: Any, samples: Any, held_out: HeldOut) -> tuple[list[Prediction], Prediction]:
    """The predictions of each member, and of the mixture, for the samples of a test set; ``ensemble`` is the
    one for their uids."""
    if ensemble.task == "regression":
        return _of_regressors(ensemble, samples)
    logits = np.asarray(ensemble.predict_logits(samples), np.float64)
    # A member alone has its own temperature; the mixture's is a correction to the mixture.
    own = [Prediction.of(ensemble.task, z * ensemble.temperature) for z in logits]
    mixture = ensemble.combine(logits)
    if ensemble.task == "classification":
        return own, Prediction(mixture)
    known = ensemble.apply_temperatures(held_out.predictions).astype(np.float64)
    judged, labels = held_out.judged, held_out.labels
    own = [
        one.with_thresholds(expit(z * ensemble.temperature) if there else None, labels)
        for one, z, there in zip(own, known, judged, strict=True)
    ]
    whole_mixture = Prediction(LabelProbabilities(mixture))
    return own, whole_mixture.with_thresholds(ensemble.combine(known) if judged.all() else None, labels)


def _of_regressors(ensemble: Any, samples: Any) -> tuple[list[Prediction], Prediction]:
    own = []
    for member in ensemble.members:
        values = over_parts(samples, partial(predicted, member, names=ensemble.classes))
        variance = None if np.isnan(values[:, 1]).any() else values[:, 1]
        own.append(Prediction(Forecasts(values[:, 0], variance)))
    chosen = ensemble.weighted()
    moments = chosen.predict_distribution(samples)
    interval = None if chosen.interval is None else chosen.interval_of(moments)
    return own, Prediction(Forecasts(moments.mean, moments.variance, interval))


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
