"""Logits of any size in every codec: the stored rows are near the given ones, or a warning or error names the row."""

import json
import warnings
from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from cache_helpers import digits, in_uid_order
from codec_helpers import stored
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from job_helpers import write_job

from ensdistill import CallableMember, Ensemble, Rows, StudentTrainer, top_k_targets
from ensdistill.cache import (
    CacheError,
    CacheLossWarning,
    TargetCache,
    add_member,
    cache_targets,
    convert,
    drop_member,
    reweight,
)
from ensdistill.cache.codecs import codec_of, kl_divergence
from ensdistill.cache.files.checked import _checksum, _text
from ensdistill.cache.floors import floor_of
from ensdistill.cli.settings import load_config
from ensdistill.common.optimization import Optimization
from ensdistill.functional import distillation_loss
from ensdistill.job import stages
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.unit import Unit
from ensdistill.models import MLP

DENSE = ("uint8", "fp16", "bf16", "fp32")
MASKS = (-1e3, -1e4, -65504.0, -1e9, -1e30, -np.inf)
ORDINARY = st.floats(-25, 25, width=32)
ODD = st.one_of(
    ORDINARY, st.sampled_from([*MASKS, -30.0, -100.0, -1e5, 0.0, 1e-30, 200.0, 1e4, 1e6, 1e6 + 1, 1e30])
)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(2, 40))
LAW = partial(settings, deadline=None, derandomize=True)


def log_softmax(z, temperature=1.0):
    z = z.astype(np.float64) / temperature
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def moved(log_p, decoded, temperature=1.0):
    """KL(p || stored) over the classes that are stored, and p's mass of all others; float64 [...]."""
    log_q = log_softmax(decoded, temperature)
    p, kept = np.exp(log_p), ~np.isneginf(log_q)
    terms = np.subtract(log_p, log_q, where=kept & (p > 0), out=np.zeros_like(p)) * p
    return terms.sum(-1), np.where(kept, 0.0, p).sum(-1)


def check(log_p, decoded, kl, temperature=1.0):
    """The measured KL is true; and a likeliest class that leads by more than this KL can explain stays the
    likeliest."""
    found, missing = moved(log_p, decoded, temperature)
    assert (missing <= 2e-7).all()
    assert (found <= kl + 1e-6).all()
    p, q = np.exp(log_p), np.exp(log_softmax(decoded, temperature))
    first, second = np.sort(p, -1)[..., -1], np.sort(p, -1)[..., -2]
    leads = (
        first - second > np.sqrt(2 * np.maximum(found, 0)) + 1e-6
    )  # Pinsker: no probability moved by more than half of it
    assert (~leads | (q.argmax(-1) == p.argmax(-1))).all()


@pytest.mark.parametrize("codec", DENSE)
@given(arrays(np.float32, SHAPES, elements=ODD))
@LAW(max_examples=60)
def test_any_row_of_members(codec, logits):
    assume(np.isfinite(logits).any(-1).all())
    decoded, _, kl = stored(codec, logits)
    assert not np.isnan(decoded).any()
    check(log_softmax(logits), decoded, kl)
    # At the largest temperature that the cache is made for no class is missed either.
    _, missing = moved(log_softmax(logits, 10.0), decoded, 10.0)
    assert (missing <= 2e-7).all()


@pytest.mark.parametrize("codec", DENSE)
@given(arrays(np.float32, SHAPES, elements=st.one_of(ORDINARY, st.sampled_from(MASKS))))
@LAW(max_examples=60)
def test_rows_with_masked_classes_are_stored_well(codec, logits):
    """By whichever number they are masked."""
    assume((logits > -30).any(-1).all())
    _, _, kl = stored(codec, logits)
    assert (kl <= 0.005).all()  # of uint8 (50 / 508)^2 / 2; bf16's is of classes with a share


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("codec", [*DENSE, "topk-2", "counts-255"])
@given(arrays(np.float32, SHAPES, elements=ODD))
@LAW(max_examples=25)
def test_any_row_of_a_mixture(codec, temperature, logits):
    assume(np.isfinite(logits).any(-1).all())
    decoded, _, kl = stored(codec, logits, mixture_at=temperature)
    log_p = np.logaddexp.reduce(log_softmax(logits, temperature), 1) - np.log(logits.shape[1])
    assert not np.isnan(decoded).any()
    if codec == "counts-255":
        drawn = np.exp(decoded[:, 0]) > 0
        assert (np.exp(log_p)[drawn] > 0).all()
        return
    check(log_p, decoded[:, 0], kl[:, 0])
    if codec == "uint8":
        assert (kl <= 0.01).all()
    if codec == "topk-2":
        assert np.array_equal(np.isneginf(decoded[:, 0]).all(-1), np.zeros(len(decoded), bool))


