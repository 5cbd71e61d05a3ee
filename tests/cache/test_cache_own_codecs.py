"""Codecs of a user's own, in a module outside the package: written, read, trained from, derived."""

import multiprocessing
import sys

import numpy as np
import pytest
import torch
from cache_helpers import contents, digits, in_uid_order
from job_helpers import succeed, write_job
from own_codec_helpers import KINDS, NIBBLES, SMALL, USE, make, path_of

from ensdistill.cache import (
    CacheError,
    CacheLossWarning,
    CacheMismatch,
    CacheUntrusted,
    TargetCache,
    add_member,
    cache_targets,
    convert,
    drop_member,
    reweight,
)
from ensdistill.cache.codecs import codec_of
from ensdistill.cache.export import export_parquet
from ensdistill.common.optimization import Optimization
from ensdistill.functional import distillation_loss
from ensdistill.job.config import CacheConfig
from ensdistill.models import MLP
from ensdistill.student import StudentTrainer


def test_the_documented_example_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_codec.py").write_text(NIBBLES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_codec", None)
    names = {}
    exec(compile(USE, "docs/extending.md", "exec"), names)
    out = capsys.readouterr().out
    assert "the codec is the class my_codec.Nibbles, which is not part of ensdistill" in out
    assert "trusted=('my_codec.Nibbles',)" in out
    assert "my_codec.Nibbles(depth=12.0) {'rows': 600" in out
    # Half a step of 12/15 bounds every logit's error, so KL <= 0.4^2 / 2.
    assert 0 < names["cache"].manifest["statistics"]["kl"]["max"] <= 0.08
    assert (names["finer"].manifest["codec"], names["half"].manifest["codec"]) == (
        "my_codec.Nibbles(depth=8.0)",
        "fp16",
    )
    assert names["students"].grad.abs().sum() > 0
    sys.modules.pop("my_codec", None)


@pytest.mark.filterwarnings("ignore::ensdistill.cache.CacheLossWarning")
@pytest.mark.parametrize(("name", "mixture_at"), KINDS)
def test_from_writing_to_the_loss(own_codecs_module, tmp_path, name, mixture_at):
    teachers, rows = digits()
    cache = make(tmp_path / "c", name, mixture_at, seed=4)
    written = {"Nibbles": "Nibbles(depth=12.0)"}.get(name, name)
    assert (cache.manifest["codec"], cache.manifest["format_version"]) == (f"own_codecs.{written}", 5)
    assert cache.manifest["seed"] == (4 if name == "OneDraw" else None)
    again = TargetCache.open(tmp_path / "c", trusted=[path_of(name)], check="full")
    everything = np.arange(230)
    found = again.gather_logits(everything)
    exact = in_uid_order(teachers, rows)
    if mixture_at is not None:
        shares = torch.from_numpy(exact).div(mixture_at).softmax(-1).numpy()
        exact = np.log((np.array([0.5, 0.3, 0.2])[:, None, None] * shares).sum(0))[None]
    if name.startswith("Nibbles"):
        depth = 6.5 if "6.5" in name else 12.0
        expected = np.maximum(exact - exact.max(-1, keepdims=True), -depth)
        np.testing.assert_allclose(found, expected, atol=depth / 30 + 1e-5)
    elif name == "HalfLogProbs":
        np.testing.assert_allclose(found, exact, rtol=2**-11, atol=1e-7)
    else:
        assert (np.sort(found, -1)[..., -2:] == [-np.inf, 0]).all()
        assert 100 < (found.argmax(-1) == exact.argmax(-1)).sum() < 230
    # The default target has the decoded values; order and repeats are the caller's.
    target = again.gather([7, 3, 7])
    logits = target.to_logits().numpy()
    np.testing.assert_allclose(
        torch.from_numpy(logits).softmax(-1), torch.from_numpy(found[:, [7, 3, 7]]).softmax(-1), atol=1e-6
    )
    student = torch.zeros(3, 10, requires_grad=True)
    distillation_loss(student, target, temperature=mixture_at or 2.0).backward()
    assert student.grad.abs().sum() > 0
    again.verify()
    assert again.verify_against(teachers, rows, share=1.0) == 230
    streamed = list(again.stream([np.arange(5), np.arange(5, 12)]))
    assert [t.shape[-2] for t in streamed] == [5, 7]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_read_it(own_codecs_module, tmp_path, method):
    cache = make(tmp_path / "c", "Nibbles", None)
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.apply_async(cache.gather_logits, (np.arange(9),)).get(timeout=60)
    np.testing.assert_array_equal(found, cache.gather_logits(np.arange(9)))


