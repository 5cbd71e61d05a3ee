"""Hugging Face language models as one ensemble that predicts a token at each position."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.combiners import COMBINERS, Combiner
from ensdistill.common.fingerprint import digest
from ensdistill.common.source import state_data
from ensdistill.data.tokens import answers_of, kind_of_rows
from ensdistill.teachers.language import (
    check_sequences,
    head_is_all,
    kind_of,
    model_inputs,
    output_columns,
    without_head,
)
from ensdistill.teachers.members.module import predicting

Weighting = Literal["given", "confidence", "minimum_ce"]
WEIGHTINGS = ("given", "confidence", "minimum_ce")
POSITIONS = 256  # of which all logits exist at once


class LanguageEnsemble:
    """Language models with one vocabulary, for :func:`ensdistill.cache.cache_targets`.

    ``cache_targets(ensemble, texts.rows, path, lengths=texts.lengths, codec="topk5-128", mixture_at=1.0)``
    stores their predictions for :class:`~ensdistill.data.tokens.TokenSequences` of their kind: causal models
    predict the next token, masked ones and decoders of two parts (T5, BART) that of the position. Logits
    exist for 256 positions at a time: what a model gives its output embeddings goes through them in parts, if
    that gives the model's own logits on the first sequence, and otherwise the model makes all logits of its
    batch.

    Parameters
    ----------
    models : sequence of PreTrainedModel
        Called with ``input_ids``, ``attention_mask`` and perhaps ``decoder_input_ids``, they return
        ``logits`` [N, L, C]. They predict where they are, in eval mode.
    names : sequence of str, optional
        By default ``member-1`` and so on.
    weights : sequence of float, optional
        Equal by default.
    weighting : {"given", "confidence", "minimum_ce"}
        ``confidence`` and ``minimum_ce`` weigh the members at each position by their cross entropy of its
        label. The cache then holds one member, the mixture.
    routes : dict of str to str, optional
        The member that predicts sequences of a source, by the key ``source`` of the sequences.
    combiner : {"prob", "logit", "log_prob"}
        Of given weights.
    tokenizers : sequence of tokenizers, optional
        One for each model, which have to agree; kept in the fingerprint with their chat template.
    vocabulary : int, optional
        Leaves out the columns behind it, with which models pad their vocabulary to a round number.
    batch_size : int
        Sequences that a model reads at once.

    Raises
    ------
    ValueError, TypeError
        Vocabularies, tokenizers or kinds of models that differ, numbers that do not fit each other, or a
        model without output embeddings. ``predict_parts`` raises it for tokens or lengths that the models
        do not have.

    References
    ----------
    Zhang et al., "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022, equation 3.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        names: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        weighting: Weighting = "given",
        routes: Mapping[str, str] | None = None,
        combiner: Combiner = "prob",
        tokenizers: Sequence[Any] | None = None,
        vocabulary: int | None = None,
        batch_size: int = 8,
    ) -> None:
        if not models:
            raise ValueError("models: expected at least one; got none")
        own = [f"member-{i + 1}" for i in range(len(models))] if names is None else list(names)
        shares = np.ones(len(models)) if weights is None else np.asarray(weights, np.float64)
        for argument, given in (("names", own), ("weights", shares), ("tokenizers", tokenizers or models)):
            if len(given) != len(models):
                raise ValueError(f"{argument}: expected {len(models)}, one for each model; got {len(given)}")
        if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
            raise ValueError(
                f"weights: expected numbers of at least 0 with a positive sum; got {shares.tolist()}"
            )
        for argument, value, known in (
            ("combiner", combiner, COMBINERS),
            ("weighting", weighting, WEIGHTINGS),
        ):
            if value not in known:
                raise ValueError(f"{argument}: expected one of {', '.join(known)}; got {value!r}")
        if weighting != "given" and (weights is not None or routes is not None):
            raise ValueError(f"weighting: expected 'given' beside weights or routes; got {weighting!r}")
        if routes is not None and (wrong := sorted(set(routes.values()) - set(own))):
            raise ValueError(f"routes: expected members, {', '.join(own)}; got {wrong[0]!r}")
        self.models, self.members = list[Any](models), tuple(own)
        self.weighting, self.routes, self.combiner = weighting, routes, combiner
        self.shares, self.batch_size = shares / shares.sum(), batch_size
        self.tokenizer = None if tokenizers is None else same_tokenizer(tokenizers, own)
        self.vocabulary = _vocabulary(models, own, vocabulary)
        kinds = [kind_of(one) for one in models]
        if other := [name for name, kind in zip(own, kinds, strict=True) if kind != kinds[0]]:
            raise ValueError(
                f"models: expected one kind; {own[0]} is {kinds[0]}, {other[0]} {kinds[own.index(other[0])]}"
            )
        self.kind = kinds[0]
        self.classes = [str(i) for i in range(self.vocabulary)]
        self._through_head: dict[int, bool] = {}

    @property
    def mixes(self) -> bool:
        """Whether positions or sources have weights of their own, so that one mixture is stored."""
        return self.weighting != "given" or self.routes is not None

    @property
    def names(self) -> tuple[str, ...]:
        return ("mixture",) if self.mixes else self.members

    @property
    def weights(self) -> np.ndarray:
        return np.ones(1) if self.mixes else self.shares

    def predict_parts(self, inputs: Mapping[str, Any]) -> Iterator[Tensor]:
        """Logits at the positions that count, float32 [K, M, C] for some at a time, of all sequences in
        order; with weights of positions or sources the mixture's log-probabilities [1, M, C].

        A part is valid until the next one is asked for, which may take its memory: new memory for large parts
        would cost as much as their numbers.
        """
        if (given := kind_of_rows(inputs)) != self.kind:
            raise ValueError(f"sequences: expected {self.kind} ones, of the models' kind; got {given}")
        for name, model in zip(self.members, self.models, strict=True):
            check_sequences(model, name, self.vocabulary, inputs)
        room: Tensor | None = None
        for start in range(0, len(inputs["input_ids"]), self.batch_size):
            batch = {name: np.asarray(part)[start : start + self.batch_size] for name, part in inputs.items()}
            hidden = [self._hidden(k, batch) for k in range(len(self.models))]
            answers, chosen = torch.from_numpy(answers_of(batch)), self._routed(batch)
            for place in range(0, len(answers), POSITIONS):
                part = slice(place, place + POSITIONS)
                count = len(answers[part])
                shape = (len(hidden), count, self.vocabulary)
                if room is None or room.numel() < math.prod(shape):
                    room = torch.empty(math.prod(shape), device=hidden[0].device)
                logits = room[: math.prod(shape)].view(shape)  # contiguous: others would be copied
                for k, one in enumerate(hidden):
                    self._logits(k, one[part], logits[k])
                routed = None if chosen is None else chosen[part]
                yield self._mixed(logits, answers[part], routed) if self.mixes else logits

    def predict_logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """The same of all sequences at once, [K, N, L, C]: the first positions of L are those that count."""
        return of_sequences(torch.cat([one.clone() for one in self.predict_parts(inputs)], 1), inputs)

    def fingerprint(self) -> dict[str, Any]:
        """Digests of weights, configuration and tokenizer, and how members are mixed."""
        parts = [_parts_of(one) for one in self.models]
        mixture = [self.shares.tolist(), self.combiner, self.weighting, dict(self.routes or {})]
        return {
            "members": dict(zip(self.members, map(digest, parts), strict=True)),
            "parts": dict(zip(self.members, parts, strict=True)),
            "kind": self.kind,
            "mixture": mixture,
            "vocabulary": self.vocabulary,
            "tokenizer": None if self.tokenizer is None else dict(self.tokenizer),
        }

    def _hidden(self, k: int, batch: Mapping[str, np.ndarray]) -> Tensor:
        """What a member gives its output embeddings [M, D] at the positions that count, or its logits."""
        model = self.models[k]
        with predicting(model) as device, torch.no_grad():
            given = {name: one.to(device) for name, one in model_inputs(model, self.kind, batch).items()}
            if k not in self._through_head:
                self._through_head[k] = head_is_all(model, given)
            if self._through_head[k]:
                with without_head(model) as seen:
                    model(**given)
                found = seen[0]
            else:
                found = model(**given).logits
            counted = torch.from_numpy(batch["counted"][:, : found.shape[1]].astype(bool))
            return found[counted.to(found.device)]

    def _logits(self, k: int, hidden: Tensor, out: Tensor) -> None:
        """Write a member's logits of these positions."""
        if self._through_head[k]:
            head = self.models[k].get_output_embeddings()
            with torch.no_grad():
                if _is_plain(head, hidden, out):
                    torch.mm(hidden, head.weight.t(), out=out)
                    return
                hidden = head(hidden)
        out.copy_(hidden[:, : self.vocabulary])

    def _routed(self, batch: Mapping[str, np.ndarray]) -> Tensor | None:
        """The number of the member that predicts at each position that counts."""
        if self.routes is None:
            return None
        if "source" not in batch:
            raise ValueError("routes: expected sequences with a source; got none: give each dict a 'source'")
        unknown = sorted(set(batch["source"].tolist()) - set(self.routes))
        if unknown:
            raise ValueError(f"routes: expected a member for each source; got none for {unknown[0]!r}")
        own = np.array([self.members.index(self.routes[name]) for name in batch["source"].tolist()])
        return torch.from_numpy(np.repeat(own, batch["counted"].astype(bool).sum(1)))

    def _mixed(self, logits: Tensor, follows: Tensor, chosen: Tensor | None) -> Tensor:
        """The mixture's log-probabilities [1, M, C] with weights of each position."""
        log_p = logits.log_softmax(-1)
        if chosen is not None:
            return log_p[chosen.to(log_p.device), torch.arange(log_p.shape[1], device=log_p.device)][None]
        ce = -log_p.gather(-1, follows.to(log_p.device).expand(len(log_p), -1)[..., None])[..., 0]
        return torch.logsumexp(log_p + weights_of_positions(ce, self.weighting).log()[..., None], 0)[None]


