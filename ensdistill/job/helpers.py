"""Processes that join a running search, where a job has fewer units of work than workers."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from ensdistill.job.config import Config
    from ensdistill.job.run_folder import RunFolder
    from ensdistill.job.unit import Unit

StartWorker = Callable[[Any], "RunFolder"]


class Helpers:
    """The processes that help searches. A search goes on when a helper is killed.

    Each helper has a pipe of its own. A queue that processes share has one lock, which a helper that is
    killed inside ``put`` never releases: the others would wait for it for ever.

    Parameters
    ----------
    context : multiprocessing context
    start_worker : callable
        Prepares a process, whose messages it gives to its argument's ``put``; returns the run folder.
        Another process imports it.
    most : int
        Processes of a search, the one of its unit included.
    """

    def __init__(self, context: Any, start_worker: StartWorker, most: int) -> None:
        self.context, self.start_worker, self.most = context, start_worker, most
        self.started: dict[Unit, list[Any]] = {}
        self._pipes: list[connection.Connection] = []

    def help(self, running: Sequence[Unit], free: int, config: Config) -> None:
        """Start helpers of the searches among the running units, as many as there are ``free`` workers.

        A search by a number of trials has none, because several processes would draw other trials.
        """
        searches = [unit for unit in running if unit.stage == "search" and config.trials is None]
        free -= sum(one.is_alive() for helpers in self.started.values() for one in helpers)
        while free > 0 and searches:
            unit = min(searches, key=lambda one: len(self.started.get(one, [])))
            helpers = self.started.setdefault(unit, [])
            if len(helpers) >= self.most - 1:  # each is started once: one that was killed does not come again
                return
            ours, theirs = self.context.Pipe(duplex=False)
            process = self.context.Process(target=_help, args=(self.start_worker, theirs, unit), daemon=True)
            process.start()
            theirs.close()  # the helper's is then the only open end, so its death ends the pipe
            helpers.append(process)
            self._pipes.append(ours)
            free -= 1

    def messages(self) -> Iterator[Any]:
        """The messages that helpers have sent so far."""
        while ready := connection.wait(self._pipes, 0):
            for pipe in cast("list[connection.Connection]", ready):
                try:
                    message = pipe.recv()
                except (EOFError, OSError):  # the helper has ended, or was killed amid a message
                    self._pipes.remove(pipe)
                    pipe.close()
                else:
                    yield message

    def end(self, unit: Unit) -> None:
        """End the helpers of a unit that is finished; they have left its search before."""
        for one in self.started.pop(unit, []):
            one.terminate()


class _Messages:
    """A helper's end of its pipe, on which several of its threads may put messages."""

    def __init__(self, pipe: connection.Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def put(self, message: Any) -> None:
        with self._lock:
            self._pipe.send(message)


def _help(start_worker: StartWorker, pipe: connection.Connection, unit: Unit) -> None:
    messages = _Messages(pipe)
    try:
        run = start_worker(messages)
        from ensdistill.job.searching import assist

        assist(run, unit)
    except Exception:
        with suppress(OSError):
            text = traceback.format_exc(limit=-1)
            messages.put(("warning", f"{unit}: a helper of the search failed, which goes on: {text}"))
