"""Rounds: a transfer set whose synthetic rows are new in each epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from torch import Tensor

from ensdistill.common.describe import describe
from ensdistill.common.fingerprint import digest
from ensdistill.common.random import random_generator
from ensdistill.data import batches as b
from ensdistill.data.transfer.base import Synthetic
from ensdistill.data.transfer.unseen import Unseen

_HELD = 4  # rounds in memory: those of a few views are made once, and steps that are read together need two


class Rounds:
    """The synthetic rows of a transfer set, made anew for each version of its rows.

    It takes the place of an augmentation, in ``cache_targets``, ``CacheAsYouGo``, ``OnlineTeachers`` and
    ``distill``: version 0 of the rows is the transfer set itself. In every other version the labelled rows
    and the pool stay as they are, and each source makes its synthetic rows again, with a generator keyed by
    (seed, source, version). So a cache of V views has V times as many different synthetic rows, in the memory
    of four rounds at most, and online teachers never see one twice. The same seed gives the same rows, in any
    process and after a resume.

    :meth:`ensdistill.data.transfer.TransferSet.rounds` makes it.

    Parameters
    ----------
    base : batch
        The samples that the synthetic rows are made from.
    synthetic : sequence of Synthetic
    counts : sequence of int
        Rows of each source in the transfer set.
    first : int
        The uid of the first synthetic row.
    unseen : Unseen
    """

    def __init__(
        self, base: Any, synthetic: Sequence[Synthetic], counts: Sequence[int], first: int, unseen: Unseen
    ) -> None:
        self.base, self.synthetic, self.counts, self.first = base, list(synthetic), list(counts), first
        self.unseen = unseen
        self._makers: list[Callable[[np.random.Generator], Any]] = []
        self._made: dict[tuple[int, int], Any] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        kinds = ", ".join(
            f"{count} by {type(source).__name__}"
            for count, source in zip(self.counts, self.synthetic, strict=True)
        )
        return f"Rounds({kinds}; settings {digest([describe(self.synthetic), self.unseen.known])[:12]})"

    def __getstate__(self) -> dict[str, Any]:
        names = ("base", "synthetic", "counts", "first", "unseen")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Rounds.__init__(self, **state)

    def version(self, inputs: Any, uids: np.ndarray, view: int, seed: int) -> Any:
        """Version ``view`` of some rows of the transfer set; see
        :func:`ensdistill.data.versions.view_inputs`.

        Raises
        ------
        ValueError
            A uid is not one of the transfer set.
        """
        if view == 0:
            return inputs
        last = self.first + sum(self.counts)
        if len(uids) and not 0 <= uids.min() <= uids.max() < last:
            wrong = uids[(uids < 0) | (uids >= last)][0]
            raise ValueError(f"uids: expected those of the transfer set, 0..{last - 1}; got {wrong}")
        fresh = uids >= self.first
        if not fresh.any():
            return inputs
        new = b.take(self._round(view, seed), uids[fresh] - self.first)
        if fresh.all():
            return new
        order = np.argsort(np.concatenate([np.flatnonzero(~fresh), np.flatnonzero(fresh)]))
        return b.take(b.join([b.take(inputs, np.flatnonzero(~fresh)), new]), order)

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Refuse with a TypeError: versions are made by :meth:`version`."""
        raise self._refusal()

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Refuse with a TypeError: versions are made by :meth:`version`."""
        raise self._refusal()

    def variants(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Refuse with a TypeError: versions are made by :meth:`version`."""
        raise self._refusal()

    def _refusal(self) -> TypeError:
        return TypeError(
            "augment: expected an augmentation of single samples, because no rows of a transfer set are "
            f"changed here; got {self!r}, which is for cache_targets, OnlineTeachers and distill"
        )

    def _round(self, view: int, seed: int) -> Any:
        """The synthetic rows of a version, in the order of their uids."""
        with self._lock:  # members may predict for one step while the next one is read
            if (view, seed) not in self._made:
                made = self._make(view, seed)
                while len(self._made) >= _HELD:
                    self._made.pop(next(iter(self._made)))
                self._made[view, seed] = made
            return self._made[view, seed]

    def _make(self, view: int, seed: int) -> Any:
        if not self._makers:
            self._makers = [maker(source, self.base) for source in self.synthetic]
        parts = []
        for index, (make, count) in enumerate(zip(self._makers, self.counts, strict=True)):
            generator = random_generator("transfer", seed, index, "version", view)
            part = self.unseen(make(generator), generator)
            if (got := b.count(part)) != count:
                raise ValueError(
                    f"transfer.synthetic.{index} ({type(self.synthetic[index]).__name__}): expected as many "
                    f"rows as in the first version, {count}; got {got}"
                )
            parts.append(part)
        return b.join(parts)


def maker(source: Synthetic, base: Any) -> Callable[[np.random.Generator], Any]:
    """The source's ``make`` for one base; a source with ``fit`` is fitted once for all calls."""
    if callable(fit := getattr(source, "fit", None)):
        made: Callable[[np.random.Generator], Any] = fit(base).make
        return made
    return lambda generator: source.make(base, generator)
