"""Calls of one function, made ahead of their use by worker processes or a thread, in order."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast


def ahead(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    workers: int = 0,
    thread: bool = False,
    prefetch: int = 2,
) -> Iterator[Any]:
    """The results for the items, in order.

    Parameters
    ----------
    function : callable
        Picklable where processes call it.
    items : iterable
        May be endless: it is read no further than ``workers * prefetch`` items ahead.
    workers : int
        Processes; 0 makes each call here, when its result is asked for. So does a daemon, which may have no
        processes of its own.
    thread : bool
        One thread of this process makes the calls, in place of the workers.
    prefetch : int
        Results of each worker that wait to be asked for.

    Examples
    --------
    >>> list(ahead(str, [1, 2, 3], workers=1, thread=True))
    ['1', '2', '3']
    """
    if workers == 0 or (not thread and multiprocessing.current_process().daemon):
        yield from map(function, items)
    elif thread:
        with ThreadPoolExecutor(1, "ensdistill-reader") as executor:
            waiting: deque[Future[Any]] = deque()
            for item in items:
                waiting.append(executor.submit(function, item))
                if len(waiting) > prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    else:
        from torch.utils.data import DataLoader

        served = multiprocessing.get_start_method() == "forkserver"
        yield from DataLoader(
            cast(Any, _Calls(function)),
            sampler=cast(Any, items),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=prefetch,
            collate_fn=_as_it_is,
            worker_init_fn=partial(_live_with, None if served else os.getpid()),
        )


@dataclass(frozen=True)
class _Calls:
    """A function in the form of a data set, whose items are its results."""

    function: Callable[[Any], Any]

    def __getitem__(self, item: Any) -> Any:
        return self.function(item)


def _live_with(parent: int | None, worker: int) -> None:
    """End a worker whose parent died while it was starting; torch looks at the parent from then on.

    ``parent`` is None for a worker of the fork server, which the system calls the worker's parent.
    """
    if parent is None:
        own = multiprocessing.parent_process()
        alive = own is not None and own.is_alive()
    else:
        alive = os.getppid() == parent
    if not alive:
        os._exit(1)


def _as_it_is(value: Any) -> Any:
    return value
