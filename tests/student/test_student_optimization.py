"""A student's optimiser, schedule, groups, clipping and accumulation: against loops written out by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedules

from ensdistill import Ensemble, Optimization, Rows, StudentTrainer, cache_targets
from ensdistill.common.checkpoint import CheckpointMismatch
from ensdistill.common.optimizers import ParameterGroup, StudentOptimization
from ensdistill.common.random import BatchOrder, derive_seed
from ensdistill.models import MLP

N, SIZE, STEPS = 90, 24, 70
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
Y = np.arange(N) % 3
ROWS = Rows(X, np.arange(N) * 5, Y)
STUDENT = partial(MLP, 6, [7], 3)
SGD = StudentOptimization(
    steps=STEPS,
    batch_size=SIZE,
    learning_rate=0.05,
    weight_decay=0.01,
    warmup=0.0,
    optimizer=partial(torch.optim.SGD, momentum=0.9),
    schedule=partial(schedules.StepLR, step_size=20, gamma=0.5),
)
GROUPS = (ParameterGroup("*bias", weight_decay=0.0), ParameterGroup("1.weight", learning_rate=0.1))
# Sums of 24 float32 gradients in another order; 70 steps of momentum 0.9 add up the differences.
CLOSE = {"atol": 2e-6, "rtol": 2e-5}


pytestmark = pytest.mark.usefixtures("one_thread")


def by_hand(optimization, make, steps=STEPS, clip=None):
    """The same student by a plain loop; ``make`` returns optimiser and scheduler of the model."""
    torch.manual_seed(derive_seed("student", 0))
    model = STUDENT()
    optimizer, scheduler = make(model)
    order = BatchOrder(N, SIZE, derive_seed("student batches", 0))
    for step in range(steps):
        rows = order(step)
        loss = F.cross_entropy(model(torch.from_numpy(X[rows])), torch.from_numpy(Y[rows]))
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return model


def direct(optimization, factory=STUDENT, rows=ROWS, **more):
    return StudentTrainer(optimization).direct(factory, rows, classes=3, seed=0, **more)


def same_bits(model, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


def sgd(model, scheduler=lambda o: schedules.StepLR(o, 20, 0.5), groups=None):
    optimizer = torch.optim.SGD(groups or model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    return optimizer, scheduler(optimizer)


def grouped(model):
    named = dict(model.named_parameters())
    first = next(name for name in named if name == "1.weight")
    biases = [p for name, p in named.items() if name.endswith("bias")]
    rest = [p for name, p in named.items() if not name.endswith("bias") and name != first]
    return [
        {"params": rest},
        {"params": biases, "weight_decay": 0.0},
        {"params": [named[first]], "lr": 0.005},
    ]


def adamw(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    return optimizer, schedules.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS, pct_start=0.1)


def warm(optimizer):
    """A rise over 7 steps, then a cosine over the others, as a plain function of the step."""
    return schedules.LambdaLR(
        optimizer, lambda s: (s + 1) / 7 if s < 7 else 0.5 * (1 + np.cos(np.pi * (s - 7) / (STEPS - 7)))
    )


def test_the_default_has_the_bits_of_the_plain_optimization():
    plain = Optimization(steps=STEPS, batch_size=SIZE, learning_rate=3e-3)
    assert same_bits(direct(plain).module, by_hand(plain, adamw))
    own = StudentOptimization(STEPS, SIZE, 3e-3, weight_decay=0.01, schedule="one_cycle")
    assert same_bits(direct(own).module, direct(plain).module)


def test_optimizer_and_schedule_by_class_have_the_bits_of_a_hand_written_loop():
    assert same_bits(direct(SGD).module, by_hand(SGD, sgd))


def test_groups_have_their_own_rate_and_decay():
    expected = by_hand(SGD, lambda m: sgd(m, groups=grouped(m)))
    assert same_bits(direct(replace(SGD, groups=GROUPS)).module, expected)
    assert not same_bits(direct(SGD).module, expected)


def test_the_first_matching_group_has_a_parameter():
    optimizer, _ = replace(
        SGD, groups=[ParameterGroup("1.bias", learning_rate=3.0), ParameterGroup("*bias")]
    ).build_for(STUDENT())
    assert [(len(g["params"]), round(g["lr"], 6)) for g in optimizer.param_groups] == [
        (2, 0.05),
        (1, 0.15),
        (1, 0.05),
    ]


def test_a_factor_of_zero_freezes_a_group():
    torch.manual_seed(derive_seed("student", 0))
    start = STUDENT().state_dict()
    kept = StudentOptimization(steps=20, batch_size=SIZE, groups=[ParameterGroup("1.*", learning_rate=0.0)])
    trained = direct(kept).module.state_dict()
    assert {name for name in start if torch.equal(start[name], trained[name])} == {
        name for name in start if name.startswith("1.")
    }


def test_clipping_is_that_of_torch():
    clipped = by_hand(SGD, sgd, clip=0.05)
    assert same_bits(direct(replace(SGD, clip_norm=0.05)).module, clipped)
    assert not same_bits(by_hand(SGD, sgd), clipped)


def test_a_class_begins_after_the_warm_up_and_its_length_is_that_of_the_steps():
    cosine = replace(SGD, warmup=0.1, schedule=schedules.CosineAnnealingLR)
    expected = by_hand(SGD, lambda m: sgd(m, warm))
    for got, want in zip(direct(cosine).module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.NAdam])
def test_schedules_by_name_drive_any_optimizer(name, optimizer):
    made, scheduler = replace(
        SGD, steps=10, warmup=0.2, schedule=name, optimizer=optimizer, groups=GROUPS
    ).build_for(STUDENT())
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in made.param_groups])
        made.step()
        scheduler.step()
    assert np.allclose(np.array(rates)[:, 0] * 0.1, np.array(rates)[:, 2])  # the group's factor, throughout
    assert max(rates)[0] == pytest.approx(0.05, rel=0.03)
    assert optimizer is not torch.optim.SGD or made.param_groups[0]["momentum"] == 0  # as it was set


# Accumulation


def labelled_rows(weights=False):
    labels = np.where(np.random.default_rng(1).random(N) < 0.3, Y, -100)
    return Rows(X, np.arange(N) * 5, labels, **({"weights": np.linspace(0.2, 3, N)} if weights else {}))


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    torch.manual_seed(1)
    members, folder = [nn.Linear(6, 3) for _ in range(2)], tmp_path_factory.mktemp("accumulated")
    ensemble = Ensemble.from_members(members)
    return {
        codec: cache_targets(ensemble, ROWS, folder / codec, codec=codec, mixture_at=at)
        for codec, at in (("uint8", None), ("topk-2", 2.0))
    }


@pytest.mark.parametrize("codec", ["uint8", "topk-2"])
@pytest.mark.parametrize("parts", [2, 24])
@pytest.mark.parametrize("weights", [False, True], ids=["equal", "weighted"])
def test_accumulation_is_the_whole_batch(caches, codec, parts, weights):
    rows, whole = labelled_rows(weights), replace(SGD, steps=12)
    trained = [
        StudentTrainer(o, temperature=2.0, alpha=0.4).distill(STUDENT, rows, caches[codec])
        for o in (whole, replace(whole, accumulate=parts))
    ]
    for got, want in zip(trained[1].module.parameters(), trained[0].module.parameters(), strict=True):
        torch.testing.assert_close(got, want, **CLOSE)
    np.testing.assert_allclose(trained[1].losses, trained[0].losses, rtol=1e-5)


def test_accumulation_of_hard_labels_clips_the_whole_gradient():
    parts = direct(replace(SGD, accumulate=4, clip_norm=0.05)).module
    for got, want in zip(parts.parameters(), by_hand(SGD, sgd, clip=0.05).parameters(), strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


def test_a_step_of_ones_own_gets_the_parts():
    class Watching(StudentTrainer):
        def training_step(self, model, batch, loss):
            seen.append((batch.step, batch.uids.tolist()))
            return super().training_step(model, batch, loss)

    seen, order = [], BatchOrder(N, SIZE, derive_seed("student batches", 0))
    Watching(replace(SGD, steps=2, accumulate=3)).direct(STUDENT, ROWS, classes=3)
    assert [step for step, _ in seen] == [0, 0, 0, 1, 1, 1]
    assert [uid for _, uids in seen[3:] for uid in uids] == ROWS.uids[order(1)].tolist()


def test_settings_with_partials_of_the_same_arguments_are_equal():
    def settings(momentum, step=5):
        return StudentOptimization(
            steps=5,
            optimizer=partial(torch.optim.SGD, momentum=momentum),
            schedule=partial(torch.optim.lr_scheduler.StepLR, step_size=step),
        )

    assert settings(0.9) == settings(0.9)
    assert hash(settings(0.9)) == hash(settings(0.9))
    assert settings(0.9) != settings(0.8)
    assert settings(0.9) != settings(0.9, step=4)
    assert settings(0.9) != Optimization(steps=5)
    assert StudentOptimization(steps=5) == Optimization(steps=5, weight_decay=0.02, schedule="cosine")


@pytest.mark.parametrize(("parts", "remedy"), [(5, "choose 4 or 6"), (25, "choose 24")])
def test_an_accumulation_that_does_not_divide_is_refused(parts, remedy):
    with pytest.raises(ValueError, match=rf"accumulate: expected a divisor of .*batch_size.*{remedy}"):
        direct(replace(SGD, accumulate=parts))


def test_parts_of_a_batch_have_batch_norms_statistics_of_their_own():
    def norms():
        return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    with pytest.warns(UserWarning, match=r"BatchNorm \(1\) takes mean and variance of 12 rows at a time"):
        direct(replace(SGD, steps=2, accumulate=2), norms)


# Resume


class Killed(Exception):
    pass


RESUMED = {
    "milestones": replace(SGD, schedule=partial(schedules.MultiStepLR, milestones=[10, 40, 50])),
    "warm": replace(SGD, warmup=0.2, schedule=schedules.CosineAnnealingLR),
    "cyclic": replace(SGD, schedule=partial(schedules.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=9)),
    "nadam": replace(SGD, optimizer=torch.optim.NAdam, schedule="one_cycle", groups=GROUPS),
    "rprop": replace(SGD, optimizer=torch.optim.Rprop, weight_decay=0.0, schedule="constant"),
    "parts": StudentOptimization(steps=STEPS, batch_size=SIZE, groups=GROUPS, clip_norm=0.1, accumulate=3),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_training_has_the_same_bits(name, tmp_path):
    optimization, file = RESUMED[name], tmp_path / "checkpoint.safetensors"
    factory = partial(STUDENT, dropout=0.1)

    def kill(done, total):
        if done == 32:
            raise Killed

    with pytest.raises(Killed):
        direct(optimization, factory, checkpoint=file, checkpoint_every=1, progress=kill)
    done = []
    resumed = direct(optimization, factory, checkpoint=file, progress=lambda d, t: done.append(d))
    assert done == [64, STEPS]
    assert same_bits(resumed.module, direct(optimization, factory).module)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    direct(SGD, checkpoint=file, checkpoint_every=1)
    kept = file.read_bytes()
    for other, field in (
        (replace(SGD, clip_norm=3.0), r"clip_norm: the checkpoint has \S+, now 3.0"),
        (replace(SGD, accumulate=2), r"accumulate: the checkpoint has 1, now 2"),
        (replace(SGD, groups=GROUPS), "groups"),
        (
            replace(SGD, optimizer=partial(torch.optim.SGD, momentum=0.8)),
            "optimizer.init_args.momentum: .* 0.8",
        ),
        (
            replace(SGD, schedule=partial(schedules.StepLR, step_size=20, gamma=0.25)),
            "schedule.*gamma: .* 0.25",
        ),
    ):
        with pytest.raises(CheckpointMismatch, match=f"another training:\n  optimization.{field}"):
            direct(other, checkpoint=file)
        assert file.read_bytes() == kept


# Refusals


def refused(error, match, **settings):
    with pytest.raises(error, match=match):
        StudentOptimization(**settings)


def test_settings_out_of_their_range_are_refused():
    refused(ValueError, "clip_norm: expected a positive number; got 0", clip_norm=0)
    refused(ValueError, "accumulate: expected at least 1; got 0", accumulate=0)
    refused(ValueError, "accumulate: expected at least 1; got 2.0", accumulate=2.0)
    refused(ValueError, "schedule: expected one_cycle, cosine or constant; got 'linear'", schedule="linear")
    refused(TypeError, "optimizer: expected a class of Optimizer.*got builtins.str", optimizer="sgd")
    refused(TypeError, "optimizer: expected a class of Optimizer.*Linear", optimizer=nn.Linear)
    refused(TypeError, "schedule: expected a class of LRScheduler.*SGD", schedule=torch.optim.SGD)
    refused(TypeError, "positional arguments", optimizer=partial(torch.optim.SGD, 0.1))
    refused(TypeError, "plain data", optimizer=partial(torch.optim.SGD, momentum=torch.ones(())))
    refused(ValueError, "set optimization.learning_rate", optimizer=partial(torch.optim.SGD, lr=0.1))
    refused(ValueError, "set optimization.weight_decay", optimizer=partial(torch.optim.SGD, weight_decay=0.1))
    refused(ValueError, "LBFGS computes the loss by itself", optimizer=torch.optim.LBFGS, weight_decay=0.0)
    refused(ValueError, "Rprop has no weight decay; set weight_decay=0", optimizer=torch.optim.Rprop)
    refused(ValueError, "ReduceLROnPlateau waits", schedule=schedules.ReduceLROnPlateau)
    refused(TypeError, "groups: expected a list of ParameterGroup; got dict", groups={"*bias": 0.0})
    refused(TypeError, "groups: expected a list of ParameterGroup; got str", groups=["*bias"])
    with pytest.raises(ValueError, match="learning_rate: expected a number of at least 0; got -1"):
        ParameterGroup("*", learning_rate=-1)


def test_arguments_that_an_optimizer_does_not_take_are_refused_by_its_name():
    wrong = replace(SGD, optimizer=partial(torch.optim.SGD, momentun=0.9))
    with pytest.raises(ValueError, match=r"optimization.optimizer: SGD: .*momentun"):
        direct(wrong)
    with pytest.raises(ValueError, match=r"optimization.schedule: StepLR: .*step_size"):
        direct(replace(SGD, schedule=schedules.StepLR))


def test_a_group_without_a_parameter_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"groups: 'head.\*' matches no parameter.*weight"):
        direct(replace(SGD, groups=[ParameterGroup("head.*")]))


def test_members_refuse_what_only_a_student_has():
    x, y = X.copy(), Y.copy()
    settings = replace(SGD, clip_norm=1.0)
    with pytest.raises(
        ValueError, match=r"members are trained by AdamW.*schedule=StepLR.*optimizer=SGD, clip_norm=1.0"
    ):
        Ensemble.train(STUDENT, (x, y), members=2, optimization=settings)
    plain = StudentOptimization(steps=5, batch_size=8)
    assert plain.plain() == Optimization(steps=5, batch_size=8, weight_decay=0.02, schedule="cosine")
    Ensemble.train(STUDENT, (x, y), members=2, optimization=plain)


def test_accumulated_losses_are_checked_like_others():
    class Bad(StudentTrainer):
        def training_step(self, model, batch, loss):
            return model(batch.inputs)

    with pytest.raises(TypeError, match="floating-point tensor"):
        Bad(replace(SGD, accumulate=2)).direct(STUDENT, ROWS, classes=3)
