"""Data with stable sample ids. A data set is anything with ``split(seed) -> Split``; the built-in ones are below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ensdistill.copies import draw_stratified, equal_inputs
from ensdistill.fingerprint import digest

UNLABELLED = -100  # the ignore_index of torch's losses


class BadRows(ValueError):
    """An error that lies in single rows.

    Parameters
    ----------
    message : str
    rows : ndarray, int64
        Their positions in what was passed: who passed it knows them by other names (uids, a source) and can add these.
    """

    def __init__(self, message: str, rows: np.ndarray) -> None:
        super().__init__(message)
        self.rows = rows

    def __reduce__(self) -> tuple[type[BadRows], tuple[str, np.ndarray]]:
        return type(self), (str(self), self.rows)  # so that a worker process can hand it to its parent


@dataclass(frozen=True)
class Rows:
    """Samples in a fixed order.

    Parameters
    ----------
    inputs : ndarray [N, ...]
    uids : ndarray [N], int64
        Unique: each sample's own number. In a data set it is stable, whatever split the sample is drawn into. In a transfer set
        it is the sample's place in the cache, so there the uids are 0..N-1 (see :func:`ensdistill.cache.cache_targets`).
    labels : ndarray [N], int64
        Class indices; -100 where the label isn't known.

    Raises
    ------
    TypeError, ValueError
        Not NumPy arrays, not one uid and one label for each input, or a uid that stands twice.
    """

    inputs: np.ndarray
    uids: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        for name, expected in (("inputs", "[N, ...]"), ("uids", "[N], int64"), ("labels", "[N], int64")):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                raise TypeError(f"{name}: expected a NumPy array {expected}; got {type(value).__name__}")
            if value.ndim == 0:
                raise ValueError(f"{name}: expected an array {expected}; got a single number")
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
    """What one seed of the job sees: three parts without a common row, of finite float32 inputs of one shape.

    Parameters
    ----------
    labelled : Rows
        The only rows whose labels may be used for training, calibration and choices.
    pool : Rows
        Rows without labels (all -100); may be empty.
    test : Rows
        For the report alone.
    classes : tuple of str
        Class names, all different; position is class index.
    left_out : int
        Rows without a label that are in no part, because they equal a test row.

    Raises
    ------
    TypeError, ValueError
        Anything else than the above; names the part, the row and its uid.
    """

    labelled: Rows
    pool: Rows
    test: Rows
    classes: tuple[str, ...]
    left_out: int = 0

    def __post_init__(self) -> None:
        _check_classes(self.classes)
        for name in ("labelled", "pool", "test"):
            if not isinstance(rows := getattr(self, name), Rows):
                raise TypeError(f"{name}: expected Rows; got {type(rows).__name__}")
            if name != "pool" and len(rows) == 0:
                raise ValueError(f"{name}: expected at least one row; got none")
            _check_inputs(name, rows, self.labelled.inputs.shape[1:])
        for name in ("labelled", "test"):
            _check_labels(name, getattr(self, name), (0, len(self.classes) - 1), f"a class index in 0..{len(self.classes) - 1}")
        _check_labels("pool", self.pool, (UNLABELLED, UNLABELLED), f"{UNLABELLED}, because the pool has no labels (`without_labels()`)")
        # A test row that was trained on makes every number of the report too good.
        for one, other in (("labelled", "test"), ("pool", "test"), ("labelled", "pool")):
            if len(common := np.intersect1d(getattr(self, one).uids, getattr(self, other).uids)):
                raise ValueError(f"{one} and {other}: expected no common row; uid {common[0]} is in both ({len(common)} such rows)")


@runtime_checkable
class Dataset(Protocol):
    """What ``data.class_path`` in a config may name."""

    def split(self, seed: int) -> Split: ...


def _check_classes(classes: Any) -> None:
    if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes: expected a tuple of str; got {classes!r}")
    if len(classes) < 2:
        raise ValueError(f"classes: expected at least two names; got {classes!r}")
    if twice := [name for name in classes if classes.count(name) > 1]:
        raise ValueError(f"classes: expected different names; {twice[0]!r} stands {len(twice)} times")


def _check_inputs(name: str, rows: Rows, shape: tuple[int, ...]) -> None:
    if rows.inputs.dtype != np.float32 or rows.inputs.ndim < 2:
        raise ValueError(f"{name}.inputs: expected float32 [N, ...]; got {rows.inputs.dtype} {list(rows.inputs.shape)}")
    if rows.inputs.shape[1:] != shape:
        raise ValueError(
            f"{name}.inputs: expected rows of shape {list(shape)}, as the labelled rows have; got {list(rows.inputs.shape[1:])}"
        )
    check_finite(f"{name}.inputs", rows.inputs, rows.uids)


def check_finite(argument: str, inputs: np.ndarray, uids: np.ndarray | None = None) -> None:
    """Raise BadRows where ``inputs`` [N, ...] hold NaN or infinity, naming the first such row, and its uid where it is known."""
    flat = inputs.reshape(len(inputs), math.prod(inputs.shape[1:]))
    bad = np.flatnonzero(~np.isfinite(flat).all(1))
    if len(bad):
        row = bad[0]
        uid = "" if uids is None else f" (uid {uids[row]})"
        value = flat[row][~np.isfinite(flat[row])][0]
        raise BadRows(f"{argument}: expected finite numbers; row {row}{uid} holds {value} ({len(bad)} such rows)", bad)


def _check_labels(name: str, rows: Rows, span: tuple[int, int], expected: str) -> None:
    bad = np.flatnonzero((rows.labels < span[0]) | (rows.labels > span[1]))
    if len(bad):
        row = bad[0]
        raise BadRows(f"{name}.labels: expected {expected}; row {row} (uid {rows.uids[row]}) has {rows.labels[row]}", bad)


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

    Rows with equal inputs (see :func:`equal_inputs`) go to one part, also where their labels differ. A test row with a copy among the
    training rows would measure memory. A part can therefore be a few rows smaller than asked for, by less than the largest set of
    equal rows. A row without a label that equals a test row is left out, and counted in :attr:`Split.left_out`.

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
        More rows are asked for than there are, a class has too few different rows to stand in every part, or so many rows are equal
        that a part would miss more than a tenth of its rows.

    Examples
    --------
    >>> x, y = np.repeat(np.eye(12, dtype=np.float32), 2, axis=0), np.arange(24) // 2 % 3
    >>> split = stratified_split(x, y, "abc", labelled=8, pool=8, test=None, seed=0)
    >>> len(np.intersect1d(split.labelled.uids // 2, split.test.uids // 2))
    0
    """
    if labels.shape != (len(inputs),) or labels.dtype != np.int64:
        raise ValueError(f"labels: expected int64 [{len(inputs)}], one for each input; got {labels.dtype} {list(labels.shape)}")
    wrong = np.flatnonzero((labels != UNLABELLED) & ((labels < 0) | (labels >= len(classes))))
    if len(wrong):
        raise ValueError(f"labels: expected 0..{len(classes) - 1} (or {UNLABELLED}); row {wrong[0]} has {labels[wrong[0]]}")
    index = np.flatnonzero(labels != UNLABELLED)
    asked = {"labelled": labelled, "pool": pool} | ({} if test is None else {"test": test})
    # Every part that is drawn has to hold each class, so that each can be learned, and judged.
    for name, size in asked.items():
        if size < (least := 0 if name == "pool" else 1):
            raise ValueError(f"{name}={size}: expected at least {least}")
        if 0 < size < len(classes):
            raise ValueError(f"{name}={size}: expected at least {len(classes)}, a row of each of the {len(classes)} classes")
    sizes, left = ", ".join(f"{name}={size}" for name, size in asked.items()), len(index) - sum(asked.values())
    if left < 0 or (test is None and left < len(classes)):
        over = "" if test is not None else f", and at least {len(classes)} left over for testing, one of each class"
        raise ValueError(f"{sizes}: expected no more than the {len(index)} rows that have a label{over}")
    test = left if test is None else test
    (groups,) = equal_inputs(inputs)
    # A class stands in a part by a set of equal rows: copies of one row cannot be in two parts.
    distinct = np.array([len(np.unique(groups[labels == c])) for c in range(len(classes))])
    if distinct.min() < (parts := 3 if pool else 2):
        rare = int(distinct.argmin())
        count = int((labels == rare).sum())
        copies = f" ({count} with copies)" if count > distinct[rare] else ""
        raise ValueError(
            f"labels: expected at least {parts} rows of each class, one for each part; {classes[rare]!r} has {distinct[rare]}{copies}"
        )
    try:
        first, rest = draw_stratified(index, labels, groups, labelled, seed)
        second, rest = draw_stratified(rest, labels, groups, pool, seed)
        third, _ = draw_stratified(rest, labels, groups, test if "test" in asked else len(rest), seed)
    except ValueError as error:
        raise ValueError(f"{sizes}: the rows cannot be split by class ({error})") from error
    for name, size, drawn in (("labelled", labelled, first), ("pool", pool, second), ("test", test, third)):
        if len(drawn) < 0.9 * size:
            raise ValueError(
                f"{name}={size}: only {len(drawn)} rows can be drawn, because equal rows stay together and up to "
                f"{np.bincount(groups[index]).max()} rows are equal; remove copies, or ask for another size"
            )
    missing = np.flatnonzero(np.bincount(labels[first], minlength=len(classes)) == 0)
    if len(missing):
        raise ValueError(f"labelled={labelled}: no row of class {classes[missing[0]]!r} among them; ask for more labelled rows")

    def rows(which: np.ndarray) -> Rows:
        return Rows(inputs[which], which.astype(np.int64), labels[which])

    unlabelled = np.flatnonzero(labels == UNLABELLED)
    unseen = unlabelled[~np.isin(groups[unlabelled], groups[third])]
    in_pool = rows(np.concatenate([second, unseen])).without_labels()
    return Split(rows(first), in_pool, rows(third), tuple(classes), left_out=len(unlabelled) - len(unseen))


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
        check_finite(f"inputs: {self.inputs}", inputs)
        classes = self.classes or [str(i) for i in range(int(labels.max(initial=0)) + 1)]
        return stratified_split(inputs, labels, classes, labelled=self.labelled, pool=self.pool, test=self.test, seed=seed)


def _open(argument: str, path: Path) -> np.ndarray:
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(np.lib.format.MAGIC_PREFIX))
    except FileNotFoundError as error:
        raise ValueError(f"{argument}: there is no file {path}") from error
    if start != np.lib.format.MAGIC_PREFIX:
        raise ValueError(
            f"{argument}: expected a .npy file of numbers, as numpy.save writes it; got {path}, which begins with {start!r}. A text table "
            f'becomes one by numpy.save("{path.stem}.npy", numpy.loadtxt("{path.name}", delimiter=",", skiprows=1, dtype="float32"))'
        )
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        fault = "it holds Python objects" if "object" in str(error).lower() else str(error)
        raise ValueError(f"{argument}: {path} is not a .npy file of numbers ({fault})") from error
