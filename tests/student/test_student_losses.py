"""Losses and steps from outside the package: their arguments, how they resume, and which of them are
refused."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ensdistill import DistillationLoss, Ensemble, Optimization, Rows, StudentTrainer, cache_targets
from ensdistill.common.checkpoint import CheckpointMismatch
from ensdistill.common.random import BatchOrder, derive_seed
from ensdistill.loss.settings import LossSettings
from ensdistill.loss.targets import EnsembleLogits
from ensdistill.models import MLP
from ensdistill.student import Batch, HardLabels, SoftTargets, StudentLoss

SHORT = Optimization(steps=70, batch_size=24, learning_rate=0.01)
STUDENT = partial(MLP, 16, [8], 5)
X = np.random.default_rng(0).normal(size=(150, 16)).astype(np.float32)
Y = np.where(np.arange(150) % 3 == 0, -100, np.arange(150) % 5)
ROWS = Rows(X, np.arange(150)[::-1] * 7, Y)
LABELLED = Rows(X, ROWS.uids, np.arange(150) % 5)
DOCS = Path(__file__).parents[2] / "docs/extending.md"
METHODS = DOCS.read_text().partition("## Add a distillation method")[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        members.append(nn.Linear(16, 5).requires_grad_(False))
    return cache_targets(Ensemble.from_members(members), ROWS, tmp_path_factory.mktemp("losses") / "targets")


def same(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True)
    )


def standardised(logits):
    return (logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True)


class Standardised:
    """L2 between standardised logits, times a factor."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, outputs, targets, labels, batch):
        teacher = targets.to_logits().mean(0)
        return self.factor * (standardised(outputs) - standardised(teacher)).square().mean()


