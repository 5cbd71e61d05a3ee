"""Settings that are ``auto``: their numbers, and that a training by these numbers is the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small_student import ROWS, STUDENT, small_cache
from torch import nn

from ensdistill import Ensemble, Optimization, Rows, StudentOptimization, StudentTrainer
from ensdistill.cache import cache_targets
from ensdistill.common.checkpoint import CheckpointMismatch
from ensdistill.models import MLP, BagOfNgrams
from ensdistill.student import automatic, distill_many
from ensdistill.student.automatic import AUGMENTED, FIRST, LABELS, TARGETS, Automatic
from ensdistill.teachers.members import ArrayMember

LONG = StudentOptimization(steps=256)
SHORT = StudentOptimization(steps=64)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def looked_for():
    """Trainings of 256 steps are long enough for their learning rate to be looked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automatic, "FROM", 256)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return small_cache(tmp_path_factory.mktemp("automatic"))


@pytest.fixture(scope="module")
def trained(cache):
    """A student whose batch size and learning rate are found."""
    return StudentTrainer(LONG).distill(STUDENT, ROWS, cache)


def same(one, other):
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def never(*_):
    raise AssertionError("the learning rate was looked for again")


# Steps and batch size


def test_steps_grow_with_the_rows_and_shrink_with_the_work():
    assert [TARGETS.steps(rows, 256, 2e7) for rows in (10, 20_000, 10**6)] == [2016, 4704, 25_024]
    assert TARGETS.steps(100_000, 256, 1e8) == 10_016  # 1e12 operations
    assert TARGETS.steps(100_000, 256, 1e6) == 23_456
    assert TARGETS.steps(100_000, 256, 1e13) == 1984  # five epochs, whatever they cost
    assert [LABELS.steps(rows, 64, 1e7) for rows in (10, 3000, 10**6)] == [1024, 4704, 6016]
    assert AUGMENTED.steps(200, 50, 1e7) == 4000


def test_batches_are_a_quarter_of_few_rows_and_can_be_divided(cache):
    def size(**settings):
        return StudentTrainer(replace(SHORT, **settings)).numbers(STUDENT, ROWS, cache).batch_size

    assert [size(), size(accumulate=3), size(batch_size=7)] == [32, 33, 7]
    many = Rows(np.zeros((5000, 16), np.float32), np.arange(5000), np.arange(5000) % 5)
    assert StudentTrainer(SHORT).numbers(STUDENT, many, classes=5).batch_size == 128


def test_more_rows_with_labels_have_larger_batches_as_long_as_these_make_more_epochs():
    cheap, dear = (partial(lambda each, size: 1e7 + each * size, each) for each in (1e4, 1e7))
    assert [LABELS.batch(rows, cheap) for rows in (500, 3800, 3900, 7600, 7800, 10**6)] == [
        *(64, 64, 128, 128, 256, 256)
    ]
    assert LABELS.batch(25_600, dear) == 64  # ten epochs by any size
    assert AUGMENTED.batch(60_000, cheap) == 64