@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3), st.integers(2, 9)), elements=ODD),
    st.sampled_from([1.0, 3.0, 10.0]),
)
@LAW(max_examples=60)
def test_the_mixture_of_members_stored_in_bytes(logits, temperature):
    assume(np.isfinite(logits).any(-1).all())
    weights = np.array([0.6, 0.3, 0.1])[:, None]
    decoded, _, _ = stored("uint8", logits, weights=weights[:, 0])
    exact, found = ((np.exp(log_softmax(z, temperature)) * weights).sum(1) for z in (logits, decoded))
    assert np.where(found == 0, exact, 0.0).sum(-1).max() <= 2e-7


def test_where_logits_are_averaged_a_far_class_may_be_the_likeliest(tmp_path):
    """0 and -1e4 beside -1e6 and 0, averaged, are -5e5 and -5e3."""
    z = np.array([[0, -1e4, 0], [-1e6, 0, 0]], np.float32)[:, None]
    z[..., 2] = -2e6
    for codec in ("uint8", "bf16", "fp32"):
        decoded, _, _ = stored(codec, z.swapaxes(0, 1), combiner="logit")
        assert decoded.mean(1).argmax(-1).tolist() == [1]
    with pytest.raises(
        ValueError,
        match=(
            r"codec: fp16 holds logits down to -65504 .* 'logit' .* member '0' .* uid 0, class 2: use codec "
            r"bf16"
        ),
    ):
        stored("fp16", z.swapaxes(0, 1), combiner="logit")
    decoded, _, _ = stored("fp16", z.swapaxes(0, 1), combiner="logit", mixture_at=1.0)
    assert decoded.argmax(-1).tolist() == [[1]]
    ensemble, rows, _ = masked(-1e4, combiner="logit")
    with pytest.warns(CacheLossWarning, match="codec 'uint8' cost a row a KL of"):
        cache = cache_targets(ensemble, rows, tmp_path / "c")
    assert (cache.manifest["floor"], cache.max_temperature) == (None, None)


# Readers of a cache with a floor
# ---------------------------------------------------------------------------------------


def masked(value, names="ab", combiner="prob"):
    """An ensemble whose last three classes are masked by ``value``, and its rows."""
    base = np.random.default_rng(0).normal(size=(len(names), 64, 10)).astype(np.float32) * 3
    base[..., 7:] = value
    members = [
        CallableMember(lambda x, z=z: z[x[:, 0].astype(int)], name=name, version="1", output="logits")
        for name, z in zip(names, base, strict=True)
    ]
    rows = Rows(np.arange(64, dtype=np.float32)[:, None], np.arange(64), np.full(64, -100))
    return Ensemble.from_members(members, combiner=combiner), rows, base


