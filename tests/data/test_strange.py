"""Rows out of distribution, made of a table's own."""

from __future__ import annotations

import narwhals.stable.v2 as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ensdistill.data.samples import as_samples, form
from ensdistill.data.strange import shuffled_columns

FRAME = pd.DataFrame(
    {
        "number": np.arange(40) / 4,
        "kind": pd.Categorical(list("abcd") * 10),
        "gap": [np.nan if i % 7 == 0 else i for i in range(40)],
        "same": np.arange(40),
    },
    index=np.arange(40) % 3,
)


def columns_of(frame):
    return {name: [str(value) for value in nw.from_native(frame)[name].to_list()] for name in FRAME}


@pytest.mark.parametrize("of", [pd.DataFrame, pl.from_pandas, pa.Table.from_pandas])
def test_each_column_of_a_frame_is_exchanged_by_itself(of):
    frame = FRAME if of is pd.DataFrame else of(FRAME.reset_index(drop=True))
    samples = as_samples(frame)
    made = shuffled_columns(samples, 0)
    assert form(made) == form(samples)
    found, own = (columns_of(x[:]) for x in (made, samples))
    for name in FRAME:
        assert sorted(found[name]) == sorted(own[name])
        assert found[name] != own[name]
    # Rows that belonged together do not any more.
    pairs = zip(found["number"], found["same"], strict=True)
    assert sum(4 * float(a) == float(b) for a, b in pairs) < 8


def test_pixels_of_arrays_and_fields_of_mappings_are_columns():
    x = np.arange(2 * 3 * 50).reshape(50, 2, 3)
    made = shuffled_columns(x, 1)
    np.testing.assert_array_equal(np.sort(made, 0), x)
    assert (made[:, 0, 0] != made[:, 1, 2] - 5).any()
    np.testing.assert_array_equal(made, shuffled_columns(x, 1))
    assert (made != shuffled_columns(x, 2)).any()
    texts = [f"text {i}" for i in range(50)]
    both = shuffled_columns(as_samples({"text": texts, "x": x}), 1)[:]
    assert sorted(both["text"]) == sorted(texts) != both["text"]
    np.testing.assert_array_equal(np.sort(both["x"], 0), x)


def test_texts_have_no_columns():
    assert shuffled_columns(as_samples(["one", "two"]), 0) is None