def test_operations_are_those_of_all_layers(cache):
    seen = []

    def keep(rows, size, work):
        seen.append((rows, size, work))
        return 96

    rule = replace(TARGETS, batches=(16,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automatic, "TARGETS", rule)
        patch.setattr(automatic.Rule, "steps", lambda _, *given: keep(*given))
        StudentTrainer(StudentOptimization(learning_rate=0.1)).distill(STUDENT, ROWS, cache)
    layers, parameters = 2 * (16 * 8 + 8 * 5), 16 * 8 + 8 + 8 * 5 + 5
    assert seen == [(150, 16, 3 * 16 * layers + 30 * parameters + 1e7)]


class Encoder(nn.TransformerEncoderLayer):
    """One layer, whose fused form of inference no counter of operations knows."""

    def __init__(self):
        super().__init__(16, 2, 32, batch_first=True)

    def forward(self, x):
        return super().forward(x[:, None].expand(-1, 3, -1)).mean(1)


def test_operations_of_attention_are_counted():
    rows = replace(ROWS, labels=np.arange(150) % 16)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        count = automatic._operations
        patch.setattr(automatic, "_operations", lambda *given: found.append(count(*given)) or found[-1])
        StudentTrainer(StudentOptimization(learning_rate=0.1)).numbers(Encoder, rows, classes=16)
    assert found[0] >= 2 * 3 * (4 * 16 * 16 + 2 * 16 * 32)  # three tokens through all weights


# The learning rate


@pytest.mark.parametrize("lowest", [-3.3, -2.0, -1.8, -0.1])
def test_the_lowest_point_of_a_parabola_is_found_from_afar(lowest):
    calls = []

    def score(rate):
        calls.append(rate)
        return (math.log10(rate) - lowest) ** 2

    assert math.log10(automatic._lowest(score, 0.01, 9)) == pytest.approx(lowest, abs=1e-6)
    assert len(calls) == len(set(calls)) <= 9


def test_a_rate_that_diverges_is_none():
    def score(rate):
        return math.inf if rate > 0.02 else -rate

    assert automatic._lowest(score, 0.01, 7) == 0.01
    assert automatic._lowest(lambda rate: math.inf if rate > 0.004 else rate, 0.01, 7) <= 0.004


def test_a_record_holds_a_rate_that_diverged():
    found = Automatic(("learning_rate",), 64, 8, 0.01, ((0.1, math.inf), (0.01, 0.5)), "kl", 64)
    assert Automatic.of_record(json.loads(json.dumps(found.record(), allow_nan=False))) == found
    assert str(found).endswith("(kl of 64 steps: 0.5 at 0.01, diverged at 0.1)")


def test_the_rate_is_that_of_the_best_short_training(trained):
    found = trained.automatic
    assert found.names == ("batch_size", "learning_rate")
    assert (found.steps, found.metric, found.trial_steps) == (256, "kl", 64)
    scores = dict(found.tried)
    assert len(scores) >= 3
    lowest = automatic._lowest(lambda rate: scores[min(scores, key=lambda k: abs(k - rate))], 0.01, 7)
    assert found.learning_rate == float(f"{0.4 * lowest:.2g}")
    assert min(scores.values()) < 0.9 * max(scores.values())


def test_a_bag_of_ngrams_learns_at_a_tenth_of_the_rate(tmp_path, monkeypatch):
    ids = np.random.default_rng(0).integers(1, 50, size=(120, 6))
    rows = Rows(ids, np.arange(120), ids[:, 0] % 3)
    one = ArrayMember(ids, name="one", logits=np.eye(3)[ids[:, 0] % 3], classes=["a", "b", "c"])
    targets = cache_targets(Ensemble.from_members([one]), rows, tmp_path / "targets")
    monkeypatch.setattr(automatic, "_lowest", lambda score, first, most: 2.0)

    def found(width, *cache, **more):
        factory = partial(BagOfNgrams, buckets=50, width=width, hidden=[24], outputs=3)
        return StudentTrainer(LONG).numbers(factory, rows, *cache, **more).learning_rate

    assert found(200, targets) == pytest.approx(0.08)  # more parameters in the embeddings than behind them
    assert found(1, targets) == pytest.approx(0.8)
    assert found(200, classes=3) == pytest.approx(0.2)
    assert found(1, classes=3) == 2.0


def test_the_same_numbers_as_settings_train_the_same_student(cache, trained):
    explicit = StudentOptimization(**trained.automatic.settings)
    again = StudentTrainer(explicit).distill(STUDENT, ROWS, cache)
    assert same(again, trained)
    assert again.automatic is None


def test_rates_are_relative_to_the_default_of_the_optimizer(cache):
    def first(**settings):
        return StudentTrainer(replace(SHORT, **settings)).numbers(STUDENT, ROWS, cache).learning_rate

    assert first() == FIRST * 1e-3
    assert first(optimizer=torch.optim.Adagrad) == FIRST * 1e-2
    large = StudentTrainer(SHORT).numbers(partial(MLP, 16, [4000, 16], 5), ROWS, cache)
    assert 1e-3 < large.learning_rate < FIRST * 1e-3


def test_labels_are_judged_by_their_nll_on_rows_that_are_held_out():
    seen = []

    class Seen(StudentTrainer):
        def training_step(self, model, batch, loss):
            seen.append((self.optimization.learning_rate, set(batch.uids.tolist())))
            return super().training_step(model, batch, loss)

    found = Seen(LONG).numbers(STUDENT, ROWS, classes=5)
    assert found.metric == "nll"
    rows = {rate: set().union(*(uids for own, uids in seen if own == rate)) for rate, _ in found.tried}
    assert {len(own) for own in rows.values()} == {120}  # all but a fifth, the same for every rate
    assert len(set().union(*rows.values())) == 120


def test_few_rows_are_judged_by_none(cache):
    found = StudentTrainer(LONG).numbers(STUDENT, ROWS.take(np.arange(49)), cache)
    assert (found.tried, found.learning_rate) == ((), 0.01)


def test_a_loss_with_labels_keeps_some_of_few_labelled_rows():
    for place in range(60):
        labels = np.full(60, -100)
        labels[place] = 1
        rows, held = automatic._some_rows(Rows(ROWS.inputs[:60], np.arange(60), labels), 20, seed=0)
        assert (rows.labels == 1).sum() == 1
        assert len(held) >= 11


# Checkpoints, logs, records


def test_a_training_goes_on_with_the_numbers_of_its_checkpoint(cache, trained, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(done, total):
        if total == 256 and done >= 150:
            raise Stop

    train = partial(StudentTrainer(LONG).distill, STUDENT, ROWS, cache, folder=tmp_path, checkpoint_every=64)
    with pytest.raises(Stop):
        train(progress=stop)
    monkeypatch.setattr(automatic, "_tried", never)
    resumed = train()
    assert same(resumed, trained)
    assert resumed.automatic == trained.automatic
    (settings,) = [
        json.loads(line)["settings"]
        for line in (tmp_path / "log.jsonl").read_text().splitlines()
        if "settings" in line
    ]
    assert settings["optimization.learning_rate"] == trained.automatic.learning_rate
    assert settings["automatic"] == str(trained.automatic)


def test_a_checkpoint_of_numbers_that_were_set_is_another_training(cache, trained, tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    explicit = StudentOptimization(**trained.automatic.settings)
    train = partial(StudentTrainer(explicit).distill, STUDENT, ROWS, cache)
    train(checkpoint=file, checkpoint_every=64)
    with pytest.raises(CheckpointMismatch, match="automatic"):
        StudentTrainer(LONG).distill(STUDENT, ROWS, cache, checkpoint=file)


def test_progress_counts_the_short_trainings_and_ends_at_the_steps(cache):
    seen = []
    StudentTrainer(LONG).distill(
        STUDENT, ROWS, cache, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[0] == (32, 256 + 7 * 64)
    assert seen[-1] == (256, 256)


def test_a_record_makes_the_same_numbers(trained):
    record = json.loads(json.dumps(trained.automatic.record()))
    assert Automatic.of_record(record) == trained.automatic


def test_students_of_a_stack_have_numbers_of_their_own(cache, trained):
    rates = [LONG, replace(LONG, learning_rate=0.001)]
    trainer, seeds = StudentTrainer(LONG), [0, 0]
    one, other = distill_many(
        trainer, STUDENT, ROWS, cache, seeds=seeds, optimizations=rates, way="one_by_one"
    )
    assert same(one, trained)
    assert not same(one, other)


# Members, refusals


def test_members_make_forty_epochs_and_large_ones_have_lower_rates():
    steps = [Optimization().for_member(rows, 100).steps for rows in (10, 5000, 10**6)]
    assert steps == [500, 3125, 6000]
    rates = [Optimization().for_member(10, size).learning_rate for size in (0, 50_000, 200_000, 20_000_000)]
    assert rates == [0.01, 0.01, 0.005, 0.0005]
    given = Optimization(steps=7, learning_rate=0.1, schedule="cosine")
    assert given.for_member(10, 10**9) == replace(given, batch_size=64)
    members = Ensemble.train(STUDENT, (ROWS.inputs[:], ROWS.labels), members=1, optimization=Optimization(7))
    assert len(members.members) == 1


def test_settings_that_are_neither_numbers_nor_auto_are_refused():
    for name in ("steps", "batch_size", "learning_rate"):
        with pytest.raises(ValueError, match=f"optimization.{name}: expected a number, or auto; got 'many'"):
            Optimization(**{name: "many"})
    with pytest.raises(ValueError, match="steps: expected at least 1, or auto; got 0"):
        Optimization(steps=0)
    with pytest.raises(ValueError, match="learning_rate: expected a positive number, or auto"):
        StudentOptimization(learning_rate=-1.0)


def test_an_optimizer_is_not_built_of_auto():
    for build in (lambda o, m: o.build(m.parameters()), lambda o, m: o.build_for(m)):
        with pytest.raises(ValueError, match="learning_rate: expected a number; got auto"):
            build(StudentOptimization(5, 8), nn.Linear(2, 2))


class PassesOn(torch.optim.SGD):
    """An optimiser whose signature names no argument."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)


class WithoutRate(torch.optim.SGD):
    """An optimiser that takes no learning rate."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)


def test_a_rate_is_found_for_an_optimizer_that_does_not_name_it(cache):
    settings = replace(SHORT, optimizer=PassesOn, weight_decay=0.0)
    assert StudentTrainer(settings).numbers(STUDENT, ROWS, cache).learning_rate == FIRST * 1e-3
    with pytest.raises(ValueError, match=r"optimization.optimizer: WithoutRate: .*'lr'"):
        StudentTrainer(replace(settings, optimizer=WithoutRate)).distill(STUDENT, ROWS, cache)


class Empty(nn.Linear):
    """Its only trained parameter has no elements."""

    def __init__(self):
        super().__init__(16, 5)
        self.requires_grad_(False)
        self.none = nn.Parameter(torch.zeros(0))


def test_a_student_without_a_parameter_to_train_is_refused(cache):
    with pytest.raises(ValueError, match="factory: Empty has no parameter that can be trained"):
        StudentTrainer(SHORT).distill(Empty, ROWS, cache)
