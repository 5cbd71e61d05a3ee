"""Ways to train K networks with the same optimiser, batch size and epochs: this package's, a plain loop's,
Ensemble-Pytorch's."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.teachers.data import Task
from ensdistill import Ensemble, Optimization
from ensdistill.data import Rows

LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.01


@dataclass(frozen=True)
class Case:
    """K networks to train, of one architecture on a task."""

    task: Task
    factory: Callable[[], nn.Module]
    model: str
    members: int
    epochs: int
    batch: int
    device: str = "cpu"

    @property
    def steps(self) -> int:
        return self.epochs * (len(self.task.inputs) // self.batch)


Contender = Callable[[Case, int], np.ndarray]
"""From the case and a seed to the mean of the trained members' test probabilities [N, C]."""


def ours(way: str) -> Contender:
    def train(case: Case, seed: int) -> np.ndarray:
        constant = Optimization(
            case.steps, case.batch, LEARNING_RATE, WEIGHT_DECAY, schedule="constant", warmup=0.0
        )
        rows = Rows(case.task.inputs, np.arange(len(case.task.inputs)), case.task.labels)
        ensemble = Ensemble.train(
            case.factory,
            rows,
            members=case.members,
            seed=seed,
            optimization=constant,
            way=way,
            device=case.device,  # type: ignore[arg-type]
        )
        return ensemble.predict_proba(case.task.test_inputs)

    return train


def plain(compiled: bool) -> Contender:
    """The code that users write without a library: a loop over members, epochs and shuffled slices, fused
    AdamW."""

    def train(case: Case, seed: int) -> np.ndarray:
        x, y = (torch.from_numpy(v).to(case.device) for v in (case.task.inputs, case.task.labels))
        total = torch.zeros(len(case.task.test_inputs), case.task.classes)
        torch.manual_seed(seed)
        for _ in range(case.members):
            module = case.factory().to(case.device)
            step = _step(module)
            step = torch.compile(step) if compiled else step
            optimizer = torch.optim.AdamW(
                module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
            )
            for _ in range(case.epochs):
                order = torch.randperm(len(x), device=x.device)
                for start in range(0, len(x) - case.batch + 1, case.batch):
                    index = order[start : start + case.batch]
                    optimizer.zero_grad()
                    step(x[index], y[index]).backward()
                    optimizer.step()
            module.eval()
            with torch.no_grad():
                parts = torch.from_numpy(case.task.test_inputs).split(1000)
                total += torch.cat([module(p.to(case.device)).softmax(1).cpu() for p in parts])
        return (total / case.members).double().numpy()

    return train


def _step(module: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda x, y: F.cross_entropy(module(x), y)


def torchensemble(workers: int | None) -> Contender:
    """Ensemble-Pytorch's soft voting."""

    def train(case: Case, seed: int) -> np.ndarray:
        from torch.utils.data import DataLoader, TensorDataset
        from torchensemble import VotingClassifier

        class Fresh(nn.Module):  # it makes new members of a class only; of a module they would all be copies
            def __init__(self) -> None:
                super().__init__()
                self.module = case.factory()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.module(x)

        torch.manual_seed(seed)
        model = VotingClassifier(
            estimator=Fresh, n_estimators=case.members, cuda=case.device != "cpu", n_jobs=workers
        )
        model.set_optimizer("AdamW", lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        data = TensorDataset(torch.from_numpy(case.task.inputs), torch.from_numpy(case.task.labels))
        loader = DataLoader(data, batch_size=case.batch, shuffle=True, drop_last=True)
        with _silent():  # it prints a line for each member and epoch, in its worker processes too
            model.fit(loader, epochs=case.epochs, log_interval=10**9, save_model=False)
        model.eval()
        with torch.no_grad():
            return (
                torch.cat([model(p).cpu() for p in torch.from_numpy(case.task.test_inputs).split(1000)])
                .double()
                .numpy()
            )

    return train


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches the standard output, neither from this process nor from those that it starts
    meanwhile."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            os.dup2(nothing.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


CONTENDERS: dict[str, Contender] = {
    "ensdistill": ours("measured"),
    "ensdistill, stacked": ours("stacked"),
    "ensdistill, one by one": ours("one_by_one"),
    "ensdistill, side by side": ours("side_by_side"),
    "plain loop": plain(compiled=False),
    "plain loop, torch.compile": plain(compiled=True),
    "torchensemble": torchensemble(None),
    "torchensemble, a process per core": torchensemble(os.cpu_count()),
}
