"""Writes a small cache, or trains from one, in a child that may be killed.

``python cache_writer.py write FOLDER [RANK WORLD]``     slowly enough to be killed on the way ``python
cache_writer.py steps FOLDER JOB``              dies before every single change of the file system in turn,
see `main`
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import ensdistill.cache.encoding  # noqa: F401  before the forks
from ensdistill.cache import CacheIncomplete, TargetCache, add_member, cache_targets, convert
from ensdistill.common.files import write_arrays
from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.models import MLP

N = 300
LOGITS = np.random.default_rng(0).normal(0, 4, (2, N, 10)).astype(np.float32)
NUMBERS = np.arange(N)
ROWS = Rows(NUMBERS[:, None].astype(np.float32), NUMBERS, NUMBERS % 10)
UNLABELLED = Rows(ROWS.inputs, ROWS.uids, np.full(len(NUMBERS), -100))
OWN = Rows(ROWS.inputs, 7 * NUMBERS[::-1] - 50, ROWS.labels)  # with uids of a data set's own
OPTIONS = {"shard_rows": 100, "batch_size": 32}


PAUSE = 0.003  # seconds for a batch, in a process that is to be killed


def slowly(folder: Path) -> None:
    write(folder, pause=PAUSE)


def ensemble(pause: float = 0.0, version: int = 1) -> SimpleNamespace:
    def predict(inputs: np.ndarray) -> np.ndarray:
        time.sleep(pause)
        return np.float32(version) * LOGITS[:, inputs[:, 0].astype(int)]

    return SimpleNamespace(
        names=("a", "b"),
        classes=tuple("0123456789"),
        weights=np.array([0.6, 0.4]),
        combiner="prob",
        predict_logits=predict,
        fingerprint=lambda: {"members": ["a", "b"], "version": version},
    )


def write(
    folder: str | Path,
    pause: float = 0.0,
    version: int = 1,
    rank: int = 0,
    world: int = 1,
    rows: Rows = ROWS,
    **options: object,
) -> None:
    cache_targets(
        ensemble(pause, version),
        rows,
        folder,
        rank=rank,
        world=world,
        overwrite=world == 1,
        **{**OPTIONS, **options},
    )


def with_uids(folder: Path) -> None:
    write(folder, rows=OWN)


def moments(folder: Path, pause: float = 0.0) -> None:
    """A cache of regression, whose units come from the members' first predictions."""

    def predict(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(pause)
        values = LOGITS[:, inputs[:, 0].astype(int), :3].astype(np.float64)
        return 1e3 + values, np.square(values)

    about = {
        "names": ("a", "b"),
        "classes": ("x", "y", "z"),
        "weights": np.array([0.6, 0.4]),
        "combiner": "prob",
    }
    teachers = SimpleNamespace(
        task="regression", predict_moments=predict, fingerprint=lambda: {"members": ["a", "b"]}, **about
    )
    cache_targets(teachers, UNLABELLED, folder, overwrite=True, **OPTIONS)


def labels(folder: Path) -> None:
    teachers = ensemble()
    teachers.task = "multilabel"
    cache_targets(teachers, UNLABELLED, folder, overwrite=True, **OPTIONS)


def converted(folder: Path) -> None:
    write(source := folder.with_name("source"))
    convert(source, folder, codec="topk-3", mixture_at=1.0)


def with_member(folder: Path) -> None:
    write(source := folder.with_name("source"))
    add_member(source, folder, name="c", logits=LOGITS[0] * 2, uids=np.arange(len(LOGITS[0])), weight=0.5)


def trained(folder: Path) -> None:
    write(source := folder.with_name("source"))
    train(folder, TargetCache.open(source), steps=64, batch=32)


def as_you_go(folder: Path) -> None:
    """An epoch has 75 steps, so that the cache is finished in the third block of 32."""
    from ensdistill.student import CacheAsYouGo

    train(folder, CacheAsYouGo(ensemble(), folder, **OPTIONS), steps=128, batch=4)


def train(folder: Path, source: Any, steps: int, batch: int) -> None:
    from ensdistill.student.trainer import (
        StudentTrainer,
    )  # takes seconds, which the other jobs' processes need not wait for

    trainer, checkpoint = (
        StudentTrainer(Optimization(steps=steps, batch_size=batch)),
        folder / "checkpoint.safetensors",
    )
    student = trainer.distill(
        lambda: MLP(1, [16], 10), ROWS, source, checkpoint=checkpoint, checkpoint_every=32
    )
    weights = {name: value.numpy() for name, value in student.module.state_dict().items()}
    write_arrays(folder / STUDENT, {**weights, "losses": student.losses})
    for leftover in (checkpoint, *folder.glob("*.part")):
        leftover.unlink(missing_ok=True)


STUDENT = "student.safetensors"
JOBS: dict[str, Callable[[Path], None]] = {
    "write": write,
    "uids": with_uids,
    "labels": labels,
    "moments": moments,
    "convert": converted,
    "add-member": with_member,
    "train": trained,
    "as-you-go": as_you_go,
}


def is_accepted(folder: Path, expected: dict[str, bytes]) -> bool:
    """Whether a reader takes the folder for a finished cache; then it must be one, to the byte. The source is
    unchanged."""
    source = folder.with_name("source")
    if source.exists():
        TargetCache.open(source, check="full")
    if STUDENT in expected:
        finished = (folder / STUDENT).exists()
    elif not folder.exists():
        return False
    else:
        try:
            TargetCache.open(folder, check="full")
            finished = True
        except CacheIncomplete:
            finished = False
    if finished:
        assert {name: data for name, data in contents(folder).items() if name in expected} == expected
    return finished


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes() for file in sorted(folder.iterdir()) if not file.name.startswith(".")
    }


