"""Rows with equal inputs: found by content, kept together in splits and folds, and counted where parts are
given.

Two rows are equal if every value is. In arrays NaN equals NaN, and -0.0 equals 0.0: no model here
distinguishes these, so a row that differs from another in nothing else is a copy of it. Samples of other
kinds are compared by a hash of their content.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from ensdistill.data import label_sets
from ensdistill.data.batches import unlike
from ensdistill.data.reading import default_workers
from ensdistill.data.samples import as_samples, form, sample_hashes, subset
from ensdistill.data.tasks import strata_of, task_of_labels

if TYPE_CHECKING:
    from ensdistill.data import Split

MANY_SETS = 2_000  # of rows that stay together, beyond which a choice for each takes seconds
SMALL = 1 / 20  # of a fold: the largest of such sets
MIXED = 0.01  # of the rows may be of another class than their set's rarest
FEW = 4096  # so many lazy samples are read before worker processes would have started
BLOCK_BYTES = (
    2**26
)  # rows are hashed in blocks, so that a file that is mapped into memory is never held as a whole


def equal_inputs(*parts: Any) -> list[np.ndarray]:
    """Number the sets of equal rows, over all parts together.

    Parameters
    ----------
    *parts : ndarray [N, ...], or samples of any kind
        Arrays of any dtype with rows of one shape; other samples of one form.

    Returns
    -------
    list of ndarray [N], int64
        One array for each part. Two rows, of one part or of two, have the same number if and only if they are
        equal.

    Examples
    --------
    >>> equal_inputs(np.array([[1.0, np.nan], [2.0, 0.0]]), np.array([[2.0, -0.0], [1.0, np.nan]]))
    [array([0, 1]), array([1, 0])]
    >>> equal_inputs(["a text", "another", "a text"])
    [array([0, 1, 0])]
    """
    if not all(isinstance(part, np.ndarray) for part in parts):
        return _numbered([keys.tolist() for keys in _content_keys([as_samples(p, "parts") for p in parts])])
    if len({part.shape[1:] for part in parts}) > 1:
        raise ValueError(
            f"parts: expected rows of one shape; got {', '.join(str(list(part.shape[1:])) for part in parts)}"
        )
    common = np.result_type(*parts)
    return _numbered([_keys(part, common) for part in parts])


def _numbered(parts: Sequence[Iterable[Any]]) -> list[np.ndarray]:
    """Equal keys, of all parts, by one number."""
    number: dict[Any, int] = {}
    return [np.array([number.setdefault(key, len(number)) for key in keys], np.int64) for keys in parts]


def _content_keys(parts: Sequence[Any]) -> list[np.ndarray]:
    """uint64 [N] for each of the samples: the keys that they bring, or else their hashes, for which lazy
    samples are read."""
    filled = [part for part in parts if len(part)]
    for part in filled[1:]:
        if difference := unlike(form(filled[0]), form(part)):
            raise ValueError(f"parts: {difference}")
    if all(getattr(part, "content_keys", None) is not None for part in filled):
        return [part.content_keys if len(part) else np.zeros(0, np.uint64) for part in parts]
    return [
        sample_hashes(part, workers=default_workers(part) if len(part) > FEW else 0)
        if len(part)
        else np.zeros(0, np.uint64)
        for part in parts
    ]


def _keys(rows: np.ndarray, dtype: np.dtype[Any]) -> Iterator[Any]:
    """A hashable key for each row: a digest of 128 bits where the bytes decide, else the values
    themselves."""
    width = math.prod(rows.shape[1:])
    if width == 0:
        yield from [b""] * len(rows)
        return
    by_bytes = dtype.kind in "biufcmMSU" and dtype not in (
        np.longdouble,
        np.clongdouble,
    )  # a long double has unused bytes
    step = max(1, BLOCK_BYTES // max(1, width * dtype.itemsize))
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(dtype, order="C").reshape(-1, width)  # a copy, in rows
        if not by_bytes:
            yield from (tuple(map(_value, row)) for row in block.tolist())
            continue
        if dtype.kind in "fc":
            block += 0  # -0.0 + 0 is 0.0
            block[np.isnan(block)] = np.nan
        yield from (xxhash.xxh3_128_digest(row.data) for row in block.view(np.uint8).reshape(len(block), -1))


def _value(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_value, value))
    return None if value != value else value  # NaN, NaT


def draw_stratified(
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows so that each class, or each of several labels, has the share that it has among all, and equal
    rows stay together.

    Parameters
    ----------
    rows : ndarray [M], int64
        Positions in ``labels`` and ``groups``.
    labels : ndarray [N], int64
        The class of every row; or labels of another task (:mod:`ensdistill.data.tasks`), of which a
        regression's rows are drawn at random.
    groups : ndarray [N], int64
        The set of equal rows (see :func:`equal_inputs`) of every row.
    size : int
        Rows to draw. Fewer are drawn where no set of equal rows is small enough for the rows still missing.
    seed : int

    Returns
    -------
    drawn, rest : ndarray, int64
    """
    from sklearn.model_selection import train_test_split

    if size in (0, len(rows)):
        return rows[:size], rows[size:]
    if task_of_labels(labels) == "multilabel":
        return label_sets.draw(rows, labels, groups, size, seed)
    labels = strata_of(labels)
    _, first, of_row, counts = np.unique(
        groups[rows], return_index=True, return_inverse=True, return_counts=True
    )
    if counts.max() == 1:
        drawn, rest = train_test_split(
            rows, train_size=size, stratify=labels[rows], random_state=seed % 2**32
        )
        return drawn, rest
    # A set with several labels counts for the class of its first row.
    stratum = labels[rows[first]]
    share = np.bincount(labels[rows]) * size / len(rows)
    quota = np.floor(share).astype(np.int64)
    quota[np.argsort(quota - share, kind="stable")[: size - quota.sum()]] += 1
    left, taken = size, np.zeros(len(counts), bool)
    order = np.random.default_rng(seed % 2**32).permutation(len(counts))
    # First within each class's quota; then any set that still fits, so that few rows are missing.
    for strict in (True, False):
        for group in order:
            fits = counts[group] <= (min(left, quota[stratum[group]]) if strict else left)
            if fits and not taken[group]:
                taken[group] = True
                left -= counts[group]
                quota[stratum[group]] -= counts[group]
    return rows[taken[of_row]], rows[~taken[of_row]]


