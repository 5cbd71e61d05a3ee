"""Columns that are no inputs: the label, the id, the weight, and those that divide the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdistill.data import batches as b
from ensdistill.data.partition import DRAWN, PARTS, POOL, Partition, Whole
from ensdistill.data.rows import BadRows, Rows, as_weights
from ensdistill.data.sources.target import Target
from ensdistill.data.table_files import MISSING, NONE, TableFile
from ensdistill.data.tasks import known_rows, unlabelled_like
from ensdistill.data.uids import given_uids

DIVIDING = ("group", "time", "column")


def roles_of(
    parts: Partition, *, target: str | Sequence[str] | None = None, **columns: str | None
) -> dict[str, str]:
    """Role -> column, of those that are given: ``target`` (``target 1`` and so on for further columns of it),
    ``id``, ``weight``, and the columns of ``parts``."""
    targets = [] if target is None else [target] if isinstance(target, str) else list(target)
    numbered = {f"target {i}" if i else "target": name for i, name in enumerate(targets)}
    roles = numbered | columns | {name: getattr(parts, name) for name in DIVIDING}
    return {role: name for role, name in roles.items() if name is not None}


def setting(role: str) -> str:
    """The setting that names a role's column."""
    return f"parts.{role}" if role in DIVIDING else role.partition(" ")[0]


def read_roles(
    file: TableFile,
    inputs: Sequence[str],
    roles: dict[str, str],
    part: int,
    *,
    unlabelled: Sequence[str] | None = None,
    missing: Sequence[str] = MISSING,
    text: Sequence[str] = (),
    texts: bool = True,
) -> Any:
    """A frame of the inputs, and of the columns that have a role.

    Parameters
    ----------
    file : TableFile
    inputs : sequence of str
    roles : dict
        Role -> column. A pool needs no target, and no column of parts.
    part : int
        The part that the whole file stands for.
    unlabelled : sequence of str, optional
        Texts in the target column that stand for an unknown label.
    missing : sequence of str
        Fields of a text table's inputs that hold no value.
    text : sequence of str
        Inputs that stay strings, even where all look like numbers.
    texts : bool
        Whether the target holds classes or tags, in which ``NA`` may be a word; columns of 0 and 1, and of
        numbers, have gaps like inputs.

    Raises
    ------
    ValueError
        A column is not there, or the target holds a word that may be a class or stand for an unknown label.
    """
    target = roles["target"]
    targets = [name for role, name in roles.items() if setting(role) == "target"]
    wanted = {
        r: n for r, n in roles.items() if not (part == POOL and setting(r) in ("target", "parts.column"))
    }
    for role, name in wanted.items():
        file.column(name, setting(role))
    frame = file.read(
        list(dict.fromkeys([*inputs, *wanted.values()])),
        verbatim=targets if texts else [],
        missing=missing,
        text=text,
    )
    if part == POOL:
        return frame.assign(**dict.fromkeys(targets))
    if not texts or frame[target].map(lambda value: isinstance(value, (list, np.ndarray))).any():
        return frame
    column = frame[target]
    words = column.isin([*MISSING[1:], NONE, *(unlabelled or ())]) & (file.kind == "CSV")
    unknown = column.isin(unlabelled or ())
    if words.any() and (numbers := _as_numbers(column[~words])) is not None:
        return frame.assign(**{target: numbers.reindex(column.index)})
    if words.any() and unlabelled is None:
        rows = np.flatnonzero(words)
        word = column.iloc[rows[0]]
        raise BadRows(
            f"target: column {target!r} holds {word!r} in row {rows[0]} ({len(rows)} such rows), which may "
            f"be a class, or an unknown label. If it is unknown, give --data.unlabelled '[{word}]' on the "
            f"command line, or unlabelled: [{word}] in YAML; if it is a class, --data.unlabelled '[]', or "
            "unlabelled: []",
            rows,
        )
    return frame.assign(**{target: column.mask(unknown)}) if unknown.any() else frame


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
                    untyped = types[other][name] in ("boolean", "integer")
                    like = empty if untyped else empty.astype(frames[other][name].dtype)
                    frames[one] = frames[one].assign(**{name: like})
                    break
            else:
                if {types[i][name], types[0][name]} != {"integer", "float"}:
                    raise ValueError(
                        f"columns: {name!r} holds {types[0][name]} in {names[0]}, and {types[i][name]} in "
                        f"{names[i]}: make them alike"
                    )
    return pd.concat(frames, ignore_index=True)


