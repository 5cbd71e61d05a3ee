"""Errors: their messages, and the kinds that need one of their own."""

from __future__ import annotations

import sys

# torch has no class for it on the CPU, and one text for each of its allocators.
_TEXTS = ("can't allocate memory", "not enough memory")


class WrongArgument(ValueError):
    """An argument or a setting names what is not there, or has a value that it can't have. The command line
    ends with 2 for it, and with 1 for other errors: in data, in the content of a file, in the work."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory is short, on any device."""
    torch = sys.modules.get("torch")  # an error of a command without it must not load it
    kinds = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(text in str(error) for text in _TEXTS)


def message(error: BaseException) -> str:
    """An error's text with its notes, a line each."""
    return "\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])
