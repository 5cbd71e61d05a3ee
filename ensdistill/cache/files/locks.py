"""The writers of a cache: one process alone, or several that have divided the shards among themselves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import filelock

from ensdistill.cache.errors import CacheLocked
from ensdistill.common.files import FolderLocked, exclusive

_WRITER = re.compile(r"\.writer-(\d+)-of-(\d+)\.lock")
_PATIENCE = 20.0


class Writer:
    """This process's part: the shards s with s mod world = rank."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        self.folder, self.rank, self.world = folder, rank, world

    def alone(self) -> AbstractContextManager[Any]:
        """A context in which no other writer changes the shared files: the plan and the manifest."""
        return nullcontext() if self.world == 1 else _alone(self.folder, _PATIENCE)

    def others_alive(self) -> list[str]:
        """The other writers that are at work, by name."""
        own = _name(self.rank, self.world)
        return [name for name in _writers(self.folder) if name != own and _held(self.folder / name)]


@contextmanager
def writing(folder: Path, rank: int, world: int) -> Iterator[Writer]:
    """Be a writer of this cache.

    Raises
    ------
    CacheLocked
        Another process writes it alone, or has the same rank, or the writers have divided the shards among
        another number.
    """
    with _alone(folder, 0.0 if world == 1 else _PATIENCE) as free:
        for name in _writers(folder):
            same_world = world != 1 and name.endswith(f"-of-{world}.lock")
            if (not same_world or name == _name(rank, world)) and _held(folder / name):
                other = name.removeprefix(".writer-").removesuffix(".lock").replace("-", " ")
                raise CacheLocked(
                    f"{folder} is being written by another process (writer {other}); wait for it to end"
                )
        if world == 1:
            yield Writer(folder, rank, world)
            return
        lock = filelock.FileLock(folder / _name(rank, world), timeout=0)
        lock.acquire()
        free()
        try:
            yield Writer(folder, rank, world)
        finally:
            lock.release()


@contextmanager
def alone(folder: Path) -> Iterator[Writer]:
    """Hold the folder's lock for a moment; another process that holds it is waited for.

    Raises
    ------
    CacheLocked
        It still holds the lock after 20 seconds.
    """
    with _alone(folder, _PATIENCE):
        yield Writer(folder, 0, 1)


@contextmanager
def _alone(folder: Path, patience: float) -> Iterator[Callable[[], None]]:
    """Hold the folder's lock; yields a function that gives it back early."""
    deadline = time.monotonic() + patience
    while True:
        lock = exclusive(folder)
        try:
            lock.__enter__()
            break
        except FolderLocked as error:
            if time.monotonic() >= deadline:
                raise CacheLocked(str(error)) from error
            time.sleep(0.02)
    given_back = False

    def free() -> None:
        nonlocal given_back
        if not given_back:
            given_back = True
            lock.__exit__(None, None, None)

    try:
        yield free
    finally:
        free()


def _name(rank: int, world: int) -> str:
    return f".writer-{rank}-of-{world}.lock"


def _writers(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if _WRITER.fullmatch(file.name)]


def _held(file: Path) -> bool:
    lock = filelock.FileLock(file, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        return True
    lock.release()
    return False
