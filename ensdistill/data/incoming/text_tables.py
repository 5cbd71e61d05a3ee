"""CSV, TSV and JSON lines, from a file or a stream, a piece at a time."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from ensdistill.data.incoming.base import SKIP, Fault, Piece, Wanted
from ensdistill.data.incoming.names import check_table
from ensdistill.data.incoming.typed import typed
from ensdistill.data.table_files import MISSING, check_header, no_rows

SKIPPED = re.compile(r"Skipping line (\d+): (.*)")
MALFORMED = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")
TEXTS = ("text", "category", "boolean")


class CsvRows:
    """Rows of a CSV or TSV table.

    Parameters
    ----------
    file : binary stream
    name : str
        Of the input, for messages.
    separator : str
    types : mapping of str to str
        The inputs and their types.
    wanted : Wanted

    Raises
    ------
    ValueError
        It is empty, its header is none, or its columns are unlike those of the training.
    """

    total: int | None = None

    def __init__(
        self, file: BinaryIO, name: str, separator: str, types: dict[str, str], wanted: Wanted
    ) -> None:
        self.name, self.separator, self.types, self.wanted = name, separator, types, wanted
        self._text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            self.names = next(csv.reader(self._text, delimiter=separator))
        except StopIteration:
            raise ValueError(f"{name} is empty") from None
        except (csv.Error, UnicodeError) as error:
            raise ValueError(f"{name} is not CSV that can be read ({error})") from error
        check_header(self.names, separator, name)
        self.unused = check_table(wanted, list(types), self.names)
        """Columns that are neither inputs nor carried to the output."""

    def pieces(self) -> Iterator[Piece]:
        import pandas as pd

        carried = self.wanted.carried(self.names)
        as_text = [n for n in self.names if self.types.get(n, "text") in TEXTS or n in carried]
        missing = self.wanted.data.get("missing")
        fields = list(MISSING) if missing is None else ["", *missing]
        gaps = {n: fields if n in self.types and n not in carried else [""] for n in self.names}
        old = {"float_precision": "round_trip"} if pd.__version__ < "3" else {}
        skipped: list[int] = []
        done = 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", pd.errors.ParserWarning)
            try:
                for frame in pd.read_csv(
                    self._text,
                    sep=self.separator,
                    header=None,
                    names=self.names,
                    index_col=False,
                    low_memory=False,
                    keep_default_na=False,
                    na_values=gaps,
                    dtype=dict.fromkeys(as_text, str),
                    chunksize=self.wanted.rows_of(len(self.names)),
                    on_bad_lines="warn" if self.wanted.skip else "error",
                    **old,
                ):
                    faults = self._malformed(caught, skipped)
                    rows = _positions(done, len(frame), skipped)
                    done += len(frame)
                    yield self._piece(frame, rows, carried, fields, faults)
                if faults := self._malformed(caught, skipped):
                    yield Piece([], np.zeros(0, np.int64), None, faults)
            except pd.errors.EmptyDataError:
                pass
            except pd.errors.ParserError as error:
                raise ValueError(self._told(str(error))) from error
            except UnicodeError as error:
                raise ValueError(f"{self.name} is not UTF-8 after row {done} ({error})") from error
        if not done + len(skipped):
            raise ValueError(no_rows(self.name, self.names))

    def _piece(
        self, frame: Any, rows: np.ndarray, carried: list[str], fields: list[str], faults: list[Fault]
    ) -> Piece:
        import pandas as pd
        import pyarrow as pa

        kept = None
        if carried:
            kept = pa.table({n: pa.array(frame[n], pa.string(), from_pandas=True) for n in carried})
            # A column that is carried was read as it stands, so an input among them gets its gaps now.
            frame = frame.assign(
                **{n: frame[n].mask(frame[n].isin(fields)) for n in carried if n in self.types}
            )
        columns, wrong = typed(frame, self.types, parse=True)
        piece = Piece(pd.DataFrame(columns, frame.index), rows, kept, faults)
        if not wrong:
            return piece
        bad = np.array([place for place, _ in wrong], np.int64)
        return piece.without(bad, [Fault(int(rows[place]), text) for place, text in wrong])

    def _malformed(self, caught: list[Any], skipped: list[int]) -> list[Fault]:
        """The lines that pandas left out since the last call; their positions are added to ``skipped``."""
        faults = []
        for warning in caught:
            found = SKIPPED.findall(str(warning.message))
            if not found:
                raise ValueError(
                    f"{self.name}: expected {len(self.names)} fields in each row, as in the first; row 0 has "
                    "more"
                )
            for line, text in found:
                skipped.append(int(line) - 1)
                faults.append(Fault(int(line) - 1, text))
        caught.clear()
        skipped.sort()
        return faults

    def _told(self, error: str) -> str:
        if found := MALFORMED.search(error):
            fields, line, saw = map(int, found.groups())
            return f"{self.name}: row {line - 1}: expected {fields} fields; got {saw}. {SKIP}"
        return f"{self.name} is not CSV that can be read ({error.strip()})"


def _positions(done: int, count: int, skipped: list[int]) -> np.ndarray:
    """Positions in the input of the readable rows ``done .. done + count - 1``, int64."""
    readable = np.arange(done, done + count)
    lost = np.array(skipped, np.int64)
    positions: np.ndarray = readable + np.searchsorted(lost - np.arange(len(lost)), readable, side="right")
    return positions


class JsonRows:
    """Rows of JSON lines: an object each. A key that a line has not is a missing value.

    See :class:`CsvRows`; the columns are those of the first piece.
    """

    total: int | None = None

    def __init__(self, file: BinaryIO, name: str, types: dict[str, str], wanted: Wanted) -> None:
        self.name, self.types, self.wanted = name, types, wanted
        self._text = io.TextIOWrapper(file, encoding="utf-8-sig")
        self._first = self._read(0)
        if self._first is None:
            raise ValueError(f"{name} is empty")
        frame, _, faults = self._first
        if not len(frame.columns) and faults:
            raise ValueError(f"{name}: {faults[0]}")
        self.names = [str(column) for column in frame.columns]
        self.unused = check_table(wanted, list(types), self.names)

    def pieces(self) -> Iterator[Piece]:
        import pandas as pd
        import pyarrow as pa

        read, start = self._first, 0
        carried = self.wanted.carried(self.names)
        while read is not None:
            frame, rows, faults = read
            start += len(rows) + len(faults)
            added = [name for name in frame.columns if name not in self.names]
            if added and self.wanted.keep:
                raise ValueError(
                    f"{self.name}: {added[0]!r} is first found after row {rows[0] - 1}, too late to be "
                    f"carried to the output: --ignore {added[0]}, or a larger --batch"
                )
            check_table(self.wanted, list(self.types), [*self.names, *added])
            frame = frame.reindex(columns=self.names)
            kept = pa.table({n: _carried(frame[n]) for n in carried}) if carried else None
            columns, wrong = typed(frame, self.types, parse=False)
            piece = Piece(pd.DataFrame(columns, frame.index), rows, kept, faults)
            if wrong:
                bad = np.array([place for place, _ in wrong], np.int64)
                piece = piece.without(bad, [Fault(int(rows[place]), text) for place, text in wrong])
            yield piece
            read = self._read(start)

    def _read(self, start: int) -> Any:
        """The next lines as (frame, positions, faults); None at the end."""
        import pandas as pd

        lines = [line for line in islice(self._text, self.wanted.rows_of(len(self.types))) if line.strip()]
        if not lines:
            return None
        old = {"convert_dates": False} if pd.__version__ < "3" else {}
        options = {"lines": True, "dtype": False, "precise_float": True, **old}
        if all(line.lstrip().startswith("{") for line in lines):
            with suppress(ValueError):
                frame = pd.read_json(io.StringIO("".join(lines)), **options)
                if len(frame) == len(lines):
                    return frame, np.arange(start, start + len(lines)), []
        faults = [Fault(start + i, text) for i, line in enumerate(lines) if (text := _fault(line))]
        if not faults:
            raise ValueError(f"{self.name} is not JSON lines that can be read, after row {start}")
        if not self.wanted.skip:
            raise ValueError(f"{self.name}: {faults[0]}. {SKIP}")
        lost = {fault.row - start for fault in faults}
        good = [i for i in range(len(lines)) if i not in lost]
        text = "".join(lines[i] for i in good)
        frame = pd.read_json(io.StringIO(text), **options) if good else pd.DataFrame()
        return frame, np.array(good, np.int64) + start, faults


def _carried(column: Any) -> Any:
    """A column as Arrow array; values of several types as the JSON that they were."""
    import pyarrow as pa

    try:
        return pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        gaps = column.isna()
        texts = [v if isinstance(v, str) else json.dumps(v) for v in column.tolist()]
        return pa.array([None if gap else text for text, gap in zip(texts, gaps, strict=True)], pa.string())


def _fault(line: str) -> str:
    """The fault of a line that is no JSON object; empty for one that is."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error})"
    return "" if isinstance(value, dict) else f"expected an object, {{...}}; got {line.strip()[:40]}"
