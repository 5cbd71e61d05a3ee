"""The units in which a cache of regression holds its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ensdistill.cache.manifest import Manifest
    from ensdistill.cache.teachers import Predict

SAMPLE = 1024
"""Rows whose predictions set location and scale, where there are more."""
_CONSTANT = 1e-12  # of the location: a smaller spread is rounding

Moments = tuple[np.ndarray, np.ndarray | None]
"""Means and variances float64 [K, N, D] in the data's units; None where no member gives a variance."""


@dataclass(frozen=True)
class Standard:
    """Zero and unit of each number, and whether records hold deviations.

    Parameters
    ----------
    location, scale : ndarray [D], float64
        In the data's units; scales are above 0.
    variance : bool

    Examples
    --------
    >>> standard = Standard(np.array([10.0]), np.array([2.0]), True)
    >>> values = standard(np.array([[[14.0]]]), np.array([[[36.0]]]))
    >>> values.tolist(), [part.tolist() for part in standard.split(values)]
    ([[[2.0, 3.0]]], [[[[2.0]]], [[[9.0]]]])
    """

    location: np.ndarray
    scale: np.ndarray
    variance: bool

    @classmethod
    def of(cls, plan: Manifest) -> Standard | None:
        """That of a plan or manifest; None of another task, or where it is not measured yet."""
        if "location" not in plan:
            return None
        location, scale = (np.array(plan[field], np.float64) for field in ("location", "scale"))
        return cls(location, scale, plan["variance"])

    @classmethod
    def measured(
        cls, predict: Callable[[np.ndarray], Moments], rows: int, weights: np.ndarray, *, mixture: bool
    ) -> Standard:
        """From the mixture's means of all rows, or of :data:`SAMPLE` of them.

        Parameters
        ----------
        predict : callable
            From positions of rows [M] to their moments.
        rows : int
        weights : ndarray [K]
        mixture : bool
            Only the mixture is stored: that of several members has a variance, even if they give none.
        """
        positions = np.arange(rows)
        if rows > SAMPLE:
            positions = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
        mean, variance = predict(positions)
        middle = np.einsum("k,knd->nd", weights / weights.sum(), mean)
        location, spread = middle.mean(0), middle.std(0)
        scale = np.where(spread > _CONSTANT * np.abs(location), spread, 1.0)
        return cls(location, scale, variance is not None or (mixture and len(mean) > 1))

    def fields(self) -> dict[str, Any]:
        """Those of a manifest."""
        return {"location": self.location.tolist(), "scale": self.scale.tolist(), "variance": self.variance}

    def __call__(self, mean: np.ndarray, variance: np.ndarray | None = None) -> np.ndarray:
        """Moments [K, N, D] in the data's units as a cache's numbers, float32 [K, N, D or 2 D]: standardised
        means, and after them deviations, which are 0 where no variance is given."""
        values = (np.asarray(mean, np.float64) - self.location) / self.scale
        if self.variance:
            own = np.zeros_like(values) if variance is None else np.sqrt(variance) / self.scale
            values = np.concatenate([values, own], -1)
        with np.errstate(over="ignore"):  # the encoder refuses infinity, and names the row
            return values.astype(np.float32)

    def split(self, values: Any) -> tuple[Any, Any]:
        """Standardised means and variances [..., D] of a cache's numbers, tensors or arrays; the second may
        be None."""
        numbers = len(self.location)
        return values[..., :numbers], values[..., numbers:] ** 2 if self.variance else None

    def in_data_units(self, values: np.ndarray) -> Moments:
        """A cache's numbers as moments in the data's units, float64."""
        mean, variance = self.split(np.asarray(values, np.float64))
        return self.location + self.scale * mean, None if variance is None else self.scale**2 * variance

    def wrap(self, predict: Predict) -> Predict:
        """``predict`` with its moments as a cache's numbers."""

        def standardised(inputs: Any, uids: np.ndarray) -> np.ndarray:
            mean, variance = predict(inputs, uids)
            if variance is not None and not self.variance:
                raise ValueError(
                    "ensemble.predict_moments: expected variances of all rows or of none; got some for uid "
                    f"{int(uids[0])}, and none for others"
                )
            return self(mean, variance)

        return standardised
