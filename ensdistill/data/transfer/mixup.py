"""Mixup: rows between two random rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.common.scalars import plain_fields
from ensdistill.data import batches as b
from ensdistill.data.augmentation import Augmentation, changed_variants
from ensdistill.data.transfer.base import check_rows, constrained, imported
from ensdistill.data.transfer.columns import find_columns
from ensdistill.data.transfer.tables import as_table
from ensdistill.data.transfer.values import Part

_BLOCK = 2**22  # numbers mixed at once, which bounds the memory


@dataclass(frozen=True)
class Mixup:
    """Points between random pairs of rows (Zhang et al., 2018, "mixup: Beyond Empirical Risk Minimization"),
    for their inputs alone.

    Continuous attributes are averaged, and those of whole numbers rounded then. Every other attribute
    (strings, categories, booleans, times, few whole numbers) is the first row's with a probability of that
    row's share, else the second's, and so is one of which either is missing. The columns of a one-hot code
    stay together.

    Parameters
    ----------
    rows : int
    alpha : float
        The share of the first row is drawn from Beta(alpha, alpha); 1 is uniform.
    augment : Augmentation, optional
        Pairs are then drawn among all variants of the rows.
    categorical, integers, one_hot, detect, constraint
        As for :class:`~ensdistill.data.transfer.Munge`.

    Examples
    --------
    >>> Mixup(rows=3).make(np.array([[0.0], [1.0]], np.float32), np.random.default_rng(0)).shape
    (3, 1)
    """

    rows: int
    alpha: float = 1.0
    augment: Augmentation | None = None
    categorical: Sequence[int | str] = ()
    integers: Sequence[int | str] = ()
    one_hot: Sequence[Sequence[int | str]] = ()
    detect: bool = True
    constraint: Any = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_rows("mixup", self.rows)
        object.__setattr__(self, "constraint", imported("mixup", self.constraint))
        if not (0 < self.alpha < np.inf):
            raise ValueError(f"mixup: alpha: expected a positive number; got {self.alpha}")

    def make(self, base: Any, generator: np.random.Generator) -> Any:
        """``rows`` rows like those of ``base``, in a container of its kind.

        Raises
        ------
        TypeError, ValueError
            The base is no table and no images of one size, or does not have the stated columns; or rows
            violate the constraint after 100 draws.
        """
        if self.augment is not None:
            base = b.join([base, *changed_variants(self.augment, base)])
        table = as_table("mixup", base)
        columns = find_columns("mixup", table, self)

        def parts(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> Iterator[Part]:
            width = len(table.names)
            step = max(1, _BLOCK // max(1, width))
            for start in range(0, len(first), step):
                part = slice(start, start + step)
                one, two, of_one = table.numbers(first[part]), table.numbers(second[part]), share[part, None]
                mixed = of_one * one + (1 - of_one) * two
                if columns.continuous and not np.isnan(mixed).any():
                    yield part, np.broadcast_to(first[part, None], mixed.shape), mixed
                    continue
                taken = generator.random(mixed.shape, dtype=np.float32) >= of_one
                for group in columns.groups:
                    taken[:, group] = taken[:, group[:1]]
                yield part, np.where(taken, second[part, None], first[part, None]), mixed

        def build(positions: np.ndarray) -> Any:
            first, second = generator.integers(len(table), size=(2, len(positions)))
            share = generator.beta(self.alpha, self.alpha, len(positions)).astype(np.float32)
            made = parts(first, second, share)
            return table.build(len(first), made, columns.numeric, columns.whole)

        return constrained("mixup", self.rows, self.constraint, build)
