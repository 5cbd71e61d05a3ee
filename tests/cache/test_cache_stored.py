"""Caches that an earlier version wrote are read, and written again byte for byte.

The archive holds one small cache for each kind, and the logits that were decoded from it when it was written.
"""

import io
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ensdistill.cache import TargetCache, cache_targets, convert
from ensdistill.data import Rows

ARCHIVE = Path(__file__).parent / "stored" / "before_open_codecs.zip"
MEMBERS = ("uint8", "fp16", "bf16", "fp32", "uint8-uids")
MIXTURES = ("uint8-mixture", "fp16-mixture", "topk-3-mixture", "counts-40-mixture", "topk-3-from-uint8")
N, K, C = 7, 2, 5
INPUTS = np.arange(N, dtype=np.float32)[:, None]
pytestmark = pytest.mark.filterwarnings("ignore::ensdistill.cache.CacheLossWarning")


def ensemble():
    logits = ((np.arange(K * N * C) * 37) % 101 - 50).reshape(K, N, C).astype(np.float32) / 8
    logits[0, 3, 1] = -np.inf
    logits[1, 2, 4] = -1e4
    return types.SimpleNamespace(
        names=("a", "b"),
        classes=tuple("uvxyz"),
        weights=np.array([0.75, 0.25]),
        combiner="prob",
        predict_logits=lambda inputs: logits[:, inputs[:, 0].astype(int)],
        fingerprint=lambda: {"members": {"a": "1", "b": "2"}},
    )


def write(kind, folder):
    """The cache of this kind, by this version."""
    codec, uids = kind.removesuffix("-mixture").removesuffix("-uids"), np.arange(N)
    mixture_at = 2.0 if kind.endswith("-mixture") else None
    seed = 0 if kind.endswith("-uids") else 3
    rows = Rows(INPUTS, uids * 10 - 30 if kind.endswith("-uids") else uids, uids % C)
    return cache_targets(
        ensemble(), rows, folder, codec=codec, mixture_at=mixture_at, shard_rows=4, seed=seed
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
        decoded = {
            kind: np.load(io.BytesIO(archive.read(f"{kind}/decoded.npy"))) for kind in MEMBERS + MIXTURES
        }
    for kind in decoded:
        (folder / kind / "decoded.npy").unlink()
    return folder, decoded


@pytest.mark.parametrize("kind", MEMBERS + MIXTURES)
def test_a_cache_written_before_is_read(stored, kind):
    folder, decoded = stored
    cache = TargetCache.open(folder / kind, check="full")
    np.testing.assert_allclose(cache.gather_logits(cache.uids), decoded[kind], rtol=1e-6)
    codes = cache.gather(cache.uids).to_logits().numpy()
    at = cache.temperature or 1.0
    np.testing.assert_allclose(
        softmax(codes / at if "uint8-m" in kind else codes), softmax(decoded[kind]), atol=1e-6
    )
    rows = Rows(INPUTS, cache.uids, np.arange(N) % C)
    assert cache.verify_against(ensemble(), rows, share=1.0) == N


@pytest.mark.parametrize("kind", MEMBERS)
def test_members_are_written_in_the_same_bytes(stored, tmp_path, kind):
    """Encoding members' logits takes exact arithmetic only, so the bytes are those of every machine."""
    before = {file.name: file.read_bytes() for file in sorted((stored[0] / kind).iterdir())}
    write(kind, tmp_path / kind)
    for name, data in before.items():
        if name != "manifest.json":
            assert (tmp_path / kind / name).read_bytes() == data, name


@pytest.mark.parametrize("kind", MEMBERS + MIXTURES)
def test_a_manifest_has_the_same_fields(stored, tmp_path, kind):
    before = TargetCache.open(stored[0] / kind).manifest
    if kind == "topk-3-from-uint8":
        now = convert(stored[0] / "uint8", tmp_path / kind, codec="topk-3", mixture_at=2.0).manifest
    else:
        now = write(kind, tmp_path / kind).manifest
    assert list(now) == list(before)
    measured = {"statistics", "shards"}  # exponentials differ in the last bit from one machine to another
    if kind == "topk-3-from-uint8":
        measured.add("fingerprint")
    assert {k: v for k, v in now.items() if k not in measured} == {
        k: v for k, v in before.items() if k not in measured
    }
    assert [shard["bytes"] for shard in now["shards"]] == [shard["bytes"] for shard in before["shards"]]
    # Of top-k rows the cost follows from their log-probabilities in float32.
    absolute = 2e-7 if "topk" in kind else 1e-12
    for name, part in before["statistics"]["members"].items():
        assert now["statistics"]["members"][name].keys() == part.keys()
        assert now["statistics"]["members"][name]["max"] == pytest.approx(part["max"], rel=1e-6, abs=absolute)


def softmax(logits):
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)
