"""Exchange: attributes of one of the nearest neighbours, and noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.common.random import random_generator
from ensdistill.common.scalars import plain_fields
from ensdistill.data import batches as b
from ensdistill.data.transfer.base import check_rows, constrained, imported
from ensdistill.data.transfer.columns import Columns, find_columns
from ensdistill.data.transfer.encoding import encoded
from ensdistill.data.transfer.neighbours import EXACT_ROWS, nearest_several
from ensdistill.data.transfer.noise import Noise
from ensdistill.data.transfer.tables import Table, as_table
from ensdistill.data.transfer.values import Part

_BLOCK = 2**20  # numbers made at once: they stay in a processor's cache


@dataclass(frozen=True)
class Exchange:
    """Attributes exchanged with one of the nearest neighbours, and then noise.

    Passes over the base in random order. Each row gets one of its ``neighbours`` nearest rows, drawn at
    random. Each attribute is that row's with ``probability``; the columns of a one-hot code are exchanged
    together, and a missing value is exchanged like any other. Then each attribute that has an order gets
    normal noise of ``noise`` standard deviations (the interquartile range / 1.349, which outliers do not
    move), and is clipped to the range that it has in the base. Whole numbers stay whole; those of few
    different values become the nearest of these. A value that at least half of the rows share, such as the
    zero of a sparse attribute, gets no noise. Attributes without an order (strings, categories, booleans,
    one-hot codes) take the value of any row of the base with the probability ``resample``.

    It makes broader samples than :class:`Munge`, which keeps to the nearest neighbour: see
    ``docs/transfer.md``.

    Parameters
    ----------
    rows : int
    neighbours : int
        How many of the nearest rows a row exchanges with, at least 1; all others where there are fewer. They
        are the nearest ones as :func:`~ensdistill.data.transfer.encoding.encoded` measures it. Of a base of
        more than 50 000 rows, so many are drawn.
    probability : float
        In [0, 1].
    noise : float
        At least 0.
    resample : float
        In [0, 1].
    categorical, integers, one_hot, detect, constraint
        As for :class:`~ensdistill.data.transfer.Munge`.
    standardise : bool, optional
        Whether neighbours are the nearest in standardised numbers; by default in tables, and not in images.

    Examples
    --------
    >>> base = np.array([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]], np.float32)
    >>> made = Exchange(rows=100, neighbours=1, probability=0.5).make(base, np.random.default_rng(0))
    >>> sorted(map(tuple, np.unique(made, axis=0).tolist()))  # no row but 2 has a 9: no neighbour has one
    [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (1.0, 9.0), (9.0, 1.0), (9.0, 9.0)]
    """

    rows: int
    neighbours: int = 10
    probability: float = 0.3
    noise: float = 0.0
    resample: float = 0.0
    categorical: Sequence[int | str] = ()
    integers: Sequence[int | str] = ()
    one_hot: Sequence[Sequence[int | str]] = ()
    detect: bool = True
    constraint: Any = None
    standardise: bool | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_rows("exchange", self.rows)
        object.__setattr__(self, "constraint", imported("exchange", self.constraint))
        if self.neighbours < 1:
            raise ValueError(f"exchange: neighbours: expected at least 1; got {self.neighbours}")
        for name, most in (("probability", 1), ("resample", 1), ("noise", float("inf"))):
            value = getattr(self, name)
            if not (0 <= value <= most) or value == float("inf"):
                expected = "a number in [0, 1]" if most == 1 else "a finite number of at least 0"
                raise ValueError(f"exchange: {name}: expected {expected}; got {value}")
        if not (self.probability or self.noise or self.resample):
            raise ValueError(
                "exchange: expected a probability, noise or resample above 0; all are 0, so that every row "
                "would be a copy"
            )

    def make(self, base: Any, generator: np.random.Generator) -> Any:
        """``rows`` rows like those of ``base``, in a container of its kind.

        Raises
        ------
        TypeError, ValueError
            The base is no table and no images of one size, has fewer than 2 different rows, or does not have
            the stated columns; or rows violate the constraint after 100 draws.
        """
        return self.fit(base).make(generator)

    def fit(self, base: Any) -> FittedExchange:
        """The search for neighbours, done once for many calls of ``make(generator)``."""
        count = b.kind_of(base, "exchange").count(base)
        if count < 2:
            raise ValueError(f"exchange: expected at least 2 rows to find neighbours among; got {count}")
        if count > EXACT_ROWS:
            chosen = random_generator("exchange base", count).choice(count, EXACT_ROWS, replace=False)
            base = b.take(base, np.sort(chosen))
        table = as_table("exchange", base)
        columns = find_columns("exchange", table, self)
        neighbours = np.zeros((len(table), 1), np.int64)
        if self.probability:
            standardise = table.tabular if self.standardise is None else self.standardise
            try:
                neighbours = nearest_several(encoded(table, columns, standardise), self.neighbours)
            except ValueError as error:
                raise ValueError(f"exchange: {error}") from error
        return FittedExchange(self, table, columns, neighbours, Noise(table, columns, self.noise))


@dataclass(frozen=True, eq=False)
class FittedExchange:
    """An :class:`Exchange` with the columns, the neighbours and the noise of its base.

    Parameters
    ----------
    settings : Exchange
    table : ArrayTable or FrameTable
    columns : Columns
    neighbours : ndarray [N, k], int64
    noise : Noise
    """

    settings: Exchange
    table: Table
    columns: Columns
    neighbours: np.ndarray
    noise: Noise

    def make(self, generator: np.random.Generator) -> Any:
        """``rows`` new rows."""
        order = generator.permutation(len(self.table))

        def build(positions: np.ndarray) -> Any:
            own = order[positions % len(order)]
            column = generator.integers(self.neighbours.shape[1], size=len(own))
            parts = self._parts(own, self.neighbours[own, column], generator)
            return self.table.build(len(own), parts, self.noise.columns, self.columns.whole)

        return constrained("exchange", self.settings.rows, self.settings.constraint, build)

    def _parts(self, own: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> Iterator[Part]:
        settings, width = self.settings, len(self.table.names)
        step = max(1, _BLOCK // max(1, width))
        for part in (slice(start, min(start + step, len(own))) for start in range(0, len(own), step)):
            shape = part.stop - part.start, width
            taken = self._together(generator.random(shape, np.float32)) < settings.probability
            origin = np.where(taken, other[part, None], own[part, None])
            if settings.resample:
                drawn = self._together(generator.random(shape, np.float32)) < settings.resample
                of_any = self._together(generator.integers(len(self.table), size=shape))
                origin = np.where(drawn & ~self.noise.ordered, of_any, origin)
            yield part, origin, self.noise(self.table.cells(origin), generator)

    def _together(self, drawn: np.ndarray) -> np.ndarray:
        """The draws of each value, equal within the columns of a one-hot code."""
        for group in self.columns.groups:
            drawn[:, group] = drawn[:, group[:1]]
        return drawn
