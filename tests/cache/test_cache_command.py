"""``ensdistill cache ...``: the files and the output of each command."""

import json
import re
import shutil

import numpy as np
import pytest
from cache_helpers import digits, in_uid_order
from job_helpers import run, succeed, write_job

from ensdistill.cache import TargetCache, cache_targets
from ensdistill.cli.cache import main


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def cache(tmp_path):
    teachers, rows = digits()
    return cache_targets(teachers, rows, tmp_path / "cache", codec="fp32", shard_rows=64)


def test_a_member_comes_and_goes(cache, tmp_path):
    np.save(tmp_path / "new.npy", cache.gather_logits(np.arange(230))[0] * 3)
    words = ["--name", "d", "--logits", tmp_path / "new.npy", "--uids", "in-order", "--weight", "0.5"]
    out = flat(succeed("cache", "add-member", cache.path, tmp_path / "four", *words))
    assert f"{tmp_path / 'four'}: 230 records of {8 + 4 * 40} bytes each, fp32" in out
    four = TargetCache.open(tmp_path / "four")
    np.testing.assert_array_equal(four.gather_logits([3])[3], cache.gather_logits([3])[0] * 3)
    succeed("cache", "drop-member", tmp_path / "four", tmp_path / "again", "--name", "a")
    assert TargetCache.open(tmp_path / "again").names == ("b", "c", "d")
    assert "b 1, c 0, d 2.5" in flat(succeed("cache", "reweight", tmp_path / "again", "b=1", "c=0", "d=2.5"))
    info = flat(succeed("cache", "info", tmp_path / "again"))
    for told in (
        "b (1.000), c (0.000), d (2.500)",
        "temperature any",
        "derived add name d, logits",
        "derived drop name a",
        "derived reweight b 1, c 0, d 2.5",
    ):
        assert told in info


def test_conversion_prints_its_cost(cache, tmp_path):
    out = flat(
        succeed("cache", "convert", cache.path, tmp_path / "small", "--codec", "topk-4", "--mixture-at", "2")
    )
    assert "topk-4, max KL" in out
    info = flat(succeed("cache", "info", tmp_path / "small"))
    assert "temperature 2: the mixture only" in info
    assert "derived convert from fp32, kl rows 690, mean 0, p99 0, max 0" in info
    status, _, err = run(
        "cache", "convert", cache.path, tmp_path / "exact", "--codec", "uint8", "--max-kl", "1e-9"
    )
    assert (status, "max_kl: expected at most 1e-09 nats for every row; codec 'uint8'" in flat(err)) == (
        1,
        True,
    )
    other = ["cache", "convert", cache.path, tmp_path / "small", "--codec", "fp16"]
    status, _, err = run(*other)
    assert (status, "choose another folder, or overwrite it (overwrite=True, --overwrite)" in flat(err)) == (
        1,
        True,
    )
    succeed(*other, "--overwrite")
    out = flat(succeed("cache", "convert", tmp_path / "small", tmp_path / "again", "--codec", "fp32"))
    cost = TargetCache.open(tmp_path / "small").manifest["statistics"]["kl"]["max"]
    assert f"fp32, max KL 0.0e+00 to the source's targets, whose own is {cost:.1e}" in out
    info = flat(succeed("cache", "info", tmp_path / "again"))
    assert "fp32: KL to the source's targets mean 0.0e+00, p99 0.0e+00, max 0.0e+00 nats" in info
    assert f"KL of the source's to the exact targets max {cost:.1e} nats" in info
    assert "KL to the exact targets mean" in flat(succeed("cache", "info", cache.path))
    status, _, err = run("cache", "convert", cache.path, tmp_path / "exact", "--codec", "zip")
    assert (status, "codec: expected one of uint8" in flat(err)) == (2, True)
    status, _, err = run("cache", "convert", cache.path, "s3://bucket/small", "--codec", "fp16")
    assert (status, "path: expected one on this machine; got s3://bucket/small" in flat(err)) == (2, True)


