"""How far a stored record may be from a new encoding of what the same teachers return, on another machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NOISE = 1e-4
"""Another batch size, device or library version moves a logit by this share of the row's largest one.

The cause is the order in which float32 sums of some thousand terms are added up.
"""


class Comparison(NamedTuple):
    """The distance of stored targets from newly encoded ones.

    Parameters
    ----------
    quantity : str
        The name of the distance, for the error message.
    distance, allowed : ndarray [N, K]
        Of each record and member (K = 1 for a mixture); a distance above ``allowed`` is an error.
    """

    quantity: str
    distance: np.ndarray
    allowed: np.ndarray


@dataclass(frozen=True)
class Tolerance:
    """How far rounding may move the targets of N records.

    Parameters
    ----------
    root_kl : float
        Square root of the largest KL that storing cost, in this cache and the caches that it was made from;
        of regression of the largest error.
    floor : float or None
        How far below its row's largest a logit may be and still have a code.
    moved : ndarray [N]
        How far noise, and earlier conversions, move a logit, a log-probability or a standardised number.
    moved_by_noise : ndarray [N]
        How far noise alone moves it.
    """

    root_kl: float
    floor: float | None
    moved: np.ndarray
    moved_by_noise: np.ndarray

    def kl(self, logits: np.ndarray) -> np.ndarray:
        """The KL [N, K] that storing and noise explain for ``logits`` [N, K, C]."""
        return 4 * self.root_kl**2 + (NOISE * largest_size(logits)) ** 2 / 2

    def label_kl(self, logits: np.ndarray) -> np.ndarray:
        """The same for log-odds, whose KL is a sum over C labels: each adds up to an eighth of a square."""
        square = logits.shape[-1] * (NOISE * largest_size(logits)) ** 2
        return 4 * self.root_kl**2 + square / 8

    def error(self, numbers: np.ndarray) -> np.ndarray:
        """The error [N, K] that storing and noise explain for standardised ``numbers`` [N, K, E]."""
        return 2 * self.root_kl**2 + self.moved[:, None] + NOISE * largest_size(numbers)


def largest_size(logits: np.ndarray) -> np.ndarray:
    """The largest absolute value of each row's finite logits, at least 1."""
    return np.max(np.abs(logits), axis=-1, where=np.isfinite(logits), initial=1.0)


def kl_divergence(logits: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """KL(softmax(logits) || softmax(decoded)) over the last axis at T = 1, in float64 and in nats."""
    log_p, log_q = _log_softmax(logits), _log_softmax(decoded)
    p = np.exp(log_p)
    # A masked class has p = 0 and log p - log q = nan: it must add nothing, so the difference is left out.
    terms = np.multiply(p, np.subtract(log_p, log_q, where=p > 0, out=np.zeros_like(p)))
    return np.maximum(terms.sum(-1), 0.0)  # rounding can leave -1e-17


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