def test_a_method_from_outside_trains_as_the_loop_written_out(cache):
    trained = StudentTrainer(SHORT, loss=Standardised()).distill(STUDENT, ROWS, cache, seed=5)
    teacher = cache.gather(ROWS.uids, np.zeros(150, np.int64)).to_logits().mean(0)
    torch.manual_seed(derive_seed("student", 5))
    model = STUDENT().train()
    optimizer, scheduler = SHORT.build(model.parameters())
    order = BatchOrder(150, 24, derive_seed("student batches", 5))
    for step in range(SHORT.steps):
        index = torch.from_numpy(order(step))
        loss = (
            (standardised(model(torch.from_numpy(X)[index])) - standardised(teacher[index])).square().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    for found, expected in zip(trained.module.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    assert trained.losses[-1] < 0.7 * trained.losses[0]


def test_a_loss_of_members_is_refused_for_their_mixture(tmp_path):
    members = [MLP(16, [], 5).requires_grad_(False) for _ in range(2)]
    seen = []

    def squared(outputs, targets, labels, batch):
        seen.append(targets.to_logits().shape)
        return outputs.square().mean()

    for count in (1, 2):
        ensemble = Ensemble.from_members(members[:count])
        mixture = cache_targets(ensemble, ROWS, tmp_path / str(count), codec="fp32", mixture_at=2.0)
        trainer = StudentTrainer(Optimization(steps=1, batch_size=6), loss=squared)
        if count == 1:  # the member itself
            trainer.distill(STUDENT, ROWS, mixture)
            continue
        with pytest.raises(
            ValueError,
            match=r"^loss: squared receives .* the cache .*2 holds the mixture of its 2 members at temperature "
            r"2.0 only, .* or set squared.takes_mixture = True",
        ):
            trainer.distill(STUDENT, ROWS, mixture)
        labels = StudentTrainer(Optimization(steps=1, batch_size=6), loss=HardLabels())
        labels.distill(STUDENT, LABELLED, mixture)
        squared.takes_mixture = True
        trainer.distill(STUDENT, ROWS, mixture)
    assert seen == [(1, 6, 5)] * 2


def test_a_loss_receives_the_rows_of_its_batch(cache):
    order, seen = BatchOrder(150, 24, derive_seed("student batches", 0)), []

    def loss(outputs, targets, labels, batch):
        at = order(batch.step)
        assert outputs.dtype == torch.float32
        assert isinstance(batch, Batch)
        np.testing.assert_array_equal(batch.uids, ROWS.uids[at])
        np.testing.assert_array_equal(labels.numpy(), Y[at])
        np.testing.assert_array_equal(batch.inputs.numpy(), X[at])
        expected = cache.gather(ROWS.uids[at], np.zeros(24, np.int64))
        assert torch.equal(targets.to_logits(), expected.to_logits())
        assert batch.label_factor is None
        seen.append(batch.step)
        return outputs.square().mean()

    StudentTrainer(SHORT, loss=loss).distill(STUDENT, ROWS, cache)
    assert seen == [*range(70)]


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_the_loss_as_an_object_as_settings_and_as_keywords_is_one(cache, alpha):
    settings = LossSettings(temperature=2.0, alpha=alpha)
    trainers = [
        StudentTrainer(SHORT, loss=SoftTargets(settings)),
        StudentTrainer(SHORT, loss=settings),
        StudentTrainer(SHORT, temperature=2.0, alpha=alpha),
    ]
    first, *others = [trainer.distill(STUDENT, ROWS, cache) for trainer in trainers]
    assert all(same(first, other) for other in others)
    member = trainers[1].distill(STUDENT, ROWS, cache, member=cache.names[1])
    weighted = SoftTargets(settings, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert same(member, StudentTrainer(SHORT, loss=weighted).distill(STUDENT, ROWS, cache))
    assert not same(member, first)


def test_direct_is_distill_with_another_loss(cache):
    labels = StudentTrainer(SHORT, loss=HardLabels()).distill(STUDENT, LABELLED, cache, seed=2)
    assert same(labels, StudentTrainer(SHORT).direct(STUDENT, LABELLED, classes=5, seed=2))
    with pytest.raises(ValueError, match=r"^rows\.labels: expected 0\.\.4; uid 1043 has -100$"):
        StudentTrainer(SHORT, loss=HardLabels()).distill(STUDENT, ROWS, cache)


class Penalised(StudentTrainer):
    """Adds a penalty to the loss."""

    factor = 0.1

    def training_step(self, model, batch, loss):
        outputs = model(batch.inputs)
        return loss(outputs, batch.targets, batch.labels, batch) + self.factor * outputs.square().mean()


class LabelsAndPenalty(StudentLoss):
    """The same as a loss."""

    def __call__(self, outputs, targets, labels, batch):
        return F.cross_entropy(outputs, labels) + 0.1 * outputs.square().mean()


def test_a_subclass_overrides_the_step(cache):
    trained = Penalised(SHORT).direct(STUDENT, LABELLED, classes=5)
    assert same(trained, StudentTrainer(SHORT, loss=LabelsAndPenalty()).distill(STUDENT, LABELLED, cache))
    assert not same(trained, StudentTrainer(SHORT).direct(STUDENT, LABELLED, classes=5))


class Stop(Exception):
    pass


def stop(done, total):
    if done >= 32:
        raise Stop


def steps_of(trainer, cache, file):
    steps = []
    trained = trainer.distill(
        STUDENT, ROWS, cache, checkpoint=file, progress=lambda done, total: steps.append(done)
    )
    return trained, steps


@pytest.mark.parametrize(
    ("begun", "same_again", "others"),
    [
        (
            lambda: StudentTrainer(SHORT, loss=Standardised()),
            lambda: StudentTrainer(SHORT, loss=Standardised()),
            [
                lambda: StudentTrainer(SHORT, loss=Standardised(2.0)),
                lambda: StudentTrainer(SHORT, loss=lambda o, *_: o.square().mean()),
            ],
        ),
        (lambda: Penalised(SHORT), lambda: Penalised(SHORT), [lambda: StudentTrainer(SHORT)]),
    ],
)
def test_a_checkpoint_is_resumed_by_the_same_loss_and_step_only(cache, tmp_path, begun, same_again, others):
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stop):
        begun().distill(STUDENT, ROWS, cache, checkpoint=file, checkpoint_every=32, progress=stop)
    trained, steps = steps_of(same_again(), cache, file)
    assert steps == [64, 70]
    assert same(trained, begun().distill(STUDENT, ROWS, cache))
    for other in others:
        with pytest.raises(CheckpointMismatch, match=r"is of another training:\n  (loss|trainer)"):
            steps_of(other(), cache, file)


class Trained(nn.Module):
    """A loss with a parameter."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, outputs, targets, labels, batch):
        return self.factor * outputs.square().mean()


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (
            Standardised,
            TypeError,
            r"^loss: expected LossSettings or a callable .*; got the class Standardised; pass an instance "
            r"of it$",
        ),
        (3, TypeError, r"^loss: expected LossSettings or a callable .*; got int$"),
        (
            DistillationLoss(),
            TypeError,
            r"^loss: a DistillationLoss takes sample weights, .*loss=loss\.settings",
        ),
        (Trained(), ValueError, r"^loss: Trained has parameters \(factor\), which would not be trained"),
    ],
)
def test_objects_that_are_no_loss(loss, error, message):
    with pytest.raises(error, match=message):
        StudentTrainer(SHORT, loss=loss)


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda o, *_: o.square().mean(1), r"torch\.float32 \[24\]$"),
        (lambda o, *_: o.detach().mean(), r"torch\.float32 \[\] without a gradient$"),
        (lambda o, *_: 1.0, r"float$"),
    ],
)
def test_a_loss_that_returns_no_scalar_with_a_gradient(cache, returned, got):
    message = (
        rf"^loss: expected <lambda> to return a floating-point tensor \[\] that depends on the student's "
        rf"outputs; got {got}"
    )
    with pytest.raises(TypeError, match=message):
        StudentTrainer(SHORT, loss=returned).distill(STUDENT, ROWS, cache)


def test_a_loss_beside_keywords_or_a_member(cache):
    with pytest.raises(
        TypeError,
        match=r"^loss: expected either a loss or keywords of LossSettings; got Standardised and temperature$",
    ):
        StudentTrainer(SHORT, loss=Standardised(), temperature=2.0)
    weighted = SoftTargets(weights=torch.full((len(cache.names),), 1 / len(cache.names)))
    with pytest.raises(
        ValueError, match=r"^member: expected none beside SoftTargets with weights of members"
    ):
        StudentTrainer(SHORT, loss=weighted).distill(STUDENT, ROWS, cache, member=cache.names[0])


def test_a_method_from_outside_receives_the_targets_of_one_member(cache):
    def of_first(outputs, targets, labels, batch):
        return Standardised()(outputs, EnsembleLogits(targets.to_logits()[:1]), labels, batch)

    trained = [
        StudentTrainer(SHORT, loss=loss).distill(STUDENT, ROWS, cache, member=member, seed=5).module
        for loss, member in ((Standardised(), cache.names[0]), (of_first, None))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in trained), strict=True))


@pytest.mark.parametrize("method", ["kd", {"jsd": {"beta": 0.3}}])
def test_a_soft_loss_by_name_receives_the_targets_of_one_member(cache, method):
    settings = {"divergence": "jsd", "beta": 0.3} if method != "kd" else {}
    named = StudentTrainer(SHORT, method=method).distill(STUDENT, ROWS, cache, member=cache.names[1], seed=5)
    plain = StudentTrainer(SHORT, **settings).distill(STUDENT, ROWS, cache, member=cache.names[1], seed=5)
    pairs = zip(named.module.parameters(), plain.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda outputs, targets, labels: outputs.sum(), r"<lambda>\(outputs, targets, labels\): too many"),
        (lambda *, outputs: outputs, r"<lambda>\(\*, outputs\)"),
    ],
)
def test_a_loss_of_other_arguments_is_refused_before_training(loss, words):
    with pytest.raises(
        TypeError, match=rf"^loss: expected <lambda> to take \(outputs, targets, labels, batch\); got {words}"
    ):
        StudentTrainer(SHORT, loss=loss)


class Labels(StudentLoss):
    """A loss with a condition of its own."""

    def __call__(self, outputs, targets, labels, batch):
        return outputs.square().mean()

    def check(self, rows, classes, cache):
        raise ValueError(f"rows: expected {classes} classes of {cache.names[0]}")


def test_a_loss_refuses_a_training_before_the_student_is_built(cache):
    with pytest.raises(ValueError, match=r"^rows: expected 5 classes of "):
        StudentTrainer(SHORT, loss=Labels()).distill(lambda: pytest.fail("built"), ROWS, cache)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_student_of_another_dtype(dtype):
    message = (
        rf"^factory: the student's MLP: expected float32 parameters .* is {str(dtype)[6:]}\. "
        rf"module\.float\(\) gives"
    )
    with pytest.raises(ValueError, match=message):
        StudentTrainer(SHORT).direct(lambda: STUDENT().to(dtype), LABELLED, classes=5)


@pytest.mark.parametrize("source", re.findall(r"^```python\n(.*?)^```$", METHODS, re.MULTILINE | re.DOTALL))
def test_the_documented_methods_run(source, tmp_path, monkeypatch):
    """The blocks assert their own results."""
    monkeypatch.chdir(tmp_path)
    exec(compile(source, str(DOCS), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("smoothing", [1.0, -0.1, float("nan"), "0.1"])
def test_a_smoothing_out_of_range(smoothing):
    with pytest.raises(ValueError, match=r"^smoothing: expected a number of at least 0 and below 1; got "):
        HardLabels(smoothing)


def test_the_documented_method_with_a_parameter_learns_it(cache):
    names = {}
    (source,) = re.findall(r"^```python\n(import torch\n.*?)^```$", METHODS, re.MULTILINE | re.DOTALL)
    exec(compile(source, str(DOCS), "exec"), names)
    seen = []

    class Watched(names["LearnedTemperature"]):
        def __call__(self, outputs, targets, labels, batch):
            seen.append(batch.own.log_t.item())
            return super().__call__(outputs, targets, labels, batch)

    trained = StudentTrainer(SHORT, loss=Watched()).distill(STUDENT, ROWS, cache)
    assert seen[0] == 0
    assert abs(seen[-1]) > 0.01
    assert trained.module.state_dict().keys() == STUDENT().state_dict().keys()
