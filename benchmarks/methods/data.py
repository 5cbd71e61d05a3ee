"""The sets of the comparison, the ensembles, and rows that are out of distribution."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler

from benchmarks.transfer.sets import SETS
from ensdistill import Ensemble, Optimization, Rows
from ensdistill.data.preprocess import default_transformer
from ensdistill.models import MLP


@dataclass(frozen=True)
class Size:
    """The sizes of one form of the benchmark.

    Rows are capped at those of a set. ``student`` is the width of the student's one hidden layer.
    """

    labelled: int
    pool: int
    validation: int
    test: int
    members: int
    width: int
    member_steps: int
    student: int
    steps: int


SHORT = Size(500, 1500, 300, 2500, 5, 64, 400, 16, 300)
LONG = Size(2000, 6000, 1000, 8000, 8, 256, 6000, 64, 6000)
QUICK = Size(100, 60, 60, 100, 2, 8, 32, 4, 32)
NAMES = ("digits", "letter", "spam")


@dataclass(frozen=True)
class Drawn:
    """One split of one set, as numbers of mean 0 and deviation 1, and its ensemble."""

    rows: Rows  # labelled and pool: the transfer set
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    strange: np.ndarray  # the test rows with each column's numbers exchanged among the rows
    classes: int
    ensemble: Any

    @property
    def labelled(self) -> Rows:
        return self.rows.take(self.rows.known)


def draw(name: str, seed: int, size: Size) -> Drawn:
    """Split a set by a seed, and train its ensemble on the labelled rows."""
    x, y = SETS[name][0]()
    generator = np.random.default_rng([20, seed])
    order = generator.permutation(len(y))
    wanted = [size.labelled, size.pool, size.validation, size.test]
    if sum(wanted) > len(y):  # a small set is divided in these proportions
        wanted = [int(part * len(y) / sum(wanted)) for part in wanted]
    a, b, c, d = np.split(order, np.cumsum(wanted))[:4]
    array = isinstance(x, np.ndarray)
    own = x[a] if array else x.iloc[a]
    scaler = StandardScaler().fit(own) if array else default_transformer(own)
    numbers = np.asarray(scaler.transform(x) if array else scaler(x), np.float32)
    classes = int(y.max()) + 1
    rows = np.concatenate([a, b])
    labels = np.where(np.arange(len(rows)) < len(a), y[rows], -100)
    strange = numbers[d].copy()
    for column in range(strange.shape[1]):
        strange[:, column] = strange[generator.permutation(len(d)), column]
    model = functools.partial(
        MLP, inputs=numbers.shape[1], hidden=[size.width, size.width], outputs=classes, dropout=0.1
    )
    budget = Optimization(steps=size.member_steps, batch_size=64, weight_decay=0.05, learning_rate=3e-3)
    ensemble = Ensemble.train(model, (numbers[a], y[a]), members=size.members, seed=seed, optimization=budget)
    return Drawn(
        Rows(numbers[rows], np.arange(len(rows)), labels),
        (numbers[c], y[c]),
        (numbers[d], y[d]),
        strange,
        classes,
        ensemble,
    )


def few(size: Size, steps: int | None) -> Size:
    """The sizes with another number of a student's steps."""
    return size if steps is None else replace(size, steps=steps)
