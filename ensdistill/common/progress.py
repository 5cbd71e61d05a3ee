"""Reports of progress: callables that long work calls now and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class UnitProgress(Protocol):
    """Called with (name of the work, done, total, figures); the text of the figures, such as a loss, is made
    only where it is shown."""

    def __call__(self, name: str, done: int, total: int, figures: object = "", /) -> None: ...


Advance = Callable[[int], None]
"""Called with the amount done of one part of the work."""


def shifted(progress: Progress, before: int, total: int) -> Advance:
    """The report of a part of the work that starts when ``before`` of ``total`` are done."""
    return lambda done: progress(before + done, total)
