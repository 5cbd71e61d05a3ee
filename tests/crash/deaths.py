"""The ways in which processes of a training are killed.

Each of `DEATHS` is called with the process's rank before the training, and returns arguments for it.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

from ensdistill.cache.draft import Draft


def die_now(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(who: tuple[int, ...], step: int, rank: int):
    return {"progress": lambda done, total: die_now() if rank in who and done == step else None}


def writing(change: str, number: int, rank: int):
    """Process 0 dies in its n-th writing of the checkpoint: before the file is begun, in its middle, or
    before it is renamed."""
    left = number

    def watch(event: str, arguments: tuple) -> None:
        nonlocal left
        if "checkpoint" in str(arguments[:1]) and ".part" in str(arguments[:1]):
            begins = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_WRONLY
            left -= (begins and change in ("begin", "half")) or (event == "os.rename" and change == "rename")
            if left == 0:
                left = -1  # the following call is an event, too
                if change == "half":
                    Path(arguments[0]).unlink(missing_ok=True)
                    descriptor = os.open(f"{arguments[0]}.half", os.O_WRONLY | os.O_CREAT)
                    os.write(descriptor, b"half a file")
                    os.rename(f"{arguments[0]}.half", arguments[0])
                die_now()

    if rank == 0:
        sys.addaudithook(watch)
    return {}


def writing_shards(who: tuple[int, ...], number: int, rank: int):
    """Some processes die when they have begun the n-th file of their shards."""
    left = number

    def watch(event: str, arguments: tuple) -> None:
        nonlocal left
        mine = f"shard-{rank + 1:05d}" in str(arguments[:1])
        if event == "open" and mine and "w" in str(arguments[1]):
            left -= 1
            if left == 0:
                left = -1
                Path(arguments[0]).write_bytes(b"half a file")
                die_now()

    if rank in who:
        sys.addaudithook(watch)
    return {}


def removing(number: int, rank: int):
    """Process 0 dies when it deletes the shards of the checkpoint before."""
    left = number

    def watch(event: str, arguments: tuple) -> None:
        nonlocal left
        if event == "shutil.rmtree" and ".shards-" in str(arguments[0]):
            left -= 1
            if left == 0:
                die_now()

    if rank == 0:
        sys.addaudithook(watch)
    return {}


def filling_up(who: tuple[int, ...], number: int, part: str, rank: int):
    """Some processes die in their n-th writing into the cache: before, in the middle, or after it."""
    left, write = number, Draft.write

    def counted(draft, ids, logits, hashes):
        nonlocal left
        left -= 1
        if left == 0 and part == "before":
            die_now()
        if left == 0 and part == "middle":
            draft._checksums = die_now  # the logits are there, their marks are not
        write(draft, ids, logits, hashes)
        if left == 0:
            die_now()

    if rank in who:
        Draft.write = counted
    return {}


def reading(rank: int):
    """Process 0 dies when it reads the checkpoint."""

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).endswith(".checkpoint"):
            die_now()

    if rank == 0:
        sys.addaudithook(watch)
    return {}


DEATHS = {
    "first": partial(at_step, (0,), 32),
    "begin": partial(writing, "begin", 1),
    "second": partial(at_step, (1,), 96),
    "half": partial(writing, "half", 1),
    "all": partial(at_step, (0, 1, 2, 3), 128),
    "read": reading,
    "rename": partial(writing, "rename", 2),
    "last": partial(at_step, (0, 1, 2, 3), 224),
    "end of the first": partial(at_step, (0,), 270),
    "end of the second": partial(at_step, (1,), 270),
    "one shard": partial(writing_shards, (1,), 1),
    "all shards": partial(writing_shards, (0, 1, 2, 3), 2),
    "old shards": partial(removing, 2),  # the first time is before shards are written
    "end of the divided": partial(at_step, (1,), 100),
    "before a fill": partial(filling_up, (1,), 1, "before"),
    "in a fill": partial(filling_up, (0, 1), 1, "middle"),
    "after a fill": partial(filling_up, (0, 1), 1, "after"),
}
