"""The heads of a student that has one for each member, and the uncertainties that they tell apart."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import log_softmax, xlogy
from torch import Tensor, nn

from ensdistill.data.samples import as_samples
from ensdistill.student.inputs import Preparation, call, takes_ids
from ensdistill.teachers.members import Member, Preprocessed
from ensdistill.teachers.members.heads import MultiHead
from ensdistill.teachers.members.preprocessed import inner


class Uncertainties(NamedTuple):
    """Uncertainties of N rows, float64 [N], in nats: ``total`` is the entropy of the prediction, ``data`` the
    mean entropy of the heads, and ``knowledge`` the rest, the mutual information of class and head."""

    total: np.ndarray
    data: np.ndarray
    knowledge: np.ndarray


class _Heads(nn.Module):
    """All heads of a network as its output."""

    def __init__(self, network: MultiHead) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        return self.network.heads(*inputs, **named)


def heads_of(member: Member, samples: Any) -> tuple[np.ndarray, np.ndarray]:
    """The logits of a member's heads, float32 [K, N, C], and the heads' weights [K].

    Raises
    ------
    ValueError
        The member is no network with several heads.
    """
    network = getattr(inner(member), "module", None)
    if not isinstance(network, MultiHead):
        kind = type(inner(member) if network is None else network).__name__
        raise ValueError(
            f"student: expected one with a head for each member (method: hydra); got {kind}, which predicts "
            "one distribution"
        )
    preprocess = member.preprocess if isinstance(member, Preprocessed) else None
    prepare, training = Preparation(preprocess, takes_ids(network), "samples"), network.training
    network.eval()
    try:
        with torch.no_grad():
            parts = [call(_Heads(network), part) for part in prepare.batches(as_samples(samples))()]
    finally:
        network.train(training)
    return torch.cat(parts, 1).float().numpy(), network.weights.double().numpy()


def uncertainties_of(heads: np.ndarray, weights: np.ndarray) -> Uncertainties:
    """The uncertainties of heads' logits [K, N, C] with weights [K].

    Examples
    --------
    >>> certain, apart = [[9.0, -9.0], [9.0, -9.0]], [[9.0, -9.0], [-9.0, 9.0]]
    >>> found = uncertainties_of(np.stack([certain, apart], 1), np.array([0.5, 0.5]))
    >>> found.knowledge.round(3).tolist()
    [0.0, 0.693]
    """
    p = np.exp(log_softmax(np.asarray(heads, np.float64), -1))
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    mean = np.tensordot(shares, p, 1)
    total = -xlogy(mean, mean).sum(-1)
    data = np.tensordot(shares, -xlogy(p, p).sum(-1), 1)
    return Uncertainties(total, data, np.maximum(total - data, 0.0))
