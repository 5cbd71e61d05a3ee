"""The program of every process of a distributed training: ``ensemble_trainer.py FOLDER LOG [NUMBER]``.

The log gets a line for each member that a process begins. With a number, the process that has that member
dies in the middle of it, the first time.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
from sklearn.tree import DecisionTreeClassifier

from ensdistill.cache import cache_targets
from ensdistill.common.optimization import Optimization
from ensdistill.data import Digits, Rows
from ensdistill.models import MLP
from ensdistill.teachers import Ensemble

STEPS = 192


def train(folder: Path | None, progress=None) -> Ensemble:
    """Six members, modules and trees in turn: two processes have three each, four have two or one."""
    split = Digits().split(seed=0)
    quick = Optimization(steps=STEPS, batch_size=32)
    factories = [MLP, MLP, DecisionTreeClassifier()]
    return Ensemble.train(
        factories,
        split.labelled,
        members=6,
        method="bagging",
        optimization=quick,
        way="one_by_one",
        folder=folder,
        progress=progress,
    )


if __name__ == "__main__":
    folder, log = Path(sys.argv[1]), Path(sys.argv[2])
    fatal = sys.argv[3] if len(sys.argv) > 3 else ""
    died = log.with_suffix(".died")

    def watch(status) -> None:
        begun = status.step in (1, 32)
        if begun:
            with log.open("a") as file:
                file.write(f"{status.names[0]}\n")
        if (
            fatal
            and status.names[0].endswith(f"-{fatal}")
            and status.step >= STEPS // 2
            and not died.exists()
        ):
            # Not before the other process has saved a member: finished members are to be kept.
            if not list(folder.glob("members/*/trained.json")):
                return
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    ensemble = train(folder, watch)
    assert (
        train(folder).fingerprint() == ensemble.fingerprint()
    )  # a second group of processes, and nothing left to do
    test = Digits().split(seed=0).test.inputs
    cache = cache_targets(
        ensemble,
        Rows(test, np.arange(len(test)), np.zeros(len(test), np.int64)),
        folder / "cache",
        shard_rows=100,
    )
    np.save(folder / f"answers-{os.environ['RANK']}.npy", ensemble.predict_proba(test))
    np.save(folder / f"cached-{os.environ['RANK']}.npy", cache.gather_records(np.arange(len(test))))