def dies_at(step: int, work: Callable[[], None]) -> int:
    """Run ``work`` in a child that exits, with nothing tidied up, just before its n-th change of the file
    system."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str, arguments: tuple) -> None:
            nonlocal left
            writes = (
                event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if writes or event in ("os.rename", "os.remove", "os.mkdir"):
                left -= 1
                if left == 0:
                    os._exit(9)

        try:
            sys.addaudithook(count)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def every_step(folder: Path, job: Callable[[Path], None]) -> dict[str, int]:
    """Die before each change in turn; after each death a reader gets all or nothing, and the next run ends
    with the same bytes."""
    # The bytes that a process wrote outlive it without fsync, which guards against the death of the machine:
    # here it only costs time.
    os.fsync = lambda descriptor: None
    job(folder / "undisturbed" / "cache")
    expected = contents(folder / "undisturbed" / "cache")
    finished, step, status = 0, 0, 9
    while status == 9:
        step += 1
        place = folder / str(step) / "cache"
        if job is not write:
            write(place.with_name("source"))
        status = dies_at(step, lambda place=place: job(place))
        finished += is_accepted(place, expected)
        assert dies_at(step // 2 + 1, lambda place=place: job(place)) in (
            0,
            9,
        )  # resumed, and killed once more on the way
        job(place)
        assert contents(place) == expected
    assert status == 0
    return {"steps": step, "finished": finished}


def every_overwriting_step(folder: Path) -> dict[str, int]:
    """Die while another cache is being overwritten: a reader gets the old one, the new one, or nothing."""
    os.fsync = lambda descriptor: None
    write(folder / "old")
    write(folder / "new", version=2)
    manifests = [(folder / name / "manifest.json").read_bytes() for name in ("old", "new")]
    step, status = 0, 9
    while status == 9:
        step += 1
        place = folder / str(step)
        write(place)
        status = dies_at(step, lambda place=place: write(place, version=2))
        try:
            TargetCache.open(place, check="full")
        except CacheIncomplete:
            pass
        else:
            assert (place / "manifest.json").read_bytes() in manifests
        write(place, version=2)
        assert contents(place) == contents(folder / "new")
    assert status == 0
    return {"steps": step}


def main() -> None:
    command, folder, *rest = sys.argv[1:]
    if rest in (["train"], ["as-you-go"]):
        import ensdistill.student.trainer  # noqa: F401  before the forks
    if command == "steps":
        result = (
            every_overwriting_step(Path(folder))
            if rest == ["overwrite"]
            else every_step(Path(folder), JOBS[rest[0]])
        )
        print(json.dumps(result))
        return
    print("ready", flush=True)
    rank, world = map(int, rest or (0, 1))
    write(folder, pause=PAUSE, rank=rank, world=world)


if __name__ == "__main__":
    main()
