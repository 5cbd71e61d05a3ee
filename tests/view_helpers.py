"""Teachers of images, whose logits are exact sums of the pixels, and of sequences."""

import numpy as np
from cache_helpers import Teachers

N = 90


class Seeing:
    """A teacher whose logits are a linear function of the pixels."""

    names, classes, weights, combiner = ("a",), tuple("0123456789"), np.ones(1), "prob"
    matrix = np.random.default_rng(0).integers(-3, 4, (64, 10)).astype(np.float32)  # exact sums, in any order

    def predict_logits(self, inputs):
        return (inputs.reshape(len(inputs), 64) @ self.matrix)[None]

    def fingerprint(self):
        return {"members": ["a"]}


LENGTHS = np.random.default_rng(2).integers(1, 9, N)


def token_teachers():
    logits = np.random.default_rng(3).normal(0, 3, (2, N, 8, 12)).astype(np.float32)
    names, classes = ("a", "b"), tuple("abcdefghijkl")
    return Teachers(logits, names, classes, np.array([0.6, 0.4])), np.arange(N)[:, None].repeat(8, 1).astype(
        np.float32
    )
