"""A student's predictions for new rows, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensdistill.common.errors import WrongArgument
from ensdistill.data import BadRows
from ensdistill.data.incoming import Fault, Piece, Source
from ensdistill.data.incoming.base import SKIP
from ensdistill.student.serving import Predictor
from ensdistill.student.serving.base import at_thresholds, entropy_of, sigmoid, softmax

DEVIATION = "_deviation"  # of the columns of standard deviations
Progress = Callable[[int, int | None], None]
"""Of rows done, and of all rows where their number is known."""


@dataclass
class Predicted:
    """The number of rows that were predicted, and those that were left out.

    ``faults`` holds the first ones; ``skipped`` counts all.
    """

    rows: int = 0
    skipped: int = 0
    faults: list[Fault] = field(default_factory=list)


def output_names(student: Predictor, kept: list[str]) -> list[str]:
    """The columns of the output.

    Raises
    ------
    ValueError
        One that is carried has the name of another.
    """
    own = {
        "classification": ["label", *(f"p_{name}" for name in student.classes), "entropy"],
        "multilabel": ["labels", *(f"p_{name}" for name in student.classes), "entropy"],
        "regression": [*student.classes, *(f"{name}{DEVIATION}" for name in student.classes)],
    }[student.task]
    if both := [name for name in kept if name in own]:
        raise WrongArgument(
            f"--keep: the input has a column {both[0]!r}, and so has the output: rename it, leave it out "
            f"(--ignore {both[0]}), or carry one column alone (--id)"
        )
    return [*kept, *own]


def predictions(
    student: Predictor,
    source: Source,
    counted: Predicted,
    *,
    skip: bool = False,
    progress: Progress | None = None,
) -> Iterator[Any]:
    """Tables of the carried columns, ``label``, ``p_<class>``, and ``entropy`` (of the student, in nats), as
    ``pyarrow.Table``.

    Of several labels ``labels`` holds the predicted ones with commas between them. Of a regression the
    numbers have their own names, and beside them ``<name>_deviation`` where the student has variances.

    Parameters
    ----------
    student : Predictor
    source : Source
    counted : Predicted
        Gets the numbers of rows.
    skip : bool
        Whether rows that can't be read are left out, and counted, rather than an error.
    progress : callable, optional

    Raises
    ------
    ValueError
        A row can't be read (names it and its column), or there is none.
    """
    for piece in source.pieces():
        if piece.faults and not skip:
            raise ValueError(f"{piece.faults[0]}. {SKIP}")
        found, piece = _predicted(student, piece, skip)
        counted.rows += len(piece)
        counted.skipped += len(piece.faults)
        counted.faults += piece.faults[: 5 - len(counted.faults)]
        if len(piece):
            yield _table(student, found, piece.kept)
        if progress is not None:
            progress(counted.rows + counted.skipped, source.total)
    if not counted.rows + counted.skipped:
        raise ValueError("the input has no rows")
    if not counted.rows:
        raise ValueError(f"none of {counted.skipped} rows can be predicted; the first: {counted.faults[0]}")


def _predicted(student: Predictor, piece: Piece, skip: bool) -> tuple[Any, Piece]:
    """Logits of the piece, or the moments of a regression, and the piece without rows that the student
    refuses."""
    predict = student.predict_distribution if student.task == "regression" else student.predict_logits
    while len(piece):
        try:
            return predict(piece.samples), piece
        except BadRows as error:
            bad = np.unique(np.asarray(error.rows, np.int64))
            bad = bad[bad < len(piece)]
            if not len(bad):
                raise
            text = str(error).removeprefix("samples: ")
            if not skip:
                raise ValueError(
                    f"row {piece.rows[bad[0]]}: {text}; rows are counted from {piece.rows[0]}"
                ) from error
            piece = piece.without(bad, [Fault(int(piece.rows[i]), text) for i in bad])
    return np.zeros((0, len(student.classes)), np.float32), piece


def _table(student: Predictor, found: Any, kept: Any) -> Any:
    import pyarrow as pa

    columns = {} if kept is None else {name: kept[name] for name in kept.column_names}
    if student.task == "regression":
        mean, variance = found
        for place, name in enumerate(student.classes):
            columns[name] = pa.array(np.ascontiguousarray(mean[:, place]))
            if variance is not None:
                columns[f"{name}{DEVIATION}"] = pa.array(np.sqrt(variance[:, place]))
        return pa.table(columns)
    logits = np.asarray(found)
    if student.task == "multilabel":
        probabilities = sigmoid(logits)
        present = student.names_of(at_thresholds(probabilities, student.cuts))
        columns["labels"] = pa.array([", ".join(names) for names in present], pa.string())
        half = logits.astype(np.float64).reshape(-1, 1) / 2
        entropies = entropy_of(np.concatenate([-half, half], 1)).reshape(logits.shape).sum(1)
    else:
        probabilities, entropies = softmax(logits), entropy_of(logits)
        columns["label"] = pa.array(student.named(logits.argmax(1)))
    for place, name in enumerate(student.classes):
        columns[f"p_{name}"] = pa.array(np.ascontiguousarray(probabilities[:, place]))
    columns["entropy"] = pa.array(entropies)
    return pa.table(columns)
