"""Reports of progress: callables that long work calls now and then."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
UnitProgress = Callable[[str, int, int], None]
"""Called with (name of the work, done, total)."""
Advance = Callable[[int], None]
"""Called with the amount done of one part of the work."""


def shifted(progress: Progress, before: int, total: int) -> Advance:
    """The report of a part of the work that starts when ``before`` of ``total`` are done."""
    return lambda done: progress(before + done, total)
