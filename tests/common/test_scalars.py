"""NumPy scalars as settings are the numbers they hold; and a temperature has one range, wherever it is
given."""

import functools

import numpy as np
import pytest
import torch

from ensdistill.cache import TargetCache, cache_targets, convert
from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.transfer import Mixup, Munge
from ensdistill.functional import distillation_loss
from ensdistill.job.config import CacheConfig, DistillConfig
from ensdistill.job.student_config import StudentConfig
from ensdistill.loss import encoders
from ensdistill.loss.linear import linear_distillation_loss
from ensdistill.loss.modules import DistillationLoss
from ensdistill.loss.settings import LossSettings
from ensdistill.loss.targets import EnsembleLogits
from ensdistill.models import MLP
from ensdistill.report.metrics import ece
from ensdistill.student.trainer import StudentTrainer
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import TorchMember
from ensdistill.teachers.methods import Bagging, FastGeometric
from ensdistill.teachers.recipes import TorchMembers

ROWS = Rows(np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 8], np.arange(32), np.array([0, 1] * 16))
NET = functools.partial(MLP, inputs=4, hidden=[8], outputs=2)
Int, Float = np.int64, np.float32


def optimization(number=Int, real=Float):
    return Optimization(
        steps=number(16),
        batch_size=number(8),
        learning_rate=real(0.0625),
        weight_decay=real(0),
        warmup=real(0.25),
    )


def teachers():
    torch.manual_seed(0)
    return Ensemble.from_members([TorchMember(NET(), name=n, factory=NET) for n in "ab"])


def test_optimization_and_configs_hold_pythons_numbers():
    made = optimization()
    assert made == optimization(int, float)
    assert all(type(v) in (int, float, str) for v in vars(made).values())
    made.build(NET().parameters())
    config = DistillConfig(
        {"s": StudentConfig(NET)}, LossSettings(temperature=Float(2), alpha=Float(0.5)), folds=Int(3)
    )
    assert (type(config.loss.temperature), type(config.loss.alpha), type(config.folds)) == (float, float, int)
    assert type(CacheConfig(codec="topk-2", mixture_at=Float(2), max_kl=Float(1)).mixture_at) is float
    for thing in (
        Bagging(share=Float(0.5)),
        FastGeometric(share=Float(0.5)),
        ShiftImages(Int(1)),
        Munge(Int(4), Float(0.5)),
        Mixup(Int(4)),
    ):
        assert not any(isinstance(v, np.generic) for v in vars(thing).values())
    assert type(TorchMembers(NET, count=Int(2)).count) is int


def test_members_of_numpy_numbers_are_trained_and_saved(tmp_path):
    net = functools.partial(MLP, inputs=Int(4), hidden=[Int(8)], outputs=Int(2), dropout=Float(0.125))
    trained = Ensemble.train(
        net,
        (ROWS.inputs, ROWS.labels),
        members=Int(2),
        seed=Int(3),
        optimization=optimization(),
        way="stacked",
        folder=tmp_path,
    )
    plain = Ensemble.train(
        functools.partial(NET, dropout=0.125),
        (ROWS.inputs, ROWS.labels),
        members=2,
        seed=3,
        optimization=optimization(int, float),
        way="stacked",
    )
    np.testing.assert_array_equal(trained.predict_logits(ROWS.inputs), plain.predict_logits(ROWS.inputs))
    np.testing.assert_array_equal(
        Ensemble.load(tmp_path).predict_logits(ROWS.inputs), plain.predict_logits(ROWS.inputs)
    )


def test_fits_take_numpy_numbers():
    ensemble = teachers()
    raw = ensemble.raw_logits(ROWS.inputs)
    ensemble.weigh(raw, ROWS.labels, prior_rows=Float(2))
    assert ensemble.select(
        raw, ROWS.labels, rounds=Int(5), bags=Int(2), seed=Int(1), prior_rows=Float(2)
    ).names
    assert ensemble.select(raw, ROWS.labels, rounds=Int(5), costs=[Float(1), Float(2)], budget=Float(3)).names
    np.testing.assert_array_equal(
        ensemble.predict_proba(ROWS.inputs, Float(2)), ensemble.predict_proba(ROWS.inputs, 2.0)
    )
    assert ece(np.full((4, 2), 0.5), np.array([0, 1, 0, 1]), bins=Int(5)) == 0


