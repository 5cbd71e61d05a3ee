"""A shared student's data sets, each compared with its own ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit, log_softmax

from ensdistill.data import UNLABELLED
from ensdistill.data.tasks import UNKNOWN
from ensdistill.student.shared.sets import SetTargets
from ensdistill.teachers.fitting.calibration import log_mixture
from ensdistill.teachers.fitting.multilabel import mixture_of_labels

ROWS = 64  # predicted at once


@dataclass(frozen=True)
class SetReport:
    """How well a shared student follows the ensemble of one data set.

    Parameters
    ----------
    name : str
    rows : int
        Rows that judge; of positions all of theirs.
    kl : float
        The mean Kullback-Leibler divergence of the student from the ensemble, in nats; of several labels the
        sum of theirs.
    agreement : float
        The share of rows (positions, labels) with the same decision.
    accuracy, nll : (float, float) or None
        The student's and the ensemble's, on the labelled ones of these; None where there are none.
    """

    name: str
    rows: int
    kl: float
    agreement: float
    accuracy: tuple[float, float] | None
    nll: tuple[float, float] | None

    def __str__(self) -> str:
        text = f"{self.name}: KL {self.kl:.4f}, agreement {100 * self.agreement:.2f} % of {self.rows}"
        if self.accuracy is None or self.nll is None:
            return text
        return (
            f"{text}; accuracy {100 * self.accuracy[0]:.2f} % (ensemble {100 * self.accuracy[1]:.2f} %), NLL "
            f"{self.nll[0]:.4f} ({self.nll[1]:.4f})"
        )


def judged(targets: SetTargets, model: torch.nn.Module, device: torch.device) -> SetReport:
    """The report of one set, on its held-out rows; the model is in eval mode."""
    own, sums = targets.own, np.zeros(9)
    score = _of_classes if targets.task == "classification" else _of_labels
    for start in range(0, len(targets.judged), ROWS):
        places = targets.judged[start : start + ROWS]
        inputs = targets.prepare(own.rows.inputs[places])
        with torch.no_grad():
            if isinstance(inputs, dict):
                outputs = model(**{name: part.to(device) for name, part in inputs.items()})
            else:
                outputs = model(inputs.to(device))
            student = targets.rows_of(outputs).double().cpu().numpy()
        logits = own.cache.gather_logits(own.rows.uids[places]).astype(np.float64)
        weights = own.cache.weights if len(logits) > 1 else np.ones(1)
        sums += score(student, logits, weights, own.cache.combiner, targets.labels_of(places))
    count, decisions, kl, same, labelled, *scores = sums
    accuracy = nll = None
    if labelled:
        right, ensemble_right, lost, ensemble_lost = (float(one / labelled) for one in scores)
        accuracy, nll = (right, ensemble_right), (lost, ensemble_lost)
    return SetReport(targets.name, int(count), kl / count, same / decisions, accuracy, nll)


def _of_classes(
    student: np.ndarray, logits: np.ndarray, weights: np.ndarray, combiner: Any, labels: np.ndarray
) -> np.ndarray:
    """Sums over rows: their number twice, the divergence, equal decisions; labelled rows, the student's and
    the ensemble's right ones, and both log losses."""
    own, target = log_softmax(student, axis=1), log_mixture(logits, weights, combiner)
    p = np.exp(target)
    kl = (p * np.where(p > 0, target - own, 0.0)).sum()
    best, best_target = own.argmax(1), target.argmax(1)
    there = np.flatnonzero(labels != UNLABELLED)
    known = labels[there]
    right = [float((chosen[there] == known).sum()) for chosen in (best, best_target)]
    lost = [-float(values[there, known].sum()) for values in (own, target)]
    return np.array([len(own), len(own), kl, (best == best_target).sum(), len(there), *right, *lost])


def _of_labels(
    student: np.ndarray, logits: np.ndarray, weights: np.ndarray, combiner: Any, labels: np.ndarray
) -> np.ndarray:
    """The same of several labels, whose decisions are counted one by one, and whose log loss is the mean over
    known labels."""
    p = mixture_of_labels(logits, weights, combiner)
    q = expit(student)
    log = [np.log(np.maximum(one, 1e-300)) for one in (p, 1 - p, q, 1 - q)]
    kl = (p * (log[0] - log[2]) + (1 - p) * (log[1] - log[3])).sum()
    known = labels != UNKNOWN
    right = [float(((one >= 0.5) == (labels == 1))[known].sum()) for one in (q, p)]
    lost = [
        -float(np.where(labels == 1, yes, no)[known].sum())
        for yes, no in ((log[2], log[3]), (log[0], log[1]))
    ]
    same = ((p >= 0.5) == (q >= 0.5)).sum()
    return np.array([len(p), p.size, kl, same, known.sum(), *right, *lost])
