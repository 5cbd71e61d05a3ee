"""How good a model is on the rows that judge: by their labels, and by the ensemble's own predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, log_expit, log_softmax

from ensdistill.common.tasks import Task
from ensdistill.report.frontier import goals_of
from ensdistill.report.multilabel_metrics import LabelProbabilities, expected_map_resampler
from ensdistill.student.quality import Quality, by_labels, of_labels, of_numbers, of_rows
from ensdistill.student.search.rows import TINY, Judged
from ensdistill.student.search.space import Role
from ensdistill.student.units import Units
from ensdistill.teachers.fitting.scaling import Scaling, closest_scaling, scaling_by_labels
from ensdistill.teachers.members import Moments


@dataclass(frozen=True, eq=False)
class Figures:
    """A model on the rows that judge, after it was calibrated on them.

    Parameters
    ----------
    task : {"classification", "multilabel", "regression"}
    by_ensemble : Quality
        As if labels were drawn from the ensemble's predictions: the excess NLL of a model is then its
        divergence from the ensemble.
    by_labels : Quality or None
        On the rows with a label; None where there are none.
    means : dict of str to float
        ``kl`` is the divergence from the ensemble in nats, of several labels the mean over these. Then the
        expected second goal, the goals on labels where there are any, and ``agreement`` or, of a regression,
        ``distance``: the mean squared distance from the ensemble's means, in their deviations.
    """

    task: Task
    by_ensemble: Quality
    by_labels: Quality | None
    means: dict[str, float]


def figures_of(outputs: Any, judged: Judged, scaling: Scaling | None = None) -> Figures:
    """A model's figures from its logits [V, C] or Moments [V, D]; ``scaling`` None has it fitted."""
    task, labelled = judged.task, judged.labelled
    if scaling is None:
        if labelled.any():
            scaling = scaling_by_labels(task, outputs, judged.rows.labels)
        else:
            scaling = closest_scaling(task, outputs, judged.ensemble)
    by_ensemble, likeness = _BY_ENSEMBLE[task](outputs, scaling, judged)
    means, quality = {"kl": -float(by_ensemble.values[0]), **likeness}, None
    second, metrics = float(by_ensemble.values[1]), goals_of(task)
    means[f"expected_{metrics[1].name}"] = metrics[1].sign * second
    if labelled.any():
        if task == "regression":
            own: Any = scaling.moments(outputs).take(labelled)
        else:
            own = scaling.logits(outputs)[labelled]
        quality = by_labels(task, own, judged.rows.labels[labelled])
        means |= {m.name: m.sign * float(v) for m, v in zip(metrics, quality.values, strict=True)}
    numbers = {name: value for name, value in scaling.record().items() if isinstance(value, float)}
    numbers |= {"temperature": scaling.temperature} if task != "regression" else {}
    return Figures(task, by_ensemble, quality, means | numbers)


def ensemble_figures(judged: Judged) -> Figures:
    """The ensemble's own; it is calibrated as the students are."""
    own = judged.ensemble
    if judged.task == "regression":
        return figures_of(own, judged)
    logs = np.log(np.maximum(own, TINY))
    if judged.task == "multilabel":
        logs = logs - np.log(np.maximum(1 - own, TINY))
    return figures_of(logs, judged)


def objective(figures: Figures, role: Role) -> float:
    """The value that a search lowers.

    Of *direct* it is the NLL of the labels, of a student NLL and KL from the ensemble together; the KL alone
    where there are no labels. To the NLL of numbers is added the logarithm of the RMSE, which is the NLL
    of a constant variance: the goals count alike, so that no search neglects the means.
    """
    means, likelihood = figures.means, goals_of(figures.task)[0].name
    if likelihood not in means:
        return means["kl"]
    value = means[likelihood] + (0.0 if role == "direct" else means["kl"])
    return value if figures.task != "regression" else value + float(np.log(max(means["rmse"], TINY)))


def _classes(outputs: np.ndarray, scaling: Scaling, judged: Judged) -> tuple[Quality, dict[str, float]]:
    log_q, p = log_softmax(scaling.logits(np.asarray(outputs, np.float64)), axis=1), judged.ensemble
    chosen = log_q.argmax(1)
    entropy = (p * np.log(np.maximum(p, TINY))).sum(1)
    kl = entropy - (p * np.maximum(log_q, np.log(TINY))).sum(1)
    agreement = float((chosen == p.argmax(1)).mean())
    return of_rows(-kl, p[np.arange(len(p)), chosen]), {"agreement": agreement}


def _several(outputs: np.ndarray, scaling: Scaling, judged: Judged) -> tuple[Quality, dict[str, float]]:
    odds, p = scaling.logits(np.asarray(outputs, np.float64)), judged.ensemble
    parts = ((p, log_expit(odds)), (1 - p, log_expit(-odds)))
    kl = sum(a * (np.log(np.maximum(a, TINY)) - np.maximum(log_b, np.log(TINY))) for a, log_b in parts)
    precision = expected_map_resampler(LabelProbabilities(expit(odds)), p)
    agreement = float(((odds > 0) == (p > 0.5)).mean())
    return of_labels(-np.asarray(kl).mean(1), precision), {"agreement": agreement}


def _numbers(outputs: Moments, scaling: Scaling, judged: Judged) -> tuple[Quality, dict[str, float]]:
    (middle, wanted), (mean, variance) = judged.ensemble, scaling.moments(outputs)
    scale = Units.of_labels(middle).scale
    distance = np.square((mean - middle) / scale)
    if wanted is None or variance is None:  # Gaussians of an equal variance
        kl, expected = distance.sum(1) / 2, distance
    else:
        least = np.square(scale) * TINY
        v, own = np.maximum(wanted, least), np.maximum(variance, least)
        kl = (np.log(own / v) + (v + np.square(mean - middle)) / own - 1).sum(1) / 2
        expected = distance + v / np.square(scale)
    return of_numbers(-kl, expected.mean(1)), {"distance": float(distance.mean())}


_BY_ENSEMBLE: Any = {"classification": _classes, "multilabel": _several, "regression": _numbers}
