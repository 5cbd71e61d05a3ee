"""MUNGE: attributes exchanged with the nearest neighbour."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.common.scalars import plain_fields
from ensdistill.data.transfer.base import check_rows, constrained, imported
from ensdistill.data.transfer.columns import find_columns
from ensdistill.data.transfer.encoding import encoded
from ensdistill.data.transfer.neighbours import nearest_different
from ensdistill.data.transfer.tables import as_table
from ensdistill.data.transfer.values import Part

_BLOCK = 2**22  # numbers drawn at once, which bounds the memory


@dataclass(frozen=True)
class Munge:
    """MUNGE (Bucilua, Caruana and Niculescu-Mizil, 2006, "Model Compression"): attributes exchanged with the
    nearest neighbour.

    Passes over the base; with ``probability`` a row's attribute a is replaced. A continuous one is drawn from
    a normal distribution around its nearest neighbour's attribute b, of standard deviation |a - b| /
    ``variance``, and clipped to the range that the attribute has in the base. One of whole numbers is rounded
    then. Every other attribute (strings, categories, booleans, times, few whole numbers) becomes b, and so
    does one of which a or b is missing. The columns of a one-hot code are exchanged together. The neighbour
    is the nearest row that differs, as :func:`~ensdistill.data.transfer.encoding.encoded` measures it.

    Parameters
    ----------
    rows : int
    probability : float
        In (0, 1].
    variance : float
        The paper's s, a divisor: larger means closer to a plain exchange.
    categorical, integers : list of int or str
        Columns of codes without an order, and of whole numbers: positions in an array [N, D], names in a
        frame.
    one_hot : list of list
        Columns of each one-hot code.
    detect : bool
        Whether the kinds of other columns are also found from their values, as
        :func:`~ensdistill.data.transfer.columns.find_columns` describes, or from their types alone.
    constraint : callable or str, optional
        A function, or its import path, from a batch to bool [N], True where a row is right: other rows are
        drawn again. Or to the same rows, repaired.
    standardise : bool, optional
        Whether the neighbour is the nearest in standardised numbers; by default, except for an array of
        nothing but continuous numbers.

    Examples
    --------
    >>> base = np.array([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]], np.float32)
    >>> Munge(rows=4, probability=1.0, variance=1e9).make(base, np.random.default_rng(0)).round().tolist()
    [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    """

    rows: int
    probability: float = 0.3
    variance: float = 1.0
    categorical: Sequence[int | str] = ()
    integers: Sequence[int | str] = ()
    one_hot: Sequence[Sequence[int | str]] = ()
    detect: bool = True
    constraint: Any = None
    standardise: bool | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_rows("munge", self.rows)
        object.__setattr__(self, "constraint", imported("munge", self.constraint))
        if not (0 < self.probability <= 1) or not (0 < self.variance < np.inf):
            raise ValueError(
                f"munge: expected probability in (0, 1] and a positive variance; got {self.probability} and "
                f"{self.variance}"
            )

    def make(self, base: Any, generator: np.random.Generator) -> Any:
        """``rows`` rows like those of ``base``, in a container of its kind.

        Raises
        ------
        TypeError, ValueError
            The base is no table and no images of one size, has fewer than 2 different rows, or does not have
            the stated columns; or rows violate the constraint after 100 draws.
        """
        table = as_table("munge", base)
        if len(table) < 2:
            raise ValueError(f"munge: expected at least 2 rows to find neighbours among; got {len(table)}")
        columns = find_columns("munge", table, self)
        try:
            neighbour = nearest_different(encoded(table, columns, self.standardise))
        except ValueError as error:
            raise ValueError(f"munge: {error}") from error
        low, high = table.span()

        def parts(own: np.ndarray, other: np.ndarray) -> Iterator[Part]:
            for part, noise, uniform in _draws(generator, len(own), len(table.names)):
                a, b = table.numbers(own[part]), table.numbers(other[part])
                drawn = b + noise * (np.abs(a - b) / np.float32(self.variance))
                taken = uniform < self.probability
                for group in columns.groups:
                    taken[:, group] = taken[:, group[:1]]
                origin = np.where(taken, other[part, None], own[part, None])
                yield part, origin, np.clip(np.where(taken, drawn, a), low, high)

        def build(positions: np.ndarray) -> Any:
            own = positions % len(table)
            other = neighbour[own]
            return table.build(len(own), parts(own, other), columns.numeric, columns.whole)

        return constrained("munge", self.rows, self.constraint, build)


def _draws(
    generator: np.random.Generator, rows: int, width: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Normal and uniform numbers for each attribute, float32 [M, D], some rows at a time.

    The numbers are those of ``standard_normal((rows, width))`` and ``random((rows, width))`` after it. A copy
    of the generator, moved past the normal numbers, draws the uniform ones, so no block has to be kept.
    """
    step = max(1, _BLOCK // max(1, width))
    parts = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    later = copy.deepcopy(generator)
    for part in parts:
        later.standard_normal((part.stop - part.start, width), np.float32)
    for part in parts:
        shape = (part.stop - part.start, width)
        yield part, generator.standard_normal(shape, np.float32), later.random(shape, np.float32)
    generator.bit_generator.state = later.bit_generator.state
