"""The ways to train one student: a loop written by hand, and the trainer with each source of targets."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.student.models import Case
from ensdistill import Ensemble, EnsembleLogits, Optimization, Rows, StudentTrainer, distillation_loss
from ensdistill.common.random import BatchOrder, derive_seed
from ensdistill.loss.settings import LossSettings
from ensdistill.student.cost import StepCost

SETTINGS = LossSettings(temperature=2.0)
BLOCK = 32  # steps between two looks at the clock


@dataclass(frozen=True)
class Run:
    """One training.

    Parameters
    ----------
    step : float
        Microseconds of a step, without those of the first block, which warms up.
    loss : float
        The mean over all steps, nats.
    parameters : Tensor [P]
        The student's, at the end.
    cost : StepCost or None
    """

    step: float
    loss: float
    parameters: Tensor
    cost: StepCost | None = None


class InMemory:
    """A source of targets that lie in memory, float32 [K, N, C], as the bare loop's do."""

    temperature = max_temperature = versions = None
    needs_samples, compared = False, "none"

    def __init__(self, logits: Tensor, ensemble: Ensemble) -> None:
        self.logits, self.classes = logits, logits.shape[-1]
        self.names, self.combiner = ensemble.names, ensemble.combiner
        self.weights = ensemble.weights

    def for_rows(self, rows: Rows, augment: Any) -> InMemory:
        assert np.array_equal(rows.uids, np.arange(len(rows)))
        return self

    def of(self, uids: np.ndarray, epochs: np.ndarray, samples: Any) -> EnsembleLogits:
        combiner: Any = self.combiner
        logits = self.logits[:, torch.from_numpy(uids)]
        return EnsembleLogits(logits, torch.from_numpy(self.weights), combiner)

    def check(self, *_: Any) -> None: ...

    def fingerprint(self) -> list[Any]:
        return ["in memory"]

    def close(self) -> None: ...


def optimization(case: Case) -> Optimization:
    return Optimization(steps=case.steps, batch_size=case.batch, learning_rate=3e-3)


def bare(case: Case, rows: Rows, logits: Tensor, ensemble: Ensemble) -> Run:
    """The loop that a user would write: the same order, loss, optimiser and schedule, targets in memory."""
    inputs, weights = torch.from_numpy(rows.inputs), torch.from_numpy(ensemble.weights)
    torch.manual_seed(derive_seed("student", 0))
    model = case.student()
    model.train()
    settings = optimization(case)
    optimizer, scheduler = settings.build(model.parameters())
    order = BatchOrder(len(rows), case.batch, derive_seed("student batches", 0))
    losses, times = [], []
    for step in range(case.steps):
        index = torch.from_numpy(order(step))
        target = EnsembleLogits(logits[:, index], weights, ensemble.combiner)
        loss = distillation_loss(model(inputs[index]), target, settings=SETTINGS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
        if (step + 1) % BLOCK == 0:
            times.append(time.perf_counter())
    return Run(_step(times), float(torch.stack(losses).double().mean()), _parameters(model))


def trained(case: Case, rows: Rows, source: Any) -> Run:
    """The same by the trainer."""
    times: list[float] = []
    trainer = StudentTrainer(optimization(case), SETTINGS)
    result = trainer.distill(
        case.student, rows, source, progress=lambda done, total: times.append(time.perf_counter())
    )
    loss = np.average(result.losses, weights=np.diff(result.steps, prepend=0))
    return Run(_step(times), float(loss), _parameters(result.module), result.cost)


def _step(times: list[float]) -> float:
    return 1e6 * (times[-1] - times[0]) / (BLOCK * (len(times) - 1))


def _parameters(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])
