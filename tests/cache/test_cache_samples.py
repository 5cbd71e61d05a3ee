"""Caches of samples of every kind: their records are those of the same numbers in an array."""

import types

import numpy as np
import pandas as pd
import pyarrow.feather
import pytest
import torch
from torch.utils.data import Dataset

from ensdistill.cache import CacheMismatch, TargetCache, cache_targets
from ensdistill.cache.codecs.layout import INPUT_HASH
from ensdistill.data import Rows
from ensdistill.data.arrow import ArrowSamples
from ensdistill.data.parquet import ParquetSamples
from ensdistill.data.samples import Lazy

N = 50
NUMBERS = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
UIDS, LABELS = np.arange(N), np.arange(N) % 3
SMALL = {"batch_size": 7, "shard_rows": 16, "codec": "fp32"}
WEIGHTS = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)


class Items(Dataset):
    """Rows of numbers that are made when they are read; one may change between reads."""

    def __init__(self, changed=None):
        self.changed = changed

    def __len__(self):
        return N

    def __getitem__(self, i):
        row = NUMBERS[i].copy()
        if i == self.changed:
            row += 1
        return row, int(LABELS[i])


def numbers_of(batch):
    """The same numbers [M, 4] of a batch of any kind."""
    if isinstance(batch, pd.DataFrame):
        return batch[["a", "b", "c", "d"]].to_numpy(np.float32)
    if isinstance(batch, dict):
        return np.concatenate([batch["left"], batch["right"]], axis=1)
    if isinstance(batch, list):
        return np.array([[float(word) for word in text.split()] for text in batch], np.float32)
    return np.asarray(batch)


def ensemble():
    return types.SimpleNamespace(
        names=("a", "b"),
        classes=("x", "y", "z"),
        weights=np.array([0.5, 0.5]),
        combiner="prob",
        predict_logits=lambda batch: np.einsum("nf,kfc->knc", numbers_of(batch), WEIGHTS),
        fingerprint=lambda: {"members": ["a", "b"]},
    )


def frame():
    return pd.DataFrame(NUMBERS, columns=["a", "b", "c", "d"])


def samples(kind, folder):
    if kind == "frame":
        return frame()
    if kind == "mapping":
        return {"left": NUMBERS[:, :1], "right": NUMBERS[:, 1:]}
    if kind == "text":
        return [" ".join(repr(float(value)) for value in row) for row in NUMBERS]
    if kind == "tensor":
        return torch.from_numpy(NUMBERS)
    if kind == "dataset":
        return Items()
    if kind == "arrow":
        pyarrow.feather.write_feather(frame(), folder / "rows.arrow", compression="uncompressed")
        return ArrowSamples(folder / "rows.arrow")
    frame().to_parquet(folder / "rows.parquet", row_group_size=13)
    return ParquetSamples(folder / "rows.parquet")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["frame", "mapping", "text", "tensor", "dataset", "parquet", "arrow"])
def test_records_equal_those_of_the_array(kind, workers, tmp_path):
    uids = UIDS[::-1].copy()  # the cache's rows are in another order than the samples
    expected = cache_targets(ensemble(), Rows(NUMBERS, uids, LABELS), tmp_path / "array", **SMALL)
    given = samples(kind, tmp_path)
    cache = cache_targets(ensemble(), Rows(given, uids, LABELS), tmp_path / kind, workers=workers, **SMALL)
    np.testing.assert_array_equal(cache.gather_logits(UIDS), expected.gather_logits(UIDS))
    cache.verify()
    cache.verify_inputs(uids, given)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_changes_between_reads_is_found(workers, tmp_path):
    cache = cache_targets(ensemble(), Rows(Items(), UIDS, LABELS), tmp_path, workers=workers, **SMALL)
    changed = Items(changed=33)
    with pytest.raises(CacheMismatch, match=r"uid 33 .* items change between reads"):
        cache.verify_inputs(UIDS, Lazy(changed))


def test_another_data_set_does_not_open_the_cache_of_the_first(tmp_path):
    cache_targets(ensemble(), Rows(Items(), UIDS, LABELS), tmp_path, **SMALL)
    with pytest.raises(CacheMismatch, match=r"fingerprint\.inputs\.sampled"):
        cache_targets(ensemble(), Rows(Items(changed=33), UIDS, LABELS), tmp_path, **SMALL)


def test_a_killed_writer_of_lazy_samples_is_resumed(tmp_path):
    rows, whole = Rows(Items(), UIDS, LABELS), tmp_path / "whole"
    cache_targets(ensemble(), rows, whole, workers=2, **SMALL)

    class Stop(Exception):
        pass

    def stop(done, total):
        if done > 20:
            raise Stop

    with pytest.raises(Stop):
        cache_targets(ensemble(), rows, tmp_path / "killed", workers=2, progress=stop, **SMALL)
    resumed = cache_targets(ensemble(), rows, tmp_path / "killed", workers=2, **SMALL)
    for file in sorted(path.name for path in whole.iterdir()):
        assert (whole / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    records = TargetCache.open(resumed.path).gather_records(UIDS)
    assert len(np.unique(resumed.layout.views(records)[INPUT_HASH])) == N
