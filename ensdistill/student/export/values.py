"""Values that flow through the graph of a table: columns one by one, or a matrix of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensdistill.student.export.graph import DOUBLE, Graph

EXACT = 2**53  # float64 holds all integers up to here


@dataclass(frozen=True)
class Column:
    """A tensor [N, 1] of float64 numbers, or of texts in which "" is a gap.

    Parameters
    ----------
    name : str
        For messages.
    tensor : str
    texts : bool
    gap : str, optional
        The text that stands for a gap once an imputer has filled it; no node does that.
    empty : str, optional
        The text that stands for an empty text, which is no gap.
    """

    name: str
    tensor: str
    texts: bool
    gap: str | None = None
    empty: str | None = None


@dataclass(frozen=True)
class Values:
    """The values between steps of preprocessing: columns, or one float64 tensor [N, width]."""

    columns: tuple[Column, ...] = ()
    matrix: str | None = None
    width: int = 0

    @staticmethod
    def of(columns: Sequence[Column]) -> Values:
        return Values(tuple(columns), None, len(columns))

    def numbers(self, graph: Graph, by: Any) -> str:
        """All columns as one float64 tensor [N, width]; ``by`` is the transformer that needs numbers.

        Raises
        ------
        ValueError
            One holds texts.
        """
        if self.matrix is not None:
            return self.matrix
        for column in self.columns:
            if column.texts:
                raise ValueError(
                    f"preprocess: {type(by).__name__} takes numbers; column {column.name!r} holds texts"
                )
        return graph.join([column.tensor for column in self.columns])

    def column(self, graph: Graph, index: int) -> Column:
        """One of the columns."""
        if self.matrix is None:
            return self.columns[index]
        if self.width == 1:
            return Column("0", self.matrix, False)
        return Column(str(index), graph.op("Gather", self.matrix, graph.constant([index]), axis=1), False)

    def take(self, graph: Graph, indices: Sequence[int]) -> Values:
        """The columns at these positions, in this order."""
        if self.matrix is None:
            return Values.of([self.columns[i] for i in indices])
        if list(indices) == list(range(self.width)):
            return self
        tensor = graph.op("Gather", self.matrix, graph.constant(list(indices), np.int64), axis=1)
        return Values((), tensor, len(indices))


def numbers(tensor: str, width: int) -> Values:
    """Numbers [N, width], a float64 tensor."""
    return Values((), tensor, width)


def side_by_side(graph: Graph, parts: Sequence[Values], by: Any) -> Values:
    """The columns of all parts."""
    if len(parts) == 1:
        return parts[0]
    if all(part.matrix is None for part in parts):
        return Values.of([column for part in parts for column in part.columns])
    tensors = [part.numbers(graph, by) for part in parts]
    return numbers(graph.join(tensors), sum(part.width for part in parts))


def filled(graph: Graph, column: Column, value: Any) -> Column:
    """A column whose gaps are filled: by a text, or by a number."""
    if column.texts:
        return replace(column, gap=str(value)) if column.gap is None else column
    missing = graph.op("IsNaN", column.tensor)
    tensor = graph.op("Where", missing, graph.constant(float(value), np.float64), column.tensor)
    return replace(column, tensor=tensor)


def as_double(graph: Graph, tensor: str) -> str:
    return graph.cast(tensor, DOUBLE)
