"""From the words of ``init`` and ``run`` to settings that follow from the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensdistill.cli.manner import manner
from ensdistill.common.errors import WrongArgument

# Words about data that are no settings; each takes a value.
WORDS = ("--target", "--ignore", "--data", "--task", "--separator")
# The goals of a search for the student, in place of its model.
GOALS = ("--keep", "--max_latency", "--max_bytes", "--max_parameters")
# Settings of a table that decide how its target is read.
READING = ("--data.unlabelled", "--data.labels")


@dataclass(frozen=True)
class Start:
    """Settings that were found.

    Parameters
    ----------
    settings : dict
    facts : list of (str, str)
        A word and a sentence each.
    sources : list of Path
        The data.
    """

    settings: dict[str, Any]
    facts: list[tuple[str, str]]
    sources: list[Path]

    def show(self, folder: Path | None = None) -> None:
        """Print the findings, and the place of the settings, to standard error."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        if manner().quiet or manner().json:
            return
        table = Table.grid(padding=(0, 2))
        facts = [("data", ", ".join(map(str, self.sources))), *self.facts]
        facts += [("settings", f"{folder}/run.yaml")] if folder else []
        for word, text in facts:
            table.add_row(Text(word, "bold"), Text(text))
        Console(stderr=True, highlight=False).print(table)


def looks_like_data(path: Path) -> bool:
    """Whether a word names data rather than a file of settings."""
    from ensdistill.job.starting import is_data

    return is_data(path)


def start(words: Sequence[str]) -> tuple[Start, list[str]]:
    """Look at the data that the first word names; return the findings, and the words that are settings.

    Raises
    ------
    ValueError
        See `ensdistill.job.starting.look`; an option without its value, or an unknown one.
    """
    from ensdistill.cli.classes import MODULES
    from ensdistill.cli.settings import check_names
    from ensdistill.job.starting import look, settings_of

    options, rest = taken(words[1:])
    check_names(rest, (*WORDS, *GOALS))  # before the data, whose errors would hide a mistyped word
    given = {name: _value(rest, name) for name in READING}
    found = look(
        Path(words[0]),
        options.get("--target", [None])[-1],
        ignore=options.get("--ignore", []),
        data=Path(options["--data"][-1]) if "--data" in options else None,
        unlabelled=given["--data.unlabelled"],
        labels=given["--data.labels"],
        task=options.get("--task", [None])[-1],
        separator=options.get("--separator", [None])[-1],
    )
    settings, words_for = settings_of(found, tuple(MODULES))
    if goals := {name.removeprefix("--"): _scalar(options[name][-1]) for name in GOALS if name in options}:
        students = settings["distill"]["students"]
        settings["distill"]["students"] = dict.fromkeys(students, goals)
        text = ", ".join(f"{name} {value}" for name, value in goals.items())
        words_for = [
            (word, f"searched for: {text}" if word == "students" else old) for word, old in words_for
        ]
    facts = [*found.lines(), *words_for]
    sources = [Path(words[0]), *([Path(options["--data"][-1])] if "--data" in options else [])]
    return Start(settings, facts, sources), rest


def taken(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The values of the words about data, and the other words."""
    options: dict[str, list[str]] = {}
    rest, left = [], list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if name not in (*WORDS, *GOALS):
            rest.append(name + equals + value)
            continue
        if not equals:
            if not left or left[0].startswith("--"):
                raise WrongArgument(f"{name}: expected a value, {name} VALUE; got nothing")
            value = left.pop(0)
        options.setdefault(name, []).append(value)
    return options, rest


def _scalar(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # which the settings refuse by name


def _value(words: Sequence[str], name: str) -> Any:
    import yaml

    for place, word in enumerate(words):
        own, equals, value = word.partition("=")
        if own == name:
            value = value if equals else " ".join(words[place + 1 : place + 2])
            try:
                found = yaml.safe_load(value)
            except yaml.YAMLError:
                found = value
            if not isinstance(found, list):
                raise WrongArgument(f'{name}: expected a list, such as {name} "[NA]"; got {value!r}')
            return [str(int(one) if isinstance(one, float) and one.is_integer() else one) for one in found]
    return None
