"""The cache's benchmark: whole, small and unmeasured; and contenders that it refuses to time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cache import codecs, gather, stores
from benchmarks.cache.command import main
from ensdistill.cache import cache_targets


@pytest.mark.slow
def test_a_quick_run_has_every_part(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(codecs, "PAIRS", 300)
    scratch, out = tmp_path / "new" / "scratch", tmp_path / "r.json"
    words = ["--quick", "--records", "1500", "--scratch", str(scratch), "--out", str(out)]
    assert main(words, tmp_path) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    timed = {(row["store"], row["width"]) for row in result["gather"]}
    assert {
        (name, width)
        for name in ("ensdistill", "numpy memmap", "safetensors slices")
        for width in (344, 2000)
    } <= timed
    for row in result["gather"]:
        assert min(row["warm_records_per_s"], row["cold_records_per_s"], row["write_mb_per_s"]) > 0
        assert row["warm_spread"][0] <= row["warm_records_per_s"] <= row["warm_spread"][1]
    assert [row["codec"] for row in result["codecs"]] == [codec for codec, _ in codecs.CODECS]
    assert result["codecs"][0]["kl"]["max"] == 0  # fp32's
    assert result["training"]["ms_cache"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "r.json", "r.png"]
    assert not list(scratch.iterdir())  # the scratch is gone
    shown = capsys.readouterr()
    assert "numpy memmap" in shown.out
    assert "round 2 of 2" in shown.err


class Forgetful(stores.Memmap):
    """Loses one bit of one record, which is not among those of the first batch."""

    def write(self, records: np.ndarray) -> None:
        records = records.copy()
        asked = np.random.default_rng(1).integers(0, len(records), gather.BATCH)
        records[np.setdiff1d(np.arange(len(records)), asked)[0], -1] ^= 1
        super().write(records)


def test_a_store_with_one_wrong_bit_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(gather, "STORES", (stores.Ours, Forgetful))
    with pytest.raises(
        gather.WrongRecords, match="numpy memmap: records 0 to 1499 are not those that were written"
    ):
        gather.measure(tmp_path, 1500, 344, 1, 0.0, lambda line: None)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list mappings")
@pytest.mark.parametrize("kind", stores.STORES, ids=lambda kind: kind.name)
def test_a_closed_store_maps_nothing_and_opens_again(tmp_path, kind):
    records, store = gather.table(40, 344), kind(tmp_path)
    try:
        store.write(records)
        store.open(40, 344)
    except ImportError:
        pytest.skip("its package is missing")
    for _ in range(2):
        np.testing.assert_array_equal(store.gather(np.array([3, 39, 3])), records[[3, 39, 3]])
        store.close()
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
        store.open(40, 344)
    store.close()


def test_a_store_that_was_served_from_memory_was_not_cold(tmp_path, monkeypatch):
    read = iter([0, 10**6, 10**6, 10**6 + 4096])  # before and after each store's one round
    monkeypatch.setattr(gather, "STORES", (stores.Ours, stores.Memmap))
    monkeypatch.setattr(gather, "_disk_bytes", lambda: next(read))
    notes = []
    ours, memmap = gather.measure(tmp_path, 1500, 344, 1, 0.01, notes.append)
    assert (ours["was_cold"], memmap["was_cold"]) == (True, False)
    assert "numpy memmap, 344 bytes: its cold rounds were not: 0.0041 MB came from the disk" in notes
    monkeypatch.setattr(gather, "_disk_bytes", lambda: 0)  # a system that doesn't count them
    assert all(row["was_cold"] for row in gather.measure(tmp_path, 1500, 344, 1, 0.01, notes.append))


def test_a_codec_whose_error_is_not_the_certified_one_is_refused(tmp_path):
    logits = np.random.default_rng(0).normal(0, 3, (2, 50, 10)).astype(np.float32)
    ensemble = stores.SimpleNamespace(
        names=("a", "b"),
        classes=tuple("0123456789"),
        weights=np.array([0.5, 0.5]),
        combiner="prob",
        predict_logits=lambda inputs: logits[:, inputs[:, 0]],
        fingerprint=lambda: {},
    )
    rows = stores.Rows(np.arange(50)[:, None], np.arange(50), np.arange(50))
    cache = cache_targets(ensemble, rows, tmp_path / "c")
    codecs.check(cache, logits)
    with pytest.raises(gather.WrongRecords, match="codec uint8: the manifest has a mean KL of"):
        codecs.check(cache, logits + np.float32(0.05) * logits[::-1])
