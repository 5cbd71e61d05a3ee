"""Rows of token sequences as a batch, and one hash for each sequence, whatever it is padded to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from ensdistill.data import batches as b
from ensdistill.data.batches.fields import Fields


class TokenRows(dict[str, Any]):
    """The padded arrays of some sequences by name; see :attr:`ensdistill.data.tokens.TokenSequences.rows`."""


class TokenKind(Fields):
    """Batches of sequences. Their hashes are of the tokens, the labels that count, and the source."""

    name = "tokens"

    def holds(self, value: Any) -> bool:
        return isinstance(value, TokenRows) and super().holds(value)

    def take(self, batch: Mapping[str, Any], index: np.ndarray | slice) -> TokenRows:
        return TokenRows(super().take(batch, index))

    def join(self, batches: Sequence[Mapping[str, Any]]) -> TokenRows:
        return TokenRows(super().join(batches))

    def hashes(self, batch: Mapping[str, Any]) -> np.ndarray:
        counted, found = np.asarray(batch["counted"]).astype(bool), []
        for row, size in enumerate(batch["size"].tolist()):
            places, answers = np.flatnonzero(counted[row]), None
            if "labels" in batch:  # of a decoder all tokens, because it reads them
                read = slice(batch["label_size"][row]) if "label_size" in batch else places
                answers = batch["labels"][row][read]
            source = str(batch["source"][row]) if "source" in batch else None
            found.append(sequence_hash(batch["input_ids"][row, :size], places, answers, source))
        return np.array(found, "<u8")


def sequence_hash(
    ids: np.ndarray, places: np.ndarray, answers: np.ndarray | None = None, source: str | None = None
) -> int:
    """A 64-bit hash of a sequence.

    Parameters
    ----------
    ids : ndarray [L], integer
        Without padding.
    places : ndarray [M], integer
        The positions that count, at which a label is to be predicted.
    answers : ndarray, integer, optional
        The labels, unless they are the next tokens of ``ids``.
    source : str, optional

    Examples
    --------
    >>> sequence_hash(np.array([5, 6, 7]), np.array([0, 1])) == sequence_hash(
    ...     np.array([5, 6, 7]), np.array([1]))
    False
    """
    state = xxhash.xxh3_64()
    for part in (ids, places, () if answers is None else answers):
        values = np.asarray(part).astype("<i8")
        state.update(len(values).to_bytes(8, "little"))
        state.update(values.tobytes())
    state.update(b"" if source is None else b"\0" + source.encode())
    return state.intdigest()


b.register(TokenKind())
