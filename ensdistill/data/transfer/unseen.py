"""Synthetic rows that equal a test row by coincidence, as rows of coarse columns do, are not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.data import batches as b
from ensdistill.data.samples import in_memory, whole


class Unseen:
    """Takes the place of synthetic rows that equal one of the test rows.

    Figures would be too good on test rows on which the student was trained to match the ensemble. A source of
    which at least half of the rows equal test rows gives them on purpose: they stay, so that the check for
    copies finds them. Lazy test samples are not read for this; the same check compares them.

    Parameters
    ----------
    test : samples
    """

    def __init__(self, test: Any) -> None:
        self.known = (
            np.unique(_hashes(whole(test))) if in_memory(test) and len(test) else np.zeros(0, np.uint64)
        )

    def __call__(self, made: Any, generator: np.random.Generator) -> Any:
        """``made``, with another of its rows, drawn at random, in the place of each that equals a test
        row."""
        if not len(self.known) or not b.count(made):
            return made
        seen = np.isin(_hashes(made), self.known)
        if not seen.any() or seen.mean() >= 0.5:
            return made
        index = np.arange(len(seen))
        index[seen] = generator.choice(np.flatnonzero(~seen), int(seen.sum()))
        return b.take(made, index)


def _hashes(batch: Any) -> np.ndarray:
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "fc":
        batch = batch + batch.dtype.type(0)  # -0.0 + 0 is 0.0
    return b.hashes(batch)