def test_a_student_is_trained_from_it(own_codecs_module, tmp_path):
    rows = digits()[1]
    cache = make(tmp_path / "c", "Nibbles", None)
    decoded = convert(
        cache, tmp_path / "decoded", codec="fp32"
    )  # the same targets, in a codec of the package
    one, other = (
        StudentTrainer(Optimization(steps=40, batch_size=64)).distill(
            lambda: MLP(inputs=65, hidden=[16], outputs=10), rows, source
        )
        for source in (cache, decoded)
    )
    assert one.losses[-1] < one.losses[0]
    for mine, theirs in zip(one.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_derived_caches(own_codecs_module, tmp_path):
    teachers, rows = digits()
    source, everything = make(tmp_path / "c", "Nibbles", None), np.arange(230)
    logits = source.gather_logits(everything)
    with pytest.raises(CacheUntrusted, match=r"own_codecs\.Nibbles"):
        convert(tmp_path / "c", tmp_path / "half", codec="fp16")
    half = convert(source, tmp_path / "half", codec="fp16")
    np.testing.assert_allclose(half.gather_logits(everything), logits, atol=4e-3)  # 11 bits of 12
    assert half.manifest["format_version"] == 5  # its members' logits went through a codec of the user's
    unknowing = TargetCache.open(
        tmp_path / "half", check="full"
    )  # read without it, but not checked against the members
    np.testing.assert_array_equal(unknowing.gather_logits(everything), half.gather_logits(everything))
    assert half.verify_against(teachers, rows, share=1.0) == 230
    with pytest.raises(CacheUntrusted, match=r"trusted=\('own_codecs\.Nibbles',\)"):
        unknowing.verify_against(teachers, rows, share=1.0)

    more = add_member(
        source, tmp_path / "m", name="d", logits=in_uid_order(teachers, rows)[0], uids=everything, weight=0.5
    )
    np.testing.assert_array_equal(
        more.gather_logits(everything)[[0, 1, 2, 0]], more.gather_logits(everything)
    )
    fewer = drop_member(more, tmp_path / "f", name="b")
    assert (fewer.names, fewer.trusted) == (("a", "c", "d"), ("own_codecs.Nibbles",))
    np.testing.assert_array_equal(fewer.gather_logits(everything), logits[[0, 2, 0]])
    assert reweight(fewer, {"a": 1.0, "c": 2.0, "d": 3.0}).weights.tolist() == [1.0, 2.0, 3.0]
    fewer.verify()

    exact = cache_targets(teachers, rows, tmp_path / "exact", codec="fp32", **SMALL)
    own = convert(exact, tmp_path / "own", codec=codec_of("own_codecs.HalfLogProbs"), mixture_at=2.0)
    np.testing.assert_array_equal(
        own.gather_logits(everything),
        make(tmp_path / "direct", "HalfLogProbs", 2.0).gather_logits(everything),
    )
    assert own.verify_against(teachers, rows, share=0.2) == 46


def test_another_ensemble_is_found(own_codecs_module, tmp_path):
    teachers, rows = digits()
    for name, mixture_at in (("Nibbles", None), ("HalfLogProbs", 2.0)):
        cache = make(tmp_path / name, name, mixture_at)
        with pytest.raises(CacheMismatch, match="stored target differs"):
            cache.verify_against(teachers.with_logit(1, slice(None), 3, 9.0), rows, share=1.0)


def test_resuming_and_other_settings(own_codecs_module, tmp_path):
    cache = make(tmp_path / "c", "Nibbles", None)
    before = contents(tmp_path / "c")
    again = cache_targets(*digits(), tmp_path / "c", codec=type(cache.codec)(depth=12.0), **SMALL)
    assert contents(tmp_path / "c") == before
    assert again.codec == cache.codec
    with pytest.raises(
        CacheMismatch, match=r"codec: the cache has 'own_codecs\.Nibbles\(depth=12\.0\)', expected 'uint8'"
    ):
        cache_targets(*digits(), tmp_path / "c", **SMALL)  # which need not be trusted for that
    with pytest.raises(CacheMismatch, match=r"Nibbles\(depth=3\.0\)"):
        make(tmp_path / "c", "Nibbles(depth=3.0)", None)
    assert make(tmp_path / "c", "Nibbles(depth=3.0)", None, overwrite=True).codec.depth == 3.0


def test_max_kl_and_the_warning(own_codecs_module, tmp_path):
    with pytest.raises(CacheError, match=r"codec 'own_codecs\.Nibbles\(depth=2\.0\)' has"):
        make(tmp_path / "c", "Nibbles(depth=2.0)", None, max_kl=0.01)
    with pytest.warns(CacheLossWarning, match=r"codec 'own_codecs\.Nibbles\(depth=2\.0\)' cost a row"):
        make(tmp_path / "c", "Nibbles(depth=2.0)", None)


def test_a_class_derived_from_one_of_the_package(own_codecs_module, tmp_path):
    teachers, rows = digits()
    own = make(tmp_path / "own", "Uint8", None)
    plain = cache_targets(teachers, rows, tmp_path / "plain", **SMALL)
    np.testing.assert_array_equal(own.gather_records(np.arange(230)), plain.gather_records(np.arange(230)))
    assert own.manifest["floor"] == plain.manifest["floor"]
    with pytest.raises(CacheUntrusted, match=r"own_codecs\.Uint8"):
        TargetCache.open(tmp_path / "own")


def test_an_exported_table_has_the_decoded_rows(own_codecs_module, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, mixture_at, columns in (
        ("Nibbles", None, ["logits: a", "logits: b", "logits: c"]),
        ("HalfLogProbs", 2.0, ["log_probs"]),
    ):
        cache = make(tmp_path / name, name, mixture_at)
        assert export_parquet(cache, tmp_path / f"{name}.parquet") == 230
        table = parquet.read_table(tmp_path / f"{name}.parquet")
        assert table.column_names[4:] == columns
        np.testing.assert_array_equal(
            np.array(table[columns[-1]].to_pylist()), cache.gather_logits(np.arange(230))[-1]
        )


def test_the_commands(own_codecs_module, tmp_path):
    source = make(tmp_path / "c", "Nibbles", None)
    trust = ["--trust", "own_codecs.Nibbles"]
    assert "own_codecs.Nibbles(depth=12.0)" in succeed("cache", "info", tmp_path / "c", *trust)
    succeed("cache", "verify", tmp_path / "c", *trust)
    succeed("cache", "convert", tmp_path / "c", tmp_path / "half", "--codec", "fp16", *trust)
    succeed(
        "cache",
        "convert",
        tmp_path / "half",
        tmp_path / "own",
        "--codec",
        "own_codecs.HalfLogProbs",
        "--mixture-at",
        "2",
    )
    succeed("cache", "drop-member", tmp_path / "c", tmp_path / "fewer", "--name", "a", *trust)
    np.save(tmp_path / "logits.npy", in_uid_order(*digits())[0])
    more = ["--name", "d", "--logits", tmp_path / "logits.npy", "--uids", "in-order", "--weight", "1"]
    succeed("cache", "add-member", tmp_path / "c", tmp_path / "more", *more, *trust)
    succeed("cache", "reweight", tmp_path / "fewer", "b=1", "c=2", *trust)
    assert TargetCache.open(tmp_path / "fewer", trusted=source.trusted).weights.tolist() == [1.0, 2.0]


def test_a_job_names_it(own_codecs_module, tmp_path):
    file = write_job(tmp_path, {"cache.codec": "own_codecs.Nibbles(depth=9.0)"})
    succeed("run", "--config", file)
    targets = next((tmp_path / "runs").rglob("targets"))
    assert TargetCache.open(targets, trusted=("own_codecs.Nibbles",)).codec.depth == 9.0
    for wrong, message in (
        ("own_codecs.NoCodec", "expected a class derived"),
        ("nowhere.Codec", "cannot be imported"),
    ):
        with pytest.raises(ValueError, match=rf"cache\.codec: .*{message}"):
            CacheConfig(codec=wrong)
    with pytest.raises(ValueError, match=r"cache\.mixture_at: expected a temperature"):
        CacheConfig(codec="own_codecs.HalfLogProbs")
