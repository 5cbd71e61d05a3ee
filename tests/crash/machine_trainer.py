"""One process of a training on two machines, whose rows are divided between them.

Arguments: the cache's URL, this machine's folder for its copy, the folder of results, and the step at which
the training is to fail (0: never). Each process writes the uids of its batches and the student's parameters.
"""

import os
import sys
from functools import partial
from pathlib import Path

import numpy as np

from ensdistill import Optimization, Rows, StudentTrainer, TargetCache
from ensdistill.models import MLP
from ensdistill.student import Callback

N, SIZE = 6000, 24
ROWS = Rows(np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32), np.arange(N), np.arange(N) % 5)
STUDENT = partial(MLP, 8, [16], 5)


class Fail(Callback):
    def __init__(self, step):
        self.at = step

    def on_step(self, state):
        if state.step == self.at:
            raise InterruptedError


class Noted(StudentTrainer):
    """Keeps the uids of its batches."""

    def training_step(self, model, batch, loss):
        np.save(NOTES / f"{batch.step:04d}", batch.uids)
        return super().training_step(model, batch, loss)

    def fingerprint(self):
        return []


def train(cache, folder, fail=0, kind=StudentTrainer):
    """The student of N / SIZE steps, an epoch."""
    trainer = kind(
        Optimization(steps=N // SIZE, batch_size=SIZE, learning_rate=0.01),
        alpha=0.9,
        divide_rows=True,
        callbacks=[Fail(fail)] if fail else [],
    )
    checkpoint = {"checkpoint": folder / "checkpoint", "checkpoint_every": 64}
    return trainer.distill(STUDENT, ROWS, cache, seed=3, **checkpoint)


if __name__ == "__main__":
    url, local, folder, fail = sys.argv[1:]
    rank = os.environ["RANK"]
    NOTES = Path(folder) / f"notes-{rank}"
    NOTES.mkdir(exist_ok=True)
    opened = TargetCache.open(url, local=local, fetch="as_read")
    trained = train(opened, Path(folder), int(fail), Noted)
    values = {name: value.numpy() for name, value in trained.module.state_dict().items()}
    np.savez(Path(folder) / f"student-{rank}.npz", **values)
