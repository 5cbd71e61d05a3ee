"""A look at a table: its target, its inputs, and the columns that are none."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.errors import WrongArgument
from ensdistill.common.tasks import Task, check_task
from ensdistill.data.classes import classes_of
from ensdistill.data.files import IMAGES
from ensdistill.data.partition import Partition
from ensdistill.data.sources.roles import read_roles, roles_of
from ensdistill.data.table_files import MISSING, NONE, TableFile
from ensdistill.job.starting.columns import Column, choose_target, columns_of
from ensdistill.job.starting.found import Found, check_classes, listed
from ensdistill.job.starting.targets import Labelled, look_at_target

HELD = 2**28  # bytes of a Parquet file that are looked at together
FIRST = 1000  # rows by which the kind of the samples is known
KINDS = {
    "integer": "numbers",
    "float": "numbers",
    "boolean": "booleans",
    "text": "categories",
    "category": "categories",
}


@dataclass(frozen=True)
class Wanted:
    """The words about a table's columns.

    Parameters
    ----------
    target : str, optional
        One column, or several with commas between them; found by itself where there is no doubt.
    ignore : tuple of str
        Columns that are not to be used.
    unlabelled, labels, task, separator
        As of :class:`ensdistill.data.Table`.
    """

    target: str | None = None
    ignore: tuple[str, ...] = ()
    unlabelled: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    task: str | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        if self.task is not None:
            check_task(self.task, "--task")

    def targets(self, names: Sequence[str]) -> list[str]:
        """The target's columns; a column whose own name has commas is one."""
        if self.target is None or self.target in names or "," not in self.target:
            return [] if self.target is None else [self.target]
        return [name.strip() for name in self.target.split(",") if name.strip()]

    def check_classes_alone(self) -> None:
        """Raise ValueError for a task that class folders do not have."""
        if self.task not in (None, "classification") or self.separator is not None:
            raise WrongArgument(
                "--task: expected a table for several labels or numbers, because a file lies in the folder "
                "of one class: write a table with a column of the files' paths (of texts: the texts), and "
                "columns of labels"
            )

    @property
    def task_of_arrays(self) -> Task | None:
        """The stated task of labels in an array.

        Raises
        ------
        ValueError
            A separator is stated, too.
        """
        if self.separator is not None:
            raise WrongArgument(
                "--separator: expected with a table, whose column holds tags; of arrays pass labels [N, C] "
                "of 0 and 1"
            )
        return None if self.task is None else check_task(self.task, "--task")


def look_at_table(path: Path, wanted: Wanted | None = None) -> Found:
    """Look at all columns of a table.

    Parameters
    ----------
    path : Path
    wanted : Wanted, optional

    Raises
    ------
    ValueError
        The table can't be read, its target is not certain or not of the task, or no column is an input.
    """
    wanted, file = wanted or Wanted(), TableFile(path)
    targets, ignore = wanted.targets(file.names), wanted.ignore
    for name in (*ignore, *targets):
        file.column(name, "--target" if name in targets else "--ignore")
    columns, head = _looked_at(file)
    columns = [column for column in columns if column.name not in ignore]
    targets = targets or [choose_target(columns, path.name)]
    for name in targets:
        _check_target(next((c for c in columns if c.name == name), None), name)
    target, found = targets[0], look_at_target(file, targets, wanted.task, wanted.separator, wanted.labels)
    unknown: list[str] | None = None
    labels = None if wanted.labels is None else list(wanted.labels)
    if found is None:
        given = wanted.unlabelled
        unknown = _unknown_words(file, target) or None if given is None else list(given)
        found = Labelled(*_classes(file, target, unknown, labels))
    others = [column for column in columns if column.name not in targets]
    chosen = _inputs(path, head, others, target)
    arguments = {"path": str(path), "target": target if len(targets) == 1 else targets}
    more = {"unlabelled": unknown, "labels": labels, **found.arguments}
    arguments |= {name: value for name, value in more.items() if value is not None}
    ids = [column.name for column in others if column.is_id][:1]  # the first names the rows
    left = {name: "by --ignore" for name in ignore} | {
        n: why for n, why in chosen.left.items() if n not in ids
    }
    arguments |= chosen.arguments | ({"id": ids[0]} if ids else {})
    if chosen.kind == "Table" and left:
        arguments["ignore"] = list(left)
    facts = [*found.facts, ("target", _target_line(targets, unknown or [])), ("inputs", chosen.line)]
    facts += [("id", f"column {name!r} names the rows") for name in ids]
    groups = [column.name for column in others if column.may_group]
    facts += [
        ("note", f"{name!r} repeats; if its rows belong together: --data.parts.group {name}")
        for name in groups
    ]
    facts += [("note", _rare_texts_line(c)) for c in others if c.has_rare_texts and c.name in chosen.used]
    facts += [("left out", f"{name or 'a column without a name'}: {why}") for name, why in left.items()]
    data = {"class_path": chosen.kind, "init_args": arguments}
    more = {"settings": chosen.settings, "labels": found.labels, "known": found.known}
    return Found(path, data, chosen.samples, found.classes, found.without, None, facts, **more)


@dataclass(frozen=True)
class _Inputs:
    """The inputs of a table: a data set's class and arguments, some samples, a line for people, the columns
    that are left out with the reason, and other settings."""

    kind: str
    arguments: dict[str, Any]
    samples: Any
    line: str
    left: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    used: Sequence[str] = ()


