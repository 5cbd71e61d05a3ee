"""Options that every command takes: how results, progress and errors are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

OPTIONS = ("--json", "--quiet", "--debug")


@dataclass(frozen=True)
class Manner:
    """How a command answers.

    Parameters
    ----------
    json : bool
        Standard output holds one JSON document and nothing else.
    quiet : bool
        No progress and no notes: only results, warnings and errors.
    debug : bool
        An error comes with its traceback.
    """

    json: bool = False
    quiet: bool = False
    debug: bool = False


_current: ContextVar[Manner] = ContextVar("manner")


def manner() -> Manner:
    """The options of the command that is running."""
    return _current.get(Manner())


@contextmanager
def taken(words: Sequence[str]) -> Iterator[list[str]]:
    """The words without ``--json``, ``--quiet`` and ``--debug``, which hold in here."""
    given = {word for word in words if word in OPTIONS}
    token = _current.set(Manner("--json" in given, "--quiet" in given, "--debug" in given))
    try:
        yield [word for word in words if word not in given]
    finally:
        _current.reset(token)
