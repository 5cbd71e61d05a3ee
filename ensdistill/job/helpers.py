"""Processes that join a running search, where a job has fewer units of work than workers."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ensdistill.job.config import Config
from ensdistill.job.run_folder import RunFolder, Unit


class Helpers:
    """The processes that help searches. A search goes on when a helper is killed.

    Parameters
    ----------
    context : multiprocessing context
    start_worker : callable
        Prepares a process with ``arguments``; returns its run folder.
    arguments : tuple
    most : int
        Processes of a search, the one of its unit included.
    """

    def __init__(
        self, context: Any, start_worker: Callable[..., RunFolder], arguments: tuple[Any, ...], most: int
    ) -> None:
        self.context, self.start_worker, self.arguments, self.most = context, start_worker, arguments, most
        self.started: dict[Unit, list[Any]] = {}

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
            process = self.context.Process(
                target=_help, args=(self.start_worker, self.arguments, unit), daemon=True
            )
            process.start()
            helpers.append(process)
            free -= 1

    def end(self, unit: Unit) -> None:
        """End the helpers of a unit that is finished; they have left its search before."""
        for one in self.started.pop(unit, []):
            one.terminate()


def _help(start_worker: Callable[..., RunFolder], arguments: tuple[Any, ...], unit: Unit) -> None:
    from ensdistill.job.searching import assist

    messages = arguments[1]
    try:
        assist(start_worker(*arguments), unit)
    except Exception:
        with suppress(OSError):
            text = traceback.format_exc(limit=-1)
            messages.put(("warning", f"{unit}: a helper of the search failed, which goes on: {text}"))