def test_wrong_files_and_arguments(cache, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    words = ["--name", "d", "--uids", "in-order", "--weight", "0.5", "--logits"]
    status, _, err = run("cache", "add-member", cache.path, tmp_path / "n", *words, tmp_path / "objects.npy")
    assert (status, "expected a NumPy file of float32" in flat(err)) == (1, True)  # and nothing was unpickled
    for words, message in (
        (["reweight", cache.path, "a"], "expected MEMBER=WEIGHT, such as forest=0.5; got 'a'"),
        (
            ["verify", cache.path, "--against-teachers", "200%"],
            "expected a share of the samples such as 0.1% or 0.001; got '200%'",
        ),
    ):
        status, _, err = run("cache", *words)
        assert (status, message in flat(err)) == (2, True)
    status, _, err = run("cache", "reweight", cache.path, "a=1", "b=1", "a=2", "c=1")
    assert (status, "weights: expected each member once; got 'a' twice, 1 and 2" in flat(err)) == (2, True)
    assert TargetCache.open(cache.path).weights.tolist() == cache.weights.tolist()
    status, _, err = run("cache", "verify", cache.path, "--against-teachers", "0.5")
    assert (status, "--transfer: there is nothing at" in err) == (2, True)


def test_a_job_s_cache_is_compared_with_its_teachers(finished_job, tmp_path):
    seed = tmp_path / "seed-0"
    shutil.copytree(finished_job / "seed-0" / "cache", seed / "cache")
    shutil.copytree(finished_job / "seed-0" / "teachers", seed / "teachers")
    targets = seed / "cache" / "targets"
    assert "26 samples: the teachers' predictions equal the stored targets" in flat(
        succeed("cache", "verify", targets, "--against-teachers", "10%")
    )
    words = [
        "--ensemble",
        seed / "teachers" / "ensemble",
        "--transfer",
        seed / "cache" / "transfer.safetensors",
    ]
    succeed("cache", "drop-member", targets, tmp_path / "fewer", "--name", TargetCache.open(targets).names[0])
    assert "3 samples: the teachers'" in flat(
        succeed("cache", "verify", tmp_path / "fewer", "--against-teachers", "0.01", *words)
    )
    succeed("cache", "convert", targets, tmp_path / "fp32", "--codec", "fp32")
    logits = TargetCache.open(tmp_path / "fp32").gather_logits(np.arange(260))[0]
    np.save(tmp_path / "n.npy", logits)
    words_of_it = ["--name", "more", "--logits", tmp_path / "n.npy", "--uids", "in-order", "--weight", "1"]
    succeed("cache", "add-member", targets, tmp_path / "more", *words_of_it)
    status, _, err = run("cache", "verify", tmp_path / "more", "--against-teachers", "10%", *words)
    assert (status, "ensemble.names: the cache" in flat(err)) == (1, True)


def test_a_job_s_views_are_compared_with_its_teachers(finished_job, tmp_path):
    change = {
        "cache.views": 2,
        "cache.augment": {"class_path": "ensdistill.data.augmentation.ShiftImages"},
        "cache.mixture_at": 1,
    }
    file = write_job(tmp_path, change)
    shutil.copytree(finished_job / "seed-0" / "teachers", tmp_path / "runs" / "tiny" / "seed-0" / "teachers")
    succeed("cache", "build", file)
    for name in ("targets", "best_member"):
        words = [
            "verify",
            tmp_path / "runs" / "tiny" / "seed-0" / "cache" / name,
            "--against-teachers",
            "10%",
        ]
        assert "26 samples: the teachers' predictions equal the stored targets" in flat(
            succeed("cache", *words, "--config", file)
        )
        status, _, err = run("cache", *words)
        assert (
            status,
            "by which the inputs were changed, ShiftImages(pixels=1, diagonal=True); got nothing"
            in flat(err),
        ) == (2, True)
    other = write_job(tmp_path / "runs")
    status, _, err = run("cache", *words, "--config", other)
    assert (status, "got a job without one" in flat(err)) == (2, True)
    status, _, err = run("cache", *words, "--config", tmp_path / "none.yaml")
    assert (status, "--config: there is no file" in flat(err)) == (2, True)


@pytest.mark.parametrize(
    ("codec", "mixture_at"), [("uint8", None), ("fp16", 1.0), ("topk-3", 1.0), ("counts-20", 1.0)]
)
def test_parquet_has_every_record(tmp_path, codec, mixture_at):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'ensdistill[parquet]'")
    teachers, rows = digits()
    cache = cache_targets(
        teachers, rows, tmp_path / "cache", codec=codec, mixture_at=mixture_at, shard_rows=64
    )
    assert "230 rows" in succeed("cache", "export", cache.path, tmp_path / "targets.parquet")
    table = parquet.read_table(tmp_path / "targets.parquet")
    assert table["uid"].to_pylist() == list(range(230))
    assert (
        table["input_hash"].to_numpy().tolist()
        == cache.layout.views(cache.gather_records(np.arange(230)))["input_hash"].tolist()
    )
    assert json.loads(table.schema.metadata[b"ensdistill"])["classes"] == list(cache.classes)
    target = cache.gather(np.arange(230))
    if codec == "uint8":
        found = np.array([table[f"logits: {name}"].to_pylist() for name in cache.names])
        np.testing.assert_allclose(
            found, cache.gather_logits(np.arange(230)), rtol=1e-6
        )  # float32 written as decimals
        assert np.abs(found - in_uid_order(teachers, rows)).max() < 1
    elif codec == "fp16":
        np.testing.assert_allclose(
            np.array(table["log_probs"].to_pylist()), cache.gather_logits(np.arange(230))[0], rtol=1e-6
        )
    else:
        assert table["ids"].to_pylist() == target.ids.tolist()
        values = target.counts if codec.startswith("counts") else target.log_probs.float()
        np.testing.assert_allclose(
            np.array(table["counts" if codec.startswith("counts") else "log_probs"].to_pylist()),
            values.numpy(),
        )


def test_without_pyarrow_the_message_names_the_package_to_install(cache, tmp_path, monkeypatch):
    import sys

    from ensdistill.cache.export import export_parquet

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pyarrow is missing .*ensdistill\[parquet\]"):
        export_parquet(cache, tmp_path / "targets.parquet")


def test_push_and_pull_replace_another_cache_only_with_overwrite(cache, tmp_path):
    url = f"file://{tmp_path}/remote"
    succeed("cache", "push", cache.path, url)
    succeed("cache", "convert", cache.path, tmp_path / "small", "--codec", "fp16")
    for words, codec in (
        (["push", tmp_path / "small", url], "fp32"),
        (["pull", url, tmp_path / "small"], "fp16"),
    ):
        status, _, err = run("cache", *words)
        assert (
            status,
            f"overwrite it (overwrite=True, --overwrite): codec: the cache has '{codec}'" in flat(err),
        ) == (1, True)
        assert TargetCache.open(tmp_path / "small").manifest["codec"] == "fp16"
    succeed("cache", "pull", url, tmp_path / "small", "--overwrite")
    assert TargetCache.open(tmp_path / "small").manifest["codec"] == "fp32"
    succeed("cache", "reweight", tmp_path / "small", "a=1", "b=1", "c=3")
    assert run("cache", "push", tmp_path / "small", url)[0] == 1
    succeed("cache", "push", tmp_path / "small", url, "--overwrite")
    assert TargetCache.open(url, local=tmp_path / "there").weights.tolist() == [1, 1, 3]


def test_long_commands_show_a_bar_on_a_terminal(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    monkeypatch.setenv("TERM", "xterm")
    url = f"file://{tmp_path}/remote"
    size = sum(shard["bytes"] for shard in cache.manifest["shards"])
    for words, bar in (
        (["verify", cache.path], f"reading .* {(size + 230 * cache.layout.bytes) / 1000:.1f}/"),
        (["push", cache.path, url], f"sending .* {size / 1000:.1f}/"),
        (["pull", url, tmp_path / "here"], f"fetching .* {size / 1000:.1f}/"),
    ):
        assert main([str(word) for word in words]) == 0
        shown = capsys.readouterr()
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.err)
        assert re.search(bar, plain), plain
        assert "kB" in plain
        assert bar[:7] not in shown.out
    monkeypatch.delenv("FORCE_COLOR")
    assert main(["verify", str(cache.path)]) == 0
    assert capsys.readouterr().err == ""


def test_progress_of_checks_comes_to_its_end(cache):
    size = sum(shard["bytes"] for shard in cache.manifest["shards"]) + 230 * cache.layout.bytes
    teachers, rows = digits()
    for check, total in (
        (cache.verify, size),
        (lambda **how: cache.verify_against(teachers, rows, share=0.5, **how), 115),
    ):
        calls = []
        check(progress=lambda *call, calls=calls: calls.append(call))
        assert calls == sorted(calls)
        assert {call[1] for call in calls} == {total}
        assert calls[-1] == (total, total)


def test_each_command_has_a_json_document(cache, tmp_path):
    """The document of a cache is that of the cache which the command wrote."""
    about = json.loads(succeed("cache", "info", cache.path, "--json"))
    assert (about["samples"], about["codec"], about["combiner"]) == (len(cache), "fp32", cache.combiner)
    assert about["members"] == dict(zip(cache.names, cache.weights.tolist(), strict=True))
    small, url = tmp_path / "small", f"file://{tmp_path}/remote"
    written = {
        "convert": [cache.path, small, "--codec", "fp16"],
        "drop-member": [cache.path, tmp_path / "without", "--name", "a"],
        "reweight": [small, "a=1", "b=1", "c=2"],
        "pull": [url, tmp_path / "back"],
    }
    for name, words in written.items():
        if name == "pull":
            assert json.loads(succeed("cache", "push", small, url, "--json")) == {"url": url}
        found = json.loads(succeed("cache", name, *words, "--json"))
        assert found["folder"] == str({"reweight": words[0]}.get(name, words[1]))
        assert found["samples"] == len(cache)
    assert found["members"] == {"a": 1.0, "b": 1.0, "c": 2.0}
    checked = json.loads(succeed("cache", "verify", small, "--json"))
    assert checked == {"folder": str(small), "samples": len(cache), "compared_with_teachers": None}
