"""A table in a file, or in one for each part."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.data import batches as b
from ensdistill.data.parquet import ParquetSamples
from ensdistill.data.partition import Partition, Whole
from ensdistill.data.reading import default_workers
from ensdistill.data.samples import Joined, as_samples, sample_hashes
from ensdistill.data.sources import base
from ensdistill.data.sources.roles import joined_frames, read_roles, roles_of, setting, whole_of
from ensdistill.data.sources.target import Target
from ensdistill.data.table_files import MISSING, TableFile
from ensdistill.data.uids import content_uids

_TIME = r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[ap]m)?( ?(z|utc|[+-]\d{2}:?\d{2}))?"
_MONTH = (
    "(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?"
    "|dec(ember)?)"
)
_DAYS = (
    r"\d{4}(?P<by>[./-])\d{1,2}(?P=by)\d{1,2}",
    r"\d{1,2}(?P<by>[./-])\d{1,2}(?P=by)(\d{4}|\d\d)",
    rf"\d{{1,2}}[ .-]+{_MONTH}[ .,-]+(\d{{4}}|\d\d)",
    rf"{_MONTH}[ .-]+\d{{1,2}}(st|nd|rd|th)?[ .,-]+(\d{{4}}|\d\d)",
)
_WEEKDAY = r"((mon|tues?|wed(nes)?|thu(rs)?|fri|sat(ur)?|sun)(day)?[ .,]+)?"
DATES = [re.compile(rf"{_WEEKDAY}{day}([T ,]+{_TIME})?", re.IGNORECASE) for day in _DAYS]
DATES.append(re.compile(_TIME, re.IGNORECASE))
HELD_BYTES = 2**28  # of Parquet on disk, above which its rows are read when they are needed
LOOKED_AT = 200  # values of a text column that decide whether it holds dates
COUNTED = 10_000  # rows that are read to see whether a column's texts are nearly all different
FEW = 100  # texts of which nothing can be told
DIFFERENT = 0.9  # share of different texts above which these are ids rather than categories


@dataclass(frozen=True)
class Table(base.Divided):
    """Rows of a table, as a frame with named columns of numbers, categories, strings and booleans.

    Parameters
    ----------
    path : path
        ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson``, ``.parquet``, ``.feather`` or ``.arrow``; see
        :func:`ensdistill.data.table_files.read_table` for the missing values of text.
    target : str or list of str
        The column of the labels, of any kind; or several columns, of 0 and 1 (multi-label) or of numbers
        (regression). Rows without a label go to the pool.
    columns : list of str, optional
        The inputs. By default all columns but the target and those that have another role here or in
        ``parts``.
    ignore : list of str
        Columns that are no inputs.
    id : str, optional
        A column of different integers or strings, which become the rows' uids. By default these are made of
        the rows' content.
    weight : str, optional
        A column of numbers of at least 0: how much each row counts.
    labels : list of str, optional
        The classes in the order of their indices. By default categories keep the order that they have,
        numbers are sorted by value and strings by name.
    task : {"classification", "multilabel", "regression"}, optional
        Classification by default; needed beside several target columns.
    separator : str, optional
        Between the tags of one target column, which then is multi-label: its labels are all tags, or those
        that ``labels`` lists. An empty field is an unknown label.
    unlabelled : list of str, optional
        Texts in the target column that stand for an unknown label. An empty field always does. Where the
        column holds ``NA``, ``None`` or the like, these may be classes too, so the list must be given.
    missing : list of str, optional
        Fields of a text table's inputs that hold no value; by default empty ones, ``NA``, ``NaN``, ``null``
        and the like.
    test_path, pool_path : path, optional
        Files with the test rows, and with rows that have no label (a target column there is not used).
    lazy : bool, optional
        Whether rows are read when they are needed (Parquet alone). By default if the files are larger than
        256 MiB.
    parts : Partition
        How the rows of ``path`` are divided.

    Raises
    ------
    ValueError, TypeError
        (by ``split``) A file, a column or a label is not as described; names it, with the remedy. Dates and
        lists are no inputs, unless ``columns`` names a column of dates.

    Warns
    -----
    UserWarning
        (by ``split``) The texts of an input are nearly all different, as ids are.

    Examples
    --------
    A run's settings::

        data:
          class_path: ensdistill.data.Table
          init_args: {path: examples/penguins.csv, target: species, parts: {test: 0.3}}
    """

    path: Path
    target: str | list[str]
    columns: list[str] | None = None
    ignore: list[str] = field(default_factory=list)
    id: str | None = None
    weight: str | None = None
    labels: list[str] | None = None
    unlabelled: list[str] | None = None
    missing: list[str] | None = None
    test_path: Path | None = None
    pool_path: Path | None = None
    lazy: bool | None = None
    parts: Partition = field(default_factory=Partition)
    task: Task | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        self._target()
        base.not_both_given(self.parts, self.test_path)

    def _target(self) -> Target:
        return Target(self.target, self.task, self.separator, self.labels)

    def _read(self) -> Whole:
        files = [(part, TableFile(path)) for name, part in base.FILES if (path := getattr(self, name))]
        roles = roles_of(self.parts, target=self.target, id=self.id, weight=self.weight)
        inputs = self._inputs(files[0][1], roles)
        lazy = self._is_lazy([file for _, file in files])
        frames = [
            read_roles(
                file,
                [] if lazy else inputs,
                roles,
                part,
                unlabelled=self.unlabelled,
                missing=MISSING if self.missing is None else ["", *self.missing],
                texts=self._target().texts,
            )
            for part, file in files
        ]
        frame = joined_frames(frames, [file.path.name for _, file in files])
        samples = _lazy_rows([file for _, file in files], inputs) if lazy else as_samples(frame[inputs])
        if self.columns is None:
            _check_columns(samples[:COUNTED] if lazy else frame[inputs])
        by_file = np.repeat(np.array([part for part, _ in files], np.int8), [len(one) for one in frames])
        keys = getattr(samples, "content_keys", None)
        uids = content_uids(sample_hashes(samples) if keys is None else keys)
        return whole_of(samples, frame, roles, by_file, target=self._target(), uids=uids)

    def _inputs(self, file: TableFile, roles: dict[str, str]) -> list[str]:
        for role, column in roles.items():
            file.column(column, setting(role))
        for column in self.ignore:
            file.column(column, "ignore")
        if self.columns is not None:
            for name in self.columns:
                file.column(name)
                wanted = ("target", "id", "weight", "parts.column")
                as_role = next(
                    (r for r, column in roles.items() if column == name and setting(r) in wanted), None
                )
                if as_role or name in self.ignore:
                    kind = f"the {as_role.partition(' ')[0]}" if as_role else "to be ignored"
                    raise ValueError(f"columns: {name!r} is {kind}, and no input")
        inputs = self.columns or [
            name for name in file.names if name not in roles.values() and name not in self.ignore
        ]
        if not inputs:
            raise ValueError(
                f"columns: {file.path.name} has no column that is an input, but {', '.join(file.names)}"
            )
        if "" in inputs and self.columns is None:
            raise ValueError(
                f"columns: column {file.names.index('') + 1} of {file.path.name} has no name; if it numbers "
                "the rows, leave it out: ignore: ['']"
            )
        file.check_number(inputs)
        return list(inputs)

    def _is_lazy(self, files: list[TableFile]) -> bool:
        parquet = all(file.kind == "Parquet" for file in files)
        if self.lazy and not parquet:
            raise ValueError(
                f"lazy: expected Parquet, whose rows can be read in any order; got {Path(self.path).name}"
            )
        large = sum(file.path.stat().st_size for file in files) > HELD_BYTES
        return parquet and (large if self.lazy is None else self.lazy)


def _check_columns(frame: Any) -> None:
    for name, kind in b.describe(frame)["columns"].items():
        dates = kind == "text" and holds_dates(frame[name].dropna().iloc[:LOOKED_AT])
        if dates or kind in ("time", "duration"):
            raise ValueError(
                f"columns: column {name!r} holds dates or times, which no model takes as they are. Leave it "
                "out (ignore), order the rows by it (parts.time), or make numbers of it (year, month, "
                "weekday); columns=[...] with its name takes it as it is"
            )
        if kind == "text" and (count := int(frame[name].count())) > FEW:
            different = int(frame[name].nunique())
            if different > DIFFERENT * count:
                warnings.warn(
                    f"columns: the texts of column {name!r} are nearly all different ({different} of "
                    f"{count}), as ids and names are; a model of categories learns nothing from them. Leave "
                    f"it out: ignore: [{name}]; columns=[...] with its name takes it without this warning",
                    stacklevel=2,
                )


def holds_dates(values: Sequence[str]) -> bool:
    texts = [value.strip() for value in values]
    return bool(texts) and all(any(date.fullmatch(text) for date in DATES) for text in texts)


def _lazy_rows(files: list[TableFile], columns: list[str]) -> Any:
    parts = [ParquetSamples([file.path], columns) for file in files]
    kinds = [part.form["columns"] for part in parts]
    for name in columns:
        found = {one[name] for one in kinds}
        # As in memory: integers beside floats are floats, and gaps in one file make room for them in all.
        alike = "float64" if found == {"integer", "float"} else "boolean" if found == {"boolean"} else None
        if alike == "float64" or (alike and any(name in part.types for part in parts)):
            for part in parts:
                part.types = {**part.types, name: alike}
    for part in parts:
        part.content_keys = sample_hashes(part, workers=default_workers(part))
    return parts[0] if len(parts) == 1 else Joined(tuple(parts))