def merged(numbers: np.ndarray, *others: np.ndarray | None) -> np.ndarray:
    """Number the sets of rows that are connected: by one number in any of the arrays.

    Parameters
    ----------
    numbers : ndarray [N], int64
    *others : ndarray [N], int64, or None

    Returns
    -------
    ndarray [N], int64

    Examples
    --------
    >>> merged(np.array([0, 1, 1, 2]), np.array([5, 5, 6, 7]))
    array([0, 0, 0, 1])
    """
    more = [other for other in others if other is not None]
    if not more:
        return numbers
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = [np.unique(one, return_inverse=True)[1] for one in (numbers, *more)]
    starts = np.cumsum([0, *(int(one.max(initial=-1)) + 1 for one in nodes)])
    first = np.tile(nodes[0], len(more))
    second = np.concatenate([one + start for one, start in zip(nodes[1:], starts[1:-1], strict=True)])
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(starts[-1], starts[-1]))
    found: np.ndarray = connected_components(graph, directed=False)[1][nodes[0]].astype(np.int64)
    return found


def stratified_folds(
    inputs: Any, labels: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds with the classes, or the labels of a row, in the proportions of the whole; equal rows are in one
    fold.

    Parameters
    ----------
    inputs : ndarray [N, ...], or samples of any kind
    labels : ndarray [N], int64
        Or labels of another task; see :mod:`ensdistill.data.tasks`. A regression's rows are drawn at random.
    folds, seed : int
    groups : ndarray [N], int64, optional
        Rows with one number are in one fold too; see :attr:`ensdistill.data.Rows.groups`.

    Returns
    -------
    list of (ndarray, ndarray), int64
        For each fold the rows to learn from, and the rows that are held out.

    Raises
    ------
    ValueError
        A fold would be empty, or leave no row of some class to learn from, because its rows are copies of
        each other.
    """
    return folds_of(merged(equal_inputs(inputs)[0], groups), labels, folds, seed)


def folds_of(
    groups: np.ndarray, labels: np.ndarray, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """:func:`stratified_folds`, where the sets of rows that stay together are known, int64 [N]."""
    sizes = np.unique(groups, return_counts=True)[1]
    different = len(sizes)
    if folds > different:
        raise ValueError(
            f"folds: expected at most {different}, because the rows are copies of {different} different "
            f"ones; got {folds}"
        )
    if task_of_labels(labels) == "multilabel":
        each = label_sets.folds(labels, groups, folds, seed)
        parts = [(np.setdiff1d(np.arange(len(labels)), held), held) for held in each]
        labels = strata_of(labels)
    else:
        labels = strata_of(labels)
        parts = _stratified(groups, sizes, labels, folds, seed % 2**32)
    for train, held in parts:
        if len(held) == 0 or (lost := np.setdiff1d(labels, labels[train])).size:
            which = (
                "some fold would be empty"
                if len(held) == 0
                else f"the copies of class {lost[0]} would all be held out at once"
            )
            raise ValueError(
                f"folds: {folds} folds are too many: equal rows stay in one fold, and {which}; ask for "
                "fewer, or remove copies"
            )
    return parts


def _stratified(
    groups: np.ndarray, sizes: np.ndarray, labels: np.ndarray, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The folds of rows with a class each, where sets of some ``sizes`` stay together.

    The greedy choice for each set takes a minute for 300 000 of them. Many small sets are drawn by their
    rarest class and by their size, where nearly all rows of a set are of one class.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    rows, options = np.zeros(len(labels)), {"n_splits": folds, "shuffle": True, "random_state": seed}
    if len(sizes) == len(labels):
        return list(StratifiedKFold(**options).split(rows, labels))
    of_row = np.unique(groups, return_inverse=True)[1]
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(counts, kind="stable"))[classes]  # of a row's class, the rarest first
    rarest = np.full(len(sizes), len(counts))
    np.minimum.at(rarest, of_row, rank)
    kinds = np.stack([rarest, np.log2(sizes).astype(np.int64)])
    strata = np.unique(kinds, axis=1, return_inverse=True)[1].ravel()
    alike = sizes.max() <= SMALL * len(labels) / folds and (rank != rarest[of_row]).mean() <= MIXED
    parts = []
    if len(sizes) > MANY_SETS and alike and np.bincount(strata).max() >= folds:
        # In this order a class's strata are neighbours, and neighbours are dealt to the folds in turn: a
        # class of two sets is never in one fold alone.
        order = np.argsort(strata, kind="stable")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class")  # large sets are few
            for _, held in StratifiedKFold(**options).split(order, strata[order]):
                is_held = np.zeros(len(sizes), bool)
                is_held[order[held]] = True
                parts.append((np.flatnonzero(~is_held[of_row]), np.flatnonzero(is_held[of_row])))
    if parts and all(len(np.unique(classes[train])) == len(counts) for train, _ in parts):
        return parts
    return list(StratifiedGroupKFold(**options).split(rows, labels, groups))


@dataclass(frozen=True)
class Copies:
    """Equal inputs in different parts of one split.

    Parameters
    ----------
    test : ndarray [N], bool
        For each test row whether it equals a labelled row, a row of the pool or a synthetic one.
    labelled, pool, synthetic : int
        Test rows that equal a row of that part; one row may count in several.
    labelled_in_pool : int
        Labelled rows that equal a row of the pool.
    other_label : int
        Labelled and test rows that equal one of these with another label.
    left_out : int
        :attr:`ensdistill.data.Split.left_out`.
    """

    test: np.ndarray
    labelled: int
    pool: int
    synthetic: int
    labelled_in_pool: int
    other_label: int
    left_out: int

    def refuse(self, allowed: float, where: str) -> None:
        """Raise ValueError where more than the share ``allowed`` of the test rows was trained on."""
        found, rows = int(self.test.sum()), len(self.test)
        if found > allowed * rows:
            names = [name for name in ("labelled", "pool", "synthetic") if getattr(self, name)]
            parts = ", ".join(f"{getattr(self, name)} of them {name}" for name in names)
            raise ValueError(
                f"{where}: {found} of {rows} test rows ({found / rows:.1%}) equal rows that are trained on "
                f"({parts}), which makes "
                f"every figure too good; expected at most max_test_copies={allowed:g} of them. Remove the "
                "copies, or keep equal "
                "rows in one part; where equal rows are legitimate (coarse categories), set max_test_copies "
                "to "
                f"{math.ceil(1e3 * found / rows) / 1e3:g}"
            )


def count_copies(split: Split, synthetic: Any = None, *, pool: bool = True) -> Copies:
    """Compare the inputs of all parts.

    Parameters
    ----------
    split : Split
    synthetic : ndarray [M, ...], or samples, optional
        The rows of the transfer set that were made from labelled rows and the pool.
    pool : bool
        Whether the pool is trained on. If not, a test row may stand in it.

    Examples
    --------
    >>> from ensdistill.data import Digits
    >>> copies = count_copies(Digits().split(seed=0))
    >>> int(copies.test.sum()), copies.labelled, copies.other_label
    (0, 0, 0)
    """
    made = subset(split.test.inputs, np.zeros(0, np.int64)) if synthetic is None else synthetic
    labelled, unlabelled, test, generated = equal_inputs(
        split.labelled.inputs, split.pool.inputs, split.test.inputs, made
    )
    by_part = [np.isin(test, part) for part in (labelled, unlabelled if pool else test[:0], generated)]
    groups = np.concatenate([labelled, test])
    labels = np.concatenate([split.labelled.labels, split.test.labels])
    pairs = np.unique(np.column_stack([groups, labels]), axis=0)
    several, counts = np.unique(pairs[:, 0], return_counts=True)
    return Copies(
        test=by_part[0] | by_part[1] | by_part[2],
        labelled=int(by_part[0].sum()),
        pool=int(by_part[1].sum()),
        synthetic=int(by_part[2].sum()),
        labelled_in_pool=int(np.isin(labelled, unlabelled).sum()),
        other_label=int(np.isin(groups, several[counts > 1]).sum()),
        left_out=split.left_out,
    )
