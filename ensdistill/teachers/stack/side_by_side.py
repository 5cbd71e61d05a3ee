"""Trainings at once, each on a Python thread of its own whose operations stay on that thread.

A network that is too small to fill two cores by one operation fills them by two trainings. The results of a
thread do not depend on the number of threads.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ensdistill.teachers.stack.loop import Job

LONGEST_WAIT = 0.5
"""Seconds between two looks for a signal (Ctrl-C)."""


@contextmanager
def single_threaded(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose operations use one thread each. Afterwards they are gone, and the caller's number is as
    before."""
    threads, lock, over = torch.get_num_threads(), threading.Lock(), False

    def settle() -> None:
        # torch keeps the number for each thread, and the last that anybody has set for threads that are yet
        # to come. Ctrl-C while a thread is being started leaves one that the pool doesn't wait for: it must
        # not set anything afterwards.
        with lock:
            if not over:
                torch.set_num_threads(1)

    pool = ThreadPoolExecutor(workers, "ensdistill", settle)
    try:
        yield pool
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        finally:
            with lock:
                over = True
                torch.set_num_threads(threads)


class SideBySide:
    """Some trainings at once; one that fails, a callback that raises and Ctrl-C end them all.

    Attributes
    ----------
    stop : Event
        For the jobs: set as soon as they are to end.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._told: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()

    def by_caller(self, callback: Callable[..., Any]) -> Callable[..., None]:
        """The callback as a job may call it: it is run by the thread that called ``run``, one at a time and
        in order."""
        return lambda *arguments: self._told.put(functools.partial(callback, *arguments))

    def run(self, trainings: Sequence[Callable[[], None]], workers: int) -> None:
        """Do all trainings, ``workers`` at once, in order."""
        with single_threaded(workers) as pool:
            try:
                for training in trainings:
                    pool.submit(training).add_done_callback(
                        lambda done: self._told.put(functools.partial(self._end, done))
                    )
                self._left = len(trainings)
                while self._left:
                    # A signal that arrives just before the wait begins does not end it, so no wait is long.
                    try:
                        told = self._told.get(timeout=LONGEST_WAIT)
                    except queue.Empty:
                        continue
                    told()
            except BaseException:
                self.stop.set()  # before the pool waits for its threads
                raise

    def _end(self, done: Future[None]) -> None:
        done.result()
        self._left -= 1


def hindrance(models: Sequence[nn.Module], job: Job) -> str | None:
    """The reason why models must not run at once, or None; ``job`` is one of them."""
    if job.traits.draws:
        return "it draws from a global generator, which all threads share"
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in models[0].modules()):
        return "it is compiled"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on, for this thread alone"
    seen: dict[int, int] = {}
    for i, model in enumerate(models):
        for part in (*model.modules(), *model.buffers()):
            if seen.setdefault(id(part), i) != i:
                return f"its models share a {type(part).__name__}"
    return None
