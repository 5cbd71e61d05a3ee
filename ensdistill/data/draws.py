"""Draws of the parts of a data set: by class, in whole groups, by time, and in folds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.common.errors import WrongArgument
from ensdistill.data import label_sets
from ensdistill.data.copies import draw_stratified, folds_of
from ensdistill.data.rows import UNLABELLED
from ensdistill.data.tasks import known_rows, strata_of, task_of_labels

if TYPE_CHECKING:
    from ensdistill.data.partition import Partition, Whole

TEST_SHARE = 0.25
LEAST_DRAWN = 0.75  # of a part's size, where equal rows stay together
LEAST_IN_GROUPS = 0.5  # where whole groups do, which may be large
CANDIDATES = 8  # groups that are looked at for each one that is taken


class Draw:
    """The draws of one split.

    Parameters
    ----------
    settings : Partition
    whole : Whole
    index : ndarray [M], int64
        Rows with a label, whose part is not given.
    """

    def __init__(self, settings: Partition, whole: Whole, index: np.ndarray) -> None:
        self.settings, self.whole, self.index = settings, whole, index
        labels = whole.rows.labels
        self.labels = labels if settings.stratified else np.where(known_rows(labels), 0, UNLABELLED)

    def size(self, name: str) -> int:
        """Rows that the settings ask for."""
        asked = getattr(self.settings, name)
        if name == "test" and asked is None:
            asked = TEST_SHARE
        return round(asked * len(self.index)) if isinstance(asked, float) else asked

    def test(self, seed: int) -> tuple[np.ndarray, Any]:
        """The test rows; and, where time decides, the time at which they begin."""
        settings, index = self.settings, self.index
        seed = seed if settings.test_seed is None else settings.test_seed
        if settings.folds is not None:
            return self._fold(seed), None
        size = self.size("test")
        if size >= len(index):
            raise WrongArgument(
                f"test={settings.test}: expected fewer than the {len(index)} rows that have a label"
            )
        if settings.time is None:
            check_rare(self.whole, index, 2 + (self.size("pool") > 0), settings)
            return self.drawn("test", index, size, seed)[0], None
        assert self.whole.times is not None
        times = self.whole.times[index]
        # Rows of one time are not torn apart: the test begins before or after those at the cut.
        cut = np.sort(times)[len(index) - size]
        parts = [part for part in (times > cut, times >= cut) if part.any() and not part.all()]
        if not parts:
            raise ValueError(f"time: expected rows of several times; all are of {cut}")
        test = min(parts, key=lambda part: abs(int(part.sum()) - size))
        return index[test], np.sort(times[test])[0]

    def _fold(self, seed: int) -> np.ndarray:
        settings, units = self.settings, self.whole.units[self.index]
        assert settings.folds is not None
        # The folds themselves are those of one seed, so that the seeds together test every row once.
        check_rare(self.whole, self.index, 2, settings)
        parts = folds_of(units, self.labels[self.index], settings.folds, settings.test_seed or 0)
        return self.index[parts[seed % settings.folds][1]]

    def rest(self, test: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Labelled rows and pool, of those that are no test rows."""
        left = np.setdiff1d(self.index, test)
        settings, pool = self.settings, self.size("pool")
        labelled = len(left) - pool if settings.labelled is None else self.size("labelled")
        if labelled < 0 or labelled + pool > len(left):
            sizes = ", ".join(
                f"{name}={getattr(settings, name)}"
                for name in ("labelled", "pool", "test")
                if getattr(settings, name) is not None
            )
            raise WrongArgument(
                f"{sizes}: expected no more than the {len(left)} rows that have a label and are no test rows"
            )
        if settings.time is not None and self.whole.times is not None:
            order = left[np.argsort(self.whole.times[left], kind="stable")]
            return order[:labelled], order[labelled : labelled + pool]
        in_pool, left = self.drawn("pool", left, pool, seed)
        size = len(left) if settings.labelled is None else labelled
        return self.drawn("labelled", left, size, seed)[0], in_pool

    def drawn(self, name: str, rows: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """So many of ``rows``, and the others."""
        units, grouped = self.whole.units, self.whole.rows.groups is not None
        try:
            drawn, rest = (draw_groups if grouped else draw_stratified)(rows, self.labels, units, size, seed)
        except ValueError as error:
            raise ValueError(f"{name}={size}: the rows cannot be split by class ({error})") from error
        if len(drawn) < (LEAST_IN_GROUPS if grouped else LEAST_DRAWN) * size:
            together = f"rows of one {self.settings.group}, and equal rows," if grouped else "equal rows"
            raise WrongArgument(
                f"{name}={size}: only {len(drawn)} rows can be drawn, because {together} stay together, and "
                f"up to {np.bincount(units[rows]).max()} rows do; ask for another size"
            )
        return drawn, rest


def draw_groups(
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw whole groups, of several classes each, so that the classes' shares are kept nearly.

    Parameters and results are those of :func:`ensdistill.data.copies.draw_stratified`. Of a few groups that
    are drawn at random, the one is taken that brings the classes nearest to their shares.
    """
    if size in (0, len(rows)):
        return rows[:size], rows[size:]
    if task_of_labels(labels) == "multilabel":
        return label_sets.draw(rows, labels, groups, size, seed)
    labels = strata_of(labels)
    _, of_row = np.unique(groups[rows], return_inverse=True)
    table = np.zeros((of_row.max() + 1, labels[rows].max() + 1))
    np.add.at(table, (of_row, labels[rows]), 1)
    counts, share = table.sum(1), table.sum(0) / len(rows)
    generator = np.random.default_rng(seed % 2**32)
    left, have = list(generator.permutation(len(counts))), np.zeros(table.shape[1])
    taken = np.zeros(len(counts), bool)
    while left:
        some = range(min(CANDIDATES, len(left)))
        fit = [place for place in some if have.sum() + counts[left[place]] <= size]
        if fit:
            after = [have + table[left[place]] for place in fit]
            chosen = fit[int(np.argmin([np.abs(new / new.sum() - share).sum() for new in after]))]
            taken[left[chosen]] = True
            have += table[left.pop(chosen)]
        else:
            del left[: len(some)]
    return rows[taken[of_row]], rows[~taken[of_row]]


def check_rare(whole: Whole, index: np.ndarray, parts: int, settings: Partition) -> None:
    """Refuse a class that cannot stand in every part, because its rows stay together."""
    if not settings.stratified or whole.rows.labels.ndim > 1:
        return
    labels, units = whole.rows.labels[index], whole.units[index]
    pairs = np.unique(np.stack([labels, units]), axis=1)[0]
    distinct = np.bincount(pairs, minlength=len(whole.classes))
    if distinct.min() >= parts:
        return
    rare = int(distinct.argmin())
    rows = int((labels == rare).sum())
    of = f" ({rows}, but equal rows, and those of one group, count once)" if rows > distinct[rare] else ""
    raise ValueError(
        f"labels: expected at least {parts} rows of each class, one for each part; {whole.classes[rare]!r} "
        f"has {distinct[rare]}{of}: leave the class out, join it with another, or collect more of it"
    )
