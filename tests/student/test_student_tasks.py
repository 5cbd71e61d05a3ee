"""Students of several labels and of numbers: their trainings against loops written out by hand, and their
laws."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ensdistill import Optimization, Rows, StudentTrainer
from ensdistill.common.checkpoint import CheckpointMismatch
from ensdistill.common.optimizers import StudentOptimization
from ensdistill.common.random import BatchOrder, derive_seed
from ensdistill.loss.gaussian import gaussian_distillation_loss, gaussian_moments
from ensdistill.loss.multilabel import multilabel_distillation_loss
from ensdistill.loss.regression import RegressionSettings
from ensdistill.loss.targets import EnsembleLogits, Moments
from ensdistill.models import MLP
from ensdistill.student import HardLabels, Validation, distill_many
from ensdistill.student.methods import MomentTargets, SoftLabels
from ensdistill.teachers.members import load_member
from tests.student.task_sources import (
    FULLY,
    INPUTS,
    KNOWN,
    LABELS,
    MEASURED,
    NUMBERS,
    OF_LABELS,
    OF_MOMENTS,
    OF_NUMBERS,
    PARTLY,
    SHORT,
    SOURCES,
    TAGGED,
    UIDS,
    Source,
    X,
    Y,
    labels_source,
    numbers_source,
    without_labels,
)

EVERY = pytest.mark.parametrize("kind", SOURCES)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(trained):
    return trained.module if trained.units is None else trained.module.model


def weights_of(trained):
    return torch.cat([p.detach().flatten() for p in network(trained).parameters()])


def by_hand(factory, loss_of, seed=5, clip=None):
    """The parameters after a loop of plain torch; ``loss_of`` takes outputs and positions of rows."""
    torch.manual_seed(derive_seed("student", seed))
    model = factory().train()
    optimizer, scheduler = SHORT.build(model.parameters())
    order = BatchOrder(len(X), SHORT.batch_size, derive_seed("student batches", seed))
    for step in range(SHORT.steps):
        index = order(step)
        loss = loss_of(model(torch.from_numpy(X[index])), index)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def binary(outputs, labels):
    """The mean over rows with a known label of the sum of the known labels' cross entropies."""
    known = labels >= 0
    each = F.binary_cross_entropy_with_logits(outputs, labels.clamp(min=0).float(), reduction="none")
    return (each * known).sum() / known.any(1).sum()


def test_a_multilabel_training_is_the_one_that_is_written_out():
    source = labels_source(weights=np.array([0.5, 0.3, 0.2]))
    z, w = torch.from_numpy(source.values).float(), torch.tensor(source.weights).float()

    def loss_of(outputs, index):
        p = torch.einsum("k,knc->nc", w, torch.sigmoid(z[:, index] / 2))
        q = outputs / 2
        kl = p * (p.log() - F.logsigmoid(q)) + (1 - p) * ((1 - p).log() - F.logsigmoid(-q))
        return 0.7 * 4 * kl.sum(1).mean() + 0.3 * binary(outputs, torch.from_numpy(KNOWN[index]))

    trained = StudentTrainer(SHORT, temperature=2.0, alpha=0.7).distill(OF_LABELS, TAGGED, source, seed=5)
    torch.testing.assert_close(weights_of(trained), by_hand(OF_LABELS, loss_of), rtol=0, atol=2e-5)


@pytest.mark.parametrize("error", ["mse", "huber"])
def test_a_regression_of_means_is_the_one_that_is_written_out(error):
    source = numbers_source(weights=np.array([0.5, 0.3, 0.2]))
    mixture = np.einsum("k,knd->nd", source.weights, source.values)
    target, labels = (
        torch.from_numpy((one - source.location) / source.scale).float() for one in (mixture, PARTLY.labels)
    )
    one = nn.MSELoss() if error == "mse" else nn.HuberLoss(delta=0.4)

    def loss_of(outputs, index):
        known = ~labels[index].isnan().any(1)
        return 0.7 * one(outputs, target[index]) + 0.3 * one(outputs[known], labels[index][known])

    settings = RegressionSettings(error, delta=0.4, alpha=0.7)
    trained = StudentTrainer(SHORT, loss=settings).distill(OF_NUMBERS, PARTLY, source, seed=5)
    torch.testing.assert_close(weights_of(trained), by_hand(OF_NUMBERS, loss_of), rtol=0, atol=2e-5)


