"""The search of *direct*: choices that are judged on held-out folds of the labelled rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.files import read_json, write_arrays, write_json
from ensdistill.data.tasks import task_of_labels
from ensdistill.teachers.fitting.calibration import log_mixture, negative_log_likelihood
from ensdistill.teachers.fitting.gaussian import gaussian_nll
from ensdistill.teachers.fitting.multilabel import fitted_rows
from ensdistill.teachers.fitting.scaling import Scaling, scaling_by_labels
from ensdistill.teachers.members.moments import Moments, as_arrays

FILE = "choice.json"
HELD_OUT = "held_out.safetensors"  # calibrated predictions of the best choice


class Choices:
    """The loss and the calibration of each choice on held-out rows, by its name.

    The loss is the NLL of the labels after the calibration, so that a choice is not refused for a fault that
    one number mends: of several labels the mean over those that are known, of numbers that of Gaussians,
    whose variance for a model without one is its mean squared error.

    Parameters
    ----------
    labels : ndarray
        In a form of :mod:`ensdistill.data.tasks`.
    folder : Path, optional
        Each choice is written down here, so that a killed search goes on.
    inputs : str
        A digest of everything that the judgements depend on; those of another digest are dropped.

    Examples
    --------
    >>> choices = Choices(np.array([0, 1]))
    >>> round(choices.nll("equal shares", lambda: np.zeros((2, 2))), 3)
    0.693
    """

    def __init__(self, labels: np.ndarray, folder: Path | None = None, inputs: str = "") -> None:
        self.labels, self.folder, self.inputs = labels, folder, inputs
        self.task = task_of_labels(labels) or "classification"
        record = None if folder is None else read_json(folder / FILE)
        known = isinstance(record, dict) and record.get("inputs") == inputs
        self._tried: dict[str, dict[str, Any]] = record["tried"] if isinstance(record, dict) and known else {}

    def __len__(self) -> int:
        return len(self._tried)

    def __contains__(self, name: str) -> bool:
        return name in self._tried

    def nll(self, name: str, held_out: Callable[[], Any]) -> float:
        """The loss of a choice; infinite where its training diverged.

        Parameters
        ----------
        name : str
        held_out : callable
            Returns the logits [N, C] of the rows, or the Moments [N, D] of a regression, by models that saw
            neither the row nor a copy of it. It is called for a new name only.
        """
        if name not in self:
            self._tried[name] = self._judged(held_out)
            if self.folder is not None:
                write_json(self.folder / FILE, {"inputs": self.inputs, "tried": self._tried})
        loss = self._tried[name]["nll"]
        return math.inf if loss is None else float(loss)

    def scaling(self, name: str) -> Scaling:
        """The calibration that is fitted to the held-out predictions of a choice."""
        return scaling_of(self._tried[name])

    def temperature(self, name: str) -> float:
        """The temperature that is fitted to the held-out logits of a choice."""
        return self.scaling(name).temperature

    def record(self, direct: str, smoothed: str | None = None) -> dict[str, Any]:
        """The record of the search's stage, for the choices of both baselines; a regression has no smoothed
        one."""
        found: dict[str, Any] = {"recipe": direct, **plain_scaling(self.scaling(direct))}
        if smoothed is not None:
            found["label_smoothing_temperature"] = self.temperature(smoothed)
        return {**found, "held_out_nll": {name: one["nll"] for name, one in self._tried.items()}}

    def _judged(self, held_out: Callable[[], Any]) -> dict[str, Any]:
        # A choice of this search that diverges is no choice. Where all diverge, the training that follows
        # raises the error.
        diverged = {"nll": None, "temperature": 1.0}
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                outputs = held_out()
                if isinstance(outputs, Moments) and not _finite(outputs, self.labels):
                    return diverged
                scaling = scaling_by_labels(self.task, outputs, self.labels)
                loss = self._loss(outputs, scaling)
        except FloatingPointError:
            return diverged
        if not math.isfinite(loss):
            return diverged
        before = [one["nll"] for one in self._tried.values() if one["nll"] is not None]
        if self.folder is not None and loss < min(before, default=math.inf):
            # Before the record of this choice: a search that is killed in between judges it again.
            write_arrays(self.folder / HELD_OUT, calibrated(outputs, scaling))
        return {"nll": loss, **plain_scaling(scaling)}

    def _loss(self, outputs: Any, scaling: Scaling) -> float:
        if isinstance(outputs, Moments):
            mean, variance = outputs if outputs.variance is not None else scaling.moments(outputs)
            least = 1e-12 * np.maximum(self.labels.var(0), 1e-300)
            return gaussian_nll(mean, np.maximum(np.asarray(variance), least), self.labels)
        rows = fitted_rows(self.task, np.asarray(scaling.logits(outputs))[None], self.labels)
        return negative_log_likelihood(log_mixture(rows.logits, np.ones(1)), rows.labels)


def _finite(moments: Moments, labels: np.ndarray) -> bool:
    """Whether the squared errors and the variances have finite sums."""
    sums = [np.square(moments.mean - labels).sum()]
    if moments.variance is not None:
        sums.append(moments.variance.sum())
    return bool(np.isfinite(sums).all())


def calibrated(outputs: Any, scaling: Scaling) -> dict[str, np.ndarray]:
    """Calibrated predictions as arrays of a file: ``logits``, or ``mean`` and ``variance``."""
    if isinstance(outputs, Moments):
        return as_arrays(scaling.moments(outputs))
    return as_arrays(scaling.logits(outputs).astype(np.float32))


def plain_scaling(scaling: Scaling) -> dict[str, Any]:
    """A calibration as entries of a record."""
    more = {name: value for name, value in scaling.record().items() if name != "temperature"}
    return {"temperature": scaling.temperature, **more}


def scaling_of(record: dict[str, Any]) -> Scaling:
    """The calibration among the entries of a record."""
    known = ("temperature", "variance_factor", "noise")
    found = {name: record[name] for name in known if record.get(name) is not None}
    if isinstance(found.get("noise"), list):
        found["noise"] = tuple(found["noise"])
    return Scaling(**found)
