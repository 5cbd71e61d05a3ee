"""The thresholds from which on a label is predicted, of each model of a job."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.job.predictions import Prediction, direct_held_out
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.scaling import CalibrationRows, calibration_rows
from ensdistill.job.unit import Unit
from ensdistill.teachers import Ensemble
from ensdistill.teachers.fitting.scaling import Scaling
from ensdistill.teachers.members import Member, load_member
from ensdistill.teachers.predict import outputs_of


@dataclass(frozen=True, eq=False)
class Thresholds:
    """The rows by which thresholds of labels are tuned, none of them a test row: for *direct* its held-out
    folds; for a distilled model rows without a label, by the ensemble's probabilities there."""

    task: Task
    labels: np.ndarray
    direct: np.ndarray | None
    rows: CalibrationRows | None

    @classmethod
    def of(cls, run: RunFolder, seed: int, name: str, rows: CalibrationRows | None) -> Thresholds:
        """Those of a student and its baselines; ``rows`` are those of
        :func:`ensdistill.job.scaling.calibration_rows`."""
        split = run.config.split(seed)
        known = direct_held_out(run.of(Unit("direct", seed, name))) if split.task == "multilabel" else None
        return cls(split.task, split.labelled.labels, known, rows)

    def given(
        self, kind: str, member: Member, made: Prediction, scaling: Scaling | None = None
    ) -> Prediction:
        """A prediction with the thresholds of its model; of other tasks as it is."""
        if self.task != "multilabel":
            return made
        if kind.startswith("direct"):
            # The held-out folds are of the better of plain and smoothed labels; the other is near.
            return made.with_thresholds(self.direct, self.labels)
        if self.rows is None:
            return made
        p = Prediction.of(self.task, outputs_of(member, self.rows.inputs), scaling).values.values
        return made.with_thresholds(p, np.asarray(self.rows.targets, np.float64))

    def of_member(self, kind: str, member: Member, scaling: Scaling | None = None) -> list[float] | None:
        """The thresholds of a model; None where no rows tune them, or the task has none."""
        if self.task != "multilabel":
            return None
        none = Prediction.of(self.task, np.zeros((0, self.labels.shape[1])))
        found = self.given(kind, member, none, scaling).values.thresholds
        return None if found is None else [float(one) for one in found]


def thresholds_of(run: RunFolder, unit: Unit, kinds: tuple[str, ...]) -> dict[str, list[float] | None]:
    """The thresholds of the models that a unit of the stage ``direct`` or ``distill`` has trained, for the
    probabilities as they are; empty for other tasks than multilabel."""
    if run.config.split(unit.seed).task != "multilabel":
        return {}
    rows = None
    if unit.stage == "distill":
        teachers = run.of(Unit("teachers", unit.seed))
        rows = calibration_rows(run, unit.seed, Ensemble.load(teachers / "ensemble", run.trusted))
    found = Thresholds.of(run, unit.seed, unit.student, rows)
    return {kind: found.of_member(kind, load_member(run.of(unit) / kind, run.trusted)) for kind in kinds}
