"""Transfer sets of raw samples of every kind, in memory and lazy."""

import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch.utils.data import Dataset

from ensdistill.data import BadRows, Rows, Split
from ensdistill.data import batches as b
from ensdistill.data.augmentation import FlipImages
from ensdistill.data.samples import Joined, Lazy, as_samples
from ensdistill.data.tasks import known_rows
from ensdistill.data.transfer import (
    Augmented,
    CutMix,
    DropTokens,
    Mixup,
    Munge,
    NGrams,
    ReplaceTokens,
    SpliceTexts,
    TransferSet,
    neighbours,
    sets,
)

ROWS = 60


def split_of(inputs, weights=None):
    """Labelled rows 0..29, a pool 30..49, and test rows."""
    samples = as_samples(inputs)
    every = Rows(samples, np.arange(ROWS) + 100, np.arange(ROWS) % 2, weights)
    parts = [every.take(np.arange(*limits)) for limits in ((0, 30), (30, 50), (50, 60))]
    return Split(parts[0], parts[1].without_labels(), parts[2], ("no", "yes"))


def frame():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=ROWS),
        "n": rng.integers(0, 50, ROWS),
        "t": [f"k{i % 4}" for i in range(ROWS)],
    }


def pictures():
    return (np.random.default_rng(0).random((ROWS, 3, 4, 4)) * 255).astype(np.uint8)


class Pictures(Dataset):
    """Lazy images that count how often each is read."""

    def __init__(self):
        self.read = np.zeros(ROWS, np.int64)

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        self.read[index] += 1
        return torch.from_numpy(pictures()[index]), 0


TEXTS = [f"the {i} th text of all" for i in range(ROWS)]
KINDS = {
    "pandas": (pd.DataFrame(frame()), [Munge(rows=9), Mixup(rows=8)]),
    "polars": (pl.DataFrame(frame()), [Munge(rows=9), Mixup(rows=8)]),
    "texts": (TEXTS, [DropTokens(rows=9), ReplaceTokens(rows=8), NGrams(rows=7), SpliceTexts(rows=6)]),
    "images": (
        [np.moveaxis(one, 0, -1).copy() for one in pictures()],
        [Augmented(FlipImages(), rows=9), CutMix(8)],
    ),
    "uint8": (pictures(), [Munge(rows=9), Augmented(FlipImages(), rows=8)]),
    "tensor": (torch.from_numpy(pictures()).bfloat16(), [Mixup(rows=9), CutMix(rows=8)]),
}


@pytest.mark.parametrize("name", KINDS)
def test_samples_of_every_kind(name):
    inputs, sources = KINDS[name]
    split = split_of(inputs)
    transfer, again = (TransferSet(synthetic=sources).build(split, seed=3) for _ in range(2))
    sizes = [source.rows for source in sources]
    assert [count for _, count in transfer.origin] == [30, 20, *sizes]
    assert len(transfer.rows) == 50 + sum(sizes)
    np.testing.assert_array_equal(transfer.rows.labels[:30], split.labelled.labels)
    assert (transfer.rows.labels[30:] == -100).all()
    batch = transfer.rows.inputs[:]
    assert b.describe(batch) == b.describe(b.take(inputs, slice(0, 3)))
    hashes = b.hashes(batch)
    np.testing.assert_array_equal(hashes[:50], b.hashes(inputs)[:50])
    np.testing.assert_array_equal(hashes, b.hashes(again.rows.inputs[:]))
    other = TransferSet(synthetic=sources).build(split, seed=4)
    assert (b.hashes(other.rows.inputs[:])[50:] != hashes[50:]).any()
    small = TransferSet(pool=False, synthetic=sources[:1]).build(split, seed=3)
    assert [count for _, count in small.origin] == [30, sizes[0]]


def test_lazy_samples_stay_unread():
    data = Pictures()
    split = split_of(Lazy(data))
    data.read[:] = 0
    plain = TransferSet().build(split, seed=0)
    assert isinstance(plain.rows.inputs, Joined)
    read_for_forms = data.read.sum()
    made = TransferSet(synthetic=[Mixup(rows=7)], base_rows=12).build(split, seed=0)
    # Twelve rows are read as the base, and single ones to compare the parts' forms.
    assert data.read.sum() - read_for_forms <= 12 + 6
    assert len(made.rows) == 57
    tensor = made.rows.inputs[np.array([0, 49, 56])]
    assert tensor.dtype == torch.uint8
    np.testing.assert_array_equal(tensor[1].numpy(), pictures()[49])
    again = TransferSet(synthetic=[Mixup(rows=7)], base_rows=12).build(split_of(Lazy(Pictures())), seed=0)
    np.testing.assert_array_equal(again.rows.inputs[50:57].numpy(), made.rows.inputs[50:57].numpy())
    whole = TransferSet(synthetic=[Mixup(rows=7)]).build(split, seed=0)
    eager = TransferSet(synthetic=[Mixup(rows=7)]).build(split_of(torch.from_numpy(pictures())), seed=0)
    np.testing.assert_array_equal(whole.rows.inputs[50:57].numpy(), eager.rows.inputs[50:57].numpy())
    with pytest.raises(ValueError, match="base_rows: expected at least 1; got 0"):
        TransferSet(base_rows=0)


