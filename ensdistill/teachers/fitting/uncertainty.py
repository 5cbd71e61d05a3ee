"""How unsure an ensemble is of each row, and why: noise in the labels, or disagreement among members."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, logsumexp


@dataclass(frozen=True)
class Uncertainty:
    """Of each row, in nats; ``total = aleatoric + epistemic``.

    Parameters
    ----------
    total : ndarray [N], float64
        Entropy of the mixture.
    aleatoric : ndarray [N], float64
        Mean entropy of the members.
    epistemic : ndarray [N], float64
        Mutual information of the label and the member; 0 if all members return the same probabilities.
    disagreement : ndarray [N], float64
        Probability that two different members, drawn by their weights, name different classes, in [0, 1].
    """

    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray
    disagreement: np.ndarray


def decompose(logits: np.ndarray, weights: np.ndarray) -> Uncertainty:
    """Split the uncertainty of a mixture.

    Depeweg et al., 2018, "Decomposition of Uncertainty in Bayesian Deep Learning", eq. 3.

    Always of the mean of probabilities: for other combiners the parts would not sum up.

    Parameters
    ----------
    logits : ndarray [K, N, C]
        ``-inf`` for a class that a member rules out.
    weights : ndarray [K], float64
        Non-negative, of sum one.

    Examples
    --------
    >>> sure = np.array([[[50.0, 0.0]], [[0.0, 50.0]]])
    >>> u = decompose(sure, np.array([0.5, 0.5]))
    >>> u.aleatoric.round(3).tolist(), u.epistemic.round(3).tolist(), u.disagreement.tolist()
    ([0.0], [0.693], [1.0])
    """
    used = weights > 0
    w = weights[used, None]
    z = np.asarray(logits, np.float64)[used]
    log_p = log_softmax(z, axis=-1)  # [K, N, C]
    mixture = logsumexp(log_p, axis=0, b=w[..., None])
    # A mean of divergences from the mixture, each at least 0, instead of a difference of entropies, which may
    # round below it.
    ratio = np.where(np.isneginf(log_p), 0.0, log_p - np.where(np.isneginf(mixture), 0.0, mixture))
    epistemic = np.maximum((w * (np.exp(log_p) * ratio).sum(-1)).sum(0), 0.0)
    aleatoric = (w * -(np.exp(log_p) * np.where(np.isneginf(log_p), 0.0, log_p)).sum(-1)).sum(0)
    votes = np.stack([(w * (z.argmax(-1) == c)).sum(0) for c in range(log_p.shape[-1])])
    different = 1 - (weights**2).sum()  # that two draws are two members
    disagreement = (
        np.clip(1 - (votes**2).sum(0), 0, None) / different if different > 1e-12 else np.zeros(log_p.shape[1])
    )
    return Uncertainty(aleatoric + epistemic, aleatoric, epistemic, np.minimum(disagreement, 1.0))