def relative(error, variance, beta):
    """The squared error over the variance, whose gradient has the variance to the power 1 - beta below it."""
    fixed, squared = variance.detach(), error**2
    of_variance = squared.detach() / variance - squared.detach() / fixed
    return of_variance + squared * fixed ** (beta - 1)  # the value is another one for the mean's part


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_regression_with_variances_is_the_one_that_is_written_out(beta):
    source = numbers_source(variances=True)
    targets = source.all()
    mean, variance = gaussian_moments(targets.mean, targets.variance, weights=targets.weights)
    labels = torch.from_numpy((PARTLY.labels - source.location) / source.scale).float()

    def loss_of(outputs, index):
        m, v = outputs[:, :NUMBERS], outputs[:, NUMBERS:].exp()
        kl = (v / variance[index]).log() + variance[index] / v + relative(mean[index] - m, v, beta)
        known = ~labels[index].isnan().any(1)
        nll = v[known].log() + relative(m[known] - labels[index][known], v[known], beta)
        return 0.8 * kl.sum(1).mean() / 2 + 0.2 * nll.sum() / known.sum() / 2

    settings = RegressionSettings(alpha=0.8, beta=beta)
    trained = StudentTrainer(SHORT, settings).distill(OF_MOMENTS, PARTLY, source, seed=5)
    torch.testing.assert_close(weights_of(trained), by_hand(OF_MOMENTS, loss_of, clip=1.0), rtol=0, atol=2e-5)