@pytest.mark.parametrize("codec", DENSE)
@pytest.mark.parametrize("value", [-30.0, *MASKS])
def test_a_masked_class_costs_nothing(tmp_path, value, codec):
    ensemble, rows, z = masked(value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = cache_targets(ensemble, rows, tmp_path / "c", codec=codec)
        TargetCache.open(tmp_path / "c")
    found = cache.gather_logits(np.arange(64))
    assert (
        found.argmax(-1) == z.argmax(-1)
    ).mean() >= 0.99  # of 128 rows one may have two classes within half a step
    kl, missing = moved(log_softmax(z), found)
    assert kl.max() < 0.002
    assert missing.max() < 1e-12
    cache.verify()
    assert cache.verify_against(ensemble, rows, share=1.0) == 64
    floored = codec == "uint8" and np.isfinite(value) and value < -200
    floored |= codec == "fp16" and np.isfinite(value) and value <= -65504  # below a largest that is positive
    assert (cache.max_temperature is not None) == floored


def test_a_higher_temperature_is_refused_where_a_class_was_left_out(tmp_path):
    ensemble, rows, z = masked(-1e3)
    cache = cache_targets(ensemble, rows, tmp_path / "c")
    assert cache.max_temperature == pytest.approx(10.0)
    assert cache.manifest["floor"] == pytest.approx(10 * (np.log(10) + 16))
    assert [part["floored"] for part in cache.manifest["statistics"]["members"].values()] == [64, 64]
    target, student = cache.gather(np.arange(64)), torch.zeros(64, 10)
    exact = distillation_loss(student, torch.from_numpy(z), temperature=10.0)
    assert distillation_loss(student, target, temperature=10.0).item() == pytest.approx(
        exact.item(), rel=1e-3
    )
    message = (
        r"temperature: 30\.0, but some rows .* up to 10 only, .*max_temperature=30\.0, or with codec='fp32'"
    )
    for call in (
        lambda: distillation_loss(student, target, temperature=30.0),
        lambda: distillation_loss(student, target.to("cpu").rows(0, 64), temperature=30.0),
        lambda: top_k_targets(target, 3, temperature=30.0),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for combiner in ("logit", "log_prob"):
        with pytest.raises(
            ValueError,
            match=f"combiner: '{combiner}', but some rows of the targets were stored for 'prob' only",
        ):
            distillation_loss(student, target, combiner=combiner)
    trainer = StudentTrainer(Optimization(steps=1, batch_size=8), temperature=30.0)
    with pytest.raises(
        ValueError,
        match=(
            r"temperature: 30\.0, but the cache .* serve temperatures up to 10 only; .*max_temperature=30\.0"
        ),
    ):
        trainer.distill(lambda: MLP(1, [4], 10), rows, cache)
    with pytest.raises(CacheError, match=r"mixture_at: expected at most 10, .* got 11"):
        convert(cache, tmp_path / "n", codec="topk-3", mixture_at=11.0)
    # Without a row that needs it, or with a codec that reaches as far, there is no such limit.
    for value, options in ((-30.0, {}), (-1e3, {"codec": "fp16"}), (-1e3, {"codec": "fp32"}), (-np.inf, {})):
        ensemble, rows, _ = masked(value)
        free = cache_targets(ensemble, rows, tmp_path / f"{value} {options}", **options)
        distillation_loss(student, free.gather(np.arange(64)), temperature=30.0)


def test_a_cache_can_be_made_for_higher_temperatures(tmp_path):
    ensemble, rows, z = masked(-1e3)
    cache = cache_targets(ensemble, rows, tmp_path / "c", max_temperature=40.0)
    assert cache.max_temperature == pytest.approx(40.0)
    found = cache.gather(np.arange(64))
    exact = distillation_loss(torch.zeros(64, 10), torch.from_numpy(z), temperature=40.0)
    assert distillation_loss(torch.zeros(64, 10), found, temperature=40.0).item() == pytest.approx(
        exact.item(), rel=1e-3
    )
    with pytest.warns(CacheLossWarning, match=r"storing with codec 'uint8' cost a row a KL of .* max_kl="):
        # To keep the -1000 itself takes a wider code.
        cache_targets(ensemble, rows, tmp_path / "wide", max_temperature=100.0)
    for wrong in (0, -1.0, np.inf, np.nan, "10", None, 20_000):
        with pytest.raises(ValueError, match=r"max_temperature: expected a number from 0\.0001 to 10000"):
            cache_targets(ensemble, rows, tmp_path / "n", max_temperature=wrong)
        with pytest.raises(ValueError, match=r"max_temperature: expected a number from 0\.0001 to 10000"):
            convert(cache, tmp_path / "n", codec="uint8", max_temperature=wrong)


def test_derived_caches_keep_the_largest_temperature(tmp_path):
    ensemble, rows, z = masked(-1e3)
    source, everything = cache_targets(ensemble, rows, tmp_path / "c"), np.arange(64)
    exact = convert(source, tmp_path / "exact", codec="fp32")
    again = convert(exact, tmp_path / "again", codec="uint8", max_temperature=50.0)
    for cache in (exact, again):
        assert cache.max_temperature == pytest.approx(10.0)
        assert cache.verify_against(ensemble, rows, share=1.0) == 64
        with pytest.raises(ValueError, match="up to 10 only"):
            distillation_loss(torch.zeros(64, 10), cache.gather(everything), temperature=20.0)
    mixture = convert(exact, tmp_path / "mixture", codec="topk-4", mixture_at=10.0)
    assert (mixture.max_temperature, mixture.verify_against(ensemble, rows, share=1.0)) == (None, 64)
    plain = np.minimum(np.abs(z[0]), 20)
    added = add_member(source, tmp_path / "added", name="c", logits=plain, uids=everything, weight=1.0)
    assert added.max_temperature == pytest.approx(10.0)
    assert (
        drop_member(drop_member(added, tmp_path / "1", name="a"), tmp_path / "2", name="b").max_temperature
        is None
    )
    with pytest.raises(CacheError, match="without the logits of classes far below the likeliest"):
        ensemble.calibrate(source, np.zeros(64, int), uids=everything)


def test_half_precision_ends_somewhere_too(tmp_path):
    ensemble, rows, z = masked(-1e9)
    cache = cache_targets(ensemble, rows, tmp_path / "c", codec="fp16")
    assert cache.max_temperature == pytest.approx(65504 / (np.log(10) + 16))
    target, student = cache.gather(np.arange(64)), torch.zeros(64, 10)
    exact = distillation_loss(student, torch.from_numpy(z), temperature=3000.0, reduction="none")
    found = distillation_loss(student, target, temperature=3000.0, reduction="none")
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"up to 3578\.95 only"):
        distillation_loss(student, target, temperature=1e4)


@pytest.mark.parametrize("side", [-1e-3, 1e-3])
def test_targets_across_the_floor_are_the_same_targets(tmp_path, side):
    """Another machine's rounding moves logits that lie at the floor."""
    teachers, rows = digits()
    floor = floor_of(
        codec_of("uint8"), {"temperature": "any", "classes": range(10), "combiner": "prob"}, 10.0
    )
    logits = teachers.logits.copy()
    logits[..., 3] = logits.max(-1) - floor + side
    teachers = replace(teachers, logits=logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheLossWarning)
        cache = cache_targets(teachers, rows, tmp_path / "c")
    for change in (-2e-3, 2e-3):
        nearly = logits.copy()
        nearly[..., 3] += change
        assert cache.verify_against(replace(teachers, logits=nearly), rows, share=1.0) == 230
    nearly[..., 3] += 180
    with pytest.raises(CacheError, match="stored target differs"):
        cache.verify_against(replace(teachers, logits=nearly), rows, share=1.0)


# Warnings
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "options", "better"),
    [
        ("uint8", {}, "A more exact codec"),
        ("topk-2", {"mixture_at": 4.0}, "A topk-N with a larger N"),
        ("counts-4", {"mixture_at": 1.0}, None),
    ],
)
def test_a_row_that_lost_much_is_a_warning(tmp_path, codec, options, better):
    """When the cache is written and whenever it is opened; not of draws, which are right on average."""
    ensemble, rows, _ = masked(-150.0)  # no mask for a temperature of 10, and half a step of 0.3
    for call in (
        lambda: cache_targets(ensemble, rows, tmp_path / "c", codec=codec, **options),
        lambda: TargetCache.open(tmp_path / "c"),
    ):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            cache = call()
        assert [w.category for w in heard] == ([] if better is None else [CacheLossWarning])
        for warning in heard:
            assert warning.filename == __file__
            worst = f"{cache.manifest['statistics']['kl']['max']:.2g}"
            for part in (f"codec {codec!r} cost a row a KL of {worst} nats", better, "max_kl="):
                assert part in str(warning.message)
    assert cache.manifest["statistics"]["kl"]["max"] > 0.01