def test_weights():
    split = split_of(np.random.default_rng(0).normal(size=(ROWS, 3)), np.arange(ROWS) / 10)
    rows = TransferSet(synthetic=[Mixup(rows=4)]).build(split, seed=0).rows
    np.testing.assert_allclose(rows.weights, [*np.arange(50) / 10, *[2.45] * 4])
    alone = split_of(np.random.default_rng(0).normal(size=(ROWS, 3)))
    assert TransferSet().build(alone, seed=0).rows.weights is None


class Made:
    rows = 3

    def __init__(self, change):
        self.change = change

    def make(self, base, generator):
        return self.change(base)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "pandas",
            lambda base: base.assign(n=base["n"].astype("int32")).head(3),
            "'n': 'int64'.*got .*'n': 'int32'",
        ),
        ("pandas", lambda base: base.astype({"t": "category"}).head(3), "'t'.*got .*k1.*k2"),
        ("pandas", lambda base: base.head(0), "got no rows"),
        ("polars", lambda base: base.drop("t").head(3), "got .*'n'"),
        ("texts", lambda base: ["a", None], "got .*list"),
        ("texts", lambda base: np.zeros((3, 2)), "'kind': 'text'.*got .*'kind': 'array'"),
        ("tensor", lambda base: base[:3].float(), "bfloat16.*got .*float32"),
    ],
)
def test_sources_that_make_something_else(name, change, words):
    with pytest.raises(ValueError, match=r"^transfer\.synthetic\.0 \(Made\): expected make .*" + words):
        TransferSet(synthetic=[Made(change)]).build(split_of(KINDS[name][0]), seed=0)


def test_gaps_only_where_the_base_has_some():
    inputs = np.random.default_rng(0).normal(size=(ROWS, 3))
    split = split_of(inputs)

    def hole(base):
        made = base[:3].copy()
        made[1, 2] = np.nan
        return made

    with pytest.raises(BadRows, match="row 1 holds nan"):
        TransferSet(synthetic=[Made(hole)]).build(split, seed=0)


def test_the_source_of_the_page_on_extending():
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
    text = page.partition("## Add a source")[2]
    code = re.findall(r"```python\n(# my_source.py.*?)```", text, re.S)[0]
    names = {"__name__": __name__}
    exec(compile(code, "docs/extending.md", "exec"), names)
    split = split_of(np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32))
    transfer = TransferSet(synthetic=[names["Noise"](rows=7)]).build(split, seed=0)
    assert transfer.origin[-1] == ("noise", 7)


def test_sources_over_one_base_share_the_search_for_neighbours(monkeypatch):
    split = split_of(pd.DataFrame(frame()))
    searches = []
    search = neighbours._nearest
    monkeypatch.setattr(neighbours, "_nearest", lambda *given: searches.append(given) or search(*given))
    sources = [Munge(20, probability=0.5), Munge(30), Munge(30, categorical=["n"])]
    made = TransferSet(synthetic=sources).build(split, 3)
    assert len(searches) == 2  # other columns have other neighbours
    monkeypatch.setattr(sets, "shared_searches", nullcontext)
    alone = TransferSet(synthetic=sources).build(split, 3)
    assert len(searches) == 2 + 3
    np.testing.assert_array_equal(b.hashes(made.rows.inputs[:]), b.hashes(alone.rows.inputs[:]))
    TransferSet(synthetic=sources[:1]).build(split, 3)
    assert len(searches) == 2 + 3 + 1  # nothing is kept


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_rows_that_are_not_labelled_have_unknown_labels(task):
    rng = np.random.default_rng(0)
    labels = (
        rng.integers(0, 2, (ROWS, 3)).astype(np.int8) if task == "multilabel" else rng.normal(size=(ROWS, 2))
    )
    every = Rows(rng.normal(size=(ROWS, 4)), np.arange(ROWS) + 100, labels)
    parts = [every.take(np.arange(*limits)) for limits in ((0, 30), (30, 50), (50, 60))]
    split = Split(parts[0], parts[1].without_labels(), parts[2], ("a", "b", "c")[: labels.shape[1]])
    transfer = TransferSet(synthetic=[Mixup(rows=25)]).build(split, seed=0)
    rows = transfer.rows
    assert transfer.origin == (("labelled", 30), ("pool", 20), ("mixup", 25))
    assert (rows.labels.dtype, rows.labels.shape) == (labels.dtype, (75, labels.shape[1]))
    assert np.array_equal(rows.labels[:30], labels[:30])
    assert not known_rows(rows.labels[30:]).any()
    assert TransferSet(pool=False).build(split, seed=0).rows.labels.shape == (30, labels.shape[1])
    again = TransferSet(synthetic=[Mixup(rows=25)]).rounds(split, seed=0)
    made = again.version(rows.inputs, rows.uids, view=1, seed=0)
    assert np.array_equal(made[:50], rows.inputs[:50])
