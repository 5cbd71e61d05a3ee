"""The columns of a table, and the part that each can play: target, input, id, or none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ensdistill.common.errors import WrongArgument
from ensdistill.data import batches
from ensdistill.data.classes import MOST_NUMBERS, ROWS_EACH
from ensdistill.data.sources.table import DIFFERENT, FEW, LOOKED_AT, holds_dates

TARGETS = ("target", "label", "class", "y")
_ID = re.compile(
    r"(.*[ _.\-])?(id|uid|uuid|guid|key|index|idx|row|rowid|nr|no|number)|.*[a-z](Id|ID|Key|Nr|No)", re.ASCII
)
_THING = re.compile(r"(.*[ _.\-])?(id|uid|uuid|guid|ID)|.*[a-z](Id|ID)", re.ASCII)
MOST_INTEGERS = 20  # different integers that can be classes
WORDS, CHARACTERS = 5, 25  # of a text on average, above which it is prose and no category
CLASSES = ("text", "category", "boolean", "integer")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    name : str
    kind : str
        ``integer``, ``float``, ``boolean``, ``text``, ``category``, ``time``, ``duration``, or ``other`` for
        lists, structures and values of several kinds.
    rows, known, different : int
        All rows, those with a value, and the different values.
    is_date, is_prose, is_whole : bool
        Texts that are dates; texts of several words; floats that are whole numbers (integers with gaps).
    length : float
        Characters of a text, on average.
    """

    name: str
    kind: str
    rows: int
    known: int
    different: int
    is_date: bool = False
    is_prose: bool = False
    is_whole: bool = False
    length: float = 0.0

    @property
    def is_id(self) -> bool:
        """Whether the values number or name the rows."""
        named = _ID.fullmatch(self.name) or _ID.fullmatch(self.name.lower())
        return bool(named) and self.kind in ("integer", "text") and self.different == self.rows

    @property
    def may_group(self) -> bool:
        """Whether the values may name things that have several rows each, such as patients."""
        named = _THING.fullmatch(self.name) is not None and self.kind in ("integer", "text")
        return named and MOST_INTEGERS < self.different < self.known

    @property
    def has_rare_texts(self) -> bool:
        """Whether so many categories have so few rows each that little can be learned from them."""
        return self.kind in ("text", "category") and MOST_NUMBERS < self.different > self.known / ROWS_EACH

    @property
    def no_input(self) -> str:
        """Why no model can learn from the column; empty where it may."""
        if self.kind == "other":
            return "lists, structures or values of several types"
        if self.is_date or self.kind in ("time", "duration"):
            return "dates or times, which no model takes; parts.time orders the rows by them"
        if not self.known:
            return "empty"
        if not self.name and self.different == self.rows:
            return "numbers the rows, and has no name"
        if self.is_id:
            return "numbers or names the rows"
        if self.kind == "text" and self.known > FEW and self.different > DIFFERENT * self.known:
            return "texts that are nearly all different, as names are" if not self.is_prose else ""
        return ""

    @property
    def can_be_target(self) -> bool:
        """Whether the values can be classes without a doubt."""
        most = MOST_INTEGERS if self.kind in ("integer", "float") else MOST_NUMBERS
        right = self.kind in CLASSES or self.is_whole
        return (
            right
            and not self.no_input
            and not self.is_prose
            and 2 <= self.different <= min(most, self.known // 3)
        )


def columns_of(frame: Any) -> list[Column]:
    """The columns of a pandas frame."""
    return [_column(frame[[name]], str(name)) for name in frame.columns]


def _column(frame: Any, name: str) -> Column:
    series = frame[name]
    rows, known = len(series), int(series.notna().sum())
    try:
        kind = batches.describe(frame)["columns"][name]
    except TypeError:
        return Column(name, "other", rows, known, 0)
    present = series.dropna()
    column = Column(name, kind, rows, known, int(present.nunique()))
    if kind == "text" and known:
        looked_at = present.iloc[: 10 * LOOKED_AT]
        return Column(
            name,
            kind,
            rows,
            known,
            column.different,
            is_date=holds_dates(present.iloc[:LOOKED_AT]),
            is_prose=_is_prose(looked_at, column.different / known),
            length=float(looked_at.str.len().mean()),
        )
    whole = kind == "float" and bool(known) and bool((present == present.round()).all())
    return Column(name, kind, rows, known, column.different, is_whole=whole)


def _is_prose(texts: Any, different: float) -> bool:
    words, characters = texts.str.split().str.len().mean(), texts.str.len().mean()
    return bool(different > 0.5 and words >= WORDS and characters >= CHARACTERS)


def choose_target(columns: list[Column], file: str) -> str:
    """The column of the labels, where there is no doubt about it.

    Raises
    ------
    ValueError
        Several columns can be it, or none.
    """
    named = [column.name for column in columns if column.name.lower() in TARGETS]
    if len(named) == 1:
        return named[0]
    can = [column for column in columns if column.can_be_target and (not named or column.name in named)]
    if len(can) == 1:
        return can[0].name
    if can:
        shown = ", ".join(f"{column.name} ({column.different} classes)" for column in can[:8])
        raise WrongArgument(
            f"--target: expected the column of the labels, because several columns of {file} can be it: "
            f"{shown}"
        )
    raise WrongArgument(
        f"--target: expected the column of the labels, because no column of {file} is called "
        f"{', '.join(TARGETS)} or is certainly one; its columns: {', '.join(c.name for c in columns[:10])}"
    )
