"""Scores of single rows, by task: the distance of student and ensemble, a model's uncertainty and error, and
the spread of the members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.data.tasks import UNKNOWN
from ensdistill.report import metrics, regression_metrics
from ensdistill.report.metrics import PROBABILITY_FLOOR
from ensdistill.report.multilabel_metrics import LabelProbabilities
from ensdistill.report.regression_metrics import Forecasts, deviations


@dataclass(frozen=True)
class RowScores:
    """The scores of one task. Each function returns float64 [N].

    Parameters
    ----------
    distance : callable
        (ensemble, student, labels): how far the student's prediction is from the ensemble's; 0 where they
        are equal.
    distance_unit : str
    uncertainty : callable
        (prediction, labels): larger where the model is less certain. The labels give a unit alone.
    uncertainty_of : str
        Its name.
    error : callable
        (prediction, labels)
    error_of : str
        The name of the mean error.
    finish : callable
        From a mean of errors to the shown value.
    percent : bool
        Whether that is a share.
    spread : callable
        (members' predictions, weights [K], labels): how much the members differ.
    needs : str
        An attribute of the prediction without which it has no uncertainty.
    """

    distance: Callable[[Any, Any, np.ndarray], np.ndarray]
    distance_unit: str
    uncertainty: Callable[[Any, np.ndarray], np.ndarray]
    uncertainty_of: str
    error: Callable[[Any, np.ndarray], np.ndarray]
    error_of: str
    spread: Callable[[Sequence[Any], np.ndarray, np.ndarray], np.ndarray]
    finish: Callable[[Any], Any] = lambda value: value
    percent: bool = True
    needs: str = ""

    def uncertain(self, predictions: Sequence[Any]) -> bool:
        """Whether the predictions of all seeds have an uncertainty."""
        return not self.needs or all(getattr(one, self.needs) is not None for one in predictions)

    def text(self, error: float) -> str:
        """A mean error as tables show it."""
        return f"{100 * error:.2f} %" if self.percent else f"{error:.3f}"


def entropy(p: np.ndarray) -> np.ndarray:
    """The entropy of distributions [N, C] in nats, [N].

    Examples
    --------
    >>> entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).round(3).tolist()
    [0.693, 0.0]
    """
    found: np.ndarray = -(p * np.log(np.maximum(p, PROBABILITY_FLOOR))).sum(-1)
    return np.maximum(found, 0.0)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) of distributions [N, C] in nats, [N]. A probability below 2.2e-16 counts as that.

    Examples
    --------
    >>> divergence(np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]])).tolist()
    [0.0]
    """
    log_p, log_q = (np.log(np.maximum(one, PROBABILITY_FLOOR)) for one in (p, q))
    return np.maximum((p * (log_p - log_q)).sum(-1), 0.0)


def label_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) of each label by itself, of probabilities of labels [..., C] in nats, [..., C].

    Examples
    --------
    >>> label_divergence(np.array([0.5, 1.0]), np.array([0.5, 0.5])).round(3).tolist()
    [0.0, 0.693]
    """
    return divergence(_of_labels(p), _of_labels(q))


def _of_labels(p: np.ndarray) -> np.ndarray:
    """Each label's two probabilities: [..., C, 2] from [..., C]."""
    return np.stack([p, 1 - p], axis=-1)


def _class_spread(members: Sequence[np.ndarray], weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    # One member at a time: all together are K times as large as the test set's probabilities.
    mixture = sum((w * p for w, p in zip(weights, members, strict=True)), np.zeros(1))
    return sum((w * divergence(p, mixture) for w, p in zip(weights, members, strict=True)), np.zeros(1))


def _label_spread(
    members: Sequence[LabelProbabilities], weights: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    parts = [_of_labels(one.values) for one in members]
    return _class_spread(parts, weights, labels).sum(-1)


def _number_spread(members: Sequence[Forecasts], weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    means = np.stack([one.mean for one in members]) / deviations(labels)
    middle = np.tensordot(weights, means, 1)
    variance: np.ndarray = np.tensordot(weights, np.square(means - middle), 1)
    return np.sqrt(variance.mean(-1))


def _label_error(prediction: LabelProbabilities, labels: np.ndarray) -> np.ndarray:
    known = labels != UNKNOWN
    wrong: np.ndarray = ((prediction.predicted != (labels == 1)) & known).sum(-1)
    return wrong / known.sum(-1)


def _number_distance(ensemble: Forecasts, student: Forecasts, labels: np.ndarray) -> np.ndarray:
    apart = (ensemble.mean - student.mean) / deviations(labels)
    found: np.ndarray = np.sqrt(np.square(apart).mean(-1))
    return found


def _deviation(prediction: Forecasts, labels: np.ndarray) -> np.ndarray:
    assert prediction.variance is not None
    found: np.ndarray = (np.sqrt(prediction.variance) / deviations(labels)).mean(-1)
    return found


ROW_SCORES: dict[Task, RowScores] = {
    "classification": RowScores(
        distance=lambda ensemble, student, _: divergence(ensemble, student),
        distance_unit="KL, nats",
        uncertainty=lambda p, _: entropy(p),
        uncertainty_of="entropy",
        error=lambda p, y: 1 - metrics.correct_rows(p, y),
        error_of="error",
        spread=_class_spread,
    ),
    "multilabel": RowScores(
        distance=lambda e, s, _: label_divergence(e.values, s.values).sum(-1),
        distance_unit="KL, nats",
        uncertainty=lambda p, _: entropy(_of_labels(p.values)).sum(-1),
        uncertainty_of="entropy, summed over labels",
        error=_label_error,
        error_of="wrong labels",
        spread=_label_spread,
    ),
    "regression": RowScores(
        distance=_number_distance,
        distance_unit="sd",
        uncertainty=_deviation,
        uncertainty_of="predicted standard deviation",
        error=regression_metrics.squared_rows,
        error_of="RMSE",
        finish=np.sqrt,
        percent=False,
        spread=_number_spread,
        needs="variance",
    ),
}
