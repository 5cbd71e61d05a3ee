"""Splits: the three parts of a data set, without a common row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.common.errors import WrongArgument
from ensdistill.common.tasks import Task
from ensdistill.data.batches import unlike
from ensdistill.data.copies import draw_stratified, equal_inputs
from ensdistill.data.rows import UNLABELLED, BadRows, Rows, check_finite
from ensdistill.data.samples import as_samples, form, subset
from ensdistill.data.tasks import known_rows, strata_of, task_of_labels

# All dtypes of numbers that a file of the run can hold.
DTYPES = tuple(
    np.dtype(name) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
)
NUMBERS = "numbers (floating-point, integers or booleans)"


@dataclass(frozen=True)
class Split:
    """The data of one seed of the job: three parts without a common row, and of one form.

    Arrays have rows of one shape and dtype, and are finite. Samples of other kinds have equal columns, types
    and shapes; values may be missing in them, and images may differ in size.

    Parameters
    ----------
    labelled : Rows
        The only rows whose labels may be used for training, calibration and choices.
    pool : Rows
        Rows without labels (all -100); may be empty.
    test : Rows
        For the report alone.
    classes : tuple of str
        Class names, all different; position is class index. Of another task the names of the C labels, or of
        the D numbers.
    left_out : int
        Rows that are in no part: those without a label that equal a test row, and, where time divides the
        rows, later copies of earlier rows.
    labels : tuple, optional
        The labels by class index as the data had them (numbers, booleans, objects); by default the class
        names.

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
    labels: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        _check_classes(self.classes, self.labelled)
        if not self.labels:
            object.__setattr__(self, "labels", self.classes)
        if len(self.labels) != len(self.classes):
            raise ValueError(
                f"labels: expected {len(self.classes)}, one for each class; got {len(self.labels)}"
            )
        for name in ("labelled", "pool", "test"):
            if not isinstance(rows := getattr(self, name), Rows):
                raise TypeError(f"{name}: expected Rows; got {type(rows).__name__}")
            if name != "pool" and len(rows) == 0:
                raise ValueError(f"{name}: expected at least one row; got none")
            _check_inputs(name, rows, self.labelled.inputs)
        for name in ("labelled", "test", "pool"):
            _check_task(name, getattr(self, name), self.task, len(self.classes))
            _check_labels(name, getattr(self, name), len(self.classes))
        # A test row that was trained on makes every number of the report too good.
        for one, other in (("labelled", "test"), ("pool", "test"), ("labelled", "pool")):
            if len(common := np.intersect1d(getattr(self, one).uids, getattr(self, other).uids)):
                raise ValueError(
                    f"{one} and {other}: expected no common row; uid {common[0]} is in both ({len(common)} "
                    "such rows)"
                )

    @property
    def task(self) -> Task:
        """The task that the labels are of."""
        return self.labelled.task


def _check_classes(classes: Any, labelled: Any) -> None:
    if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes: expected a tuple of str; got {classes!r}")
    one = isinstance(labelled, Rows) and labelled.task != "classification"
    if len(classes) < 2 and not (one and classes):
        raise ValueError(f"classes: expected at least two names; got {classes!r}")
    if twice := [name for name in classes if classes.count(name) > 1]:
        raise ValueError(f"classes: expected different names; {twice[0]!r} stands {len(twice)} times")


def _check_inputs(name: str, rows: Rows, labelled: Any) -> None:
    inputs = rows.inputs
    if not (isinstance(inputs, np.ndarray) and isinstance(labelled, np.ndarray)):
        if len(inputs) and (difference := unlike(form(labelled), form(inputs))):
            raise ValueError(f"{name}.inputs: expected samples as the labelled rows are; {difference}")
        return
    if inputs.dtype not in DTYPES or inputs.ndim < 2:
        raise ValueError(
            f"{name}.inputs: expected {NUMBERS} [N, ...]; got {inputs.dtype} {list(inputs.shape)}"
        )
    if inputs.dtype != labelled.dtype:
        raise ValueError(
            f"{name}.inputs: expected {labelled.dtype}, as the labelled rows have; got {inputs.dtype}"
        )
    if inputs.shape[1:] != labelled.shape[1:]:
        expected = list(labelled.shape[1:])
        raise ValueError(
            f"{name}.inputs: expected rows of shape {expected}, as the labelled rows have; got "
            f"{list(inputs.shape[1:])}"
        )
    check_finite(f"{name}.inputs", inputs, rows.uids)


def _check_task(name: str, rows: Rows, task: Task, width: int) -> None:
    """Refuse rows of another task than the labelled ones, or with another number of labels."""
    if rows.task != task:
        raise ValueError(
            f"{name}.labels: expected labels of {task}, as the labelled rows have; got {rows.task}"
        )
    if rows.labels.ndim == 2 and rows.labels.shape[1] != width:
        raise ValueError(
            f"{name}.labels: expected {width} columns, one for each of the classes; got "
            f"{rows.labels.shape[1]}"
        )


def _check_labels(name: str, rows: Rows, classes: int) -> None:
    labels = rows.labels
    if name == "pool":
        bad = rows.known
        none = f"{UNLABELLED}" if labels.ndim == 1 else "no known label"
        expected = f"{none}, because the pool has no labels (`without_labels()`)"
    elif labels.ndim == 1:
        bad, expected = (labels < 0) | (labels >= classes), f"a class index in 0..{classes - 1}"
    else:
        bad, expected = ~rows.known, "a known label in each row"
    if len(bad := np.flatnonzero(bad)):
        row = bad[0]
        raise BadRows(
            f"{name}.labels: expected {expected}; row {row} (uid {rows.uids[row]}) has "
            f"{labels[row].tolist()}",
            bad,
        )


