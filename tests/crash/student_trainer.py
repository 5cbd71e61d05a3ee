"""The program of every process of a student's training.

``student_trainer.py FOLDER compare``          trains the students of `JOBS`, and calls the trainer in ways
that it must refuse
``student_trainer.py FOLDER train JOB ...``    trains some of them, from their checkpoints where there are any
``student_trainer.py FOLDER die [JOB:DEATH ...]``  trains these students one after the other; each start by
torchrun dies in the next of these jobs, in one of the ways of `DEATHS`
"""

import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from deaths import DEATHS
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from ensdistill.cache import TargetCache, cache_targets
from ensdistill.cache.errors import CacheMismatch
from ensdistill.common.optimization import Optimization
from ensdistill.common.optimizers import StudentOptimization
from ensdistill.common.processes import ProcessFailed
from ensdistill.data import UNLABELLED, Digits, Rows
from ensdistill.data.augmentation import ShiftImages
from ensdistill.models import MLP
from ensdistill.student import CacheAsYouGo, Callback, OnlineTeachers
from ensdistill.student.trainer import StudentTrainer
from ensdistill.teachers import Ensemble

EVERY = 32  # steps between two checkpoints


class Norms(nn.Module):
    """BatchNorm of both kinds, one that averages over all batches, one without parameters. No bias before
    them: it has no gradient but the rounding errors, which AdamW scales to whole steps.

    With ``remember`` a buffer that is put in anew in each step, and not among those of ``state_dict()``,
    changes the outputs.
    """

    def __init__(self, remember=False):
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Flatten()
        )
        self.hidden = nn.Sequential(
            nn.Linear(144, 16, bias=False), nn.BatchNorm1d(16, affine=False), nn.ReLU(), nn.Linear(16, 10)
        )
        self.remember = remember
        if remember:
            self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        x = self.hidden(self.image(x))
        if not self.remember:
            return x
        if self.training:
            self.seen = 0.9 * self.seen + 0.1 * x.detach().std()
        return x * (1 + self.seen)


def dropping() -> nn.Module:
    return nn.Sequential(Norms(remember=True), nn.Dropout(0.2))


def equal_layers() -> nn.Module:
    """Layers of one shape: a tensor that is taken for another one is no error, but a wrong number."""
    return nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(4)), nn.Linear(64, 10))


