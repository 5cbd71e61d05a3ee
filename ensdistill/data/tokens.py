"""Sequences of token ids, and the positions at which a language model's predictions count."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.data.rows import Rows
from ensdistill.data.samples import Held

IGNORED = -100  # a label that does not count, as in Hugging Face models


class TokenSequences:
    """Tokenised texts for causal language models, padded to the longest.

    A position counts where the token after it is to be predicted: that token's label is not -100. As a data
    set of Hugging Face's ``Trainer`` an item is a dict with ``input_ids``, ``labels`` and ``uid``.

    Parameters
    ----------
    sequences : iterable of dict
        ``input_ids``, and optionally ``labels`` of the same length, in which -100 leaves out a prompt, for
        example, and ``source``, the name of the data set by which members are routed. A ``datasets.Dataset``
        is one.
    vocabulary : int
        Ids are below it.
    uids : ndarray [N], int64, optional
        0 ... N-1 by default.

    Raises
    ------
    ValueError
        An id outside the vocabulary, labels of another length, or a sequence in which no position counts;
        names the sequence.

    Examples
    --------
    >>> texts = TokenSequences([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}], 10)
    >>> texts.lengths, texts[1]["labels"]
    (array([2, 1]), [-100, 9])
    """

    def __init__(
        self, sequences: Iterable[Mapping[str, Any]], vocabulary: int, *, uids: np.ndarray | None = None
    ) -> None:
        given = list(sequences)
        found = [_checked(i, one, vocabulary) for i, one in enumerate(given)]
        named = [one.get("source") for one in given]
        if None in named and any(name is not None for name in named):
            raise ValueError(
                f"sequences: expected a source of each, or of none; sequence {named.index(None)} has none"
            )
        self.sources = None if None in named or not named else np.array(list(map(str, named)))
        if not found:
            raise ValueError("sequences: expected at least one; got none")
        self.vocabulary, self.width = vocabulary, max(len(ids) for ids, _ in found)
        self.uids = np.arange(len(found)) if uids is None else np.asarray(uids, np.int64)
        if len(self.uids) != len(found):
            raise ValueError(f"uids: expected {len(found)}, one for each sequence; got {len(self.uids)}")
        self.ids = np.zeros((len(found), self.width), np.int32)
        self.sizes = np.array([len(ids) for ids, _ in found])
        self.counted = np.zeros((len(found), self.width), bool)
        for i, (ids, labels) in enumerate(found):
            self.ids[i, : len(ids)] = ids
            self.counted[i, : len(ids) - 1] = labels[1:] != IGNORED
        if len(empty := np.flatnonzero(~self.counted.any(1))):
            raise ValueError(
                f"sequences: expected a token to predict in each; sequence {empty[0]} has none "
                f"({len(empty)} such): its labels after the first are all -100, or it has one token"
            )

    @classmethod
    def from_json(cls, path: Path | str, vocabulary: int) -> TokenSequences:
        """The sequences of a file of JSON lines, an object with ``input_ids`` in each."""
        with open(path, encoding="utf-8") as lines:
            return cls(map(json.loads, lines), vocabulary)

    @property
    def lengths(self) -> np.ndarray:
        """The number of positions that count of each sequence, int64 [N]."""
        return self.counted.sum(1)

    @property
    def rows(self) -> Rows:
        """The sequences as rows of a cache: ``input_ids``, ``size``, ``counted``, perhaps ``source``."""
        parts = {"input_ids": self.ids, "size": self.sizes, "counted": self.counted.astype(np.uint8)}
        parts |= {} if self.sources is None else {"source": self.sources}
        return Rows(Held(parts), self.uids, np.full(len(self), -100))

    def only(self, counted: np.ndarray) -> TokenSequences:
        """The same with fewer positions that count, bool [N, width]; at least one of each sequence."""
        chosen = np.asarray(counted, bool)
        if chosen.shape != self.counted.shape:
            raise ValueError(f"counted: expected {list(self.counted.shape)}; got {list(chosen.shape)}")
        labels = np.full(self.ids.shape, IGNORED, np.int64)
        labels[:, 1:][(chosen & self.counted)[:, :-1]] = self.ids[:, 1:][(chosen & self.counted)[:, :-1]]
        parts = [
            {"input_ids": ids[:size], "labels": own[:size]}
            | ({} if self.sources is None else {"source": self.sources[i]})
            for i, (ids, own, size) in enumerate(zip(self.ids, labels, self.sizes, strict=True))
        ]
        return TokenSequences(parts, self.vocabulary, uids=self.uids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        size = self.sizes[index]
        labels = np.full(size, IGNORED)
        counted = np.flatnonzero(self.counted[index])
        labels[counted + 1] = self.ids[index, counted + 1]
        ids = self.ids[index, :size]
        return {"input_ids": ids.tolist(), "labels": labels.tolist(), "uid": int(self.uids[index])}


def _checked(place: int, one: Mapping[str, Any], vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of a sequence."""
    if not isinstance(one, Mapping) or "input_ids" not in one:
        got = sorted(one) if isinstance(one, Mapping) else type(one).__name__
        raise ValueError(f"sequences: expected dicts with input_ids; sequence {place} is {got}")
    ids = _integers(place, "input_ids", one["input_ids"])
    labels = ids if one.get("labels") is None else _integers(place, "labels", one["labels"])
    if len(labels) != len(ids):
        raise ValueError(
            f"sequences: expected a label for each token; sequence {place} has {len(ids)} tokens and "
            f"{len(labels)} labels"
        )
    if len(ids) and not (ids.min() >= 0 and ids.max() < vocabulary):
        wrong = ids[(ids < 0) | (ids >= vocabulary)][0]
        raise ValueError(
            f"sequences: expected ids of a vocabulary of {vocabulary}; sequence {place} has {wrong}: it is "
            "of another tokenizer, or the vocabulary is smaller than the model's"
        )
    other = (labels != IGNORED) & (labels != ids)
    if other.any():
        at = int(np.flatnonzero(other)[0])
        raise ValueError(
            f"sequences: expected labels that are the tokens themselves, or -100; sequence {place} has the "
            f"label {labels[at]} at token {at}, {ids[at]}: models shift labels, so the data must not"
        )
    return ids, labels


def _integers(place: int, name: str, values: Sequence[int]) -> np.ndarray:
    found = np.asarray(values)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
        raise ValueError(
            f"sequences: expected {name} of integers, at least one; sequence {place} has {found.dtype} "
            f"{list(found.shape)}"
        )
    return found.astype(np.int64)
