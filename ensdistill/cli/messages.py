"""Errors, warnings and wrong usage on the terminal, in one style."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ensdistill.cli.manner import manner


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`` Did you mean ...?``, or nothing where no name is near."""
    near = difflib.get_close_matches(name, sorted({n for n in names if n[:1] != "_"}), 1)
    return f" Did you mean {prefix + near[0]!r}?" if near else ""


def usage_error(message: str, more: str = "`ensdistill --help` shows the commands.") -> int:
    """Show the error in a command and the remedy; return the exit status."""
    print("\n".join(filter(None, (f"ensdistill: {message}", more))), file=sys.stderr)
    if manner().debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    return 2


def print_json(document: Any) -> None:
    """The one document of a command with ``--json``."""
    print(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def failure(error: Exception) -> int:
    """Show an error, and with ``--debug`` its traceback; return the exit status: 2 where an argument or a
    setting has to change, 1 where it is the data, a file's content, or the work."""
    from ensdistill.common.errors import WrongArgument, message

    print(f"ensdistill: {message(error)}", file=sys.stderr)
    details = getattr(error, "details", None)
    if manner().debug:
        print(details or "".join(traceback.format_exception(error)), file=sys.stderr)
    # The system's errors are about files and not about code.
    elif not getattr(error, "by_system", isinstance(error, OSError) or _is_own_check(error)):
        print("(--debug shows where; everything finished is kept)", file=sys.stderr)
    return 2 if any(isinstance(one, WrongArgument) for one in _with_causes(error)) else 1


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_own_check(error: Exception) -> bool:
    """Whether a check of this package raised the error: its message has the remedy."""
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parents[1]
    return isinstance(error, ValueError | TypeError) and package in Path(frames[-1].filename).parents


def warning_line(text: object) -> str:
    """A warning as one line, also where its text has several."""
    return f"ensdistill: warning: {' '.join(str(text).split())}"


@contextmanager
def short_warnings() -> Iterator[None]:
    """In here Python's warnings are single lines, without the line of code that raised them."""

    def show(text: Any, *_: Any) -> None:
        print(warning_line(text), file=sys.stderr)

    before = warnings.showwarning
    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before


class Parser(argparse.ArgumentParser):
    """argparse with this package's messages: an error names the argument, the value and the expectation."""

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The options of a command; a wrong word exits with 2."""
        known = self._option_string_actions
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                self.error(f"there is no option {name!r}.{nearest(name, known)}")
        self.exit_on_error = False
        try:
            options, stray = self.parse_known_args(list(words))
        except argparse.ArgumentError as error:
            self.error(f"{error.argument_name}: {error.message}")
        if stray:
            self.error(f"expected no more arguments; got {' '.join(map(repr, stray))}")
        return options

    def error(self, message: str) -> NoReturn:
        head, _, command = self.prog.partition(" ")
        self.exit(2, f"{head}: {command}: {message}\n`{self.prog} --help` explains the options.\n")


def whole_number(text: str) -> int:
    """The type of an option that takes an integer."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number; got {text!r}") from None


def number(text: str) -> float:
    """The type of an option that takes a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number; got {text!r}") from None