def whole_of(
    samples: Any,
    frame: Any,
    roles: dict[str, str],
    by_file: np.ndarray,
    *,
    target: Target,
    uids: np.ndarray,
) -> Whole:
    """All rows of a data set.

    Parameters
    ----------
    samples : Samples
        The inputs.
    frame : pandas frame
        The columns that have a role.
    roles : dict
        Role -> column.
    by_file : ndarray [N], int8
        The part that the file of each row stands for.
    target : Target
        How the target's columns become labels.
    uids : ndarray [N], int64
        Where no column has this role.

    Raises
    ------
    ValueError, BadRows
        A column does not hold what its role needs; names it, and the row.
    """
    columns = {role: frame[name] for role, name in roles.items()}
    gaps = {role: column.isna().to_numpy() for role, column in columns.items()}
    named = {role: f"{setting(role)}: column {name!r}" for role, name in roles.items()}
    given = by_file
    if "column" in roles:
        part_of = _parts(columns["column"].tolist(), named["column"], gaps["column"])
        given = np.where(by_file == DRAWN, part_of, by_file)
    judged = given != POOL
    known, classes, values = target.labels(frame[judged], named["target"])
    labels = unlabelled_like(np.resize(known, (len(frame), *known.shape[1:])))
    labels[judged] = known
    weights = groups = times = None
    if "id" in roles:
        uids = given_uids(columns["id"], len(frame), named["id"])
    if "weight" in roles:
        weights = as_weights(named["weight"], columns["weight"].to_numpy(), len(frame))
        counted = weights[known_rows(labels)]
        if not counted.any():
            raise ValueError(
                f"{named['weight']}: expected a number above 0 in some row with a label; all "
                f"{len(counted)} are 0"
            )
    if "group" in roles:
        groups = _numbered(columns["group"].tolist(), named["group"], gaps["group"])
    if "time" in roles:
        times = _times(columns["time"], named["time"], gaps["time"])
    rows = Rows(samples, uids, labels, weights, groups)
    return Whole(rows, classes, values, times, None if (given == DRAWN).all() else given)


def _no_gaps(argument: str, missing: np.ndarray) -> None:
    if missing.any():
        rows = np.flatnonzero(missing)
        raise BadRows(
            f"{argument}: expected a value in each row; row {rows[0]} has none ({len(rows)} such rows)", rows
        )


def _numbered(values: Sequence[Any], argument: str, missing: np.ndarray) -> np.ndarray:
    """int64 [N]: equal numbers for equal values."""
    _no_gaps(argument, missing)
    number: dict[Any, int] = {}
    return np.array([number.setdefault(value, len(number)) for value in values], np.int64)


def _parts(values: Sequence[Any], argument: str, missing: np.ndarray) -> np.ndarray:
    """int8 [N]: the parts that a column names, ``DRAWN`` where it names none."""
    names = [None if gap else str(value).strip().lower() for value, gap in zip(values, missing, strict=True)]
    bad = np.array(
        [row for row, name in enumerate(names) if name is not None and name not in PARTS], np.int64
    )
    if len(bad):
        raise BadRows(
            f"{argument}: expected {', '.join(PARTS)} or an empty field in each row; row {bad[0]} has "
            f"{values[bad[0]]!r} ({len(bad)} such rows)",
            bad,
        )
    return np.array([DRAWN if name is None else PARTS[name] for name in names], np.int8)


def _times(column: Any, argument: str, missing: np.ndarray) -> np.ndarray:
    """Numbers, or times in UTC, that order the rows."""
    import pandas as pd

    _no_gaps(argument, missing)
    if pd.api.types.is_numeric_dtype(column):
        return np.asarray(column)
    try:
        return np.asarray(pd.to_datetime(column, format="ISO8601", utc=True).dt.tz_localize(None))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{argument}: expected numbers, or times such as 2020-12-31 or 2020-12-31T23:59:00; got "
            f"{column.iloc[0]!r}"
        ) from error
