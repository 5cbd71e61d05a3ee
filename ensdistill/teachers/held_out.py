"""Held-out predictions of members, and the fits of temperatures, variances and weights to them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.data import Rows
from ensdistill.data.tasks import UNKNOWN
from ensdistill.teachers.ensemble import Ensemble
from ensdistill.teachers.members import Moments
from ensdistill.teachers.regression import RegressionEnsemble
from ensdistill.teachers.stack.objectives import units_of

AnyEnsemble: TypeAlias = Ensemble | RegressionEnsemble
PRIORS = (1.0, 0.1, 0.0)  # shares of the prior for equal weights that a selection tries
CROSSED = 3  # parts of the rows by which they are compared


def unknown_predictions(members: int, rows: int, names: int, task: Task) -> np.ndarray:
    """Room for the stored predictions of all members, NaN: logits, float32 [K, N, C]; of regressors means and
    variances, float64 [K, N, 2, D]."""
    if task == "regression":
        return np.full((members, rows, 2, names), np.nan)
    return np.full((members, rows, names), np.nan, np.float32)


def as_predictions(stored: np.ndarray) -> Any:
    """Stored predictions as the fits take them: logits [K, N, C] as they are; of regressors moments [K, N,
    D], in which members without a variance have the mean of the others'."""
    if stored.ndim == 3:
        return stored
    mean, variance = stored[:, :, 0], stored[:, :, 1]
    given = ~np.isnan(variance).all((1, 2))
    if not given.any():
        return Moments(mean, None)
    lacking = ~given & ~np.isnan(mean).any((1, 2))
    return Moments(mean, np.where(lacking[:, None, None], variance[given].mean(0), variance))


def judged_members(stored: np.ndarray) -> np.ndarray:
    """Whether each member has held-out predictions: bool [K]."""
    logits = stored if stored.ndim == 3 else stored[:, :, 0]
    known: np.ndarray = ~np.isnan(logits).any((1, 2))
    return known


def fit(ensemble: AnyEnsemble, stored: np.ndarray, labelled: Rows, prior_rows: float, select: bool) -> None:
    """Fit temperatures (or variances) and weights to the held-out predictions.

    Members without such predictions keep their temperature and an equal share of the weight, the others share
    the rest. The mixture of all has then no logits that its temperature could be fitted to, so it stays 1.
    """
    judged = judged_members(stored)
    if not judged.any():
        return
    part = ensemble if judged.all() else ensemble.only(*np.array(ensemble.names)[judged])
    part.calibrate(as_predictions(stored[judged]), labelled.labels, sample_weight=labelled.weights)
    weigh(part, stored[judged], labelled, prior_rows, select)
    if part is not ensemble:
        _take_over(ensemble, part)
        ensemble.weights[judged] = part.weights * judged.mean()
        if isinstance(ensemble, Ensemble) and isinstance(part, Ensemble):
            ensemble.temperature = 1.0
            ensemble.temperatures[judged] = part.temperatures


def weigh(ensemble: AnyEnsemble, stored: np.ndarray, labelled: Rows, prior_rows: float, select: bool) -> None:
    """Fit weights to held-out predictions, of those members alone that the greedy selection takes where
    ``select`` is set.

    A prior for equal weights costs much where members are unequal, and nothing else guards few rows. So a
    selection is made with the prior, with a tenth of it and without it, and the one stays that has the least
    loss on rows that it was not fitted to.
    """
    counted = np.ones(len(labelled), bool) if labelled.weights is None else labelled.weights > 0
    rows, stored = labelled.take(np.flatnonzero(counted)), stored[:, counted]
    if not select:
        found = as_predictions(stored)
        ensemble.weigh(found, rows.labels, prior_rows=prior_rows, sample_weight=rows.weights)
        return
    priors = list(dict.fromkeys(prior_rows * share for share in PRIORS))
    losses = [_loss_of_selection(ensemble, stored, rows, prior) for prior in priors]
    chosen = _selected(ensemble, stored, rows, priors[int(np.argmin(losses))])
    ensemble.weights = np.zeros(len(ensemble))
    ensemble.weights[np.isin(ensemble.names, chosen.names)] = chosen.weights
    _take_over(ensemble, chosen)


def _take_over(ensemble: AnyEnsemble, part: AnyEnsemble) -> None:
    """Give an ensemble the fits that a part of it has for the mixture."""
    if isinstance(ensemble, Ensemble) and isinstance(part, Ensemble):
        ensemble.temperature = part.temperature
    if isinstance(ensemble, RegressionEnsemble) and isinstance(part, RegressionEnsemble):
        ensemble.variance_factor, ensemble.noise = part.variance_factor, part.noise


def _selected(ensemble: AnyEnsemble, stored: np.ndarray, rows: Rows, prior_rows: float) -> AnyEnsemble:
    """The members that a selection takes, weighed."""
    names = ensemble.select(as_predictions(stored), rows.labels, prior_rows=prior_rows).names
    own = as_predictions(stored[np.isin(ensemble.names, names)])
    return ensemble.only(*names).weigh(own, rows.labels, prior_rows=prior_rows, sample_weight=rows.weights)


def _loss_of_selection(ensemble: AnyEnsemble, stored: np.ndarray, rows: Rows, prior_rows: float) -> float:
    """The loss of selections, each on the rows that it was not fitted to, whose groups are whole."""
    losses, groups = np.zeros(len(rows)), np.arange(len(rows))
    if rows.groups is not None:
        groups = np.unique(rows.groups, return_inverse=True)[1]
    for part in range(CROSSED):
        held = groups % CROSSED == part
        if not held.any() or held.all():
            continue
        chosen = _selected(ensemble, stored[:, ~held], rows.take(np.flatnonzero(~held)), prior_rows)
        own = as_predictions(stored[np.isin(ensemble.names, chosen.names)][:, held])
        losses[held] = row_losses(chosen, own, rows.labels[held], units_of_labels(rows.labels))
    return float(np.average(losses, weights=rows.weights))


def units_of_labels(labels: np.ndarray) -> np.ndarray:
    """The deviations of numbers, [D]; 1 for labels of other tasks."""
    return units_of(labels)[1] if labels.dtype == np.float64 else np.ones(1)


def row_losses(
    ensemble: AnyEnsemble, predictions: np.ndarray | Moments, labels: np.ndarray, units: np.ndarray
) -> np.ndarray:
    """The mixture's loss for each row, float64 [N]: the NLL of its class, the sum of the binary cross
    entropies of its known labels, or the squared error of its numbers over their units' squares."""
    if isinstance(ensemble, RegressionEnsemble):
        errors = (ensemble.combine(predictions).mean - labels) / units
        squares: np.ndarray = np.square(errors).sum(1)
        return squares
    assert isinstance(predictions, np.ndarray)
    p = ensemble.combine(ensemble.apply_temperatures(predictions))
    least = np.finfo(np.float64).eps
    if ensemble.task == "classification":
        return -np.log(np.maximum(p[np.arange(len(p)), labels], least))
    right = np.where(labels == 1, p, 1 - p)
    entropies: np.ndarray = -(np.log(np.maximum(right, least)) * (labels != UNKNOWN)).sum(1)
    return entropies
