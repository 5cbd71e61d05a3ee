"""Small rows of several labels and of numbers, and sources of targets in memory for them."""

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from ensdistill import Optimization, Rows
from ensdistill.loss.targets import EnsembleLogits, Moments
from ensdistill.models import MLP

N, INPUTS, LABELS, NUMBERS = 120, 6, 4, 2
X = np.random.default_rng(0).normal(size=(N, INPUTS)).astype(np.float32)
UIDS = np.random.default_rng(1).permutation(1000)[:N]
SHORT = Optimization(steps=40, batch_size=24, learning_rate=0.01)
OF_LABELS, OF_NUMBERS = partial(MLP, INPUTS, [8], LABELS), partial(MLP, INPUTS, [8], NUMBERS)
OF_MOMENTS = partial(MLP, INPUTS, [8], 2 * NUMBERS)


@dataclass
class Source:
    """Targets of rows in memory: both a source and the targets for the rows of a training."""

    task: str
    values: np.ndarray  # [K, N, C]: log-odds, or means in the data's units
    variance: np.ndarray | None = None
    weights: np.ndarray = None
    uids: np.ndarray = field(default_factory=lambda: UIDS)
    combiner: str = "prob"
    temperature: float | None = None
    max_temperature: float | None = None
    versions: None = None
    compared: str = "none"
    needs_samples: bool = False

    def __post_init__(self):
        count = len(self.values)
        self.weights = np.full(count, 1 / count) if self.weights is None else self.weights
        self.names = tuple(f"member {k}" for k in range(count))
        self.classes = self.values.shape[2]
        self.location = self.scale = None
        if self.task == "regression":
            mixture = np.einsum("k,knd->nd", self.weights, self.values)
            self.location, self.scale = mixture.mean(0), mixture.std(0)
        self.order = np.argsort(self.uids)

    def for_rows(self, rows, augment):
        return self

    def of(self, uids, epochs, samples):
        at = self.order[np.searchsorted(self.uids[self.order], uids)]
        weights, values = torch.from_numpy(self.weights), self.values[:, at]
        if self.task != "regression":
            return EnsembleLogits(torch.from_numpy(values).float(), weights, self.combiner)
        mean = torch.from_numpy((values - self.location) / self.scale).float()
        if self.variance is None:
            return Moments(mean, None, weights)
        return Moments(mean, torch.from_numpy(self.variance[:, at] / self.scale**2).float(), weights)

    def all(self):
        return self.of(self.uids, None, None)

    def check(self, uids, epochs, hashes, form):
        pass

    def fingerprint(self):
        return [["source", self.task, self.values, self.weights]]

    def close(self):
        pass


def linear(seed, outputs, scale=1.0):
    generator = np.random.default_rng(seed)
    return X @ generator.normal(size=(INPUTS, outputs)) * scale + generator.normal(size=outputs)


def labels_source(members=3, **options):
    return Source("multilabel", np.stack([linear(10 + k, LABELS) for k in range(members)]), **options)


def numbers_source(members=3, variances=False, **options):
    truth = linear(5, NUMBERS)
    mean = np.stack([truth + linear(20 + k, NUMBERS, 0.3) for k in range(members)])
    variance = (
        np.exp(0.3 * np.stack([linear(30 + k, NUMBERS) for k in range(members)])) if variances else None
    )
    return Source("regression", 100 + mean * [1.0, 20.0], variance, **options)


_draws = np.random.default_rng(2)
KNOWN = np.where(_draws.random((N, LABELS)) < 0.3, -1, linear(5, LABELS) > 0).astype(np.int8)
KNOWN[::5] = -1  # rows without any known label
TAGGED = Rows(X, UIDS, KNOWN)
FULLY = Rows(X, UIDS, (linear(5, LABELS) > 0).astype(np.int8))
Y = 100 + (linear(5, NUMBERS) + _draws.normal(size=(N, NUMBERS)) * 0.3) * [1.0, 20.0]
MEASURED = Rows(X, UIDS, Y)
PARTLY = Rows(X, UIDS, np.where(np.arange(N)[:, None] % 3 == 0, np.nan, Y))


def without_labels(rows):
    return replace(rows, labels=np.full(len(rows), -100))


SOURCES = {
    "multilabel": (labels_source, OF_LABELS, TAGGED),
    "regression": (numbers_source, OF_NUMBERS, PARTLY),
    "with variances": (partial(numbers_source, variances=True), OF_MOMENTS, PARTLY),
}
