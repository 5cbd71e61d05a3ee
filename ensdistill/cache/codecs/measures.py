"""Of each task: the mixture of the members' rows, and the cost of storing a row in another form.

=================  ==========================================  ===============================================
task               a row, and its mixture                      cost
=================  ==========================================  ===============================================
classification     logits; log-probabilities of the mixture    KL between the softmaxes, in nats
multilabel         log-odds, of the mixture too                the sum over labels of the binary KLs, in nats
regression         standardised means, then deviations         the largest absolute difference of two numbers
=================  ==========================================  ===============================================

All are computed in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensdistill.common.tasks import Task
from ensdistill.loss import multilabel_reference, reference
from ensdistill.loss.encoders_reference import mixture_log_probs
from ensdistill.loss.gaussian import gaussian_moments


def mixture_of(
    task: Task, values: Tensor, weights: Tensor, combiner: Any, temperature: float, numbers: int | None
) -> Tensor:
    """The combined row [N, E] of members' ``values`` [K, N, E], float64.

    Parameters
    ----------
    task : {"classification", "multilabel", "regression"}
    values : Tensor float32 [K, N, E]
    weights : Tensor float64 [K]
    combiner : {"prob", "logit", "log_prob"}
    temperature : float
    numbers : int or None
        D, of regression: the values are D means, and then D deviations or none.
    """
    if task == "classification":
        return mixture_log_probs(values, None, None, weights, temperature, combiner)
    if task == "multilabel":
        shares = reference.normalized(weights, len(values), values.double())
        yes, no = multilabel_reference.mixture(values.double(), shares, "logits", combiner, temperature)
        return yes.log() - no.log()
    means, deviations = values[..., :numbers].double(), values[..., numbers:].double()
    if not deviations.shape[-1]:
        return gaussian_moments(means, weights=weights)[0]
    mean, variance = gaussian_moments(means, deviations**2, weights=weights)
    return torch.cat([mean, variance.sqrt()], -1)


def row_cost(task: Task, exact: Tensor, decoded: Tensor) -> Tensor:
    """The cost of storing each row [N, E] as ``decoded``: float64 [N], not negative.

    ``exact`` is float64; of classification it holds log-probabilities.
    """
    if task == "classification":
        log_q = torch.log_softmax(decoded.double(), -1)
        return reference.forward_kl(exact, log_q, 0.0).clamp(min=0)
    if task == "multilabel":
        yes, no = torch.sigmoid(exact), torch.sigmoid(-exact)
        # Rounding can leave -1e-17 of a label.
        return multilabel_reference.bernoulli_kl(yes, no, decoded.double()).clamp(min=0).sum(-1)
    return (exact - decoded.double()).abs().amax(-1)
