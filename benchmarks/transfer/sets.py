"""Development sets: tables with labelled rows only, a part to learn from and a part to validate on.

The rows beyond these two parts are never looked at: other benchmarks report on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.preprocessing import StandardScaler

from benchmarks.quality.sets import content
from benchmarks.quality.sets import diamonds as diamonds_frame
from benchmarks.teachers.data import letter, r_frame
from ensdistill.data import batches as b
from ensdistill.data.preprocess import Transformer, default_transformer

KERNLAB = Path("/usr/lib/R/site-library/kernlab/data")


@dataclass(frozen=True)
class Development:
    """One split of one set: samples in the user's container, labels int64, and the members' settings.

    ``networks`` are trained for ``steps``, with two hidden layers of ``width``; ``trees`` are estimators.
    """

    name: str
    learned: Any
    labels: np.ndarray
    validation: Any
    validation_labels: np.ndarray
    width: int
    networks: int
    steps: int
    trees: tuple[Any, ...]
    preprocess: Any
    sizes: dict[str, list[int]]

    @property
    def classes(self) -> int:
        return int(max(self.labels.max(), self.validation_labels.max())) + 1


def _kernlab(name: str, target: str) -> tuple[Any, np.ndarray]:
    frame = r_frame(KERNLAB / f"{name}.rda", name, "apt-get install r-cran-kernlab")
    return frame.drop(columns=target), np.asarray(frame[target].cat.codes, np.int64)


def income() -> tuple[Any, np.ndarray]:
    """8 993 answers to a survey: 13 categories with gaps; does the household earn 50 000 dollars or more?"""
    frame, codes = _kernlab("income", "INCOME")
    return frame, (codes >= 7).astype(np.int64)


def spam() -> tuple[np.ndarray, np.ndarray]:
    """4 601 mails by 57 frequencies of words and characters, most of them 0; is it spam?"""
    frame, codes = _kernlab("spam", "type")
    return frame.to_numpy(np.float32), codes


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1 797 digits of 8x8 pixels, as a table of 64 columns."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x.astype(np.float32), y.astype(np.int64)


def diamonds() -> tuple[Any, np.ndarray]:
    """53 940 diamonds by weight, colour, clarity, measures and price; the quality of the cut, 5 classes."""
    frame = diamonds_frame()
    return frame.drop(columns="cut"), np.asarray(frame["cut"].astype("category").cat.codes, np.int64)


def flights() -> tuple[Any, np.ndarray]:
    """327 346 flights by the raw facts of the day before; arrival early, up to half an hour late, or later."""
    frame, labels, _ = content("flights")
    return frame, labels


SETS: dict[str, tuple[Callable[[], tuple[Any, np.ndarray]], int]] = {
    "letter": (letter, 5000),
    "income": (income, 3000),
    "spam": (spam, 1500),
    "digits": (digits, 600),
    "diamonds": (diamonds, 5000),
    "flights": (flights, 5000),
}


def development(name: str, seed: int, quick: bool) -> Development:
    """The seed's split; half of the rows that are looked at are learned."""
    load, rows = SETS[name]
    x, y = load()
    rows = 300 if quick else rows
    order = np.random.default_rng([7, seed]).permutation(len(y))
    learned, validation = (b.take(x, part) for part in (order[:rows], order[rows : 2 * rows]))
    scaler = StandardScaler() if isinstance(x, np.ndarray) else None
    preprocess = default_transformer(learned) if scaler is None else Transformer(scaler.fit(learned))
    mixed: tuple[Any, ...] = (
        HistGradientBoostingClassifier(learning_rate=0.05, max_leaf_nodes=15),
        ExtraTreesClassifier(n_estimators=100, min_samples_leaf=2),
    )
    usual = max(1000, 20 * rows // 64)
    # Six times as many steps on the letters, whose networks go on learning; few on the survey
    # and the flights, where they overfit.
    own = {"letter": (256, 6, 6000, ()), "digits": (128, 5, usual, ()), "income": (128, 3, 300, mixed)}
    own["flights"] = (128, 3, 600, mixed)
    width, networks, steps, trees = own.get(name, (128, 3, usual, mixed))
    small = width // 4
    return Development(
        name,
        learned,
        y[order[:rows]],
        validation,
        y[order[rows : 2 * rows]],
        width,
        networks,
        100 if quick else steps,
        trees,
        preprocess,
        {"member": [width, width], "tenth": [small, small]},
    )