def _looked_at(file: TableFile) -> tuple[list[Column], Any]:
    """All columns by all of their values, and the first rows. A large Parquet file is read by a few columns
    at a time."""
    groups = file.groups(HELD)
    if len(groups) == 1:
        frame = file.read()
        return columns_of(frame), frame
    return [column for names in groups for column in columns_of(file.read(names))], file.head(FIRST)


def _rare_texts_line(column: Column) -> str:
    return (
        f"{column.name!r} has {column.different} different texts, {column.known / column.different:.1f} rows "
        f"each; the rare ones become one category. --ignore {shlex.quote(column.name)} leaves it out"
    )


def _inputs(path: Path, frame: Any, columns: Sequence[Column], target: str) -> _Inputs:
    """Paths of images before prose before columns of numbers and categories."""
    left = {column.name: column.no_input for column in columns if column.no_input}
    inputs = [column for column in columns if not column.no_input]
    if images := [c for c in columns if c.kind == "text" and _names_images(path, frame[c.name])]:
        name = images[0].name
        left = left | {c.name: "not a part of the images" for c in inputs}
        left.pop(name, None)
        line = f"images, by their paths in column {name!r}"
        return _Inputs("ImageFolder", {"file": name}, [np.zeros((8, 8, 3), np.uint8)], line, left)
    if prose := [column for column in inputs if column.is_prose]:
        # Of several the longest: a body rather than a title.
        name = max(prose, key=lambda column: column.length).name
        left |= {c.name: "not a part of the texts" for c in inputs if c.name != name}
        texts = frame[name].dropna().iloc[:FIRST].tolist()
        return _Inputs("Texts", {"text": name}, texts, f"texts of column {name!r}", left)
    if not inputs:
        reasons = "; ".join(f"{name!r} holds {why}" for name, why in left.items())
        raise ValueError(
            f"path: {path.name} has no column to learn from beside the target {target!r}"
            f"{': ' * bool(reasons)}{reasons}. Make numbers of one (year, month, length), or add columns"
        )
    samples = frame[[column.name for column in inputs]].iloc[:FIRST]
    used = [column.name for column in inputs]
    return _Inputs("Table", {}, samples, _inputs_line(inputs), left, _copies_allowed(inputs), used)


def _check_target(column: Column | None, target: str) -> None:
    if column is None:
        raise WrongArgument(f"--target: column {target!r} is to be ignored (--ignore)")
    if column.kind == "other" or column.is_date or column.kind in ("time", "duration"):
        held = column.no_input.partition(";")[0]
        raise WrongArgument(
            f"--target: expected one class in each row; column {target!r} holds {held}: choose another column"
        )


def _unknown_words(file: TableFile, target: str) -> list[str]:
    """Words such as NA that stand for an unknown label in a text table. ``None`` may be a class: the data
    set asks about it."""
    column = file.read([target], verbatim=[target])[target]
    if file.kind != "CSV" or (column == NONE).any():
        return []
    words = column[column.isin(MISSING[1:])]
    try:
        column.drop(words.index).astype(float)
    except (ValueError, TypeError):
        return [str(word) for word in words.unique()]
    return []  # among numbers they are gaps without a doubt


def _target_line(targets: Sequence[str], words: Sequence[str]) -> str:
    target = targets[0]
    if len(targets) > 1:
        return f"columns {listed(targets)}"
    if not words:
        return f"column {target!r}"
    word = f"{listed(words)} stands for an unknown label there (--data.unlabelled [] if it is a class)"
    return f"column {target!r}; {word}"


def _classes(
    file: TableFile, target: str, unlabelled: Sequence[str] | None, labels: Sequence[str] | None
) -> tuple[dict[str, int], int]:
    """Labelled rows of each class, and the number of rows without a label."""
    frame = read_roles(file, [], roles_of(Partition(), target=target), -1, unlabelled=unlabelled)
    if frame[target].nunique() == 1:
        raise ValueError(
            f"target: expected two classes or more; column {target!r} holds "
            f"{str(frame[target].dropna().iloc[0])!r} alone: choose another column (--target NAME)"
        )
    indices, names, _ = classes_of(frame[target], labels, argument=f"target: column {target!r}")
    known = indices[indices >= 0]
    counts = np.bincount(known, minlength=len(names))
    classes = dict(zip(names, counts.tolist(), strict=True))
    check_classes(classes, f"target: column {target!r}")
    return classes, len(indices) - len(known)


def _names_images(path: Path, column: Any) -> bool:
    first = [str(value) for value in column.dropna().iloc[:20]]
    return bool(first) and all(
        Path(name).suffix.lower() in IMAGES and (path.parent / name).is_file() for name in first
    )


def _inputs_line(inputs: Sequence[Column]) -> str:
    counts: dict[str, int] = {}
    for column in inputs:
        counts[KINDS[column.kind]] = counts.get(KINDS[column.kind], 0) + 1
    words = [f"{count} column{'s' * (count > 1)} of {kind}" for kind, count in counts.items()]
    gaps = [1 - column.known / column.rows for column in inputs if column.known < column.rows]
    line = ", ".join(words)
    return (
        f"{line}; gaps in {len(gaps)} of them, in up to {100 * max(gaps):.1f} % of the rows" if gaps else line
    )


def _copies_allowed(inputs: Sequence[Column]) -> dict[str, Any]:
    """Where no column is a fraction, rows made from others equal test rows legitimately."""
    fractions = any(column.kind == "float" and not column.is_whole for column in inputs)
    return {} if fractions else {"max_test_copies": 1.0}
