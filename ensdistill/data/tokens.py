"""Sequences of token ids, and the positions at which a language model's predictions count."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensdistill.data.chats import conversation
from ensdistill.data.rows import Rows
from ensdistill.data.samples import Held
from ensdistill.data.token_rows import TokenRows

IGNORED = -100  # a label that does not count, as in Hugging Face models
Kind = Literal["causal", "masked", "seq2seq"]
KINDS = ("causal", "masked", "seq2seq")


class TokenSequences:
    """Tokenised texts for language models, padded to the longest.

    A position counts where a label is to be predicted, which is one that is not -100. A ``causal`` model
    predicts at each position the label of the next one; a ``masked`` or ``seq2seq`` model the position's own.
    As a data set of Hugging Face's ``Trainer`` an item is a dict with ``input_ids``, ``labels`` and ``uid``.

    Parameters
    ----------
    sequences : iterable of dict
        ``input_ids``, perhaps ``source``, the name of the data set by which members are routed, and
        ``labels``. A ``datasets.Dataset`` is one. Causal: the labels are the tokens themselves, which is the
        default, or -100, for example of a prompt. Masked: the tokens that stood where ``input_ids`` have the
        mask, and -100 elsewhere. Seq2seq: the decoder's tokens; -100 only at the end.
    vocabulary : int
        Ids are below it.
    kind : {"causal", "masked", "seq2seq"}
    uids : ndarray [N], int64, optional
        0 ... N-1 by default.

    Raises
    ------
    ValueError
        An id outside the vocabulary, labels that do not fit the kind, or a sequence in which no position
        counts; names the sequence.

    Examples
    --------
    >>> texts = TokenSequences([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}], 10)
    >>> texts.lengths, texts[1]["labels"]
    (array([2, 1]), [-100, 9])
    >>> texts = TokenSequences([{"input_ids": [5, 0, 7], "labels": [-100, 6, -100]}], 10, kind="masked")
    >>> texts.counted
    array([[False,  True, False]])
    """

    def __init__(
        self,
        sequences: Iterable[Mapping[str, Any]],
        vocabulary: int,
        *,
        kind: Kind = "causal",
        uids: np.ndarray | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}; got {kind!r}")
        if isinstance(sequences, Mapping):
            raise ValueError(
                f"sequences: expected a dict for each; got one of columns, {', '.join(map(str, sequences))}: "
                "pass [{'input_ids': ids} for ids in columns['input_ids']]"
            )
        given = list(sequences)
        found = [_checked(i, one, vocabulary, kind) for i, one in enumerate(given)]
        named = [one.get("source") for one in given]
        if None in named and any(name is not None for name in named):
            raise ValueError(
                f"sequences: expected a source of each, or of none; sequence {named.index(None)} has none"
            )
        self.sources = None if None in named or not named else np.array(list(map(str, named)))
        if not found:
            raise ValueError("sequences: expected at least one; got none")
        self.kind, self.vocabulary = kind, vocabulary
        self.uids = np.arange(len(found)) if uids is None else np.asarray(uids, np.int64)
        if len(self.uids) != len(found):
            raise ValueError(f"uids: expected {len(found)}, one for each sequence; got {len(self.uids)}")
        self.ids, self.sizes = _padded([ids for ids, _ in found], 0)
        labels, self.label_sizes = _padded([own for _, own in found], IGNORED)
        if kind == "causal":  # a position's label is that of the next
            labels = np.roll(labels, -1, 1)
            labels[:, -1] = IGNORED
        self.counted, self.width = labels != IGNORED, labels.shape[1]
        self.answers = np.roll(self.ids, -1, 1) if kind == "causal" else np.where(self.counted, labels, 0)
        self._check_counted()

    @classmethod
    def from_json(cls, path: Path | str, vocabulary: int, *, kind: Kind = "causal") -> TokenSequences:
        """The sequences of a file of JSON lines, an object with ``input_ids`` in each."""
        return cls(json_lines(path), vocabulary, kind=kind)

    @classmethod
    def from_messages(
        cls,
        conversations: Iterable[Sequence[Mapping[str, Any]]],
        tokenizer: Any,
        *,
        vocabulary: int | None = None,
        uids: np.ndarray | None = None,
    ) -> TokenSequences:
        """Conversations in the tokenizer's chat template, of which only the assistant's tokens count.

        Parameters
        ----------
        conversations : iterable of list of dict
            Messages with ``role`` and ``content``.
        tokenizer : tokenizer
            With a ``chat_template``. Where that has no ``{% generation %}``, an assistant's tokens are those
            by which its message makes the conversation longer.
        vocabulary : int, optional
            By default the tokenizer's.

        Raises
        ------
        ValueError
            No template, no message of an assistant, or a template whose earlier tokens depend on later
            messages; names the conversation.
        """
        found = [conversation(i, one, tokenizer) for i, one in enumerate(conversations)]
        return cls(found, len(tokenizer) if vocabulary is None else vocabulary, uids=uids)

    @property
    def lengths(self) -> np.ndarray:
        """The number of positions that count of each sequence, int64 [N]."""
        return self.counted.sum(1)

    @property
    def rows(self) -> Rows:
        """The sequences as rows of a cache: ``input_ids``, ``size``, ``counted``, perhaps ``source``; unless
        they are causal ``labels``, and of seq2seq ``label_size``."""
        parts = {"input_ids": self.ids, "size": self.sizes, "counted": self.counted.astype(np.uint8)}
        parts |= {} if self.sources is None else {"source": self.sources}
        parts |= {} if self.kind == "causal" else {"labels": self.answers}
        parts |= {"label_size": self.label_sizes} if self.kind == "seq2seq" else {}
        return Rows(Held(TokenRows(parts)), self.uids, np.full(len(self), -100))

    def without_uids(self) -> list[dict[str, Any]]:
        """The items without the uid by which targets are found, for an evaluation by their labels."""
        found = [self[place] for place in range(len(self))]
        for one in found:
            del one["uid"]
        return found

    def only(self, counted: np.ndarray) -> TokenSequences:
        """The same with fewer positions that count, bool [N, L]; at least one of each sequence."""
        chosen = np.asarray(counted, bool)
        if chosen.shape != self.counted.shape:
            raise ValueError(f"counted: expected {list(self.counted.shape)}; got {list(chosen.shape)}")
        fewer = copy.copy(self)
        fewer.counted = chosen & self.counted
        fewer._check_counted()
        return fewer

    def _check_counted(self) -> None:
        if len(empty := np.flatnonzero(~self.counted.any(1))):
            after = " after the first" if self.kind == "causal" else ""
            raise ValueError(
                f"sequences: expected a token to predict in each; sequence {empty[0]} has none "
                f"({len(empty)} such): its labels{after} are all -100, or it has one token"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        size, labelled = self.sizes[index], self.label_sizes[index]
        labels = np.where(self.counted[index], self.answers[index], IGNORED)
        if self.kind == "causal":
            labels = np.roll(labels, 1)
        item = {
            "input_ids": self.ids[index, :size].tolist(),
            "labels": labels[:labelled].tolist(),
            "uid": int(self.uids[index]),
        }
        if self.kind == "seq2seq":  # the decoder reads all of its tokens, also those that do not count
            item["decoder_labels"] = self.answers[index, :labelled].tolist()
        if self.sources is not None:
            item["source"] = str(self.sources[index])
        return item


def json_lines(path: Path | str) -> Iterator[Any]:
    """The values of a file of JSON lines; empty lines are none.

    Raises
    ------
    ValueError
        A line is no JSON; names it.
    """
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not JSON ({error})") from error


def kind_of_rows(inputs: Mapping[str, Any]) -> Kind:
    """The kind of the sequences whose rows these are."""
    if "labels" not in inputs:
        return "causal"
    return "seq2seq" if "label_size" in inputs else "masked"


def answers_of(inputs: Mapping[str, Any]) -> np.ndarray:
    """The tokens to be predicted at the positions that count, int64 [M], of all sequences in order."""
    counted, ids = np.asarray(inputs["counted"]).astype(bool), np.asarray(inputs["input_ids"])
    if kind_of_rows(inputs) == "causal":
        return ids[:, 1:][counted[:, :-1]].astype(np.int64)
    return np.asarray(inputs["labels"])[counted].astype(np.int64)


def _padded(sequences: Sequence[np.ndarray], value: int) -> tuple[np.ndarray, np.ndarray]:
    """Int32 [N, L], and the length of each, int64 [N]."""
    sizes = np.array([len(one) for one in sequences])
    padded = np.full((len(sequences), sizes.max()), value, np.int32)
    for row, one in zip(padded, sequences, strict=True):
        row[: len(one)] = one
    return padded, sizes


def _checked(
    place: int, one: Mapping[str, Any], vocabulary: int, kind: Kind
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of a sequence."""
    if not isinstance(one, Mapping) or "input_ids" not in one:
        got = sorted(one) if isinstance(one, Mapping) else type(one).__name__
        raise ValueError(f"sequences: expected dicts with input_ids; sequence {place} is {got}")
    ids, given = _integers(place, "input_ids", one["input_ids"]), one.get("labels")
    if given is None and kind != "causal":
        raise ValueError(f"sequences: expected labels of {kind} sequences; sequence {place} has none")
    labels = ids if given is None else _integers(place, "labels", given)
    if kind != "seq2seq" and len(labels) != len(ids):
        raise ValueError(
            f"sequences: expected a label for each token; sequence {place} has {len(ids)} tokens and "
            f"{len(labels)} labels"
        )
    for known in (ids, labels[labels != IGNORED]):
        if len(known) and not (known.min() >= 0 and known.max() < vocabulary):
            wrong = known[(known < 0) | (known >= vocabulary)][0]
            raise ValueError(
                f"sequences: expected ids of a vocabulary of {vocabulary}; sequence {place} has {wrong}: it "
                "is of another tokenizer, or the vocabulary is smaller than the model's"
            )
    if kind == "causal" and ((labels != IGNORED) & (labels != ids)).any():
        at = int(np.flatnonzero((labels != IGNORED) & (labels != ids))[0])
        raise ValueError(
            f"sequences: expected labels that are the tokens themselves, or -100; sequence {place} has the "
            f"label {labels[at]} at token {at}, {ids[at]}: models shift labels, so the data must not"
        )
    if kind == "seq2seq":
        labels = labels[: len(labels) - int((labels[::-1] != IGNORED).argmax())]
        if (labels == IGNORED).any() and (labels != IGNORED).any():
            raise ValueError(
                f"sequences: expected labels of -100 only at the end, because the decoder reads all others; "
                f"sequence {place} has one at {int((labels == IGNORED).argmax())}: leave positions out by "
                "only(counted)"
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