def of_sequences(packed: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Rows [K, M, C] of the positions that count as [K, N, L, C], the first of each sequence's L."""
    lengths = torch.from_numpy(np.asarray(inputs["counted"]).astype(bool).sum(1))
    used = torch.arange(int(lengths.max())) < lengths[:, None]
    out = packed.new_zeros((len(packed), *used.shape, packed.shape[-1]))
    out[:, used.to(out.device)] = packed
    return out


def weights_of_positions(ce: Tensor, weighting: Weighting) -> Tensor:
    """The members' weights [K, M] at each position, from their cross entropy of the next token [K, M].

    >>> weights_of_positions(torch.tensor([[0.1], [2.0]]), "minimum_ce").T
    tensor([[1., 0.]])
    """
    if len(ce) == 1:
        return torch.ones_like(ce)
    if weighting == "minimum_ce":
        return nn.functional.one_hot(ce.argmin(0), len(ce)).T.to(ce.dtype)
    return (1 - ce.softmax(0)) / (len(ce) - 1)


def same_tokenizer(tokenizers: Sequence[Any], names: Sequence[str]) -> dict[str, str]:
    """Digests of the tokenizers' vocabulary and chat template.

    Raises
    ------
    ValueError
        They differ; names the first member whose tokenizer is another one.
    """
    found = [described_tokenizer(one) for one in tokenizers]
    for name, one in zip(names[1:], found[1:], strict=True):
        for part in ("vocabulary", "merges"):
            if one[part] != found[0][part]:
                raise ValueError(
                    f"tokenizers: expected one {part} for all members, because targets are by token; that of "
                    f"{name} differs from that of {names[0]}"
                )
    return found[0]


def described_tokenizer(tokenizer: Any) -> dict[str, str]:
    """Digests of a tokenizer's vocabulary, of all that divides a text, and of its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    for of_a_call in ("truncation", "padding"):  # a call with truncation=True leaves it there
        rules.pop(of_a_call, None)
    return {
        "vocabulary": digest(sorted(tokenizer.get_vocab().items())),
        "merges": digest(rules),
        "chat_template": digest(getattr(tokenizer, "chat_template", None) or ""),
    }


def _vocabulary(models: Sequence[Any], names: Sequence[str], vocabulary: int | None) -> int:
    sizes = [output_columns("models", one) for one in models]
    if vocabulary is None and len(set(sizes)) > 1:
        own = ", ".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
        raise ValueError(
            f"models: expected one vocabulary; got {own} columns: where these are padded, pass vocabulary=, "
            "the number of the tokenizer's tokens"
        )
    if vocabulary is not None and vocabulary > min(sizes):
        raise ValueError(
            f"vocabulary: expected at most {min(sizes)}, the least of the models'; got {vocabulary}"
        )
    return sizes[0] if vocabulary is None else vocabulary


def _is_plain(head: Any, hidden: Tensor, out: Tensor) -> bool:
    """Whether output embeddings are one product of matrices, that can be written where it belongs."""
    changed = "forward" in vars(head) or head._forward_hooks or head._forward_pre_hooks
    if type(head) is not nn.Linear or head.bias is not None or changed:
        return False
    same = (
        hidden.dtype == head.weight.dtype == out.dtype and hidden.device == head.weight.device == out.device
    )
    return same and len(head.weight) == out.shape[1]


def _parts_of(model: Any) -> dict[str, str]:
    """What decides a model's predictions, by name: texts, and digests of what is long."""
    config = dict(model.config.to_dict() if hasattr(model.config, "to_dict") else vars(model.config))
    for left_out in ("_name_or_path", "transformers_version"):
        config.pop(left_out, None)
    quantisation = config.pop("quantization_config", None)
    return {
        "class": type(model).__name__,
        "dtype": str(model.dtype),
        "quantisation": "none" if quantisation is None else repr(quantisation),
        "configuration": digest({name: repr(value) for name, value in config.items()}),
        "weights": digest(state_data(model)),
    }
