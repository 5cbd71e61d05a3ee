"""The temperature of a distilled model, fitted without a label.

No labelled row is held out for it: the ensemble was trained on all of them, so its targets know the labels
there, and a temperature fitted on them makes every student far too sure (measured on digits: T = 0.03, a test
NLL of 0.7 instead of 0.09). The pool is held out: no teacher saw a label of it, and the mixture is calibrated
by out-of-fold predictions. So the student is calibrated to the mixture on the pool; where there is none, on
the synthetic rows. The test rows have no part in it.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from ensdistill.cache import TargetCache
from ensdistill.common.combiners import Combiner
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.stored import of_transfer
from ensdistill.job.unit import Unit
from ensdistill.teachers.fitting.calibration import PRIOR_ROWS, log_mixture
from ensdistill.teachers.fitting.multilabel import mixture_of_labels
from ensdistill.teachers.fitting.scaling import closest_scaling

ROWS = 4000  # more would not move a single number


def calibration_rows(run: RunFolder, seed: int, ensemble: Any) -> tuple[Any, Any] | None:
    """A batch of M samples of the transfer set that no teacher knew the label of, and the mixture's
    probabilities for them [M, C], float64; of a regression its Moments [M, D].

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
    task = ensemble.task
    if task == "regression" or cache.temperature is not None or run.config.cache.augment is not None:
        asked = of_transfer(ensemble, run.config.split(seed), run.config.cache).for_uids(
            rows.uids[chosen], rows.uids
        )
        inputs = rows.inputs[chosen]
        if task == "regression":
            return inputs, cast(Any, asked).weighted().predict_distribution(inputs)
        return inputs, asked.predict_proba(inputs)
    logits = cache.gather_logits(rows.uids[chosen])
    if task == "multilabel":
        combiner = cast(Combiner, cache.combiner)
        return rows.inputs[chosen], mixture_of_labels(logits, np.asarray(cache.weights), combiner)
    return rows.inputs[chosen], np.exp(log_mixture(logits, cache.weights, cast(Combiner, cache.combiner)))


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