class Idle(nn.Module):
    """Has a parameter that no step uses."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x):
        return self.used(x.flatten(1))


def rows() -> Rows:
    """Digits, of which every fifth of the first half has a label: the processes' shares have unlike numbers
    of them."""
    data = Digits().split(0).labelled
    labels = np.where((np.arange(200) < 100) & (np.arange(200) % 5 == 0), data.labels, UNLABELLED)
    return Rows(data.inputs, np.arange(200), labels)


def cache(folder: Path) -> TargetCache:
    """The cache in the folder; the test makes it, before the processes start."""
    if not (folder / "cache").exists():
        cache_targets(ensemble(), rows(), folder / "cache")
    return TargetCache.open(folder / "cache")


def ensemble() -> Ensemble:
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    teacher[1].weight *= 8
    return Ensemble.from_members([teacher])


def labelled() -> Rows:
    return Digits().split(0).labelled


def few(steps: int = 60, **settings) -> StudentOptimization:
    return StudentOptimization(**{"steps": steps, "batch_size": 24, "learning_rate": 0.01} | settings)


class Divided(Callback):
    """Checks that each process has its share alone of parameters, gradients and the optimiser's state."""

    def on_step(self, state):
        if state.step % 8:
            return
        parameters = list(state.module.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        averages = [
            value
            for of_one in state._optimizer.state.values()
            for value in of_one.values()
            if torch.is_tensor(value) and value.ndim
        ]
        for tensors, least in ((parameters, 3), (gradients, 3), (averages, 6)):
            assert len(tensors) >= least
            assert all(isinstance(t, DTensor) for t in tensors)
        count = distributed.get_world_size()
        assert (
            sum(p.to_local().numel() for p in parameters) <= sum(p.numel() for p in parameters) / count * 1.2
        )


def distil(folder: Path, factory, steps=60, alpha=1.0, sync=False, ema=None, settings=None, way=None, **more):
    way = dict(way or {})
    more |= {"folder": more.pop("kept_in", None)}
    if way.get("shard") and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        way["callbacks"] = [Divided()]
    trainer = StudentTrainer(
        few(steps, **(settings or {})), temperature=2.0, alpha=alpha, sync_batch_norm=sync, ema=ema, **way
    )
    return trainer.distill(factory, rows(), cache(folder), watch=labelled().inputs[:5], seed=4, **more)


def automatic(folder: Path, **more):
    """Its learning rate is found, though it is too short for that."""
    with patch("ensdistill.student.automatic.FROM", 1):
        trained = distil(folder, MLP, settings={"learning_rate": "auto"}, way={"shard": True}, **more)
    assert len(trained.automatic.tried) >= 3
    return trained


def online(folder: Path) -> OnlineTeachers:
    return OnlineTeachers(ensemble(), augment=ShiftImages(), seed=2)


def filling(folder: Path) -> CacheAsYouGo:
    """Filled in four epochs of 8 1/3 steps by the two processes, which see unlike rows of each."""
    folder = folder / f"filled by {os.environ.get('WORLD_SIZE', '1')}"
    return CacheAsYouGo(ensemble(), folder, views=4, augment=ShiftImages(), shard_rows=64)


def from_teachers(folder: Path, source, **more):
    trainer = StudentTrainer(few(), temperature=2.0)
    return trainer.distill(MLP, rows(), source(folder), watch=labelled().inputs[:5], **more)


def direct(folder: Path, **more):
    trainer = StudentTrainer(few(label_smoothing=0.1))
    return trainer.direct(
        MLP, labelled(), classes=10, augment=ShiftImages(), watch=labelled().inputs[:5], **more
    )


JOBS = {
    "plain": partial(distil, factory=MLP),
    "online teachers": partial(from_teachers, source=online),
    "a cache as you go": partial(from_teachers, source=filling),
    "few labels": partial(distil, factory=MLP, alpha=0.3),
    "few labels, in parts": partial(
        distil, factory=MLP, alpha=0.3, settings={"accumulate": 3, "clip_norm": 0.05}
    ),
    "direct, augmented": direct,
    "a parameter without use": partial(distil, factory=Idle),
    "norms of the whole batch": partial(distil, factory=Norms, sync=True),
    "norms of shares": partial(distil, factory=Norms),
    "validated": partial(distil, factory=MLP, ema=0.9, validation=0.2),
    "divided": partial(
        distil, factory=MLP, alpha=0.3, settings={"accumulate": 3, "clip_norm": 0.05}, way={"shard": True}
    ),
    "divided and validated": partial(
        distil,
        factory=Norms,
        sync=True,
        ema=0.9,
        validation=0.2,
        way={"shard": ["image.[01]", "hidden"], "recompute_modules": "hidden"},
    ),
    "divided, a rate that is found": automatic,
    "divided, in a folder": partial(
        distil, factory=equal_layers, steps=40, validation=0.2, way={"shard": True}
    ),
    "divided and compiled": partial(
        distil, factory=MLP, steps=16, way={"shard": "1", "compile": "aot_eager", "mixed_precision": "bf16"}
    ),
    "to be killed": partial(distil, factory=dropping, steps=270, alpha=0.5, ema=0.9, validation=0.2),
    "to be killed, divided": partial(
        distil,
        factory=dropping,
        steps=100,
        alpha=0.5,
        ema=0.9,
        validation=0.2,
        way={"shard": "0.hidden"},
    ),
}
GO_ON = ["validated", "divided and validated"]  # with checkpoints, of which any number of processes goes on


def arrays(trained) -> dict[str, np.ndarray]:
    tensors = {**dict(trained.module.named_parameters()), **dict(trained.module.named_buffers())}
    return {name: value.detach().numpy() for name, value in tensors.items()} | {
        "evaluated at": np.array([e.step for e in trained.evaluations]),
        "evaluations": np.array([[e.student.kl, e.average.kl] for e in trained.evaluations if e.average]),
        "chosen": np.array([trained.choice.step, trained.choice.weights == "average"]),
        "curve losses": trained.losses,
        "curve watched": trained.watched,
    }


def run(name: str, folder: Path, **more):
    kept = {"checkpoint": folder / f"{name}.checkpoint", "checkpoint_every": EVERY} if name in GO_ON else {}
    if name == "divided, in a folder":
        kept = {"kept_in": folder / name}
    return JOBS[name](folder, **{**kept, **more})


def save(trained, file: Path) -> None:
    np.savez(file, **arrays(trained))


def compare(folder: Path, rank: int) -> None:
    # Where there is no group the trainer makes one for the time being.
    before = dict(os.environ)
    trained = distil(folder, MLP)
    changed = {name for name in {*os.environ, *before} if os.environ.get(name) != before.get(name)}
    assert changed <= {"TORCHINDUCTOR_CACHE_DIR"}  # torch's own, once DTensor is imported
    assert not distributed.is_initialized()
    stop_all(rank)
    # A student is a module like any other: it learns on alone, and an Accelerator takes it.
    if rank == 0:
        trained.module(torch.zeros(2, 1, 8, 8)).sum().backward()
    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    assert (mine.num_processes, mine.process_index, mine.mixed_precision) == (
        int(os.environ["WORLD_SIZE"]),
        rank,
        "bf16",
    )
    assert isinstance(mine.prepare(trained.module), nn.parallel.DistributedDataParallel)
    with mine.accumulate(nn.Linear(2, 2)):
        assert not mine.sync_gradients
        train(folder, rank, *JOBS)
        assert (mine.mixed_precision, mine.gradient_accumulation_steps, mine.sync_gradients) == (
            "bf16",
            3,
            False,
        )
    assert distributed.is_initialized()  # the group that the trainer finds is left as it is
    refuse(folder, rank)
    distributed.destroy_process_group()


def train(folder: Path, rank: int, *names: str) -> None:
    for name in names:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            save(run(name, folder), folder / f"{name}-{rank}.npz")
        (folder / f"{name}-{rank}.txt").write_text("\n".join(str(w.message) for w in said))


def stop_all(rank: int) -> None:
    """A step fails in one process, which lives on: the other one does not wait for it."""

    class Failing(StudentTrainer):
        def training_step(self, model, batch, loss):
            if os.environ["RANK"] == "1" and batch.step == 3:
                raise KeyError("a step failed")
            return super().training_step(model, batch, loss)

    began = time.perf_counter()
    with np.testing.assert_raises(KeyError if rank == 1 else RuntimeError):
        Failing(few()).direct(MLP, labelled(), classes=10)
    assert time.perf_counter() - began < 60


def die(folder: Path, rank: int, *deaths: str) -> None:
    start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    (folder / f"start-{start}-{rank}").touch()
    pairs = [death.split(":") for death in deaths]
    for job in dict.fromkeys(job for job, _ in pairs):
        fatal = DEATHS[pairs[start][1]](rank) if start < len(pairs) and pairs[start][0] == job else {}
        kept = {"checkpoint": folder / f"{job}.checkpoint", "checkpoint_every": EVERY}
        save(JOBS[job](folder, **kept, **fatal), folder / f"{job}-{rank}.npz")


def refuse(folder: Path, rank: int) -> None:
    trainer = StudentTrainer(few())
    everything = labelled()
    with np.testing.assert_raises_regex(
        ValueError,
        r"^rows: the 2 processes were called with different rows, models or settings:\n  rows[\s\S]* differ",
    ):
        trainer.direct(MLP, everything.take(np.arange(rank, 200, 2)), classes=10)
    # Other rows than those of the cache are refused by one process alone, before it meets the others.
    changed = rows()
    changed.inputs[5] += rank
    with np.testing.assert_raises_regex(
        ProcessFailed if rank == 0 else CacheMismatch,
        "^process 1 of 2 failed: CacheMismatch: " if rank == 0 else "",
    ):
        trainer.distill(MLP, changed, cache(folder))

    # Two disks: each process would find its own shard alone.
    here = os.getcwd()
    (folder / f"disk-{rank}").mkdir()
    os.chdir(folder / f"disk-{rank}")
    with np.testing.assert_raises_regex(
        ValueError if rank == 1 else ProcessFailed, r"checkpoint: process 1 does not see .*whole path$"
    ):
        StudentTrainer(few(), shard=True).direct(
            MLP, everything, classes=10, checkpoint="own", checkpoint_every=EVERY
        )
    os.chdir(here)

    # The same class, of which one machine has an older version.
    (folder / f"code-{rank}").mkdir()
    (folder / f"code-{rank}" / "versioned.py").write_text(
        "from torch import nn\nclass Versioned(nn.Linear):\n    def forward(self, x):\n"
        f"        return super().forward(x.flatten(1)) * {rank + 1}\n"
    )
    sys.path.insert(0, str(folder / f"code-{rank}"))
    from versioned import Versioned

    with np.testing.assert_raises_regex(ValueError, r"^rows: the 2 .*:\n  student.code differs\n"):
        trainer.direct(partial(Versioned, 64, 10), everything, classes=10)
    with np.testing.assert_raises_regex(
        ValueError, r"^rows: the 2 .*:\n  shard: process 0 has None, process 1 \[\]"
    ):
        StudentTrainer(few(), shard=rank == 1).direct(MLP, everything, classes=10)
    with np.testing.assert_raises_regex(
        ValueError if rank == 1 else ProcessFailed,
        "^model: " if rank == 1 else "^process 1 of 2 failed: ValueError: model: ",
    ):
        trainer.direct(partial(MLP, 64, outputs=10 + rank), everything, classes=10)
    with np.testing.assert_raises_regex(ValueError, "^rows: the 2 processes were called with"):
        trainer.direct(MLP, everything, classes=10, checkpoint=folder / "c" if rank else None)
    with np.testing.assert_raises_regex(
        ValueError, r"^optimization.batch_size: expected a multiple of the 2 processes; got 3"
    ):
        StudentTrainer(Optimization(steps=2, batch_size=3)).direct(MLP, everything, classes=10)
    with np.testing.assert_raises_regex(
        ValueError,
        r"^optimization.accumulate: expected a divisor of the 12 rows of each of the 2 processes; got 5",
    ):
        StudentTrainer(few(accumulate=5)).direct(MLP, everything, classes=10)

    class Own(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x)

    with np.testing.assert_raises_regex(ValueError, r"^sync_batch_norm: 1 \(Own\) has a forward of its own"):
        StudentTrainer(few(), sync_batch_norm=True).direct(
            lambda: nn.Sequential(nn.Flatten(), Own(64), nn.Linear(64, 10)), everything, classes=10
        )

    # The loss of one process is NaN: all stop, at the same step.
    class Broken(nn.Linear):
        steps = 0

        def forward(self, x):
            self.steps += self.training
            broken = os.environ["RANK"] == "1" and self.steps == 32
            return super().forward(x.flatten(1)) * (float("nan") if broken else 1.0)

    with np.testing.assert_raises_regex(FloatingPointError, "^student: the loss is nan at step 32 of 60"):
        trainer.direct(
            lambda: Broken(64, 10), everything, classes=10, checkpoint=folder / "nan", checkpoint_every=EVERY
        )
    assert not (folder / "nan").exists()


def main() -> None:
    torch.set_num_threads(1)
    folder, what, *more = sys.argv[1:]
    {"compare": compare, "train": train, "die": die}[what](Path(folder), int(os.environ["RANK"]), *more)


if __name__ == "__main__":
    # Under its own name, as the tests import it: a checkpoint has the names of its classes' modules.
    import student_trainer

    student_trainer.main()
