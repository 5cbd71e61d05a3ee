"""Sources for texts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill.data.transfer import DropTokens, NGrams, ReplaceTokens, SpliceTexts

TEXTS = ["a good film  with\na plot", "bad", "", "   ", "no plot at all", "good good good"]
SOURCES = [DropTokens(rows=200), ReplaceTokens(rows=200), NGrams(rows=200), SpliceTexts(rows=200)]


def seeded(seed=0):
    return np.random.default_rng(seed)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.text("ab \n\té東", max_size=12), min_size=1, max_size=6),
    unit=st.sampled_from(["word", "character"]),
    seed=st.integers(0, 9),
)
def test_no_text_is_empty_and_tokens_are_of_the_data(texts, unit, seed):
    split = list if unit == "character" else str.split
    tokens = {token for text in texts for token in split(text) if token.strip()}
    for source in (
        DropTokens(rows=9, unit=unit, probability=0.9),
        ReplaceTokens(rows=9, unit=unit),
        NGrams(rows=9, unit=unit),
        SpliceTexts(rows=9, unit=unit),
    ):
        least = 2 if isinstance(source, DropTokens) else 1
        if not any(sum(bool(t.strip()) for t in split(text)) >= least for text in texts):
            with pytest.raises(ValueError, match="expected texts"):
                source.make(texts, seeded(seed))
            continue
        made = source.make(texts, seeded(seed))
        assert made == source.make(texts, seeded(seed))
        assert len(made) == 9
        for text in made:
            assert text.strip()
            assert text[0] == text.strip()[0]
            assert {token for token in split(text) if token.strip()} <= tokens


def test_dropped_tokens():
    text = " ".join(str(i) for i in range(30))
    made = DropTokens(rows=2000, probability=0.2).make([text, "one"], seeded())
    lengths = [len(one.split()) for one in made]
    assert max(lengths) < 30
    assert abs(np.mean(lengths) - 24) < 0.2
    for one in made[:50]:
        assert [int(token) for token in one.split()] == sorted(map(int, one.split()))
    assert DropTokens(rows=20, probability=1.0).make(["a b"], seeded()).count("a") in range(1, 20)
    assert set(DropTokens(rows=20).make(["a  b\nc"], seeded())) == {"a  b", "b\nc", "a\nc"}


def test_replaced_tokens_follow_the_datas_frequencies():
    texts = ["x " * 50, "y y y z"]
    made = ReplaceTokens(rows=4000, probability=0.5).make(["x " * 50, "y y y z"], seeded())
    assert all(len(one.split()) == len(texts[i % 2].split()) for i, one in enumerate(made))
    replaced = Counter(token for one in made[::2] for token in one.split() if token != "x")
    assert replaced["y"] / replaced["z"] == pytest.approx(3, rel=0.1)
    share = sum(replaced.values()) / (2000 * 50)
    assert share == pytest.approx(0.5 * 4 / 54, rel=0.05)
    assert ReplaceTokens(rows=1).make(["a\n\tb"], seeded())[0][1:-1] == "\n\t"


def test_n_grams_are_parts_of_the_texts():
    made = NGrams(rows=3000, longest=3).make(TEXTS, seeded())
    assert {len(one.split()) for one in made} == {1, 2, 3}
    assert all(any(one in text for text in TEXTS) for one in made)
    lengths = Counter(len(one.split()) for one in made[::4])
    assert min(lengths.values()) > 200
    assert set(NGrams(rows=200, longest=2, unit="character").make(["東京都"], seeded())) == {
        "東", "京", "都", "東京", "京都",
    }  # fmt: skip


def test_spliced_texts_are_a_beginning_and_an_end():
    made = SpliceTexts(rows=4000).make(["a b", "c\nd", ""], seeded())
    # Each beginning of both texts with each end; two empty pieces make no text, and white space stays.
    assert set(made[::2]) == {"a b", "b", "c\nd", "d", "a", "a a b", "a b a b", "a b b", "a c\nd", "a\nd",
                              "a b c\nd", "a b\nd"}  # fmt: skip
    whole = Counter(made[::2])
    assert whole["a c\nd"] == pytest.approx(2000 / 3 / 2 / 3, rel=0.25)
    assert set(SpliceTexts(rows=300, unit="character").make(["東", "京都"], seeded())) >= {"東京都", "東都"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_other_samples_are_refused(source):
    with pytest.raises(TypeError, match="expected a list of strings; got array"):
        source.make(np.zeros((3, 2)), seeded())
    with pytest.raises(ValueError, match="all 2 "):
        source.make(["", "  "], seeded())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DropTokens(rows=0), "droptokens: rows"),
        (
            lambda: DropTokens(rows=1, probability=0),
            r"droptokens: probability: expected a number in \(0, 1\]; got 0",
        ),
        (
            lambda: ReplaceTokens(rows=1, unit="line"),
            "replacetokens: unit: expected 'word' or 'character'; got 'line'",
        ),
        (lambda: NGrams(rows=1, longest=0), "ngrams: longest"),
        (lambda: SpliceTexts(rows=0), "splicetexts: rows"),
        (lambda: SpliceTexts(rows=1, unit="line"), "splicetexts: unit: expected"),
    ],
)
def test_bad_settings(make, words):
    with pytest.raises(ValueError, match=words):
        make()