def stratified_split(
    inputs: Any,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    labelled: int,
    pool: int,
    test: int | None,
    seed: int,
) -> Split:
    """Split by seed so that every part has the classes, or the labels of a row, in the proportions of the
    whole; uids are row numbers of ``inputs``. Rows of a regression are drawn at random.

    Rows with equal inputs (see :func:`equal_inputs`) go to one part, also where their labels differ. A test
    row with a copy among the training rows would measure memory. A part can therefore be a few rows smaller
    than its size, by less than the largest set of equal rows. A row without a label that equals a test row is
    left out, and counted in :attr:`Split.left_out`.

    Parameters
    ----------
    inputs : ndarray [N, ...], or samples of any kind
    labels : ndarray [N], int64
        Class indices; or labels of another task, as :class:`ensdistill.data.Rows` holds them. Rows without a
        label (-100) go to the pool, on top of the ``pool`` rows that are drawn from the others.
    classes : sequence of str
    labelled, pool : int
        Rows of these parts.
    test : int, optional
        Rows of the test part; all that are left by default.

    Raises
    ------
    ValueError
        The sizes add up to more rows than there are, a class has too few different rows to stand in every
        part, or so many rows are equal that a part would miss more than a tenth of its rows.

    Examples
    --------
    >>> x, y = np.repeat(np.eye(12, dtype=np.float32), 2, axis=0), np.arange(24) // 2 % 3
    >>> split = stratified_split(x, y, "abc", labelled=8, pool=8, test=None, seed=0)
    >>> len(np.intersect1d(split.labelled.uids // 2, split.test.uids // 2))
    0
    """
    inputs = as_samples(inputs)
    if len(labels) != len(inputs) or task_of_labels(labels) is None:
        raise ValueError(
            f"labels: expected one for each of {len(inputs)} inputs, as int64 [N] (classes), int8 [N, C] "
            f"(multi-label) or float64 [N, D] (regression); got {labels.dtype} {list(labels.shape)}: "
            "as_multilabels and as_numbers of ensdistill.data convert others"
        )
    given, labels, names = labels, strata_of(labels), tuple(classes)
    if given.ndim > 1:
        classes = ("labelled",)  # all known rows are of one stratum
    wrong = np.flatnonzero((labels != UNLABELLED) & ((labels < 0) | (labels >= len(classes))))
    if len(wrong):
        raise ValueError(
            f"labels: expected 0..{len(classes) - 1} (or {UNLABELLED}); row {wrong[0]} has {labels[wrong[0]]}"
        )
    index = np.flatnonzero(known_rows(given))
    asked = {"labelled": labelled, "pool": pool} | ({} if test is None else {"test": test})
    # Every part that is drawn has to hold each class, so that each can be learned, and judged.
    for name, size in asked.items():
        if size < (least := 0 if name == "pool" else 1):
            raise WrongArgument(f"{name}={size}: expected at least {least}")
        if 0 < size < len(classes):
            raise WrongArgument(
                f"{name}={size}: expected at least {len(classes)}, a row of each of the {len(classes)} "
                "classes"
            )
    sizes, left = (
        ", ".join(f"{name}={size}" for name, size in asked.items()),
        len(index) - sum(asked.values()),
    )
    if left < 0 or (test is None and left < len(classes)):
        over = (
            ""
            if test is not None
            else f", and at least {len(classes)} left over for testing, one of each class"
        )
        raise WrongArgument(f"{sizes}: expected no more than the {len(index)} rows that have a label{over}")
    test = left if test is None else test
    (groups,) = equal_inputs(inputs)
    # A class stands in a part by a set of equal rows: copies of one row cannot be in two parts.
    distinct = np.array([len(np.unique(groups[labels == c])) for c in range(len(classes))])
    if distinct.min() < (parts := 3 if pool else 2):
        rare = int(distinct.argmin())
        count = int((labels == rare).sum())
        copies = f" ({count} with copies)" if count > distinct[rare] else ""
        raise ValueError(
            f"labels: expected at least {parts} rows of each class, one for each part; {classes[rare]!r} "
            f"has {distinct[rare]}{copies}"
        )
    try:
        first, rest = draw_stratified(index, given, groups, labelled, seed)
        second, rest = draw_stratified(rest, given, groups, pool, seed)
        third, _ = draw_stratified(rest, given, groups, test if "test" in asked else len(rest), seed)
    except ValueError as error:
        raise ValueError(f"{sizes}: the rows cannot be split by class ({error})") from error
    for name, size, drawn in (("labelled", labelled, first), ("pool", pool, second), ("test", test, third)):
        if len(drawn) < 0.9 * size:
            raise WrongArgument(
                f"{name}={size}: only {len(drawn)} rows can be drawn, because equal rows stay together and "
                "up to "
                f"{np.bincount(groups[index]).max()} rows are equal; remove copies, or ask for another size"
            )
    missing = np.flatnonzero(np.bincount(labels[first], minlength=len(classes)) == 0)
    if len(missing):
        raise WrongArgument(
            f"labelled={labelled}: no row of class {classes[missing[0]]!r} among them; ask for more "
            "labelled rows"
        )

    def rows(which: np.ndarray) -> Rows:
        return Rows(subset(inputs, which), which.astype(np.int64), given[which])

    unlabelled = np.flatnonzero(labels == UNLABELLED)
    unseen = unlabelled[~np.isin(groups[unlabelled], groups[third])]
    in_pool = rows(np.concatenate([second, unseen])).without_labels()
    return Split(rows(first), in_pool, rows(third), names, left_out=len(unlabelled) - len(unseen))
