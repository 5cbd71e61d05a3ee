"""Transfer sets: the inputs on which the student is trained to match the ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from ensdistill.common.random import random_generator
from ensdistill.common.scalars import plain_fields
from ensdistill.data import UNLABELLED, Rows, Split, check_finite
from ensdistill.data.augmentation import Augmentation


@runtime_checkable
class Synthetic(Protocol):
    """A generator of inputs that resemble the given ones; a config names its class in ``synthetic``."""

    rows: int

    def make(self, base: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """New inputs [rows, ...] of the dtype of ``base`` [N, ...]."""
        ...


@dataclass(frozen=True)
class Munge:
    """MUNGE (Bucilua, Caruana and Niculescu-Mizil, 2006, "Model Compression"): attributes exchanged with the
    nearest neighbour.

    Passes over the base; with ``probability`` a row's attribute a is drawn from a normal distribution around
    its nearest neighbour's attribute b, of standard deviation |a - b| / ``variance``, and clipped to the
    range that the attribute has in the base.

    Parameters
    ----------
    rows : int
    probability : float
        In (0, 1].
    variance : float
        The paper's s, a divisor: larger means closer to a plain exchange.

    Examples
    --------
    >>> base = np.array([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]], np.float32)
    >>> Munge(rows=4, probability=1.0, variance=1e9).make(base, np.random.default_rng(0)).round().tolist()
    [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    """

    rows: int
    probability: float = 0.3
    variance: float = 1.0

    def __post_init__(self) -> None:
        plain_fields(self)
        _check_rows("munge", self.rows)
        if not (0 < self.probability <= 1) or not (0 < self.variance < np.inf):
            raise ValueError(
                f"munge: expected probability in (0, 1] and a positive variance; got {self.probability} and "
                f"{self.variance}"
            )

    def make(self, base: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        from sklearn.neighbors import NearestNeighbors

        _check_continuous("munge", base)
        if len(base) < 2:
            raise ValueError(f"munge: expected at least 2 rows to find neighbours among; got {len(base)}")
        flat = base.reshape(len(base), -1)
        # The second nearest of all rows: the nearest is the row itself, or a duplicate, which has the same
        # attributes.
        neighbour = NearestNeighbors(n_neighbors=2).fit(flat).kneighbors(flat, return_distance=False)[:, 1]
        which = np.arange(self.rows) % len(flat)
        a, b = flat[which], flat[neighbour[which]]
        noise = generator.standard_normal(a.shape, dtype=np.float32)
        drawn = b + noise * (np.abs(a - b) / np.float32(self.variance))
        mixed = np.where(generator.random(a.shape, dtype=np.float32) < self.probability, drawn, a)
        return np.clip(mixed, flat.min(0), flat.max(0)).astype(base.dtype).reshape(self.rows, *base.shape[1:])


@dataclass(frozen=True)
class Mixup:
    """Points between random pairs of rows (Zhang et al., 2018, "mixup: Beyond Empirical Risk Minimization"),
    for their inputs alone.

    Parameters
    ----------
    rows : int
    alpha : float
        The share of the first row is drawn from Beta(alpha, alpha); 1 is uniform.
    augment : Augmentation, optional
        Pairs are then drawn among all variants of the rows.

    Examples
    --------
    >>> Mixup(rows=3).make(np.array([[0.0], [1.0]], np.float32), np.random.default_rng(0)).shape
    (3, 1)
    """

    rows: int
    alpha: float = 1.0
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        _check_rows("mixup", self.rows)
        if not (0 < self.alpha < np.inf):
            raise ValueError(f"mixup: alpha: expected a positive number; got {self.alpha}")

    def make(self, base: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if self.augment is not None:
            base = np.concatenate(self.augment.variants(base))
        _check_continuous("mixup", base)
        first, second = generator.integers(len(base), size=(2, self.rows))
        share = (
            generator.beta(self.alpha, self.alpha, self.rows)
            .astype(np.float32)
            .reshape(-1, *[1] * (base.ndim - 1))
        )
        return (share * base[first] + (1 - share) * base[second]).astype(base.dtype)


@dataclass(frozen=True)
class Augmented:
    """Variants of the rows by an augmentation, each at most once; drawn at random where fewer are wanted than
    there are.

    Parameters
    ----------
    augment : Augmentation
        For example ``ShiftImages``, whose shifts are filled with zeros.
    rows : int
        At most (variants - 1) times the rows of the base.
    """

    augment: Augmentation
    rows: int

    def __post_init__(self) -> None:
        plain_fields(self)
        _check_rows("augmented", self.rows)

    def make(self, base: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        variants = np.concatenate(self.augment.variants(base)[1:])  # the first is the base itself
        if self.rows > len(variants):
            raise ValueError(
                f"augmented: rows: expected at most {len(variants)}, all variants of {len(base)} rows; got "
                f"{self.rows}"
            )
        return variants[generator.permutation(len(variants))[: self.rows]]


@dataclass(frozen=True)
class Transfer:
    """A built transfer set.

    Parameters
    ----------
    rows : Rows
        uids 0..M-1 in order. Labels where they are known, -100 elsewhere.
    origin : tuple of (str, int)
        The origins of the rows, in order, with their numbers: ``labelled``, ``pool``, then one entry per
        synthetic source.
    """

    rows: Rows
    origin: tuple[tuple[str, int], ...]

    def source(self, uid: int) -> str:
        """Where a row comes from: "row 10 of pool".

        >>> rows = Rows(np.zeros((5, 1)), np.arange(5), np.arange(5))
        >>> Transfer(rows, (("labelled", 2), ("pool", 3))).source(4)
        'row 2 of pool'
        """
        first = 0
        for name, count in self.origin:
            if uid < first + count:
                return f"row {uid - first} of {name}"
            first += count
        raise ValueError(f"uid: expected 0..{first - 1}; got {uid}")


@dataclass(frozen=True)
class TransferSet:
    """The labelled rows, the pool, and rows made from both.

    Parameters
    ----------
    pool : bool
        Whether the pool is used, as it is and as base of the synthetic rows.
    synthetic : sequence of Synthetic
        Sources, for example ``[Munge(rows=6600), Mixup(rows=6600)]``.

    Examples
    --------
    >>> from ensdistill.data import Digits
    >>> transfer = TransferSet(synthetic=[Mixup(rows=500)]).build(Digits().split(seed=0), seed=0)
    >>> transfer.origin, len(transfer.rows)
    ((('labelled', 200), ('pool', 900), ('mixup', 500)), 1600)
    """

    pool: bool = True
    synthetic: Sequence[Synthetic] = field(default_factory=list)

    def build(self, split: Split, seed: int) -> Transfer:
        """The transfer set of a split; the same for the same seed, and no source's rows depend on the others.

        Raises
        ------
        ValueError
            A source gives something else than finite rows like those of its base; names the source and the
            row.
        """
        parts = [("labelled", split.labelled.inputs)]
        if self.pool:
            parts.append(("pool", split.pool.inputs))
        base = np.concatenate([inputs for _, inputs in parts])
        for index, source in enumerate(self.synthetic):
            made = source.make(base, random_generator("transfer", seed, index))
            _check_made(f"transfer.synthetic.{index} ({type(source).__name__})", made, base)
            parts.append((type(source).__name__.lower(), made))
        inputs = np.concatenate([inputs for _, inputs in parts])
        labels = np.full(len(inputs), UNLABELLED, np.int64)
        labels[: len(split.labelled)] = split.labelled.labels
        rows = Rows(inputs, np.arange(len(inputs), dtype=np.int64), labels)
        return Transfer(rows, tuple((name, len(part)) for name, part in parts))


def _check_made(name: str, made: np.ndarray, base: np.ndarray) -> None:
    if (
        not isinstance(made, np.ndarray)
        or made.dtype != base.dtype
        or made.shape[1:] != base.shape[1:]
        or len(made) == 0
    ):
        got = f"{made.dtype} {list(made.shape)}" if isinstance(made, np.ndarray) else type(made).__name__
        raise ValueError(
            f"{name}: expected make to give {base.dtype} rows of shape {list(base.shape[1:])}, as its base; "
            f"got {got}"
        )
    check_finite(name, made)


def _check_rows(name: str, rows: int) -> None:
    if rows < 1:
        raise ValueError(f"{name}: rows: expected at least 1; got {rows}")


def _check_continuous(name: str, base: np.ndarray) -> None:
    """Refuse integers: a value between two of them would be cut to one of them."""
    if base.dtype.kind != "f":
        raise ValueError(
            f"{name}: expected floating-point inputs, between which new values can lie; got {base.dtype}. "
            "If they are "
            "numbers, save them as float64; if they are codes of categories, leave this source out"
        )
