"""Sequences of token ids as rows of a cache."""

import json

import numpy as np
import pytest

from ensdistill.cache import input_hashes
from ensdistill.data.tokens import TokenSequences

TEXTS = [
    {"input_ids": [5, 6, 7, 8]},
    {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]},
    {"input_ids": [9, 4], "labels": None},
]


def test_positions_count_where_the_next_label_does():
    texts = TokenSequences(TEXTS, 10)
    assert texts.lengths.tolist() == [3, 1, 1]
    assert texts.counted.tolist() == [
        [True, True, True, False],
        [False, True, False, False],
        [True, False, False, False],
    ]
    assert texts[0] == {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8], "uid": 0}
    assert texts[1]["labels"] == [-100, -100, 3]
    batch = texts.rows.inputs[np.array([2, 0])]
    assert batch["input_ids"].tolist() == [[9, 4, 0, 0], [5, 6, 7, 8]]
    assert batch["size"].tolist() == [2, 4]


def test_a_sequence_has_one_hash_in_any_batch_and_another_with_another_prompt():
    rows = TokenSequences(TEXTS, 10).rows
    whole = input_hashes(rows.inputs[np.arange(3)])
    assert input_hashes(rows.inputs[np.array([1])])[0] == whole[1]
    other = TokenSequences([TEXTS[0], {"input_ids": [1, 2, 3]}, TEXTS[2]], 10).rows
    assert (input_hashes(other.inputs[np.arange(3)]) == whole).tolist() == [True, False, True]


def test_fewer_positions_and_files(tmp_path):
    texts = TokenSequences(TEXTS, 10, uids=np.array([7, 3, 11]))
    fewer = texts.only(np.array([[1, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]], bool))
    assert fewer.lengths.tolist() == [2, 1, 1]
    assert fewer.uids.tolist() == [7, 3, 11]
    assert fewer[0]["labels"] == [-100, 6, -100, 8]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, TEXTS)))
    assert TokenSequences.from_json(file, 10)[1] == TokenSequences(TEXTS, 10)[1]


def test_a_sequence_has_one_hash_whatever_it_is_padded_to():
    named = [{**one, "source": "code"} for one in TEXTS]
    masked = [{"input_ids": [5, 0, 7], "labels": [-100, 6, -100]}, {"input_ids": [0, 2], "labels": [1, -100]}]
    pairs = [{"input_ids": [5, 6, 7], "labels": [3, 4, 4, -100]}, {"input_ids": [5], "labels": [3]}]
    for given, kind in ((TEXTS, "causal"), (named, "causal"), (masked, "masked"), (pairs, "seq2seq")):
        whole = input_hashes(TokenSequences(given, 10, kind=kind).rows.inputs[np.arange(len(given))])
        alone = [input_hashes(TokenSequences([one], 10, kind=kind).rows.inputs[:])[0] for one in given]
        assert whole.tolist() == alone
        assert len(set(alone)) == len(given)
    for one, other in (
        ({"input_ids": [5, 0], "labels": [-100, 6]}, {"input_ids": [5, 0], "labels": [-100, 7]}),
        ({"input_ids": [5, 0], "labels": [-100, 6]}, {"input_ids": [5, 0], "labels": [6, -100]}),
    ):
        pair = [TokenSequences([each], 10, kind="masked").rows.inputs[:] for each in (one, other)]
        assert input_hashes(pair[0]) != input_hashes(pair[1])
    by_source = [TokenSequences([{**TEXTS[0], "source": name}], 10).rows.inputs[:] for name in ("a", "b")]
    assert input_hashes(by_source[0]) != input_hashes(by_source[1])


def test_sources_are_kept():
    named = [{**one, "source": name} for one, name in zip(TEXTS, ("code", "news", "code"), strict=True)]
    assert TokenSequences(named, 10).rows.inputs[np.array([1, 2])]["source"].tolist() == ["news", "code"]
    with pytest.raises(ValueError, match="expected a source of each, or of none; sequence 1 has none"):
        TokenSequences([named[0], TEXTS[1]], 10)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        ({"input_ids": [3, 10]}, "expected ids of a vocabulary of 10; sequence 1 has 10"),
        ({"input_ids": [-1, 2]}, "expected ids of a vocabulary of 10; sequence 1 has -1"),
        ({"input_ids": [3]}, "expected a token to predict in each; sequence 1 has none"),
        ({"input_ids": [3, 4], "labels": [3, -100]}, "sequence 1 has none .*are all -100"),
        ({"input_ids": [3, 4], "labels": [4]}, "sequence 1 has 2 tokens and 1 labels"),
        ({"input_ids": [3, 4, 5], "labels": [4, 5, -100]}, "has the label 4 at token 0, 3: models shift"),
        ({"input_ids": [3.0, 4.0]}, "expected input_ids of integers"),
        ({"input_ids": []}, "expected input_ids of integers, at least one"),
        ({"text": "a"}, r"expected dicts with input_ids; sequence 1 is \['text'\]"),
    ],
)
def test_bad_sequences_are_named(one, words):
    with pytest.raises(ValueError, match=words):
        TokenSequences([TEXTS[0], one], 10)


def test_no_sequences_and_wrong_uids():
    with pytest.raises(ValueError, match="expected at least one; got none"):
        TokenSequences([], 10)
    with pytest.raises(ValueError, match="uids: expected 3, one for each sequence; got 2"):
        TokenSequences(TEXTS, 10, uids=np.arange(2))
    with pytest.raises(ValueError, match=r"counted: expected \[3, 4\]; got \[3, 3\]"):
        TokenSequences(TEXTS, 10).only(np.ones((3, 3), bool))
