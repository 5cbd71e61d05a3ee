"""Sources for texts: tokens left out, tokens replaced by others of the data, single n-grams, and pieces of
two texts.

The first three are those of Tang et al., 2019, "Distilling Task-Specific Knowledge from BERT into Simple
Neural Networks", with tokens left out in place of masked ones. No text that they make is empty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ensdistill.common.scalars import plain_fields
from ensdistill.data import batches as b
from ensdistill.data.transfer.base import check_rows, check_share

Unit = Literal["word", "character"]
_PATTERNS = {"word": re.compile(r"(\s*)(\S+)"), "character": re.compile(r"(\s*)(\S)")}


@dataclass(frozen=True)
class DropTokens:
    """Texts without some of their tokens.

    Passes over the texts that have at least two tokens. Each token is left out with ``probability``; at least
    one is left out, and at least one stays.

    Parameters
    ----------
    rows : int
    probability : float
        In (0, 1].
    unit : {"word", "character"}
        Words are separated by white space; characters are for languages that do not separate words.

    Examples
    --------
    >>> DropTokens(rows=1, probability=0.5).make(["one two three"], np.random.default_rng(0))
    ['one']
    """

    rows: int
    probability: float = 0.1
    unit: Unit = "word"

    def __post_init__(self) -> None:
        plain_fields(self)
        _check("droptokens", self)

    def make(self, base: Any, generator: np.random.Generator) -> list[str]:
        texts = [text for text in _tokens("droptokens", base, self.unit) if len(text) > 1]
        if not texts:
            raise ValueError(
                f"droptokens: expected texts of at least two tokens; all {len(base)} have fewer (unit "
                f"{self.unit!r})"
            )
        made = []
        for row in range(self.rows):
            tokens = texts[row % len(texts)]
            kept = generator.random(len(tokens)) >= self.probability
            if kept.all() or not kept.any():
                kept[generator.integers(len(tokens))] ^= True
            made.append(_joined([token for token, stays in zip(tokens, kept, strict=True) if stays]))
        return made


@dataclass(frozen=True)
class ReplaceTokens:
    """Texts with some of their tokens replaced by tokens of the data, each as likely as it is frequent.

    Passes over the texts. Each token is replaced with ``probability``, and at least one of a text is.

    Parameters
    ----------
    rows, probability, unit
        As for :class:`DropTokens`.

    Examples
    --------
    >>> texts = ["a good film", "a bad film"]
    >>> ReplaceTokens(rows=2, probability=0.3).make(texts, np.random.default_rng(0))
    ['a film bad', 'a a film']
    """

    rows: int
    probability: float = 0.1
    unit: Unit = "word"

    def __post_init__(self) -> None:
        plain_fields(self)
        _check("replacetokens", self)

    def make(self, base: Any, generator: np.random.Generator) -> list[str]:
        texts = [text for text in _tokens("replacetokens", base, self.unit) if text]
        counts = Counter(token for text in texts for _, token in text)
        if not counts:
            raise ValueError(f"replacetokens: expected texts with tokens; all {len(base)} are empty")
        tokens = list(counts)
        upper = np.cumsum(np.fromiter(counts.values(), np.float64))
        made = []
        for row in range(self.rows):
            text = texts[row % len(texts)]
            replaced = generator.random(len(text)) < self.probability
            if not replaced.any():
                replaced[generator.integers(len(text))] = True
            drawn = np.searchsorted(upper, generator.random(len(text)) * upper[-1], side="right")
            made.append(
                _joined(
                    [
                        (gap, tokens[other] if new else token)
                        for (gap, token), new, other in zip(text, replaced, drawn, strict=True)
                    ]
                )
            )
        return made


@dataclass(frozen=True)
class NGrams:
    """Random n-grams of the texts: n is drawn uniformly from 1 to ``longest``, or to the text's length where
    that is less.

    Parameters
    ----------
    rows : int
    longest : int
        The paper's is 5.
    unit : {"word", "character"}

    Examples
    --------
    >>> NGrams(rows=2, longest=2).make(["one two three"], np.random.default_rng(0))
    ['two three', 'one two']
    """

    rows: int
    longest: int = 5
    unit: Unit = "word"

    def __post_init__(self) -> None:
        plain_fields(self)
        _check("ngrams", self)
        if self.longest < 1:
            raise ValueError(f"ngrams: longest: expected at least 1; got {self.longest}")

    def make(self, base: Any, generator: np.random.Generator) -> list[str]:
        texts = [text for text in _tokens("ngrams", base, self.unit) if text]
        if not texts:
            raise ValueError(f"ngrams: expected texts with tokens; all {len(base)} are empty")
        made = []
        for row in range(self.rows):
            text = texts[row % len(texts)]
            length = int(generator.integers(min(self.longest, len(text)))) + 1
            first = int(generator.integers(len(text) - length + 1))
            made.append(_joined(text[first : first + length]))
        return made


@dataclass(frozen=True)
class SpliceTexts:
    """The beginning of one text and the end of another, each cut at a random place.

    Passes over the texts for the beginnings; the ends are drawn at random. A place is any between two tokens,
    or at either end, so that a text may also be a part of one text, or two whole ones.

    Parameters
    ----------
    rows : int
    unit : {"word", "character"}
        As for :class:`DropTokens`.

    Examples
    --------
    >>> texts = ["one two three", "red green blue"]
    >>> SpliceTexts(rows=3).make(texts, np.random.default_rng(8))
    ['one two three blue', 'three', 'one three']
    """

    rows: int
    unit: Unit = "word"

    def __post_init__(self) -> None:
        plain_fields(self)
        _check("splicetexts", self)

    def make(self, base: Any, generator: np.random.Generator) -> list[str]:
        texts = [text for text in _tokens("splicetexts", base, self.unit) if text]
        if not texts:
            raise ValueError(f"splicetexts: expected texts with tokens; all {len(base)} are empty")
        lengths = np.array([len(text) for text in texts])
        first = np.arange(self.rows) % len(texts)
        second = generator.integers(len(texts), size=self.rows)
        # At least one token of one of the two: a beginning of none needs an end of one or more.
        stops = generator.integers(lengths[first] + 1)
        starts = generator.integers(lengths[second] + (stops > 0))
        made = []
        for one, other, stop, start in zip(first, second, stops, starts, strict=True):
            begin, end = texts[one][:stop], texts[other][start:]
            if begin and end:  # the end's first token may have had no white space before it
                gap = end[0][0] or (" " if self.unit == "word" else "")
                end = [(gap, end[0][1]), *end[1:]]
            made.append(_joined([*begin, *end]))
        return made


def _check(name: str, source: Any) -> None:
    check_rows(name, source.rows)
    if hasattr(source, "probability"):
        check_share(name, "probability", source.probability)
    if source.unit not in _PATTERNS:
        raise ValueError(f"{name}: unit: expected 'word' or 'character'; got {source.unit!r}")


def _tokens(name: str, base: Any, unit: Unit) -> list[list[tuple[str, str]]]:
    """Of each text its tokens, each with the white space before it."""
    kind = b.kind_of(base, name).name
    if kind != "text":
        raise TypeError(f"{name}: expected a list of strings; got {kind}")
    return [_PATTERNS[unit].findall(text) for text in base]


def _joined(tokens: Sequence[tuple[str, str]]) -> str:
    return "".join(gap + token for gap, token in tokens)[len(tokens[0][0]) :]