def test_costs_of_conversions_add_up_to_a_warning(tmp_path, monkeypatch):
    ensemble, rows, _ = masked(-100.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = cache_targets(ensemble, rows, tmp_path / "0")
        exact = convert(first, tmp_path / "1", codec="fp32")
    cost = first.manifest["statistics"]["kl"]["max"]
    assert exact.manifest["statistics"]["kl"]["max"] == 0 < cost <= 0.01
    monkeypatch.setattr("ensdistill.cache.loss_warning.NOTABLE", 0.9 * cost)
    for path in (first.path, exact.path):
        with pytest.warns(CacheLossWarning, match=f"a KL of {cost:.2g} nats"):
            TargetCache.open(path)


def test_the_cache_of_a_job_serves_its_temperature(tmp_path):
    """One above the default makes another cache; the others share one."""
    found, ensemble = [], mock.MagicMock()
    ensemble.for_uids.return_value = ensemble  # no member has stored predictions
    for temperature in (1.0, 8.0, 25.0):
        config = load_config(
            ["--config", str(write_job(tmp_path, {"distill.loss.temperature": temperature}))]
        )
        with (
            mock.patch("ensdistill.job.stages.cache_targets", side_effect=CacheError("asked")) as asked,
            mock.patch("ensdistill.teachers.Ensemble.load", return_value=ensemble),
            mock.patch.object(RunFolder, "record", return_value={"best_member": "mlp"}),
            pytest.raises(CacheError, match="asked"),
        ):
            stages.run_unit(RunFolder(config), Unit("cache", 0))
        found.append((asked.call_args.kwargs["max_temperature"], RunFolder(config).digest(Unit("cache", 0))))
    assert [largest for largest, _ in found] == [10.0, 10.0, 25.0]
    assert found[0] == found[1] != found[2] != found[0]
    assert found[2][1] != found[0][1]


# Caches of the format before
# ------------------------------------------------------------------------------------------------------------


def as_format_2(folder):
    """Make the cache in ``folder`` one as it was written before there were floors: the same bytes of
    records."""
    import xxhash

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("checksum"), manifest.pop("floor")
    manifest["format_version"] = 2
    for entry in manifest["shards"]:
        data = (folder / entry["file"]).read_bytes()
        assert data.count(b'"format_version":"3"') == 1
        data = data.replace(b'"format_version":"3"', b'"format_version":"2"')
        (folder / entry["file"]).write_bytes(data)
        entry["hash"] = xxhash.xxh3_128_hexdigest(data)
    (folder / "manifest.json").write_bytes(_text({**manifest, "checksum": _checksum(manifest)}))


def test_caches_of_the_format_before_are_read_as_they_were(tmp_path):
    teachers, rows = digits()
    new = cache_targets(teachers, rows, tmp_path / "c", shard_rows=64)
    expected, everything = new.gather_records(np.arange(230)), np.arange(230)
    as_format_2(tmp_path / "c")
    old = TargetCache.open(tmp_path / "c", check="full")
    assert (old.manifest["format_version"], old.max_temperature) == (2, None)
    np.testing.assert_array_equal(old.gather_records(everything), expected)
    assert old.verify_against(teachers, rows, share=1.0) == 230
    silent = replace(teachers, logits=None)  # the cache exists, so no member predicts
    np.testing.assert_array_equal(
        cache_targets(silent, rows, tmp_path / "c", shard_rows=64).gather_records(everything), expected
    )
    assert reweight(tmp_path / "c", dict.fromkeys("abc", 1.0)).manifest["format_version"] == 2
    TargetCache.open(tmp_path / "c", check="full")
    fewer = drop_member(old, tmp_path / "fewer", name="a")
    assert fewer.manifest["format_version"] == 3
    exact = convert(old, tmp_path / "exact", codec="fp32")
    more = add_member(
        exact,
        tmp_path / "more",
        name="d",
        logits=in_uid_order(teachers, rows)[0],
        uids=everything,
        weight=1.0,
    )
    np.testing.assert_array_equal(more.gather_logits(everything)[:3], old.gather_logits(everything))
    assert [cache.max_temperature for cache in (fewer, exact, more)] == [None, None, None]
    text = json.loads((tmp_path / "c" / "manifest.json").read_text())
    text.pop("checksum")
    text["floor"] = 71.0  # format 2 has no such field
    (tmp_path / "c" / "manifest.json").write_bytes(_text({**text, "checksum": _checksum(text)}))
    with pytest.raises(CacheError, match=r"unknown fields \['floor'\]"):
        TargetCache.open(tmp_path / "c")


def test_a_badly_coded_old_cache_is_a_warning_when_it_is_opened(tmp_path, monkeypatch):
    ensemble, rows, _ = masked(-1e4)
    monkeypatch.setattr("ensdistill.cache.plan.floor_of", lambda codec, plan, temperature: None)
    with pytest.warns(CacheLossWarning):
        cache_targets(ensemble, rows, tmp_path / "c", shard_rows=64)
    as_format_2(tmp_path / "c")
    with pytest.warns(CacheLossWarning, match="storing with codec 'uint8' cost a row a KL of"):
        old = TargetCache.open(tmp_path / "c")
    assert old.verify_against(ensemble, rows, share=1.0) == 64
    assert kl_divergence(masked(-1e4)[2], old.gather_logits(np.arange(64))).max() > 1
