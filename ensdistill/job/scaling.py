"""The temperature of a distilled model, fitted without a label.

No labelled row is held out for it: the ensemble was trained on all of them, so its targets know the labels
there, and a temperature fitted on them makes every student far too sure (measured on digits: T = 0.03, a test
NLL of 0.7 instead of 0.09). The pool is held out: no teacher saw a label of it, and the mixture is calibrated
by out-of-fold predictions. So the student is calibrated to the mixture on the pool; where there is none, on
the synthetic rows. The test rows have no part in it.

A student of numbers that predicts means alone gets one variance: the ensemble's mean squared error on
held-out rows, and the student's mean squared distance from the ensemble.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from ensdistill.cache import TargetCache
from ensdistill.common.combiners import Combiner
from ensdistill.common.tasks import Task
from ensdistill.job.predictions import HeldOut
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.stored import of_transfer
from ensdistill.job.unit import Unit
from ensdistill.teachers.fitting.calibration import PRIOR_ROWS, log_mixture
from ensdistill.teachers.fitting.multilabel import mixture_of_labels
from ensdistill.teachers.fitting.scaling import Scaling, closest_scaling
from ensdistill.teachers.members import Member
from ensdistill.teachers.predict import outputs_of

ROWS = 4000  # more would not move a single number


class CalibrationRows(NamedTuple):
    """Rows to which distilled models are calibrated.

    Parameters
    ----------
    inputs : batch of M samples
        Of the transfer set; no teacher knew the label of one.
    targets : ndarray [M, C], float64, or Moments [M, D]
        The mixture's probabilities for them, or its mean and variance.
    task : {"classification", "multilabel", "regression"}
    error : ndarray [D], optional
        Of a regression the mixture's mean squared error on held-out labelled rows.
    """

    inputs: Any
    targets: Any
    task: Task
    error: np.ndarray | None = None

    def scaling(self, member: Member) -> Scaling:
        """The calibration that brings a model nearest to the mixture."""
        return closest_scaling(self.task, outputs_of(member, self.inputs), self.targets, error=self.error)


def calibration_rows(run: RunFolder, seed: int, ensemble: Any) -> CalibrationRows | None:
    """The rows of a seed.

    None where the transfer set is the labelled rows alone. The seed's ensemble predicts them where the
    cache holds the mixture at another temperature, or targets of augmented rows.
    """
    unit = Unit("cache", seed)
    rows, cache = run.transfer(seed), TargetCache.open(run.of(unit) / "targets", trusted=run.trusted)
    counts = [count for _, count in run.record(unit)["origin"]]
    origin = np.repeat(np.arange(len(counts)), counts)
    unlabelled = np.flatnonzero(~rows.known)
    # The order is labelled, pool, synthetic: the first source of unlabelled rows is the pool where there is
    # one.
    chosen = unlabelled[origin[unlabelled] == origin[unlabelled].min(initial=len(origin))][:ROWS]
    if not len(chosen):
        return None
    task, inputs = ensemble.task, rows.inputs[chosen]
    if task == "regression" or cache.temperature is not None or run.config.cache.augment is not None:
        asked = of_transfer(ensemble, run.config.split(seed), run.config.cache).for_uids(
            rows.uids[chosen], rows.uids
        )
        if task == "regression":
            error = HeldOut.read(run.held_out(seed)).squared_error(ensemble)
            found = cast(Any, asked).weighted().predict_distribution(inputs)
            return CalibrationRows(inputs, found, task, error)
        return CalibrationRows(inputs, asked.predict_proba(inputs), task)
    logits = cache.gather_logits(rows.uids[chosen])
    weights, combiner = np.asarray(cache.weights), cast(Combiner, cache.combiner)
    if task == "multilabel":
        return CalibrationRows(inputs, mixture_of_labels(logits, weights, combiner), task)
    return CalibrationRows(inputs, np.exp(log_mixture(logits, weights, combiner)), task)


def fit_temperature_to(
    logits: np.ndarray, probabilities: np.ndarray, prior_rows: float = PRIOR_ROWS
) -> float:
    """The temperature T that minimises the cross entropy of softmax(logits / T) to ``probabilities``, both
    [M, C]; 1 without rows.

    ``prior_rows`` is as in :func:`ensdistill.teachers.fitting.calibration.fit_temperature`: few rows don't
    move the temperature far from 1.

    Examples
    --------
    >>> z = np.array([[2.0, 0.0], [0.0, 1.0]])
    >>> probabilities = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    >>> round(fit_temperature_to(3 * z, probabilities, prior_rows=0), 4)
    3.0
    """
    return closest_scaling("classification", logits, probabilities, prior_rows).temperature
