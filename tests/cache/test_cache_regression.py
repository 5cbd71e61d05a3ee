"""Caches of regressors: moments in standardised units, their codecs, and the caches made from them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cache_helpers import contents
from codec_helpers import stored
from hypothesis import given, settings
from hypothesis import strategies as st
from task_helpers import SMALL, measured

from ensdistill.cache import (
    CacheError,
    CacheLossWarning,
    CacheMismatch,
    Codec,
    TargetCache,
    add_member,
    cache_targets,
    convert,
    drop_member,
    reweight,
)
from ensdistill.cache.standard import SAMPLE, Standard
from ensdistill.data import BadRows, Rows
from ensdistill.loss.targets import Moments
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import ArrayMember

pytestmark = pytest.mark.filterwarnings("ignore::ensdistill.cache.CacheLossWarning")
CODECS = ["fp32", "fp16", "affine16", "uint8"]
ERROR = {"fp32": 2.0**-22, "fp16": 2.0**-11, "affine16": 1 / 131070 + 2.0**-22, "uint8": 1 / 510 + 2.0**-22}
FEW = settings(max_examples=4, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def in_data_units(cache, target):
    mean, variance = (part.double().numpy() for part in target.mixture())
    return cache.location + cache.scale * mean, cache.scale**2 * variance


@pytest.mark.parametrize("variances", [True, False])
@pytest.mark.parametrize("codec", CODECS)
def test_targets_are_the_members_moments(tmp_path, codec, variances):
    teachers, rows = measured(variances=variances)
    cache = cache_targets(teachers, rows, tmp_path, codec=codec, **SMALL)
    target = cache.gather(rows.uids)
    assert isinstance(target, Moments)
    assert (cache.task, cache.classes, target.shape) == ("regression", ("x", "y"), (3, 230, 2))
    assert (target.mean.dtype, target.weights.tolist()) == (torch.float32, teachers.weights.tolist())
    mean, _ = teachers.mixture()
    np.testing.assert_allclose(cache.location, mean.mean(0))
    np.testing.assert_allclose(cache.scale, mean.std(0))
    given_mean = (teachers.mean - cache.location) / cache.scale
    given_deviation = None if not variances else np.sqrt(teachers.variance) / cache.scale
    assert (target.variance is None) == (not variances)
    both = [given_mean] if given_deviation is None else [given_mean, given_deviation]
    found = [target.mean] if target.variance is None else [target.mean, target.variance.sqrt()]
    size = np.abs(np.concatenate(both, -1)).max(-1, keepdims=True)
    for one, other in zip(both, found, strict=True):
        assert (np.abs(other.numpy() - one) <= 2 * ERROR[codec] * size).all()
    largest = max(np.abs(one - other.numpy()).max() for one, other in zip(both, found, strict=True))
    assert cache.manifest["statistics"]["error"]["max"] == pytest.approx(largest, rel=1e-3, abs=1e-6)
    means, spreads = cache.gather_moments(rows.uids)
    np.testing.assert_allclose(means, teachers.mean, atol=2 * ERROR[codec] * (cache.scale * size).max())
    assert (spreads is None) == (not variances)
    cache.verify()
    assert cache.verify_against(teachers, rows, share=1.0) == 230


@pytest.mark.parametrize("mixture_at", [None, 1.0])
@pytest.mark.parametrize(
    "fitted", ["nothing", "noise", "factor 0.3", pytest.param("factor 4", marks=pytest.mark.slow)]
)
def test_the_mixture_of_the_stored_moments_is_the_ensembles(tmp_path, fitted, mixture_at):
    teachers, rows = measured(variances=fitted.startswith("factor"))
    spread = [None] * 3 if teachers.variance is None else teachers.variance
    members = [
        ArrayMember(name=name, means=mean, variances=variance, uids=rows.uids)
        for name, mean, variance in zip("abc", teachers.mean, spread, strict=True)
    ]
    ensemble = Ensemble.from_members(members, weights=[0.5, 0.5, 0.0])
    if fitted == "noise":
        ensemble.calibrate(teachers.predict_moments(rows.inputs), rows.labels)
        assert ensemble.noise is not None
    elif fitted != "nothing":
        ensemble.variance_factor = float(fitted.split()[1])
    cache = cache_targets(ensemble, rows, tmp_path, mixture_at=mixture_at, **SMALL)
    target = cache.gather(rows.uids)
    assert len(target.mean) == (3 if mixture_at is None else 1)
    assert target.weights is None or mixture_at is None
    wanted = ensemble.combine(teachers.predict_moments(rows.inputs))
    mean, variance = in_data_units(cache, target)
    np.testing.assert_allclose(mean, wanted.mean, atol=1e-5 * cache.scale.max())
    np.testing.assert_allclose((mean - wanted.mean) / cache.scale, 0, atol=1e-5)
    np.testing.assert_allclose(variance / wanted.variance, 1, rtol=1e-4)
    assert cache.verify_against(ensemble, rows, share=1.0) == 230


@FEW
@given(seeds, st.sampled_from(CODECS))
def test_the_error_is_within_the_codec_s_bound(seed, codec):
    generator = np.random.default_rng(seed)
    numbers = generator.integers(1, 8)
    values = generator.normal(0, 10 ** generator.uniform(-3, 3), (9, 3, numbers)).astype(np.float32)
    standard = Standard(np.zeros(numbers), np.ones(numbers), False)
    decoded, _, error = stored(codec, values, task="regression", standard=standard)
    span = 2 * np.abs(values).max(-1, keepdims=True)
    assert (np.abs(decoded - values) <= ERROR[codec] * span + 1e-7).all()
    np.testing.assert_allclose(error, np.abs(decoded.astype(float) - values).max(-1), rtol=1e-12)
    order = generator.permutation(3)
    moved, _, _ = stored(codec, values[:, order], task="regression", standard=standard)
    assert np.array_equal(moved, decoded[:, order])
    columns = generator.permutation(numbers)
    moved, _, _ = stored(codec, values[..., columns], task="regression", standard=standard)
    np.testing.assert_allclose(moved, decoded[..., columns], rtol=1e-6)


def test_rows_of_one_number_are_exact_in_affine_codes():
    values = np.random.default_rng(0).normal(size=(9, 3, 1)).astype(np.float32)
    standard = Standard(np.zeros(1), np.ones(1), False)
    for codec in ("affine16", "uint8"):
        assert np.array_equal(stored(codec, values, task="regression", standard=standard)[0], values)


def test_members_of_weight_0_have_no_share(tmp_path):
    teachers, rows = measured()
    weights = np.array([0.6, 0.4, 0.0])
    wild = teachers.mean.copy()
    wild[2] = 1e9
    one, other = (
        cache_targets(replace(teachers, mean=mean, weights=weights), rows, tmp_path / name, mixture_at=1.0)
        for name, mean in (("one", teachers.mean), ("other", wild))
    )
    for first, second in zip(one.gather(rows.uids).mixture(), other.gather(rows.uids).mixture(), strict=True):
        assert torch.equal(first, second)
    assert (one.location.tolist(), one.scale.tolist()) == (other.location.tolist(), other.scale.tolist())


def test_constant_predictions_have_a_unit_of_1(tmp_path):
    teachers, rows = measured(variances=False)
    mean = teachers.mean.copy()
    mean[..., 1] = 3e7
    cache = cache_targets(replace(teachers, mean=mean), rows, tmp_path)
    assert cache.scale[1] == 1
    assert (cache.gather_moments(rows.uids)[0][..., 1] == 3e7).all()
    one = Rows(rows.inputs[:1], np.array([4]), rows.labels[:1])
    assert cache_targets(teachers, one, tmp_path / "one").scale.tolist() == [1, 1]


def test_location_and_scale_of_many_rows_are_those_of_a_sample(tmp_path):
    generator = np.random.default_rng(0)
    count = 3 * SAMPLE
    mean = generator.normal(5, 2, (3, count, 1))
    asked = []

    class Counting(type(measured()[0])):
        def predict_moments(self, inputs):
            asked.append(len(inputs))
            return super().predict_moments(inputs)

    rows = Rows(np.arange(count)[:, None].astype(np.float32), np.arange(count), np.full((count, 1), np.nan))
    teachers = Counting(mean, classes=None)
    cache = cache_targets(teachers, rows, tmp_path, batch_size=256)
    assert sum(asked) == 1 + SAMPLE + count  # the first names the numbers
    assert cache.location[0] == pytest.approx(5, abs=0.3)
    assert cache.classes == ("0",)
    asked.clear()
    assert cache_targets(teachers, rows, tmp_path, batch_size=256).scale == cache.scale
    assert sum(asked) == 1


def test_a_mixture_made_from_a_cache_is_the_one_made_at_once(tmp_path):
    for variances in (True, False):
        teachers, rows = measured(variances=variances)
        folder = tmp_path / str(variances)
        source = cache_targets(teachers, rows, folder / "source", **SMALL)
        at_once = cache_targets(teachers, rows, folder / "at once", mixture_at=1.0, **SMALL)
        made = convert(source, folder / "made", codec="fp32", mixture_at=1.0)
        for one, other in zip(made.gather_moments(rows.uids), at_once.gather_moments(rows.uids), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4)
        assert made.verify_against(teachers, rows, share=1.0) == 230
        step = made.manifest["fingerprint"]["derived"][0]["convert"]
        assert step == {
            "from": "fp32",
            "error": source.manifest["statistics"]["error"],
            "variance": variances,
        }


def test_a_mixture_of_exact_codes_is_compared_exactly(tmp_path, monkeypatch):
    """Codes of one mean are exact; those of a mean and a deviation would not be."""
    teachers, rows = measured(variances=False)
    one = replace(teachers, mean=teachers.mean[..., :1], classes=("x",))
    source = cache_targets(one, rows, tmp_path / "source", codec="uint8", **SMALL)
    assert source.manifest["statistics"]["error"]["max"] == 0
    made = convert(source, tmp_path / "made", codec="fp32", mixture_at=1.0)
    assert made.manifest["variance"]
    monkeypatch.delattr(Codec, "compare")  # of other bits
    assert made.verify_against(one, rows, share=1.0) == 230


def test_a_conversion_s_errors_add_up(tmp_path):
    teachers, rows = measured()
    source = cache_targets(teachers, rows, tmp_path / "source", codec="uint8", **SMALL)
    cost = source.manifest["statistics"]["error"]["max"]
    made = convert(source, tmp_path / "made", codec="fp16", max_error=2 * cost)
    assert made.verify_against(teachers, rows, share=1.0) == 230
    with pytest.raises(CacheError, match=r"max_error: .* of the predictions' spread for every row; .*source"):
        convert(source, tmp_path / "refused", codec="fp16", max_error=0.9 * cost)
    with pytest.raises(CacheMismatch, match=r"differs from that of the ensemble's present moments"):
        made.verify_against(replace(teachers, mean=teachers.mean + np.array([20.0, 0])), rows, share=1.0)


def test_members_come_and_go(tmp_path):
    teachers, rows = measured()
    two = replace(teachers, mean=teachers.mean[:2], variance=teachers.variance[:2], names=("a", "b"),
                  weights=teachers.weights[:2])  # fmt: skip
    source = cache_targets(two, rows, tmp_path / "two", **SMALL)
    order = np.random.default_rng(1).permutation(230)
    third = (teachers.mean[2][order], teachers.variance[2][order])
    made = add_member(source, tmp_path / "three", name="c", moments=third, uids=rows.uids[order], weight=0.2)
    for one, other in zip(made.gather_moments(rows.uids), (teachers.mean, teachers.variance), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    back = drop_member(made, tmp_path / "back", name="c")
    assert np.array_equal(back.gather_moments(rows.uids)[0], source.gather_moments(rows.uids)[0])
    silent = add_member(
        source, tmp_path / "silent", name="c", moments=third[0], uids=rows.uids[order], weight=1
    )
    np.testing.assert_allclose(
        silent.gather_moments(rows.uids)[1][2], teachers.variance[:2].mean(0), rtol=1e-4
    )
    reweighted = reweight(made, {"a": 0.0, "b": 0.0, "c": 1.0})
    mean, _ = in_data_units(reweighted, reweighted.gather(rows.uids))
    np.testing.assert_allclose((mean - teachers.mean[2]) / made.scale, 0, atol=1e-5)


def test_means_moved_by_a_variance_factor_keep_their_weights(tmp_path):
    teachers, rows = measured()
    scaled = replace(teachers)
    object.__setattr__(scaled, "fingerprint", lambda: {**teachers.fingerprint(), "variance_factor": 0.5})
    cache = cache_targets(scaled, rows, tmp_path / "c", **SMALL)
    for change in (
        lambda: reweight(cache, {"a": 1, "b": 1, "c": 1}),
        lambda: drop_member(cache, tmp_path / "d", name="a"),
        lambda: add_member(
            cache, tmp_path / "d", name="d", moments=teachers.mean[0], uids=rows.uids, weight=1
        ),
    ):
        with pytest.raises(CacheError, match=r"holds moments with a variance factor of 0\.5"):
            change()


@pytest.mark.parametrize(
    "damage", ["shard", *(pytest.param(name, marks=pytest.mark.slow) for name in ("commit", "no shard"))]
)
def test_an_unfinished_cache_keeps_its_units(tmp_path, damage):
    """The second run's location would differ in its last digits, as on another machine."""
    teachers, rows = measured()
    whole = cache_targets(teachers, rows, tmp_path / "whole", **SMALL)

    class Dying(type(teachers)):
        def predict_moments(self, inputs):
            asked.append(len(inputs))
            if len(asked) == 9:  # five batches for the units, and two for each of two shards
                raise KeyboardInterrupt
            return super().predict_moments(inputs)

    asked = []
    with pytest.raises(KeyboardInterrupt):
        cache_targets(Dying(teachers.mean, teachers.variance), rows, tmp_path / "c", **SMALL)
    shard = tmp_path / "c" / "shard-00000.safetensors"
    if damage == "shard":
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    elif damage == "commit":
        (tmp_path / "c" / "shard-00000.commit.json").unlink()
    else:
        shard.unlink()
    rounded = Standard.measured

    def otherwise(*args, **more):
        standard = rounded(*args, **more)
        return replace(standard, location=standard.location * (1 + 1e-15))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Standard, "measured", otherwise)
        cache_targets(teachers, rows, tmp_path / "c", **SMALL)
    assert contents(tmp_path / "c") == contents(whole.path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"codec": "topk-2", "mixture_at": 1.0}, ValueError, "codec: expected one of fp32, fp16, affine16, uint8, "
         "which are for regression; got topk-2, which is for classification and multilabel"),
        ({"codec": "counts-5", "mixture_at": 1.0}, ValueError, "got counts-5, which is for classification"),
        ({"mixture_at": 2.0}, ValueError, "mixture_at: expected 1.0 or None, .* got 2"),
        ({"max_kl": 0.1}, ValueError, "max_kl: expected None, because the task is regression, which has max_error"),
        ({"max_error": -1.0}, ValueError, "max_error: expected a number of at least 0, in units of the spread"),
        ({"codec": "fp16", "max_error": 1e-9}, CacheError, r"max_error: .* for '[abc]', uid \d+"),
        ({"lengths": np.ones(230, int)}, ValueError, "lengths: expected None"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        cache_targets(*measured(), tmp_path / "c", **{**SMALL, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, v: (m * np.where(np.arange(230)[:, None] == 9, np.nan, 1), v), "gave the mean nan for uid {uid}"),
        (lambda m, v: (m, v - 10 * (np.arange(230)[:, None] == 9)), "gave the variance -.* for uid {uid}"),
        (lambda m, v: (m[:2], v), r"float \[members, samples, numbers\] = \[3, \d+, D\]; got .*\[2, "),
        (lambda m, v: (m, v[..., :1]), r"got float64 \[3, \d+, 2\] and float64 \[3, \d+, 1\]"),
        (lambda m, v: (m * (1 + 1e60 * (np.arange(230)[:, None] == 9)), v), ""),
    ],
)  # fmt: skip
def test_bad_predictions_name_member_and_uid(tmp_path, change, message):
    teachers, rows = measured()
    mean, variance = change(teachers.mean, teachers.variance)
    bad = replace(teachers, mean=mean, variance=variance)
    if not message:  # finite, though far from all others: it sets the scale, and is stored
        cache_targets(bad, rows, tmp_path / "c")
        return
    with pytest.raises(
        ValueError, match="ensemble.predict_moments: .*" + message.format(uid=rows.uids[9])
    ) as error:
        cache_targets(bad, rows, tmp_path / "c")
    assert not isinstance(error.value, BadRows) or error.value.rows.tolist() == [rows.uids[9]]


def test_storing_that_costs_much_is_warned_of(tmp_path):
    teachers, rows = measured()
    with pytest.warns(
        CacheLossWarning, match=r"'uint8' cost a row an error of \S+ of the spread.*fp32 is exact; max_"
    ):
        cache_targets(replace(teachers, variance=100 * teachers.variance), rows, tmp_path, codec="uint8")
    with pytest.warns(CacheLossWarning, match="an error of"):
        TargetCache.open(tmp_path)


def test_half_precision_refuses_numbers_that_it_cannot_hold(tmp_path):
    teachers, rows = measured()
    variance = teachers.variance.copy()
    variance[1, 5] = 1e30
    with pytest.raises(BadRows, match=rf"codec: fp16 holds numbers up to 65504 .* uid {rows.uids[5]}"):
        cache_targets(replace(teachers, variance=variance), rows, tmp_path, codec="fp16")
