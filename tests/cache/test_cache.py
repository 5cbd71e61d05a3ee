"""Caches written and read again: numbers, uids, statistics, bad arguments, and caches made of other inputs."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from cache_helpers import contents, digits, in_uid_order
from safetensors import safe_open

from ensdistill.cache import CacheIncomplete, CacheLocked, CacheMismatch, TargetCache, cache_targets
from ensdistill.cache.codecs import kl_divergence
from ensdistill.common.files import exclusive
from ensdistill.data import Rows
from ensdistill.loss.targets import EnsembleLogits, QuantizedLogits

SMALL = {"shard_rows": 64, "batch_size": 50}  # 230 rows: four shards, the last with 38; batches of 50 and 14
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.parametrize("codec", ["uint8", "fp16", "bf16", "fp32"])
def test_gather_gives_the_logits_back(tmp_path, codec):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path / "cache", codec=codec, **SMALL)
    uids = np.random.default_rng(3).integers(0, len(rows), 100)  # any order, repeats
    targets = cache.gather(uids)
    expected = in_uid_order(teachers, rows)[:, uids]
    decoded = targets.to_logits().numpy()
    if codec in ("fp16", "bf16"):
        expected = expected - expected.max(-1, keepdims=True)
    # uint8: half a step; fp16: 2^-11 of a logit, bf16 2^-8 of it; fp32: nothing. 1e-5 and 1e-6 for float32
    # arithmetic.
    slack = {
        "uint8": np.ptp(expected, axis=-1, keepdims=True) / 510 + 1e-5,
        "fp16": np.abs(expected) / 2048 + 1e-6,
        "bf16": np.abs(expected) / 256 + 1e-6,
        "fp32": 0.0,
    }[codec]
    assert (np.abs(decoded - expected) <= slack).all()
    assert isinstance(targets, QuantizedLogits if codec == "uint8" else EnsembleLogits)
    np.testing.assert_array_equal(cache.gather_logits(uids), decoded)
    assert targets.weights.tolist() == [0.5, 0.3, 0.2]
    assert (len(cache), cache.names, cache.classes, cache.combiner) == (
        230,
        teachers.names,
        teachers.classes,
        "prob",
    )


def test_statistics_are_those_of_the_rows(tmp_path):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path, **SMALL)
    kl = kl_divergence(in_uid_order(teachers, rows), cache.gather(np.arange(len(rows))).to_logits().numpy())
    found = cache.manifest["statistics"]["kl"]
    assert found["rows"] == kl.size == 690
    # Both float64, of terms of size 1 that all but cancel.
    assert found["max"] == pytest.approx(kl.max(), abs=1e-15)
    assert found["mean"] == pytest.approx(kl.mean(), abs=1e-15)
    exact = np.quantile(kl, 0.99, method="inverted_cdf")
    assert exact - 1e-15 <= found["p99"] <= exact * 2 ** (1 / 16) + 1e-15
    members = cache.manifest["statistics"]["members"]
    assert list(members) == list(teachers.names)
    assert [part["max"] for part in members.values()] == pytest.approx(kl.max(1), abs=1e-15)


def test_targets_are_views_of_one_block(tmp_path, monkeypatch):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path, **SMALL)
    gathered = []
    monkeypatch.setattr(
        cache,
        "gather_records",
        lambda *a: gathered.append(TargetCache.gather_records(cache, *a)) or gathered[-1],
    )
    targets = cache.gather(torch.tensor([5, 200, 5]))
    (records,) = gathered
    for tensor in (targets.codes, targets.scale, targets.offset):
        assert records.ctypes.data <= tensor.data_ptr() < records.ctypes.data + records.nbytes
        assert tensor.stride(1) * tensor.element_size() == cache.layout.bytes
    assert targets.codes.stride() == (10, cache.layout.bytes, 1)


def test_shards_are_valid_safetensors(tmp_path):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path, **SMALL)
    assert sorted(contents(tmp_path)) == ["manifest.json", *(f"shard-0000{i}.safetensors" for i in range(4))]
    with safe_open(tmp_path / "shard-00003.safetensors", framework="numpy") as file:
        assert sorted(file.keys()) == ["crc32c", "records"]
        assert file.metadata()["first_uid"] == "192"
        np.testing.assert_array_equal(file.get_tensor("records"), cache.gather_records(np.arange(192, 230)))


def test_the_order_of_rows_does_not_matter_but_that_of_uids_does(tmp_path):
    teachers, rows = digits()
    cache_targets(teachers, rows, tmp_path / "a", **SMALL)
    shuffle = np.random.default_rng(4).permutation(len(rows))
    cache_targets(teachers, rows.take(shuffle), tmp_path / "b", **SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    renumbered = Rows(rows.inputs, rows.uids[::-1].copy(), rows.labels)
    with pytest.raises(
        CacheMismatch, match=r"fingerprint\.inputs\.hash: the cache has '\w+', expected '\w+'"
    ):
        cache_targets(teachers, renumbered, tmp_path / "a", **SMALL)


def test_a_finished_cache_is_opened_without_predictions(tmp_path):
    teachers, rows = digits()
    cache_targets(teachers, rows, tmp_path, **SMALL)
    before = contents(tmp_path)
    silent = replace(teachers, logits=None)  # a prediction would fail
    for overwrite in (False, True):
        assert len(cache_targets(silent, rows, tmp_path, overwrite=overwrite, **SMALL)) == 230
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "options", "field"),
    [
        (
            {"version": "2"},
            {},
            r"fingerprint\.ensemble\.members\[0\]\.weights: the cache has '1', expected '2'",
        ),
        ({"weights": np.array([1.0, 0.0, 0.0])}, {}, r"weights\[0\]: the cache has 0\.5, expected 1\.0"),
        ({"combiner": "logit"}, {}, "combiner: the cache has 'prob', expected 'logit'"),
        ({"classes": tuple("012345678X")}, {}, r"classes\[9\]: the cache has '9', expected 'X'"),
        ({}, {"codec": "fp16"}, "codec: the cache has 'uint8', expected 'fp16'"),
        ({}, {"shard_rows": 32}, "shard_rows: the cache has 64, expected 32"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_cache_of_something_else_is_refused_unless_overwritten(tmp_path, change, options, field, finished):
    (teachers, rows), folder = digits(), tmp_path / "cache"
    if finished:
        cache_targets(teachers, rows, folder, **SMALL)
    else:
        with pytest.raises(ValueError, match="nan"):
            cache_targets(
                teachers.with_logit(0, int(np.flatnonzero(rows.uids == 229)[0]), 0, np.nan),
                rows,
                folder,
                **SMALL,
            )
    before, other = contents(folder), replace(teachers, **change)
    with pytest.raises(CacheMismatch, match=field):
        cache_targets(other, rows, folder, **{**SMALL, **options})
    assert contents(folder) == before
    cache_targets(other, rows, folder, overwrite=True, **{**SMALL, **options})
    cache_targets(other, rows, tmp_path / "fresh", **{**SMALL, **options})
    assert contents(folder) == contents(tmp_path / "fresh")


def test_expect_compares_the_fields_it_names(tmp_path):
    teachers, rows = digits()
    made_from = cache_targets(teachers, rows, tmp_path, **SMALL).manifest["fingerprint"]
    TargetCache.open(tmp_path, expect=made_from)
    TargetCache.open(tmp_path, expect={"ensemble": teachers.fingerprint()})
    with pytest.raises(CacheMismatch, match="the cache has '1', expected '2'") as caught:
        TargetCache.open(tmp_path, expect={"ensemble": replace(teachers, version="2").fingerprint()})
    assert len(caught.value.differences) == 3
    with pytest.raises(CacheMismatch, match="colour: the cache has nothing, expected 2"):
        TargetCache.open(tmp_path, expect={"colour": 2})


def test_verify_inputs_names_the_first_uid(tmp_path):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path, **SMALL)
    uids, inputs = rows.uids[10:60], rows.inputs[10:60]
    cache.verify_inputs(uids, inputs)
    changed = inputs.copy()
    changed[7, 3] += 1
    with pytest.raises(CacheMismatch, match=rf"uid {uids[7]} .* 1 of 50 differ"):
        cache.verify_inputs(uids, changed)
    with pytest.raises(CacheMismatch, match="50 of 50 differ"):
        cache.verify_inputs(uids, np.roll(inputs, 1, axis=0))
    for same_bytes in (inputs.view(np.int32), inputs.reshape(50, 5, 13)):
        with pytest.raises(CacheMismatch, match="50 of 50 differ"):
            cache.verify_inputs(uids, same_bytes)
    with pytest.raises(ValueError, match="inputs: expected 50, one for each uid; got 49"):
        cache.verify_inputs(uids, inputs[:49])


def test_bad_logits_name_member_uid_and_value_and_publish_nothing(tmp_path):
    teachers, rows = digits()
    row = int(np.flatnonzero(rows.uids == 70)[0])  # in the second shard
    for value, message in ((np.nan, "nan"), (np.inf, "inf"), (3e38, r"3e\+38")):
        with pytest.raises(ValueError, match=rf"member 'b' gave {message} for uid 70, class 4 \(1 such"):
            cache_targets(teachers.with_logit(1, row, 4, value), rows, tmp_path / "cache", **SMALL)
    with pytest.raises(ValueError, match="member 'c' gave -inf for every class of uid 70"):
        cache_targets(teachers.with_logit(2, row, slice(None), -np.inf), rows, tmp_path / "cache", **SMALL)
    assert sorted(contents(tmp_path / "cache")) == [
        "plan.json",
        "shard-00000.commit.json",
        "shard-00000.safetensors",
    ]
    with pytest.raises(CacheIncomplete, match="its writer has not finished"):
        TargetCache.open(tmp_path / "cache")
    cache = cache_targets(
        teachers.with_logit(1, row, 4, -np.inf), rows, tmp_path / "cache", **SMALL
    )  # a mask is legal
    assert torch.isneginf(cache.gather([70]).to_logits()).nonzero().tolist() == [[1, 0, 4]]


def test_bad_arguments(tmp_path):
    teachers, rows = digits()

    def refused(error, message, teachers=teachers, rows=rows, **options):
        with pytest.raises(error, match=message):
            cache_targets(teachers, rows, tmp_path / "none", **options)

    refused(ValueError, "codec: expected one of uint8, fp16, .*; got 'zip'", codec="zip")
    refused(ValueError, "shard_rows: expected a positive integer; got 0", shard_rows=0)
    refused(ValueError, "batch_size: expected a positive integer; got -1", batch_size=-1)
    refused(ValueError, "rows: expected at least one", rows=rows.take(np.arange(0)))
    refused(
        ValueError,
        r"ensemble.weights: expected float64 \[3\]",
        teachers=replace(teachers, weights=np.ones(2)),
    )
    refused(
        ValueError,
        r"ensemble.weights: .*got \[1.0, -1.0, 1.0\]",
        teachers=replace(teachers, weights=np.array([1.0, -1, 1])),
    )
    refused(ValueError, "ensemble.combiner: .*got 'vote'", teachers=replace(teachers, combiner="vote"))
    refused(
        TypeError,
        r"ensemble.fingerprint\(\): expected plain JSON",
        teachers=replace(teachers, version=np.float64),
    )
    assert not (tmp_path / "none").exists()
    refused(
        TypeError,
        "expected float32 logits; got float64",
        teachers=replace(teachers, logits=teachers.logits.astype(float)),
    )
    refused(
        ValueError,
        r"= \[3, 230, 10\]; got \[3, 230, 9\]",
        teachers=replace(teachers, logits=teachers.logits[..., :9]),
    )


def test_bad_uids(tmp_path):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path, **SMALL)
    for uids, error, message in (
        ([0, 230], IndexError, "uids: expected 0 to 229; got 230"),
        ([3, -1], IndexError, "uids: expected 0 to 229; got -1"),
        (np.array([2**63], np.uint64), IndexError, "got 9223372036854775808"),
        ([0.0, 1.0], TypeError, "uids: expected integers; got float64"),
        (np.array([True]), TypeError, "uids: expected integers; got bool"),
        ([[0, 1]], ValueError, r"uids: expected one dimension \[N\]; got \[1, 2\]"),
    ):
        with pytest.raises(error, match=message):
            cache.gather(uids)
    assert cache.gather([]).shape == (3, 0, 10)


def test_tensors_are_taken_as_arrays_are(tmp_path):
    teachers, rows = digits()

    class Torch(type(teachers)):
        def predict_logits(self, inputs):
            return torch.from_numpy(super().predict_logits(inputs)).requires_grad_()

    cache_targets(teachers, rows, tmp_path / "numpy", **SMALL)
    cache_targets(Torch(teachers.logits), rows, tmp_path / "torch", **SMALL)
    assert contents(tmp_path / "numpy") == contents(tmp_path / "torch")


def test_progress_counts_samples_and_resumed_shards(tmp_path):
    teachers, rows = digits()
    calls = []
    cache_targets(teachers, rows, tmp_path, progress=lambda *call: calls.append(call), **SMALL)
    assert calls == [(done, 230) for done in (50, 64, 114, 128, 178, 192, 230)]


def test_a_second_writer_is_refused(tmp_path):
    teachers, rows = digits()
    with exclusive(tmp_path), pytest.raises(CacheLocked, match="being written by another process"):
        cache_targets(teachers, rows, tmp_path, **SMALL)
    seen = []

    def second_writer(done, total):
        if not seen:
            script = f"from ensdistill.common.files import exclusive\nwith exclusive({str(tmp_path)!r}): pass"
            seen.append(
                subprocess.run(
                    [sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT
                )
            )

    cache_targets(teachers, rows, tmp_path, progress=second_writer, **SMALL)
    assert "FolderLocked" in seen[0].stderr


def test_reading_needs_neither_torch_nor_a_writable_folder(tmp_path):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path / "cache", **SMALL)
    expected = cache.gather_records([7, 229])
    # Permissions don't stop root, so every attempt to change the file system is refused instead.
    script = f"""
        import os, sys
        sys.modules["torch"] = None
        sys.dont_write_bytecode = True
        import numpy as np
        from ensdistill.cache import TargetCache
        def refuse(event, arguments):
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.chmod", "os.utime", "os.link", "os.symlink"):
                raise PermissionError(f"{{event}} {{arguments}}")
        sys.addaudithook(refuse)
        try:
            open({str(tmp_path / "probe")!r}, "w")
        except PermissionError:
            pass
        else:
            raise SystemExit("the hook does not work")
        cache = TargetCache.open({str(tmp_path / "cache")!r}, check="full")
        sys.stdout.buffer.write(cache.gather_records(np.array([7, 229])).tobytes())
    """
    (tmp_path / "cache").chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == expected.tobytes()


def test_more_shards_than_may_be_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("ensdistill.cache.mapped._MAPPED_SHARDS", 2)
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path, codec="fp32", **SMALL)
    for uids in (np.arange(230), np.arange(230)[::-1], np.array([229, 0, 100])):
        np.testing.assert_array_equal(
            cache.gather(uids.copy()).to_logits().numpy(), in_uid_order(teachers, rows)[:, uids]
        )
        assert cache.shards.mapped <= 4  # a batch's own at least
    for uid in (0, 64, 128):
        cache.shards.unmap() if uid == 0 else None
        cache.gather([uid])
    assert cache.shards.mapped <= 2
