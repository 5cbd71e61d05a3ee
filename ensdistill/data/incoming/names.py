"""The columns of new rows, compared by name with those of the training before anything is read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ensdistill.common.errors import WrongArgument
from ensdistill.data.incoming.base import Wanted

SHOWN = 10


def check_names(expected: Sequence[str], present: Sequence[str], noun: str = "column") -> None:
    """Raise ValueError where a column is missing, or one is there that the training had not; names the
    nearest."""
    missing = [name for name in expected if name not in present]
    added = [name for name in present if name not in expected]
    if not missing and not added:
        return
    faults = []
    for name in missing[:SHOWN]:
        near = difflib.get_close_matches(name, added, 1, 0.5) or _same_letters(name, added)
        faults.append(f"{name!r} is missing" + (f" (nearest: {near[0]!r})" if near else ""))
    faults += [f"{name!r} is not expected" for name in added[:SHOWN]]
    listed = ", ".join(expected[:SHOWN]) + f" and {len(expected) - SHOWN} more" * (len(expected) > SHOWN)
    raise ValueError(f"samples: {'; '.join(faults)}: the student's {noun}s are {listed}")


def check_table(wanted: Wanted, inputs: Sequence[str], present: Sequence[str]) -> list[str]:
    """The names of columns of a table that are neither inputs nor carried to the output.

    Raises
    ------
    ValueError
        A column is missing (names the nearest), or one is there that is no input and has no role.
    """
    for option, name in (("--id", wanted.id), *(("--ignore", name) for name in wanted.ignore)):
        if name is not None and name not in present:
            near = difflib.get_close_matches(name, present, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise WrongArgument(
                f"{option}: there is no column {name!r} among {', '.join(present[:SHOWN])}{hint}"
            )
    if both := [name for name in wanted.ignore if name in inputs]:
        raise WrongArgument(f"--ignore: {both[0]!r} is an input of the student")
    # The training's own files have its target, ids and weights, and columns that it left out.
    roles = [*wanted.data.get("roles", {}).values(), *wanted.data.get("ignored", ()), *wanted.ignore]
    other = [name for name in present if name not in inputs and name not in wanted.carried(present)]
    if wanted.samples["kind"] != "table" or wanted.data.get("columns"):  # the inputs were chosen by name
        roles = other
    added = [name for name in other if name not in roles]
    try:
        check_names(inputs, [name for name in present if name in inputs or name in added])
    except ValueError as error:
        remedy = (
            f". --ignore {added[0]} leaves a column out, --keep carries all to the output"
            if added and all(name in present for name in inputs)
            else ""
        )
        raise ValueError(f"{error}{remedy}") from None
    return other


def _same_letters(name: str, names: Sequence[str]) -> list[str]:
    def plain(text: str) -> str:
        return "".join(letter for letter in text.lower() if letter.isalnum())

    return [other for other in names if plain(other) == plain(name)]
