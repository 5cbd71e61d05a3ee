"""Loss and entropy of language models' mixture at each position, and the positions where they are high."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ensdistill.data.tokens import TokenSequences, answers_of

if TYPE_CHECKING:
    from collections.abc import Iterator

Score = Literal["entropy", "loss"]
SCORES = ("entropy", "loss")
NUMBERS = 2**20  # logits of a member that are looked at together, for the processor's cache


class PartsEnsemble(Protocol):
    """The part of an ensemble of sequences that gives its mixture, such as ``LanguageEnsemble``."""

    combiner: Any

    @property
    def weights(self) -> np.ndarray: ...

    def predict_parts(self, inputs: Mapping[str, Any]) -> Iterator[Tensor]: ...


def token_scores(
    ensemble: PartsEnsemble,
    sequences: TokenSequences,
    *,
    by: Score = "loss",
    temperature: float = 1.0,
    batch_size: int = 64,
) -> np.ndarray:
    """The mixture's cross entropy of each position's label, or its entropy, in nats.

    Logits exist for a few positions at a time.

    Parameters
    ----------
    ensemble : LanguageEnsemble or ServedLogProbs
    sequences : TokenSequences
    by : {"loss", "entropy"}
    temperature : float
        Of the members' probabilities.
    batch_size : int
        Sequences that are read at once.

    Returns
    -------
    ndarray [M], float32
        At the positions that count, of all sequences in order.
    """
    if by not in SCORES:
        raise ValueError(f"by: expected one of {', '.join(SCORES)}; got {by!r}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0; got {temperature}")
    weights = torch.from_numpy(np.asarray(ensemble.weights, np.float64))
    used = weights > 0  # a member without weight may mask classes that others do not
    share = (weights[used] / weights.sum()).float()
    rows, found = sequences.rows, list[Tensor]()
    for start in range(0, len(sequences), batch_size):
        inputs = rows.inputs[np.arange(start, min(start + batch_size, len(sequences)))]
        answers, done = torch.from_numpy(answers_of(inputs)), 0
        for part in ensemble.predict_parts(inputs):
            step = max(1, NUMBERS // part.shape[-1]) if part.device.type == "cpu" else part.shape[1]
            for logits in part.split(step, 1):
                own = answers[done : done + logits.shape[1]].to(logits.device)
                done += logits.shape[1]
                kept = logits if used.all() else logits[used.to(logits.device)]
                scaled = kept if temperature == 1 else kept / temperature
                found.append(_scored(scaled, share.to(logits.device), ensemble.combiner, own, by).cpu())
    return torch.cat(found).numpy()


def top_positions(
    ensemble: PartsEnsemble,
    sequences: TokenSequences,
    *,
    by: Score = "entropy",
    share: float = 0.3,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> TokenSequences:
    """The same sequences, of which fewer positions count: in each the share with the highest scores.

    A cache of them takes so much less space, and a student learns nothing at the other positions. With the
    student as the ensemble, ``LanguageEnsemble([student])``, its entropies choose.

    Parameters
    ----------
    ensemble, sequences, temperature, batch_size
        As of :func:`token_scores`.
    by : {"entropy", "loss"}
    share : float
        Above 0, at most 1; rounded up to whole positions, so that each sequence keeps one. Of equal
        positions the first is kept.

    References
    ----------
    Tavor et al., "Rethinking Selective Knowledge Distillation", arXiv 2602.01395, 2026.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> texts = TokenSequences([{"input_ids": [1, 2, 0, 1]}], 3)
    >>> logits = torch.tensor([[[9.0, 0, 0], [0, 0, 0], [2, 0, 0]]])
    >>> model = SimpleNamespace(
    ...     predict_parts=lambda inputs: iter([logits]), weights=np.ones(1), combiner="prob")
    >>> top_positions(model, texts, share=0.5).counted
    array([[False,  True,  True, False]])
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number above 0 and at most 1; got {share}")
    scores = token_scores(ensemble, sequences, by=by, temperature=temperature, batch_size=batch_size)
    chosen = np.zeros(len(scores), bool)
    ends = np.cumsum(sequences.lengths)
    for begin, end in zip(ends - sequences.lengths, ends, strict=True):
        kept = math.ceil(share * (end - begin) - 1e-9)
        chosen[begin + np.argsort(-scores[begin:end], kind="stable")[:kept]] = True
    counted = np.zeros_like(sequences.counted)
    counted[sequences.counted] = chosen
    return sequences.only(counted)


def _scored(logits: Tensor, weights: Tensor, combiner: str, answers: Tensor, by: Score) -> Tensor:
    """The score [M] of each row of logits [K, M, C]."""
    if combiner != "prob":
        logits, weights = (weights[:, None, None] * logits).sum(0, keepdim=True), weights.new_ones(1)
    log_p = logits.log_softmax(-1)
    if by == "entropy":
        return torch.special.entr((weights[:, None, None] * log_p.exp()).sum(0)).sum(-1)
    of_label = log_p.gather(-1, answers.expand(len(log_p), -1)[..., None])[..., 0]
    return -torch.logsumexp(of_label + weights.log()[:, None], 0)
