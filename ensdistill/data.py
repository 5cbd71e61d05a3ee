"""Data with stable sample ids. A data set is anything with ``split(seed) -> Split``; the built-in ones are below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ensdistill.fingerprint import digest

UNLABELLED = -100  # the ignore_index of torch's losses


@dataclass(frozen=True)
class Rows:
    """Samples in a fixed order.

    Parameters
    ----------
    inputs : ndarray [N, ...]
    uids : ndarray [N], int64
        Stable and unique: what the cache is keyed by.
    labels : ndarray [N], int64
        Class indices; -100 where the label isn't known.
    """

    inputs: np.ndarray
    uids: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.inputs)
        for name in ("uids", "labels"):
            value = getattr(self, name)
            if value.shape != (n,) or value.dtype != np.int64:
                raise ValueError(f"{name}: expected int64 [{n}], one for each input; got {value.dtype} {list(value.shape)}")
        if len(np.unique(self.uids)) != n:
            values, counts = np.unique(self.uids, return_counts=True)
            raise ValueError(f"uids: expected unique ids; {int(values[counts > 1][0])} stands {int(counts.max())} times")

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: np.ndarray) -> Rows:
        """The rows at the positions (or where the mask) ``index``, with their uids and labels."""
        return Rows(self.inputs[index], self.uids[index], self.labels[index])

    def without_labels(self) -> Rows:
        return replace(self, labels=np.full(len(self), UNLABELLED, np.int64))


@dataclass(frozen=True)
class Split:
    """What one seed of the job sees.

    Parameters
    ----------
    labelled : Rows
        The only rows whose labels may be used for training, calibration and choices.
    pool : Rows
        Rows without labels (all -100); may be empty.
    test : Rows
        For the report alone.
    classes : tuple of str
        Class names; position is class index.
    """

    labelled: Rows
    pool: Rows
    test: Rows
    classes: tuple[str, ...]


@runtime_checkable
class Dataset(Protocol):
    """What ``data.class_path`` in a config may name."""

    def split(self, seed: int) -> Split: ...


def derive_seed(*parts: Any) -> int:
    """A seed in [0, 2^63) that depends on every part: independent streams for independent uses of one job seed.

    Examples
    --------
    >>> derive_seed(0, "cnn", 3) == derive_seed(0, "cnn", 3), derive_seed(0, "cnn", 3) == derive_seed(0, "cnn", 4)
    (True, False)
    """
    return int(digest(parts), 16) >> 65


def random_generator(*parts: Any) -> np.random.Generator:
    """A counter-based generator (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") keyed by every part."""
    return np.random.Generator(np.random.Philox(key=int(digest(parts), 16)))


class BatchOrder:
    """Positions of endless reshuffled epochs, cut into batches; a batch may reach into the next epoch, so none is ever short.

    Any step can be asked for, in any order: nothing has to be saved to resume.

    Parameters
    ----------
    rows : int
        Rows of one epoch; may be fewer than ``batch_size``.
    batch_size, seed : int

    Examples
    --------
    >>> order = BatchOrder(rows=3, batch_size=6, seed=0)
    >>> np.bincount(order(7)).tolist()
    [2, 2, 2]
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        if rows < 1 or batch_size < 1:
            raise ValueError(f"rows and batch_size: expected at least 1; got {rows} and {batch_size}")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._epochs: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> np.ndarray:
        """Positions [batch_size], int64, of the batch of ``step`` (0, 1, ...)."""
        start = step * self.batch_size
        first, last = start // self.rows, (start + self.batch_size - 1) // self.rows
        self._epochs = {epoch: self._epochs[epoch] if epoch in self._epochs else self._shuffle(epoch) for epoch in range(first, last + 1)}
        order = np.concatenate(list(self._epochs.values())) if last > first else self._epochs[first]
        return order[start - first * self.rows :][: self.batch_size]

    def _shuffle(self, epoch: int) -> np.ndarray:
        return random_generator("batch order", self.seed, epoch).permutation(self.rows)


def stratified_split(
    inputs: np.ndarray, labels: np.ndarray, classes: Sequence[str], *, labelled: int, pool: int, test: int | None, seed: int
) -> Split:
    """Split by seed so that every part has the classes in the proportions of the whole; uids are row numbers of ``inputs``.

    Parameters
    ----------
    inputs : ndarray [N, ...]
    labels : ndarray [N], int64
        Class indices. Rows labelled -100 go to the pool, on top of the ``pool`` rows that are drawn from the others.
    classes : sequence of str
    labelled, pool : int
        Rows of these parts.
    test : int, optional
        Rows of the test part; all that are left by default.

    Raises
    ------
    ValueError
        More rows are asked for than there are, or a class has too few rows to stand in every part.
    """
    from sklearn.model_selection import train_test_split

    if labels.shape != (len(inputs),) or labels.dtype != np.int64:
        raise ValueError(f"labels: expected int64 [{len(inputs)}], one for each input; got {labels.dtype} {list(labels.shape)}")
    wrong = np.flatnonzero((labels != UNLABELLED) & ((labels < 0) | (labels >= len(classes))))
    if len(wrong):
        raise ValueError(f"labels: expected 0..{len(classes) - 1} (or {UNLABELLED}); row {wrong[0]} has {labels[wrong[0]]}")
    index = np.flatnonzero(labels != UNLABELLED)
    rest_size = len(index) - labelled - pool
    test = rest_size if test is None else test
    if labelled < 1 or pool < 0 or test < 1 or test > rest_size:
        raise ValueError(
            f"labelled={labelled}, pool={pool}, test={max(test, 1)}: expected at least 1, 0 and 1 rows, "
            f"and no more than the {len(index)} labelled rows in all"
        )
    counts = np.bincount(labels[index], minlength=len(classes))
    parts = 3 if pool else 2
    if counts.min() < parts or min(labelled, test, pool or test) < len(classes):
        rare = int(counts.argmin())
        raise ValueError(
            f"labelled={labelled}, pool={pool}, test={test}: every part needs a row of each of the {len(classes)} classes; "
            f"the rarest, {classes[rare]!r}, has {counts[rare]} rows in all"
        )

    def draw(rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        if size in (0, len(rows)):
            return rows[:size], rows[size:]
        return train_test_split(rows, train_size=size, stratify=labels[rows], random_state=seed % 2**32)

    try:
        first, rest = draw(index, labelled)
        second, rest = draw(rest, pool)
        third, _ = draw(rest, test)
    except ValueError as error:
        raise ValueError(f"labelled={labelled}, pool={pool}, test={test}: the rows cannot be split by class ({error})") from error
    missing = np.flatnonzero(np.bincount(labels[first], minlength=len(classes)) == 0)
    if len(missing):
        raise ValueError(f"labelled={labelled}: no row of class {classes[missing[0]]!r} among them; ask for more labelled rows")

    def rows(which: np.ndarray) -> Rows:
        return Rows(inputs[which], which.astype(np.int64), labels[which])

    unlabelled = np.flatnonzero(labels == UNLABELLED)
    return Split(rows(first), rows(np.concatenate([second, unlabelled])).without_labels(), rows(third), tuple(classes))


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1797 handwritten digits: float32 [N, 1, 8, 8] in 0..1, ten classes.

    Parameters
    ----------
    labelled, pool : int
        Rows with labels, and rows without; the rest are test rows.

    Examples
    --------
    >>> split = Digits().split(seed=0)
    >>> len(split.labelled), len(split.pool), len(split.test)
    (200, 900, 697)
    """

    labelled: int = 200
    pool: int = 900

    def split(self, seed: int) -> Split:
        from sklearn.datasets import load_digits

        digits = load_digits()
        inputs = (digits.images / 16).astype(np.float32)[:, None]
        classes = [str(name) for name in digits.target_names]
        return stratified_split(
            inputs, digits.target.astype(np.int64), classes, labelled=self.labelled, pool=self.pool, test=None, seed=seed
        )


@dataclass(frozen=True)
class ArrayDataset:
    """Your own arrays, from two ``.npy`` files.

    Parameters
    ----------
    inputs : path
        float32 [N, ...].
    labels : path
        Integers [N]: class indices from 0; -100 for rows without a label, which go to the pool.
    labelled : int
        Rows whose labels may be used.
    pool : int
        Labelled rows that are used without their labels.
    test : int, optional
        Rows for the report alone; all that are left by default.
    classes : list of str, optional
        Class names by index; "0", "1", ... by default.

    Raises
    ------
    ValueError
        (by ``split``) The files do not hold what is described above.
    """

    inputs: Path
    labels: Path
    labelled: int
    pool: int = 0
    test: int | None = None
    classes: list[str] | None = None

    def split(self, seed: int) -> Split:
        # Mapped, not read: only the rows that a part asks for are copied.
        inputs, labels = _open("inputs", self.inputs), _open("labels", self.labels)
        if inputs.dtype != np.float32 or inputs.ndim < 2:
            raise ValueError(f"inputs: expected float32 [N, ...] in {self.inputs}; got {inputs.dtype} {list(inputs.shape)}")
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels: expected integers in {self.labels}; got {labels.dtype}")
        if labels.dtype == np.uint64 and labels.size and labels.max() > np.iinfo(np.int64).max:
            raise ValueError(f"labels: {labels.max()} in {self.labels} is no class index")
        labels = labels.astype(np.int64)
        bad = np.flatnonzero(~np.isfinite(inputs).reshape(len(inputs), -1).all(1))
        if len(bad):
            raise ValueError(
                f"inputs: expected finite numbers in {self.inputs}; row {bad[0]} (and {len(bad) - 1} more) has NaN or infinity"
            )
        classes = self.classes or [str(i) for i in range(int(labels.max(initial=0)) + 1)]
        return stratified_split(inputs, labels, classes, labelled=self.labelled, pool=self.pool, test=self.test, seed=seed)


def _open(argument: str, path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"{argument}: there is no file {path}") from error
    except (ValueError, EOFError) as error:
        raise ValueError(f"{argument}: {path} is not a .npy file of numbers ({error})") from error
