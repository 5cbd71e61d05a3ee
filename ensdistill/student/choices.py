"""The search of *direct*: choices that are judged on held-out folds of the labelled rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.files import read_json, write_arrays, write_json
from ensdistill.teachers.fitting.calibration import fit_temperature, log_mixture, negative_log_likelihood

FILE = "choice.json"
HELD_OUT = "held_out.safetensors"  # calibrated logits [N, C] of the best choice on plain labels


class Choices:
    """The NLL and the temperature of each choice on held-out rows, by its name.

    Parameters
    ----------
    labels : ndarray [N], int64
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
        record = None if folder is None else read_json(folder / FILE)
        known = isinstance(record, dict) and record.get("inputs") == inputs
        self._tried: dict[str, dict[str, Any]] = record["tried"] if isinstance(record, dict) and known else {}

    def __contains__(self, name: str) -> bool:
        return name in self._tried

    def nll(self, name: str, held_out: Callable[[], np.ndarray], *, smoothed: bool = False) -> float:
        """The NLL of a choice; infinite where its training diverged.

        Parameters
        ----------
        name : str
        held_out : callable
            Returns the logits [N, C] of the rows, by models that saw neither the row nor a copy of it. It is
            called for a new name only.
        smoothed : bool
            Whether the choice is of smoothed labels, and so not one of those for *direct*.
        """
        if name not in self:
            self._tried[name] = self._judged(held_out, smoothed)
            if self.folder is not None:
                write_json(self.folder / FILE, {"inputs": self.inputs, "tried": self._tried})
        loss = self._tried[name]["nll"]
        return math.inf if loss is None else float(loss)

    def temperature(self, name: str) -> float:
        """The temperature that is fitted to the held-out logits of a choice."""
        return float(self._tried[name]["temperature"])

    def record(self, direct: str, smoothed: str) -> dict[str, Any]:
        """The record of the search's stage, for the choices of both baselines."""
        return {
            "recipe": direct,
            "temperature": self.temperature(direct),
            "label_smoothing_temperature": self.temperature(smoothed),
            "held_out_nll": {name: found["nll"] for name, found in self._tried.items()},
        }

    def _judged(self, held_out: Callable[[], np.ndarray], smoothed: bool) -> dict[str, Any]:
        try:
            logits = held_out()
        except FloatingPointError:
            # A choice of this search that diverges is no choice. Where all diverge, the training that follows
            # raises the error.
            return {"nll": None, "temperature": 1.0}
        loss = negative_log_likelihood(log_mixture(logits[None], np.ones(1)), self.labels)
        temperature = fit_temperature(logits, self.labels)
        before = [one["nll"] for one in self._tried.values() if one["nll"] is not None]
        if self.folder is not None and not smoothed and loss < min(before, default=math.inf):
            # Before the record of this choice: a search that is killed in between judges it again.
            write_arrays(self.folder / HELD_OUT, {"logits": (logits / temperature).astype(np.float32)})
        return {"nll": loss, "temperature": temperature}
