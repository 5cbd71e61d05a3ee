"""Log-probabilities of tokens that a server returned, vLLM's or OpenAI's, as an ensemble of one member."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.common.fingerprint import digest
from ensdistill.data.rows import Rows
from ensdistill.data.samples import Held
from ensdistill.data.token_rows import TokenRows
from ensdistill.data.tokens import TokenSequences, json_lines
from ensdistill.teachers.tokens import POSITIONS, of_sequences

TOKEN_ID = "token_id:"  # vLLM with return_tokens_as_token_ids
SUM = 1e-3  # by which rounded probabilities may exceed 1 in all


class ServedLogProbs:
    """The likeliest tokens at each position of some sequences, with their log-probabilities.

    ``cache_targets(served, served.rows, path, lengths=served.sequences.lengths, codec="topk5-20",
    mixture_at=1.0)`` stores them. Tokens that are not listed share the rest of the mass evenly, as in the
    caches of ``topk-N``; the mass of the rest is exact as far as the server's numbers are.

    Parameters
    ----------
    sequences : TokenSequences
    listed : list of dict of int to float
        Of each position that counts, in order: token ids to log-probabilities in the whole vocabulary, at
        temperature 1.
    name : str
        Of the member.

    Raises
    ------
    ValueError
        Another number of positions, an id outside the vocabulary, or probabilities that sum to more than 1;
        names the sequence.
    """

    combiner = "prob"

    def __init__(
        self, sequences: TokenSequences, listed: list[Mapping[int, float]], name: str = "served"
    ) -> None:
        self.sequences, self.names, self.weights = sequences, (name,), np.ones(1)
        self.classes = [str(i) for i in range(sequences.vocabulary)]
        if len(listed) != (count := int(sequences.lengths.sum())):
            raise ValueError(f"listed: expected {count}, the positions that count; got {len(listed)}")
        of = np.repeat(np.arange(len(sequences)), sequences.lengths)
        for place, one in zip(of, listed, strict=True):
            self._check(int(place), one)
        self._ids = [np.fromiter(one.keys(), np.int64, len(one)) for one in listed]
        self._log_p = [np.fromiter(one.values(), np.float64, len(one)) for one in listed]
        self._begins = np.concatenate([[0], np.cumsum(sequences.lengths)])

    @classmethod
    def from_vllm(
        cls, answers: Iterable[Mapping[str, Any]] | Path | str, vocabulary: int, name: str = "served"
    ) -> ServedLogProbs:
        """Of vLLM's answers to requests with ``prompt_logprobs=k``, as JSON or its own objects.

        Parameters
        ----------
        answers : iterable of dict or RequestOutput, or path of a file of JSON lines
            ``prompt_token_ids``, and ``prompt_logprobs``: for each token None or a dict of ids to
            ``{"logprob": ...}``, as a ``RequestOutput`` and the choices of a server's completion have them.
        vocabulary : int
        """
        sequences, listed = [], list[Mapping[int, float]]()
        for place, answer in enumerate(_answers(answers)):
            for name_of in ("prompt_token_ids", "prompt_logprobs"):
                if answer.get(name_of) is None:
                    raise ValueError(f"answers: expected {name_of}; answer {place} has {sorted(answer)}")
            ids, known = answer["prompt_token_ids"], answer["prompt_logprobs"]
            if len(ids) != len(known):
                raise ValueError(
                    f"answers: expected prompt_logprobs of each token; answer {place} has {len(ids)} tokens "
                    f"and {len(known)} of them"
                )
            labels = [-100 if one is None else token for token, one in zip(ids, known, strict=True)]
            sequences.append({"input_ids": ids, "labels": labels})
            listed += [
                {int(token): _log_prob(value) for token, value in one.items()}
                for one in known[1:]
                if one is not None
            ]
        return cls(TokenSequences(sequences, vocabulary), listed, name)

    @classmethod
    def from_openai(
        cls,
        answers: Iterable[Mapping[str, Any]] | Path | str,
        tokenizer: Any,
        prompts: Iterable[list[int]],
        name: str = "served",
    ) -> ServedLogProbs:
        """Of answers with ``logprobs`` and ``top_logprobs``, whose tokens are texts.

        Parameters
        ----------
        answers : iterable of dict, or path of a file of JSON lines
            Choices of chat completions: ``logprobs.content`` has each token's ``token`` and ``top_logprobs``.
        tokenizer : tokenizer
            Of the model; each text has to be one of its tokens.
        prompts : iterable of list of int
            The ids before each answer, which are not learned.
        """
        known, sequences, listed = _by_text(tokenizer), [], list[Mapping[int, float]]()
        given, before = list(_answers(answers)), list(prompts)
        if len(given) != len(before):
            raise ValueError(f"prompts: expected {len(given)}, one for each answer; got {len(before)}")
        for place, (answer, prompt) in enumerate(zip(given, before, strict=True)):
            content = (answer.get("logprobs") or {}).get("content")
            if not content:
                raise ValueError(
                    f"answers: expected logprobs.content; answer {place} has none: ask for logprobs"
                )
            ids = [_id_of(known, one["token"], place) for one in content]
            sequences.append({"input_ids": [*prompt, *ids], "labels": [-100] * len(prompt) + ids})
            # Several ids may have one text: such a listing cannot be told apart, and is left to the rest.
            for one, token in zip(content, ids, strict=True):
                found = {token: float(one["logprob"])}
                for top in one["top_logprobs"]:
                    if (other := _found(known, top["token"])) is not None:
                        found[other] = float(top["logprob"])
                listed.append(found)
        return cls(TokenSequences(sequences, len(tokenizer)), listed, name)

    @property
    def rows(self) -> Rows:
        """The sequences as rows of a cache, with their place."""
        rows = self.sequences.rows
        parts = {**rows.inputs[np.arange(len(rows))], "place": np.arange(len(rows))}
        return replace(rows, inputs=Held(TokenRows(parts)))

    def predict_parts(self, inputs: Mapping[str, Any]) -> Iterator[Tensor]:
        """Log-probabilities at the positions that count, float32 [1, M, C] for some at a time."""
        chosen = [
            position
            for place in np.asarray(inputs["place"]).tolist()
            for position in range(self._begins[place], self._begins[place + 1])
        ]
        for start in range(0, len(chosen), POSITIONS):
            yield torch.from_numpy(np.stack([self._row(i) for i in chosen[start : start + POSITIONS]]))[None]

    def predict_logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """The same of all sequences at once, [1, N, L, C]: the first positions of L are those that count."""
        return of_sequences(torch.cat(list(self.predict_parts(inputs)), 1), inputs)

    def fingerprint(self) -> dict[str, Any]:
        """Digest of all numbers."""
        parts = [np.concatenate(self._ids), np.concatenate(self._log_p), self._begins]
        return {"members": {self.names[0]: digest(parts)}, "vocabulary": self.sequences.vocabulary}

    def _row(self, position: int) -> np.ndarray:
        ids, log_p = self._ids[position], self._log_p[position]
        others = self.sequences.vocabulary - len(ids)
        rest = -math.expm1(min(0.0, float(np.logaddexp.reduce(log_p))))
        even = math.log(rest / others) if rest > 0 and others else -np.inf
        row = np.full(self.sequences.vocabulary, even, np.float32)
        row[ids] = log_p
        return row

    def _check(self, place: int, one: Mapping[int, float]) -> None:
        if not one:
            raise ValueError(
                f"listed: expected a token at each position; sequence {place} has a position without"
            )
        wrong = [token for token in one if not 0 <= token < self.sequences.vocabulary]
        if wrong:
            raise ValueError(
                f"listed: expected ids of a vocabulary of {self.sequences.vocabulary}; sequence {place} has "
                f"{wrong[0]}"
            )
        whole = sum(math.exp(value) for value in one.values())
        if not whole <= 1 + SUM:  # NaN neither
            raise ValueError(
                "listed: expected log-probabilities that sum to at most 1; those of a position of sequence "
                f"{place} sum to {whole:.4g}: they are of another temperature than 1, or no log-probabilities"
            )


def _answers(answers: Iterable[Mapping[str, Any]] | Path | str) -> Iterator[Mapping[str, Any]]:
    found: Iterable[Any] = json_lines(answers) if isinstance(answers, str | Path) else answers
    for one in found:
        yield one if isinstance(one, Mapping) else vars(one)  # vLLM's own objects


def _log_prob(value: Any) -> float:
    return float(value["logprob"] if isinstance(value, Mapping) else value.logprob)


def _by_text(tokenizer: Any) -> dict[str, int | None]:
    """The id of each text that a token decodes to; None where several do."""
    found: dict[str, int | None] = {}
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        found[text] = None if text in found else token
    return found


def _id_of(known: Mapping[str, int | None], text: str, place: int) -> int:
    token = _found(known, text)
    if token is None:
        why = "several tokens have it" if text in known else "no token has it"
        raise ValueError(
            f"answers: expected texts of one token each; answer {place} has {text!r}, and {why}: the "
            "tokenizer is not the model's, or ask the server for ids (vLLM: return_tokens_as_token_ids)"
        )
    return token


def _found(known: Mapping[str, int | None], text: str) -> int | None:
    """The id of a token's text, or that which vLLM writes in its place."""
    number = text.removeprefix(TOKEN_ID)
    return int(number) if number != text and number.isdecimal() else known.get(text)