def test_caches_and_students_take_numpy_numbers(tmp_path):
    ensemble = teachers()
    numbers = dict(batch_size=Int(8), shard_rows=Int(16), views=Int(1), seed=Int(1), max_kl=Float(1))
    cache = cache_targets(ensemble, ROWS, tmp_path / "a", codec="topk-2", mixture_at=Float(2), **numbers)
    assert cache.temperature == 2
    assert TargetCache.open(tmp_path / "a", threads=Int(2)).gather(np.arange(3)).ids.shape == (3, 2)
    assert cache.verify_against(ensemble, ROWS, share=Float(0.5))
    whole = cache_targets(ensemble, ROWS, tmp_path / "b", codec="fp32")
    counted = convert(
        whole, tmp_path / "c", codec="counts-8", mixture_at=Int(2), seed=Int(5), max_kl=Float(9)
    )
    assert counted.temperature == 2
    with pytest.raises(ValueError, match="seed: expected 0 to"):
        convert(whole, tmp_path / "d", codec="counts-8", mixture_at=2, seed=-1)
    trained = []
    for number, real in ((Int, Float), (int, float)):
        trainer = StudentTrainer(optimization(number, real), temperature=real(2), alpha=real(0.5))
        trained.append(trainer.distill(NET, ROWS, cache, seed=number(1)))
    for ours, theirs in zip(*(t.module.parameters() for t in trained), strict=True):
        assert torch.equal(ours, theirs)


def test_losses_take_numpy_numbers():
    generator = torch.Generator().manual_seed(0)
    student, z = (
        torch.randn(4, 3, generator=generator),
        EnsembleLogits(torch.randn(2, 4, 3, generator=generator)),
    )
    labels = torch.tensor([0, 1, -100, 2])

    def settings(i, f):
        return dict(
            temperature=f(2),
            alpha=f(0.5),
            beta=f(0.25),
            ignore_index=i(-100),
            label_smoothing=f(0.125),
            z_loss=f(0.5),
        )

    expected = distillation_loss(student, z, labels, divergence="jsd", **settings(int, float))
    assert torch.equal(
        distillation_loss(student, z, labels, divergence="jsd", class_dim=Int(-1), **settings(Int, Float)),
        expected,
    )
    assert torch.equal(
        DistillationLoss(divergence="jsd", **settings(Int, Float))(student, z, labels), expected
    )
    hidden, weight = torch.randn(4, 5, generator=generator), torch.randn(3, 5, generator=generator)
    given, plain = (
        linear_distillation_loss(hidden, weight, z, softcap=f(32), chunk_rows=i(2))
        for i, f in ((Int, Float), (int, float))
    )
    assert torch.equal(given, plain)
    assert encoders.top_k_targets(z, Int(2), temperature=Float(2))[0].ids.shape == (4, 2)
    assert encoders.sample_counts(z, Int(9), seed=Int(3), temperature=Float(2))[0].counts.sum() == 36


@pytest.mark.parametrize("temperature", [20000, 9e-5, float("nan"), "2"])
def test_a_temperature_has_one_range(temperature, tmp_path):
    rest = "expected a number from 0.0001 to 10000; got"
    z = torch.zeros(2, 3)
    calls = {
        "cache.mixture_at": lambda: CacheConfig(codec="topk-2", mixture_at=temperature),
        "mixture_at": lambda: cache_targets(
            teachers(), ROWS, tmp_path / "c", codec="topk-2", mixture_at=temperature
        ),
        "temperature": lambda: StudentTrainer(temperature=temperature),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: {rest}"):
            call()
    for call in (
        lambda: distillation_loss(z, EnsembleLogits(z[None]), temperature=temperature),
        lambda: DistillationLoss(temperature=temperature),
        lambda: LossSettings(temperature=temperature),  # a job's distill.loss
    ):
        with pytest.raises(ValueError, match=f"^temperature: {rest}"):
            call()
    assert not (tmp_path / "c").exists()


def test_the_ends_of_the_range_train_a_student(tmp_path):
    cache = cache_targets(teachers(), ROWS, tmp_path / "c", codec="fp32")
    for temperature in (1e4, 1e-4):
        trained = StudentTrainer(Optimization(steps=2, batch_size=8), temperature=temperature).distill(
            NET, ROWS, cache
        )
        assert np.isfinite(trained.losses).all()


def test_other_things_than_numbers_are_still_refused(tmp_path):
    z = torch.zeros(2, 3)
    for wrong in (True, np.True_, np.float32(1), 1.0):
        with pytest.raises(TypeError, match="ignore_index: expected an int"):
            distillation_loss(z, EnsembleLogits(z[None]), ignore_index=wrong)
    with pytest.raises(ValueError, match=r"shard_rows: expected a positive integer; got 2\.0"):
        cache_targets(teachers(), ROWS, tmp_path / "c", shard_rows=np.float32(2))
    with pytest.raises(ValueError, match="bins: expected a positive integer; got True"):
        ece(np.full((4, 2), 0.5), np.array([0, 1, 0, 1]), bins=True)
