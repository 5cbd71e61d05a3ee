"""The settings that trials try: of a network's training, or of a booster's fit."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ensdistill.common.optimizers import StudentOptimization
from ensdistill.common.tasks import Task
from ensdistill.loss.settings import LossSettings
from ensdistill.student.search.families import About, Candidate

Role = Literal["student", "direct"]
ROLES: tuple[Role, ...] = ("direct", "student")
BATCHES = (64, 128, 256, 512)
TEMPERATURES = (1.0, 2.0, 4.0)
DROPOUTS = (0.0, 0.1, 0.2, 0.4)
# In ordinary trainings; the student's are given (finals.py).
LENGTHS: dict[Role, tuple[float, float]] = {"direct": (0.25, 2.0), "student": (1 / 64, 128.0)}
# AdamW multiplies the parameters by 1 - learning rate · weight decay in every step; beyond this the decay
# outweighs any gradient.
LARGEST_DECAY = 0.1


class Trial(Protocol):
    """The part of Optuna's trial that draws values."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...


@dataclass(frozen=True)
class Space:
    """The values that a trial of one candidate may have.

    Parameters
    ----------
    candidate : Candidate
    role : {"student", "direct"}
    steps : int
        Of an ordinary training.
    labels : bool
        Whether some row that the student learns from has a label: alpha is 1 otherwise.
    mixtures : tuple of str
        Names of the transfer sets.
    temperatures : tuple of float
        At which the cache has targets.
    task : {"classification", "multilabel", "regression"}
    variances : bool
        Of a regression, whether the ensemble has variances: a network may then learn them, too.
    """

    candidate: Candidate
    role: Role
    steps: int
    labels: bool
    mixtures: tuple[str, ...]
    temperatures: tuple[float, ...] = TEMPERATURES
    task: Task = "classification"
    variances: bool = False

    @property
    def dropout(self) -> bool:
        model = self.candidate.model
        return model is not None and "dropout" in inspect.signature(model).parameters

    def defaults(self) -> dict[str, Any]:
        """The values of the first trial."""
        if self.candidate.estimator is not None:
            return {"leaves": 31, "rate": 0.1, "rows": 20, **self._targets()}
        direct = self.role == "direct"
        found: dict[str, Any] = {
            "rate": self.candidate.rate / (2 if direct else 1),
            "batch": 64 if direct else 256,
            "steps": 1.0,
            "schedule": "cosine",
            "decay": 0.05 if direct else self.candidate.decay,
            "average": "none",
        }
        if self.dropout:
            given = getattr(self.candidate.model, "keywords", {}).get("dropout", 0.0)
            found["dropout"] = 0.2 if direct else given
        if self.variances:
            found["variance"] = True
        return found | self._targets()

    def _targets(self) -> dict[str, Any]:
        if self.role == "direct":
            smoothed = self.candidate.estimator is None and self.task != "regression"
            return {"smoothing": 0.0} if smoothed else {}
        found: dict[str, Any] = {"temperature": self.temperatures[0]}
        if self.labels and self.candidate.estimator is None:
            found["alpha"] = 1.0
        if len(self.mixtures) > 1:
            found["mixture"] = self.mixtures[0]
        return found

    def drawn(self, trial: Trial) -> dict[str, Any]:
        """The values of a trial; the same names as those of the defaults."""
        first = self.defaults()
        if self.candidate.estimator is not None:
            found = {
                "leaves": trial.suggest_int("leaves", 4, 127, log=True),
                "rate": trial.suggest_float("rate", 0.02, 0.3, log=True),
                "rows": trial.suggest_int("rows", 2, 100, log=True),
            }
        else:
            rate = self.candidate.rate
            found = {
                "rate": trial.suggest_float("rate", rate / 10, 2 * rate, log=True),
                "batch": trial.suggest_categorical("batch", BATCHES),
                "steps": trial.suggest_float("steps", *LENGTHS[self.role], log=True),
                "schedule": trial.suggest_categorical("schedule", ("cosine", "one_cycle")),
                "decay": trial.suggest_float("decay", 1e-4, 1.0, log=True),
                "average": trial.suggest_categorical("average", ("none", "0.998")),
            }
        if "dropout" in first:
            found["dropout"] = trial.suggest_categorical("dropout", sorted({*DROPOUTS, first["dropout"]}))
        if "variance" in first:
            found["variance"] = trial.suggest_categorical("variance", (True, False))
        if "smoothing" in first:
            found["smoothing"] = trial.suggest_categorical("smoothing", (0.0, 0.05, 0.1))
        if "temperature" in first:
            found["temperature"] = trial.suggest_categorical("temperature", self.temperatures)
        if "alpha" in first:
            found["alpha"] = trial.suggest_categorical("alpha", (1.0, 0.9, 0.6))
        if "mixture" in first:
            found["mixture"] = trial.suggest_categorical("mixture", self.mixtures)
        return found

    def optimization(self, values: dict[str, Any]) -> StudentOptimization:
        rate = float(values["rate"])
        return StudentOptimization(
            steps=self.steps_of(values),
            batch_size=int(values["batch"]),
            learning_rate=rate,
            weight_decay=min(float(values["decay"]), LARGEST_DECAY / rate),
            schedule=values["schedule"],
            label_smoothing=float(values.get("smoothing", 0.0)),
        )

    def steps_of(self, values: dict[str, Any]) -> int:
        return max(32, round(float(values["steps"]) * self.steps))

    def loss(self, values: dict[str, Any]) -> LossSettings:
        """The loss of a trial. *Direct* is the share of the labels alone."""
        if self.role == "direct":
            return LossSettings(alpha=0.0, label_smoothing=float(values.get("smoothing", 0.0)))
        return LossSettings(temperature=float(values["temperature"]), alpha=float(values.get("alpha", 1.0)))

    @staticmethod
    def ema(values: dict[str, Any]) -> float | None:
        return None if values["average"] == "none" else float(values["average"])


def ordinary_steps(about: About, role: Role) -> int:
    """Steps of an ordinary training: some forty epochs, 1 000 to 16 000, in whole blocks of 32.

    The direct student, which sees fewer rows, takes as many: its search may halve them, and the best weights
    along the way are kept.

    Examples
    --------
    >>> ordinary_steps(About("array", (16,), 40_000, 4_000, 26), "student")
    6272
    """
    rows = about.rows if role == "student" else max(about.labelled, about.rows // 4)
    epochs = 40 * rows / 256
    return int(math.ceil(min(max(epochs, 1_000), 16_000) / 32) * 32)
