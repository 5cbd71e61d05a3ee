"""Ids of samples: unique, of the content, and unmoved by other samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill.data.uids import content_uids, given_uids

HASHES = st.lists(st.integers(0, 5) | st.integers(0, 2**64 - 1), max_size=40)


@given(HASHES, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_ids_are_unique_and_follow_their_content(values, random):
    hashes = np.array(values, np.uint64)
    uids = content_uids(hashes)
    assert uids.dtype == np.int64
    assert len(set(uids.tolist())) == len(values)
    order = list(range(len(values)))
    random.shuffle(order)
    moved = content_uids(hashes[order])
    assert sorted(zip(values, uids.tolist(), strict=True)) == sorted(
        zip(hashes[order].tolist(), moved.tolist(), strict=True)
    )


def test_ids_stay_where_others_are_added():
    hashes = np.array([5, 6, 5, 7], np.uint64)
    more = content_uids(np.array([1, 5, 6, 2, 5, 7, 5], np.uint64))
    np.testing.assert_array_equal(more[[1, 2, 4, 5]], content_uids(hashes))


def test_given_ids():
    np.testing.assert_array_equal(given_uids(np.array([3, -1], np.int16), 2), [3, -1])
    strings = given_uids(["a", "b"], 2)
    np.testing.assert_array_equal(given_uids(np.array(["b", "a"], object), 2), strings[::-1])


@pytest.mark.parametrize(
    ("uids", "error", "words"),
    [
        ([1, 2], ValueError, r"expected 3 ids, one for each sample; got \[2\]"),
        ([1, 2, 1], ValueError, r"row 2, 1, stands 2 times"),
        (["a", None, "b"], ValueError, "that of row 1 is missing"),
        ([0.5, 1.0, 2.0], TypeError, "integers or strings; got float64"),
        ([1.0, np.nan, 2.0], ValueError, "row 1 is missing"),
        (np.array([1, 2, 2**63], np.uint64), ValueError, "below 2"),
    ],
)
def test_ids_that_are_none_are_refused(uids, error, words):
    with pytest.raises(error, match=f"^uids: .*{words}"):
        given_uids(uids, 3)
