"""The evaluations of a training: which weights are the best so far, and whether the training should end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ensdistill.student.averaging import WeightAverage, state_of
from ensdistill.student.comparisons import LARGER_IS_BETTER, Scores
from ensdistill.student.validation import Examination

Weights = Literal["student", "average"]


@dataclass(frozen=True)
class Evaluation:
    """The scores after ``step`` steps: of the student, and of its weights' average where there is one."""

    step: int
    student: Scores
    average: Scores | None = None


@dataclass(frozen=True)
class Choice:
    """The weights that a training returns.

    Parameters
    ----------
    step : int
        After which they were the student's.
    weights : {"student", "average"}
        Those of the student, or their exponential moving average.
    metric : str or None
        Why they were chosen; None where there was no validation.
    value : float or None
        Of the metric.
    """

    step: int
    weights: Weights
    metric: str | None = None
    value: float | None = None

    def __str__(self) -> str:
        kind = f"{'the average of ' if self.weights == 'average' else ''}the student's weights"
        why = "" if self.metric is None else f": the best {self.metric} on validation, {self.value:.6g}"
        return f"{kind} after step {self.step}{why}"


class Selection:
    """Evaluates a student now and then, and keeps a copy of the best weights.

    Parameters
    ----------
    model : Module
        The student, on its device.
    average : WeightAverage or None
    examination : callable, or None
        Returns a model's scores; None where there is no validation: then there are no evaluations.
    steps : int
        Of the training.
    """

    def __init__(
        self, model: nn.Module, average: WeightAverage | None, examination: Examination | None, steps: int
    ) -> None:
        self.model, self.average, self.examination, self.steps = model, average, examination, steps
        self.evaluations: list[Evaluation] = []
        self.choice: Choice | None = None
        self.best: dict[str, Tensor] = {}
        if examination is not None:
            self.settings, self.metric = examination.held.settings, examination.metric
            self.every = self.settings.every or max(1, steps // 20)
            self.best = {name: tensor.detach().clone() for name, tensor in state_of(model).items()}

    def due(self, step: int, *, last: bool = False) -> bool:
        """Whether there is an evaluation after ``step`` steps; ``last`` where the training ends there."""
        if self.examination is None or (self.evaluations and self.evaluations[-1].step == step):
            return False
        before = self.evaluations[-1].step if self.evaluations else 0
        return last or step >= self.steps or step // self.every > before // self.every

    def evaluate(self, step: int) -> Evaluation:
        """Examine the student and the average; both are in eval mode afterwards."""
        assert self.examination is not None
        device = next(self.model.parameters()).device
        student = self.examination(self.model, device)
        average = None if self.average is None else self.examination(self.average.module, device)
        self.evaluations.append(Evaluation(step, student, average))
        self._take("student", student, step, self.model)
        if self.average is not None and average is not None:
            self._take("average", average, step, self.average.module)
        return self.evaluations[-1]

    def _take(self, weights: Weights, scores: Scores, step: int, model: nn.Module) -> None:
        """Keep the model's weights if they are better than the best ones so far."""
        value = getattr(scores, self.metric)
        before = None if self.choice is None else self.choice.value
        if before is not None:
            # A value that is NaN is no better than any other.
            better = value > before if self.metric in LARGER_IS_BETTER else value < before
            if not (better or (before != before and value == value)):
                return
        self.choice = Choice(step, weights, self.metric, value)
        with torch.no_grad():
            for name, tensor in state_of(model).items():
                self.best[name].copy_(tensor)

    @property
    def exhausted(self) -> str:
        """Why the training ends early: its patience has run out; empty where it has not."""
        if self.examination is None or self.settings.patience is None or self.choice is None:
            return ""
        since = sum(e.step > self.choice.step for e in self.evaluations)
        return f"no better {self.metric} in {since} evaluations" if since >= self.settings.patience else ""

    @property
    def improved(self) -> bool:
        """Whether the last evaluation is the best one."""
        return self.choice is not None and self.choice.step == self.evaluations[-1].step

    def finish(self, step: int) -> Choice:
        """Give the student the weights that the training returns."""
        if self.choice is not None:
            chosen, source = self.choice, self.best
        elif self.average is not None:
            chosen, source = Choice(step, "average"), state_of(self.average.module)
        else:
            return Choice(step, "student")
        with torch.no_grad():
            for name, tensor in state_of(self.model).items():
                tensor.copy_(source[name])
        return chosen

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint."""
        found = {f"best/{name}": tensor for name, tensor in self.best.items()}
        if self.average is not None:
            averages = state_of(self.average.module).items()
            found |= {f"average/{name}": tensor for name, tensor in averages}
            found["average updates"] = self.average.updates
        return found

    @property
    def values(self) -> dict[str, Any]:
        """The plain data of a checkpoint."""
        if self.examination is None:
            return {}
        choice = None if self.choice is None else asdict(self.choice)
        return {"evaluations": [asdict(one) for one in self.evaluations], "choice": choice}

    def restore(self, values: dict[str, Any]) -> None:
        """Take the plain data of a checkpoint."""
        self.evaluations = [
            Evaluation(
                one["step"],
                Scores(**one["student"]),
                None if one["average"] is None else Scores(**one["average"]),
            )
            for one in values.get("evaluations", [])
        ]
        choice = values.get("choice")
        self.choice = None if choice is None else Choice(**choice)
