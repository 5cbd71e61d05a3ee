"""Several students trained as a stack equal those trained alone."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from ensdistill import Ensemble, Optimization, Rows, StudentTrainer, cache_targets
from ensdistill.common.optimizers import ParameterGroup, StudentOptimization
from ensdistill.data.samples import as_samples
from ensdistill.models import MLP
from ensdistill.student import Callback, OnlineTeachers, Validation, distill_many

N, STEPS = 120, 70
X = np.random.default_rng(0).normal(size=(N, 16)).astype(np.float32)
UIDS = np.random.default_rng(1).permutation(1000)[:N]
ROWS = Rows(X, UIDS, np.arange(N) % 5)
QUICK = Optimization(steps=STEPS, batch_size=24, learning_rate=0.02)
STUDENT = partial(MLP, 16, [8], 5)
SEEDS = [3, 1, 4, 1]
# Rounding of sums in another order, after AdamW's steps.
CLOSE = {"rtol": 0, "atol": 2e-4}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(folder, inputs, member):
    rows = Rows(inputs, UIDS, np.arange(N) % 5)
    members = [member().requires_grad_(False) for _ in range(2)]
    return cache_targets(Ensemble.from_members(members), rows, folder / "targets")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    torch.manual_seed(0)
    return made(tmp_path_factory.mktemp("together"), X, partial(nn.Linear, 16, 5))


def alone(trainer, factory, rows, cache, seeds=SEEDS, optimizations=None, **options):
    return distill_many(
        trainer,
        factory,
        rows,
        cache,
        seeds=seeds,
        optimizations=optimizations,
        way="one_by_one",
        **options,
    )


def stacked(*arguments, seeds=SEEDS, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that there is no stack
        return distill_many(*arguments, seeds=seeds, way="stacked", **options)


def check_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name, tensor in other.module.state_dict().items():
            torch.testing.assert_close(one.module.state_dict()[name], tensor, **CLOSE)
        np.testing.assert_array_equal(one.steps, other.steps)
        np.testing.assert_allclose(one.losses, other.losses, **CLOSE)
        np.testing.assert_allclose(one.watched, other.watched, **CLOSE)
        assert one.choice.step == other.choice.step
        assert one.choice.weights == other.choice.weights
        assert [e.step for e in one.evaluations] == [e.step for e in other.evaluations]
        for a, b in zip(one.evaluations, other.evaluations, strict=True):
            assert a.student.kl == pytest.approx(b.student.kl, abs=1e-4)
        assert (one.average is None) == (other.average is None)
        if other.average is not None:
            for name, tensor in other.average.state_dict().items():
                torch.testing.assert_close(one.average.state_dict()[name], tensor, **CLOSE)


CASES = {
    "plain": ({}, {}, {}),
    "labels": ({"alpha": 0.7, "temperature": 2.0}, {}, {"member": "linear-2"}),
    "average": ({"ema": 0.9}, {}, {"watch": X[:7]}),
    "validation": ({"ema": 0.95}, {}, {"validation": Validation(rows=0.25, every=32)}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_stack_is_its_students_trained_alone(cache, name):
    trainer, more, options = CASES[name]
    trainer = StudentTrainer(QUICK, **trainer)
    found = stacked(trainer, STUDENT, ROWS, cache, **more, **options)
    check_equal(found, alone(trainer, STUDENT, ROWS, cache, **more, **options))
    states = [one.module.state_dict()["1.weight"] for one in found]
    assert torch.equal(states[1], states[3])  # of equal seeds
    assert not torch.allclose(states[0], states[1], atol=1e-2)
    # Each has tensors of its own.
    assert len({one.module.state_dict()["1.weight"].untyped_storage().data_ptr() for one in found}) == 4
    assert found[0].module.state_dict()["1.weight"].untyped_storage().nbytes() == 16 * 8 * 4


def test_each_student_has_an_optimiser_of_its_own(cache):
    given = [
        Optimization(steps=STEPS, batch_size=24, learning_rate=0.05, weight_decay=0.3),
        Optimization(steps=STEPS, batch_size=24, learning_rate=0.002, schedule="cosine"),
        StudentOptimization(
            steps=STEPS,
            batch_size=24,
            learning_rate=0.1,
            optimizer=partial(SGD, momentum=0.9),
            schedule=partial(CosineAnnealingLR, T_max=STEPS),
            groups=[ParameterGroup("*bias", 2.0, 0.0)],
            clip_norm=0.05,
        ),
    ]
    trainer = StudentTrainer(QUICK)
    found = stacked(trainer, STUDENT, ROWS, cache, seeds=[7] * 3, optimizations=given)
    check_equal(found, alone(trainer, STUDENT, ROWS, cache, seeds=[7] * 3, optimizations=given))
    assert trainer.optimization is QUICK


def test_patience_ends_each_student_at_its_own_step(cache):
    given = [
        Optimization(steps=192, batch_size=24, learning_rate=r, schedule="constant") for r in (0.3, 1e-3)
    ]
    options = {
        "optimizations": given,
        "seeds": [0, 0],
        "validation": Validation(rows=0.2, every=32, patience=1),
    }
    trainer, seen = StudentTrainer(QUICK), []
    found = stacked(trainer, STUDENT, ROWS, cache, **options, progress=lambda *now: seen.append(now))
    check_equal(found, alone(trainer, STUDENT, ROWS, cache, **options))
    last = [one.evaluations[-1].step for one in found]
    assert last[0] < last[1]
    assert seen[-1] == (384, 384)


def test_images_and_running_statistics(tmp_path):
    torch.manual_seed(0)
    images = X.reshape(N, 1, 4, 4)
    teacher = partial(nn.Sequential, nn.Flatten(), nn.Linear(16, 5))
    cache, rows = made(tmp_path, images, teacher), Rows(images, UIDS, np.arange(N) % 5)

    def student():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
        )

    trainer = StudentTrainer(Optimization(steps=20, batch_size=24, learning_rate=0.02), ema=0.9)
    check_equal(stacked(trainer, student, rows, cache), alone(trainer, student, rows, cache))


class Own(StudentTrainer):
    def training_step(self, model, batch, loss):
        return super().training_step(model, batch, loss)


class Branches(nn.Linear):
    """Each instance computes something else by what is no parameter."""

    made = 0

    def __init__(self):
        super().__init__(16, 5)
        Branches.made += 1
        self.factor = Branches.made

    def forward(self, x):
        return super().forward(x) * self.factor


class Same(nn.Linear):
    def __init__(self):
        super().__init__(16, 5)

    def forward(self, x):
        return super().forward(x) if float(x.sum()) > -1e9 else x  # needs a number, which vmap has not


SHORT = Optimization(steps=2, batch_size=24)
REFUSED = {
    "training_step": (Own(SHORT), STUDENT, ROWS, "training_step of its own"),
    "callbacks": (StudentTrainer(SHORT, callbacks=[Callback()]), STUDENT, ROWS, "callbacks"),
    "precision": (StudentTrainer(SHORT, mixed_precision="bf16"), STUDENT, ROWS, "mixed_precision"),
    "loss": (
        StudentTrainer(SHORT, lambda outputs, targets, labels, batch: outputs.square().mean()),
        STUDENT,
        ROWS,
        "no distillation loss",
    ),
    "labels": (
        StudentTrainer(SHORT, alpha=0.5),
        STUDENT,
        Rows(X, UIDS, np.r_[-100, np.zeros(N - 1, np.int64)]),
        "alpha is below 1",
    ),
    "weights": (
        StudentTrainer(SHORT),
        STUDENT,
        Rows(X, UIDS, np.arange(N) % 5, weights=np.ones(N)),
        "rows have weights",
    ),
    "lazy": (StudentTrainer(SHORT), STUDENT, "lazy", "lazy"),
    "dropout": (StudentTrainer(SHORT), partial(MLP, 16, [8], 5, dropout=0.5), ROWS, "random numbers"),
    "branches": (StudentTrainer(SHORT), Branches, ROWS, "more than their parameters"),
    "vmap": (StudentTrainer(SHORT), Same, ROWS, "vmap"),
}


class Lazy(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_stacked_is_trained_one_by_one_with_a_reason(cache, name):
    trainer, factory, rows, reason = REFUSED[name]
    rows = Rows(as_samples(Lazy()), UIDS, np.arange(N) % 5) if isinstance(rows, str) else rows
    with pytest.warns(UserWarning, match=rf"can't be trained as a stack: .*{reason}"):
        found = distill_many(trainer, factory, rows, cache, seeds=[0, 1], way="stacked")
    if name not in ("branches", "dropout"):
        expected = [trainer.distill(factory, rows, cache, seed=seed) for seed in (0, 1)]
        for one, other in zip(found, expected, strict=True):
            for key, tensor in other.module.state_dict().items():
                assert torch.equal(one.module.state_dict()[key], tensor)


def test_other_sources_are_trained_one_by_one():
    torch.manual_seed(0)
    ensemble = Ensemble.from_members([nn.Linear(16, 5).requires_grad_(False)])
    with pytest.warns(UserWarning, match="samples are changed as they are read"):
        distill_many(
            StudentTrainer(SHORT), STUDENT, ROWS, OnlineTeachers(ensemble), seeds=[0, 1], way="stacked"
        )


def test_auto_stacks_from_four_students_on(cache, monkeypatch):
    from ensdistill.student import together

    counts = []
    monkeypatch.setattr(together.Stack, "train", lambda self, progress: counts.append(len(self.models)) or [])
    for count in (1, 3, 4):
        distill_many(StudentTrainer(SHORT), STUDENT, ROWS, cache, seeds=range(count))
    assert counts == [4]


def test_a_loss_that_is_not_finite_names_its_student(cache):
    rates = [
        Optimization(steps=64, batch_size=24, learning_rate=r, schedule="constant") for r in (0.01, 1e30)
    ]
    with pytest.raises(
        FloatingPointError, match=r"of student 1 \(seed 5, learning rate 1e\+30\) at step [1-9]"
    ):
        stacked(StudentTrainer(QUICK), STUDENT, ROWS, cache, seeds=[2, 5], optimizations=rates)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seeds": []}, "^seeds: expected at least one"),
        ({"optimizations": [SHORT]}, "^optimizations: expected one for each of the 4 seeds; got 1"),
        ({"way": "fast"}, "^way: expected one of auto"),
        ({"folder": "x"}, "^folder: expected none, because all students would write it; got x"),
        ({"member": "three"}, "^member: expected one of linear-1, linear-2; got 'three'"),
    ],
)
def test_wrong_arguments_are_refused(cache, change, match):
    with pytest.raises(ValueError, match=match):
        distill_many(StudentTrainer(SHORT), STUDENT, ROWS, cache, **{"seeds": SEEDS, **change})
