"""A table in a file, or in one for each part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.data import batches as b
from ensdistill.data.classes import classes_of
from ensdistill.data.partition import POOL, Partition, Whole
from ensdistill.data.reading import default_workers
from ensdistill.data.rows import UNLABELLED, BadRows, Rows, as_weights
from ensdistill.data.samples import Joined, as_samples, sample_hashes
from ensdistill.data.sources import base
from ensdistill.data.table_files import MISSING, TableFile
from ensdistill.data.uids import content_uids, given_uids

HELD_BYTES = 2**28  # of Parquet on disk, above which its rows are read when they are needed
LOOKED_AT = 200  # values of a text column that decide whether it holds dates


@dataclass(frozen=True)
class Table(base.Divided):
    """Rows of a table, as a frame with named columns of numbers, categories, strings and booleans.

    Parameters
    ----------
    path : path
        ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson``, ``.parquet``, ``.feather`` or ``.arrow``; see
        :func:`ensdistill.data.table_files.read_table` for the missing values of text.
    target : str
        The column of the labels, of any kind. Rows without a label go to the pool.
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
    unlabelled : list of str, optional
        Texts in the target column that stand for an unknown label. An empty field always does. Where the
        column holds ``NA``, ``None`` or the like, these may be classes too, so the list must be given.
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

    Examples
    --------
    A run's settings::

        data:
          class_path: ensdistill.data.Table
          init_args: {path: examples/penguins.csv, target: species, parts: {test: 0.3}}
    """

    path: Path
    target: str
    columns: list[str] | None = None
    ignore: list[str] = field(default_factory=list)
    id: str | None = None
    weight: str | None = None
    labels: list[str] | None = None
    unlabelled: list[str] | None = None
    test_path: Path | None = None
    pool_path: Path | None = None
    lazy: bool | None = None
    parts: Partition = field(default_factory=Partition)

    def __post_init__(self) -> None:
        base.not_both_given(self.parts, test_path=self.test_path)

    def _read(self) -> Whole:
        files = [(part, TableFile(path)) for name, part in base.FILES if (path := getattr(self, name))]
        inputs, roles = self._inputs(files[0][1]), self._roles()
        lazy = self._is_lazy([file for _, file in files])
        frames = [
            self._frame(file, [*([] if lazy else inputs), *roles.values()], part) for part, file in files
        ]
        frame = joined_frames(frames, [file.path.name for _, file in files])
        samples = _lazy_rows([file for _, file in files], inputs) if lazy else as_samples(frame[inputs])
        _check_columns(samples[:LOOKED_AT] if lazy else frame[inputs], chosen=self.columns is not None)
        by_file = np.repeat(np.array([part for part, _ in files], np.int8), [len(one) for one in frames])
        return self._whole(samples, frame, roles, by_file)

    def _whole(self, samples: Any, frame: Any, roles: dict[str, str], by_file: np.ndarray) -> Whole:
        gaps = {role: frame[name].isna().to_numpy() for role, name in roles.items()}
        columns = {role: frame[name] for role, name in roles.items()}
        named = {role: f"{_setting(role)}: column {name!r}" for role, name in roles.items()}
        part_of = (
            base.given_parts(columns["column"].tolist(), named["column"], gaps["column"])
            if "column" in roles
            else None
        )
        given = base.one_file_of_parts(by_file, part_of)
        judged = np.ones(len(frame), bool) if given is None else given != POOL
        indices = np.full(len(frame), UNLABELLED, np.int64)
        indices[judged], classes, values = classes_of(
            columns["target"][judged], self.labels, argument=named["target"]
        )
        rows = Rows(
            samples,
            given_uids(columns["id"], len(frame), named["id"])
            if "id" in roles
            else content_uids(_keys(samples)),
            indices,
            as_weights(named["weight"], columns["weight"].to_numpy(), len(frame))
            if "weight" in roles
            else None,
            base.numbered(columns["group"].tolist(), named["group"], gaps["group"])
            if "group" in roles
            else None,
        )
        times = _times(columns["time"], named["time"], gaps["time"]) if "time" in roles else None
        return Whole(rows, classes, values, times, given)

    def _roles(self) -> dict[str, str]:
        """Role -> column."""
        roles = {
            "target": self.target,
            "id": self.id,
            "weight": self.weight,
            **{name: getattr(self.parts, name) for name in ("group", "time", "column")},
        }
        return {role: name for role, name in roles.items() if name is not None}

    def _inputs(self, file: TableFile) -> list[str]:
        roles = self._roles()
        for role, column in roles.items():
            file.column(column, _setting(role))
        for column in self.ignore:
            file.column(column, "ignore")
        if self.columns is not None:
            for name in self.columns:
                file.column(name)
                as_role = next(
                    (r for r in ("target", "id", "weight", "column") if roles.get(r) == name), None
                )
                if as_role or name in self.ignore:
                    kind = f"the {as_role}" if as_role else "to be ignored"
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
        return list(inputs)

    def _frame(self, file: TableFile, columns: Sequence[str], part: int) -> Any:
        """The columns of one file; the target of a pool is unknown."""
        wanted = [name for name in columns if not (part == POOL and name in (self.target, self.parts.column))]
        frame = file.read([file.column(name) for name in wanted], verbatim=[self.target])
        if part == POOL:
            return frame
        column = frame[self.target]
        words = column.isin([*MISSING[1:], *(self.unlabelled or ())]) & (file.kind == "CSV")
        unknown = column.isin(self.unlabelled or ())
        if words.any() and (numbers := _as_numbers(column[~words])) is not None:
            return frame.assign(**{self.target: numbers.reindex(column.index)})
        if words.any() and self.unlabelled is None:
            rows = np.flatnonzero(words)
            word = column.iloc[rows[0]]
            raise BadRows(
                f"target: column {self.target!r} holds {word!r} in row {rows[0]} ({len(rows)} such rows), "
                f"which may be a class, or an unknown label. Give unlabelled: [{word}] if it is unknown, or "
                "unlabelled: [] if it is a class",
                rows,
            )
        return frame.assign(**{self.target: column.mask(unknown)}) if unknown.any() else frame

    def _is_lazy(self, files: list[TableFile]) -> bool:
        parquet = all(file.kind == "Parquet" for file in files)
        if self.lazy and not parquet:
            raise ValueError(
                f"lazy: expected Parquet, whose rows can be read in any order; got {Path(self.path).name}"
            )
        large = sum(file.path.stat().st_size for file in files) > HELD_BYTES
        return parquet and (large if self.lazy is None else self.lazy)


def _as_numbers(column: Any) -> Any:
    """The column as numbers, which it would hold were there no gaps; None where it holds something else."""
    import pandas as pd

    try:
        return pd.to_numeric(column)
    except (ValueError, TypeError):
        return None


def joined_frames(frames: list[Any], names: list[str]) -> Any:
    """The rows of all frames, each column of one type.

    Raises
    ------
    ValueError
        A column holds numbers in one file and text in another.
    """
    import pandas as pd

    if len(frames) == 1:
        return frames[0]
    types = [b.describe(frame)["columns"] for frame in frames]
    for name in frames[0].columns:
        for i, frame in enumerate(frames):
            if name not in frame.columns or types[i][name] == types[0][name]:
                continue
            for one, other in ((0, i), (i, 0)):
                if frames[one][name].isna().all():  # an empty column has no type of its own
                    empty = pd.Series([None] * len(frames[one]), frames[one].index, object)
                    kind = frames[other][name].dtype
                    frames[one] = frames[one].assign(
                        **{
                            name: empty
                            if types[other][name] in ("boolean", "integer")
                            else empty.astype(kind)
                        }
                    )
                    break
            else:
                if {types[i][name], types[0][name]} != {"integer", "float"}:
                    raise ValueError(
                        f"columns: {name!r} holds {types[0][name]} in {names[0]}, and {types[i][name]} in "
                        f"{names[i]}: make them alike"
                    )
    return pd.concat(frames, ignore_index=True)


def _setting(role: str) -> str:
    return f"parts.{role}" if role in ("group", "time", "column") else role


def _check_columns(frame: Any, chosen: bool) -> None:
    for name, kind in b.describe(frame)["columns"].items():
        if chosen:
            continue
        text = kind == "text" and base.holds_dates(frame[name].dropna().iloc[:LOOKED_AT])
        if text or kind in ("time", "duration"):
            raise ValueError(
                f"columns: column {name!r} holds dates or times, which no model takes as they are. Leave it "
                "out (ignore), order the rows by it (parts.time), or make numbers of it (year, month, "
                "weekday); columns=[...] with its name takes it as it is"
            )


def _lazy_rows(files: list[TableFile], columns: list[str]) -> Any:
    from ensdistill.data.parquet import ParquetSamples

    parts = []
    for file in files:
        samples = ParquetSamples([file.path], columns)
        samples.content_keys = sample_hashes(samples, workers=default_workers(samples))
        parts.append(samples)
    return parts[0] if len(parts) == 1 else Joined(tuple(parts))


def _keys(samples: Any) -> np.ndarray:
    keys = getattr(samples, "content_keys", None)
    return sample_hashes(samples) if keys is None else keys


def _times(column: Any, argument: str, missing: np.ndarray) -> np.ndarray:
    """Numbers, or times in UTC, that order the rows."""
    import pandas as pd

    base.numbered(column.tolist(), argument, missing)
    if pd.api.types.is_numeric_dtype(column):
        return np.asarray(column)
    try:
        return np.asarray(pd.to_datetime(column, format="ISO8601", utc=True).dt.tz_localize(None))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{argument}: expected numbers, or times such as 2020-12-31 or 2020-12-31T23:59:00; got "
            f"{column.iloc[0]!r}"
        ) from error
