"""Texts to the numbers that a network takes: hashed n-grams without a vocabulary, or the ids of a tokenizer's
file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ensdistill.common.fingerprint import digest
from ensdistill.data.batches import kind_of
from ensdistill.data.preprocess.base import Settings, write_about

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class HashedNgrams(Settings):
    """The ids of each text's word n-grams, and of its words' character n-grams, for an embedding that is
    averaged (fastText's input).

    Takes a list of strings and returns int64 [N, length]: 1 to ``buckets``, padded by 0.

    Parameters
    ----------
    buckets : int
        The largest id: n-grams share an id where their hashes do.
    length : int
        N-grams of each text; those of longer texts are the first ones.
    words : int
        The longest word n-gram.
    characters : tuple of (int, int), optional
        Shortest and longest character n-gram, of words with "<" and ">" at their ends.

    References
    ----------
    Joulin et al. (2017), "Bag of Tricks for Efficient Text Classification"; Weinberger et al. (2009),
    "Feature Hashing".

    Examples
    --------
    >>> ids = HashedNgrams(buckets=1000, length=4, words=2)(["A red fox", "red"])
    >>> (ids > 0).sum(1).tolist(), bool(ids[1, 0] == ids[0, 1])
    ([4, 1], True)
    """

    buckets: int = 2**16
    length: int = 128
    words: int = 2
    characters: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("buckets", "length", "words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1; got {getattr(self, name)}")
        if self.characters is not None and not 1 <= self.characters[0] <= self.characters[1]:
            raise ValueError(
                f"characters: expected the shortest and the longest n-gram; got {self.characters}"
            )

    def __call__(self, batch: Any) -> np.ndarray:
        ids = np.zeros((len(batch), self.length), np.int64)
        for row, text in enumerate(_texts(batch)):
            for column, gram in zip(range(self.length), self._grams(text), strict=False):
                ids[row, column] = (
                    1 + xxhash.xxh3_64_intdigest(gram.encode("utf-8", "surrogatepass")) % self.buckets
                )
        return ids

    def _grams(self, text: str) -> Iterator[str]:
        """Words first, so that a text which is cut keeps them; then longer n-grams."""
        words = _WORD.findall(text.lower())
        for size in range(1, self.words + 1):
            yield from (" ".join(words[i : i + size]) for i in range(len(words) - size + 1))
        if self.characters is not None:
            for size in range(self.characters[0], self.characters[1] + 1):
                yield from (
                    f"\0{whole[i : i + size]}"
                    for whole in (f"<{word}>" for word in words)
                    for i in range(len(whole) - size + 1)
                )


class Tokens:
    """The token ids of a tokenizer's file, with their mask.

    Takes a list of strings and returns ``{"input_ids": int64 [N, length], "attention_mask": int64 [N,
    length]}``.

    Parameters
    ----------
    tokenizer : path, str or tokenizers.Tokenizer
        A ``tokenizer.json``, a folder that holds one, or the tokenizer itself. Nothing is fetched from a
        network.
    length : int
        Ids of each text; longer ones are cut, shorter ones padded.
    padding : int
        The id that fills up.

    Raises
    ------
    ValueError
        There is no such file, or the library ``tokenizers`` can't read it.
    """

    def __init__(self, tokenizer: Any, length: int = 128, padding: int = 0) -> None:
        from tokenizers import Tokenizer

        if isinstance(tokenizer, (str, Path)):
            path = Path(tokenizer) / "tokenizer.json" if Path(tokenizer).is_dir() else Path(tokenizer)
            if not path.is_file():
                raise ValueError(
                    "tokenizer: expected a tokenizer.json, or a folder that holds one; there is no file "
                    f"{str(path)!r}"
                )
            try:
                tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises no class of its own
                raise ValueError(f"tokenizer: {path} can't be read ({error})") from error
        if length < 1:
            raise ValueError(f"length: expected at least 1; got {length}")
        self.length, self.padding = length, padding
        # A copy: the caller's tokenizer keeps its own padding and truncation.
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(length=length, pad_id=padding)

    def __call__(self, batch: Any) -> dict[str, np.ndarray]:
        encoded = self.tokenizer.encode_batch(list(_texts(batch)))
        ids = np.array([one.ids for one in encoded], np.int64).reshape(-1, self.length)
        mask = np.array([one.attention_mask for one in encoded], np.int64).reshape(-1, self.length)
        return {"input_ids": ids, "attention_mask": mask}

    @property
    def buckets(self) -> int:
        """The largest id."""
        return max([self.padding, *self.tokenizer.get_vocab().values()])

    def fingerprint(self) -> str:
        return digest(["tokens", self.tokenizer.to_str(), self.length, self.padding])

    def save(self, folder: Path | str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(Path(folder) / "tokenizer.json"))
        write_about(folder, self, {"length": self.length, "padding": self.padding})

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> Tokens:
        return cls(folder, **settings)


def _texts(batch: Any) -> Any:
    kind = kind_of(batch).name
    if kind != "text":
        raise TypeError(f"inputs: expected a list of strings; got a batch of kind {kind!r}")
    return batch
