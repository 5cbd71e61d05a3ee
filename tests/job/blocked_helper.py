"""Two helper processes, of which the first is killed inside ``put``; they import little, so they start soon."""

from __future__ import annotations

import os
import time
from collections import namedtuple
from pathlib import Path

Search = namedtuple("Search", "stage")
MUCH = 2**22  # bytes, more than a pipe holds


def start(folder, messages):
    """The first process puts a message that nobody reads; the other puts one when the first was killed."""
    try:
        os.symlink(str(os.getpid()), folder / "first")
    except FileExistsError:
        wait_for(folder / "killed")
        messages.put("from the other")
    else:
        messages.put(bytes(MUCH))
    raise SystemExit


def wait_for(file: Path) -> None:
    until = time.monotonic() + 120
    while not os.path.lexists(file):
        assert time.monotonic() < until, file
        time.sleep(0.01)
