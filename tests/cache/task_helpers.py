"""Teachers of the tasks multilabel and regression: NumPy alone, and the same bits every time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from cache_helpers import Teachers, digits

from ensdistill.data import Rows
from ensdistill.loss.gaussian import gaussian_moments

SMALL = {"shard_rows": 64, "batch_size": 50}


@dataclass(frozen=True)
class Labellers(Teachers):
    """Multi-label members, whose log-odds are those of :class:`Teachers`."""

    task: str = "multilabel"


@dataclass(frozen=True)
class Regressors:
    """Members that look their moments up by the sample's number, the input's first column."""

    mean: np.ndarray  # float64 [K, N, D]
    variance: np.ndarray | None = None
    names: tuple[str, ...] = ("a", "b", "c")
    classes: tuple[str, ...] | None = ("x", "y")
    weights: np.ndarray = field(default_factory=lambda: np.array([0.5, 0.3, 0.2]))
    combiner: str = "prob"
    task: str = "regression"
    version: str = "1"

    def predict_moments(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        at = inputs[:, 0].astype(int)
        return self.mean[:, at], None if self.variance is None else self.variance[:, at]

    def fingerprint(self) -> dict[str, Any]:
        members = {name: self.version for name in self.names}
        return {"task": self.task, "members": members, "weights": self.weights.tolist()}

    def mixture(self) -> tuple[np.ndarray, np.ndarray]:
        import torch

        parts = (None if part is None else torch.from_numpy(part) for part in (self.mean, self.variance))
        mean, variance = gaussian_moments(*parts, weights=self.weights.tolist())
        return mean.numpy(), variance.numpy()


@cache
def labelled(n: int = 230) -> tuple[Labellers, Rows]:
    """Three multi-label members, and rows whose uids are a permutation."""
    teachers, rows = digits(n)
    labels = np.eye(10, dtype=np.int8)[rows.labels]
    return Labellers(teachers.logits), Rows(rows.inputs, rows.uids, labels)


@cache
def measured(n: int = 230, variances: bool = True) -> tuple[Regressors, Rows]:
    """Three regressors of two numbers in unlike units."""
    generator, unit = np.random.default_rng(5), np.array([40.0, 1e-3])
    signal = generator.normal(size=(n, 2))
    mean = np.array([1e4, 0.0]) + unit * (signal + 0.3 * generator.normal(size=(3, n, 2)))
    variance = unit**2 * generator.gamma(2.0, 0.1, size=(3, n, 2)) if variances else None
    inputs = np.concatenate([np.arange(n)[:, None], signal], 1).astype(np.float32)
    uids = np.random.default_rng(0).permutation(n)
    return Regressors(mean, variance), Rows(inputs, uids, np.array([1e4, 0.0]) + unit * signal)


def versions(teachers: Any) -> Any:
    """The same ensemble of another content."""
    return replace(teachers, version="2")