@pytest.mark.parametrize("task", ["multilabel", "regression", "with variances"])
def test_direct_is_the_loop_that_is_written_out(task):
    location, scale = Y.mean(0), Y.std(0)
    numbers = torch.from_numpy((Y - location) / scale).float()
    labels = torch.from_numpy(np.where(KNOWN.max(1, keepdims=True) < 0, 1, KNOWN))

    def loss_of(outputs, index):
        if task == "multilabel":
            return binary(outputs, labels[index])
        if task == "regression":
            return F.mse_loss(outputs, numbers[index])
        m, log_v = outputs.chunk(2, 1)
        return (log_v + relative(m - numbers[index], log_v.exp(), 0.5)).sum() / len(index) / 2

    factory = SOURCES[task][1]
    rows = replace(FULLY, labels=labels.numpy()) if task == "multilabel" else MEASURED
    trained = StudentTrainer(SHORT).direct(factory, rows, seed=5)
    clip = 1.0 if task == "with variances" else None
    torch.testing.assert_close(weights_of(trained), by_hand(factory, loss_of, clip=clip), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_row_of_far_too_small_a_variance_does_not_end_a_training():
    random, uids = np.random.default_rng(0), np.arange(600)
    x = random.normal(size=(600, INPUTS)).astype(np.float32)
    x[:3] *= 20  # far from all others
    mean, variance = np.tanh(x[:, :1]) + 0.3 * x[:, 1:2], 1e-3 * np.exp(x[:, 2:3].clip(-3, 3))
    source = Source("regression", mean[None], variance[None], uids=uids)
    rows, factory = (
        Rows(x, uids, np.full((600, 1), np.nan)),
        partial(MLP, INPUTS, [32, 32], 2, activation="silu"),
    )

    def divergence(**clip):
        settings = StudentOptimization(steps=500, batch_size=32, learning_rate=0.04, **clip)
        trained = StudentTrainer(settings).distill(factory, rows, source, seed=0)
        found = trained.module(torch.from_numpy(x))
        targets = [torch.from_numpy(one)[None] for one in (mean.astype(float), variance.astype(float))]
        return float(
            gaussian_distillation_loss(found[0], found[1].log(), *targets, reduction="none").detach().median()
        )

    assert divergence() < 0.3 < divergence(clip_norm=1e30)


def test_direct_smooths_several_labels():
    trained = StudentTrainer(replace(SHORT, label_smoothing=0.2)).direct(OF_LABELS, FULLY, seed=5)
    soft = torch.from_numpy(FULLY.labels).float() * 0.8 + 0.1

    def loss_of(outputs, index):
        return F.binary_cross_entropy_with_logits(outputs, soft[index], reduction="sum") / len(index)

    torch.testing.assert_close(weights_of(trained), by_hand(OF_LABELS, loss_of), rtol=0, atol=2e-5)


# Laws


@EVERY
def test_equal_members_are_one(kind):
    make, factory, rows = SOURCES[kind]
    one, three = make(members=1), make(members=1)
    if kind == "with variances":
        three.variance = np.repeat(one.variance, 3, axis=0)
    three = replace(three, values=np.repeat(one.values, 3, axis=0), weights=np.array([0.2, 0.3, 0.5]))
    found = [StudentTrainer(SHORT, alpha=0.6).distill(factory, rows, s, seed=3) for s in (one, three)]
    torch.testing.assert_close(*map(weights_of, found), rtol=0, atol=2e-5)


@EVERY
def test_the_order_of_members_and_of_outputs_has_no_effect(kind):
    make, _, rows = SOURCES[kind]
    source = make(weights=np.array([0.5, 0.3, 0.2]))
    width = source.classes
    members, outputs = [2, 0, 1], np.roll(np.arange(width), 1)
    other = replace(
        source,
        values=source.values[members][:, :, outputs],
        variance=None if source.variance is None else source.variance[members][:, :, outputs],
        weights=source.weights[members],
    )
    count = 2 * width if kind == "with variances" else width
    places = np.concatenate([outputs, width + outputs])[:count]
    first = nn.Linear(INPUTS, count)
    start = {name: tensor.detach() for name, tensor in first.state_dict().items()}
    moved = {name: tensor[places] for name, tensor in start.items()}
    trainer = StudentTrainer(SHORT, alpha=0.6)
    model = partial(nn.Linear, INPUTS, count)
    one = trainer.distill(model, rows, source, weights=start)
    two = trainer.distill(model, replace(rows, labels=rows.labels[:, outputs]), other, weights=moved)
    for name, tensor in network(one).state_dict().items():
        torch.testing.assert_close(network(two).state_dict()[name], tensor[places], rtol=0, atol=2e-5)


@EVERY
def test_one_member_of_many(kind):
    make, factory, rows = SOURCES[kind]
    source = make()
    alone = replace(
        source,
        values=source.values[1:2],
        variance=None if source.variance is None else source.variance[1:2],
        weights=np.ones(1),
    )
    if source.location is not None:  # the same units
        alone.location, alone.scale = source.location, source.scale
    trainer = StudentTrainer(SHORT)
    one = trainer.distill(factory, rows, source, member="member 1", seed=1)
    two = trainer.distill(factory, rows, alone, seed=1)
    torch.testing.assert_close(weights_of(one), weights_of(two), rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match=r"member: expected one of member 0, member 1, member 2; got 'x'"):
        trainer.distill(factory, rows, source, member="x")


class Alone:
    """What a loss reads of a batch."""

    weights = label_factor = None


def test_the_losses_are_0_at_equality():
    z = torch.randn(1, 9, LABELS)
    assert abs(SoftLabels()(z[0], EnsembleLogits(z), None, Alone())) < 1e-6
    mean, variance = torch.randn(3, 9, NUMBERS), torch.rand(3, 9, NUMBERS) + 0.1
    targets = Moments(mean, variance, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    m, v = targets.mixture()
    for name in ("mse", "huber"):
        assert MomentTargets(RegressionSettings(name))(m, targets, None, Alone()) == 0
    both = torch.cat([m, v.log()], 1)
    assert abs(MomentTargets()(both, targets, None, Alone())) < 1e-6
    assert MomentTargets()(both + 0.1, targets, None, Alone()) > 1e-3


def nearest_mean(outputs, targets, labels, batch):
    assert labels.shape == (len(batch.uids), NUMBERS)
    return (outputs - targets.mixture()[0]).square().mean()


def test_a_method_from_outside_learns_numbers():
    source = numbers_source(weights=np.array([0.5, 0.3, 0.2]))
    own = StudentTrainer(SHORT, loss=nearest_mean).distill(OF_NUMBERS, MEASURED, source, seed=1)
    ours = StudentTrainer(SHORT).distill(OF_NUMBERS, MEASURED, source, seed=1)
    torch.testing.assert_close(weights_of(own), weights_of(ours), rtol=0, atol=2e-5)


def test_an_unknown_label_is_an_absent_one():
    outputs = torch.randn(6, LABELS, requires_grad=True)
    labels = torch.tensor([[1, 0, -1, 1]] * 3 + [[0, -1, -1, -1]] * 3, dtype=torch.int8)
    loss = HardLabels(task="multilabel")(outputs, None, labels, Alone())
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert not gradient[labels < 0].any()
    assert gradient[labels >= 0].all()
    torch.testing.assert_close(loss, binary(outputs, labels))
    numbers = torch.randn(4, NUMBERS)
    for width in (NUMBERS, 2 * NUMBERS):
        some = torch.randn(6, width, requires_grad=True)
        gaps = torch.cat([numbers, torch.full((2, NUMBERS), torch.nan)])
        of_labels = MomentTargets(RegressionSettings(alpha=0.0))
        loss = of_labels(some, None, gaps, Alone())
        (gradient,) = torch.autograd.grad(loss, some)
        assert not gradient[4:].any()
        torch.testing.assert_close(loss, of_labels(some[:4], None, numbers, Alone()))


@pytest.mark.parametrize("factory", [OF_NUMBERS, OF_MOMENTS])
def test_units_of_the_targets_have_no_effect(factory):
    source = numbers_source(variances=True)
    shift, factor = np.array([-3000.0, 7.0]), np.array([1000.0, 0.01])
    other = replace(source, values=shift + factor * source.values, variance=factor**2 * source.variance)
    trainer = StudentTrainer(SHORT, alpha=0.7)
    here = trainer.distill(factory, MEASURED, source, seed=2)
    there = trainer.distill(factory, replace(MEASURED, labels=shift + factor * Y), other, seed=2)
    torch.testing.assert_close(weights_of(here), weights_of(there), rtol=0, atol=1e-4)
    one, two = (t.member().predict_moments(X) for t in (here, there))
    np.testing.assert_allclose(two.mean, shift + factor * one.mean, atol=2e-4 * factor.max() * 20, rtol=1e-4)
    if one.variance is not None:
        np.testing.assert_allclose(two.variance, factor**2 * one.variance, rtol=2e-3)
    direct = [
        trainer.direct(factory, replace(MEASURED, labels=labels), seed=2).member().predict_moments(X).mean
        for labels in (Y, shift + factor * Y)
    ]
    np.testing.assert_allclose(direct[1], shift + factor * direct[0], rtol=1e-4, atol=1e-2)


@pytest.mark.slow
def test_a_student_learns_the_mixture_in_the_datas_units():
    source = numbers_source(variances=True)
    long = Optimization(steps=600, batch_size=60, learning_rate=0.02)
    trained = StudentTrainer(long).distill(
        partial(MLP, INPUTS, [32], 2 * NUMBERS), without_labels(MEASURED), source
    )
    mixture = source.values.mean(0)
    mean, variance = trained.member().predict_moments(X)
    assert (np.abs(mean - mixture).mean(0) < 0.15 * mixture.std(0)).all()
    total = (source.variance + (source.values - mixture) ** 2).mean(0)
    assert (np.abs(np.log(variance / total)).mean(0) < 0.4).all()
    assert trained.choice.metric is None


# Rows, resumption, validation


@EVERY
def test_weights_of_rows_are_respected(kind):
    make, factory, rows = SOURCES[kind]
    weights = np.where(np.arange(len(X)) < 60, 0.0, 1.0)
    source, trainer = make(), StudentTrainer(SHORT, alpha=0.5)
    found = trainer.distill(factory, replace(rows, weights=weights), source, seed=1)
    changed = replace(source, values=np.where(weights[:, None] > 0, source.values, source.values + 5))
    changed.location, changed.scale = source.location, source.scale
    other = np.where(rows.labels < 0, -1, 1 - rows.labels) if kind == "multilabel" else rows.labels + 5
    labels = np.where(weights[:, None] > 0, rows.labels, other).astype(rows.labels.dtype)
    again = trainer.distill(factory, Rows(X, UIDS, labels, weights), changed, seed=1)
    assert not torch.equal(weights_of(found), weights_of(trainer.distill(factory, rows, source, seed=1)))
    torch.testing.assert_close(weights_of(found), weights_of(again), rtol=0, atol=2e-5)


@EVERY
def test_parts_of_a_batch_are_the_whole(kind):
    make, factory, rows = SOURCES[kind]
    settings = dict(steps=32, batch_size=24, learning_rate=0.01)
    found = [
        StudentTrainer(StudentOptimization(**settings, accumulate=parts), alpha=0.4).distill(
            factory, rows, make(), seed=4
        )
        for parts in (1, 4)
    ]
    torch.testing.assert_close(*map(weights_of, found), rtol=0, atol=2e-5)


class Stop(Exception):
    pass


def stop(done, total):
    if done >= 32:
        raise Stop


@EVERY
@pytest.mark.parametrize("direct", [False, True])
def test_an_interrupted_training_ends_with_the_same_bits(kind, direct, tmp_path):
    make, factory, _ = SOURCES[kind]
    rows, source = (FULLY if kind == "multilabel" else MEASURED), make()
    trainer = StudentTrainer(SHORT, alpha=0.5, ema=0.9)
    options = dict(seed=1, validation=Validation(rows=0.2, every=32), checkpoint_every=32)

    def train(**more):
        if direct:
            return trainer.direct(factory, rows, **options, **more)
        return trainer.distill(factory, rows, source, **options, **more)

    undisturbed = train()
    with pytest.raises(Stop):
        train(checkpoint=tmp_path / "state", progress=stop)
    resumed = train(checkpoint=tmp_path / "state")
    assert torch.equal(weights_of(resumed), weights_of(undisturbed))
    assert resumed.evaluations == undisturbed.evaluations
    rows = replace(rows, labels=1 - rows.labels)
    with pytest.raises(CheckpointMismatch, match="rows"):
        train(checkpoint=tmp_path / "state")


@EVERY
def test_scores_are_means_over_the_validation_rows(kind):
    make, factory, rows = SOURCES[kind]
    source = make()
    held = rows.take(np.arange(len(X)) >= 80)
    own = rows.take(np.arange(80))
    trained = StudentTrainer(SHORT).distill(factory, own, source, validation=Validation(rows=held, every=64))
    scores = trained.evaluations[-1].student
    z = network(trained)(torch.from_numpy(held.inputs)).detach().double()
    assert trained.choice.step == trained.evaluations[-1].step  # whose weights the module has
    targets = source.of(held.uids, None, None)
    if kind == "multilabel":
        labels = torch.from_numpy(held.labels)
        p = torch.sigmoid(targets.logits.double()).mean(0)
        kl = multilabel_distillation_loss(z, targets).item()
        assert scores.kl == pytest.approx(kl, rel=1e-5)
        assert scores.agreement == pytest.approx(((p > 0.5) == (z > 0)).double().mean().item())
        assert scores.nll == pytest.approx(binary(z, labels).item(), rel=1e-5)
        right = ((z > 0) == (labels == 1))[labels >= 0]
        assert scores.accuracy == pytest.approx(right.double().mean().item())
        assert (scores.distance, scores.rmse, trained.choice.metric) == (None, None, "kl")
        return
    mean, known = z[:, :NUMBERS], held.known
    wanted = targets.mean.double().mean(0)
    assert scores.distance == pytest.approx((mean - wanted).square().mean().item(), rel=1e-5)
    predicted = trained.member().predict_moments(held.inputs)
    errors = (predicted.mean - held.labels)[known]
    assert scores.rmse == pytest.approx(np.sqrt(np.square(errors).mean()), rel=1e-5)
    assert (scores.agreement, scores.accuracy) == (None, None)
    if kind == "regression":
        assert (scores.kl, scores.nll, trained.choice.metric) == (None, None, "distance")
        return
    variance = predicted.variance[known]
    nll = 0.5 * (np.log(2 * np.pi * variance) + errors**2 / variance).sum(1).mean()
    assert scores.nll == pytest.approx(nll, rel=1e-5)
    kl = gaussian_distillation_loss(mean, z[:, NUMBERS:], targets.mean.double(), targets.variance.double())
    assert scores.kl == pytest.approx(kl.item(), rel=1e-5)
    assert trained.choice.metric == "kl"


@EVERY
def test_a_stack_is_its_students_trained_alone(kind, recwarn):
    make, factory, _ = SOURCES[kind]
    rows, source = (FULLY if kind == "multilabel" else MEASURED), make()
    trainer = StudentTrainer(SHORT, alpha=0.5)
    options = {"validation": Validation(rows=0.2, every=64)}
    together = distill_many(trainer, factory, rows, source, seeds=[1, 2], way="stacked", **options)
    assert not recwarn.list
    for seed, one in zip([1, 2], together, strict=True):
        alone = trainer.distill(factory, rows, source, seed=seed, **options)
        torch.testing.assert_close(weights_of(one), weights_of(alone), rtol=0, atol=1e-4)
        assert type(one.module) is type(alone.module)


@EVERY
def test_a_saved_member_predicts_the_same(kind, tmp_path):
    make, factory, rows = SOURCES[kind]
    trained = StudentTrainer(SHORT).distill(factory, rows, make())
    names = [f"number {i}" for i in range(make().classes)]
    member = trained.member(classes=names, factory=keyword_factory(factory))
    member.save(tmp_path)
    loaded = load_member(tmp_path)
    assert (loaded.task, loaded.classes) == (trained.task, tuple(names))
    if kind == "multilabel":
        np.testing.assert_array_equal(loaded.predict_logits(X), member.predict_logits(X))
        return
    one, two = loaded.predict_moments(X), member.predict_moments(X)
    np.testing.assert_array_equal(one.mean, two.mean)
    assert (one.variance is None) == (kind == "regression")
    if one.variance is not None:
        np.testing.assert_array_equal(one.variance, two.variance)


def keyword_factory(factory):
    inputs, hidden, outputs = factory.args
    return partial(MLP, inputs=inputs, hidden=hidden, outputs=outputs)
