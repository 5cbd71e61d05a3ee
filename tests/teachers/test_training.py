"""Training of several models: results, batches and errors."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from training_helpers import QUICK, SEEDS, SMALL, difference, same_bits, train

from ensdistill.common.optimization import Optimization
from ensdistill.data.augmentation import ShiftImages
from ensdistill.models import CNN, MLP
from ensdistill.teachers.stack import BLOCK, train_stack


@pytest.mark.parametrize("way", ["stacked", "one_by_one", "side_by_side"])
def test_models_learn(digits, way):
    models = train(digits, MLP, SEEDS[:4], way=way, optimization=Optimization(steps=200, learning_rate=1e-2))
    test = torch.from_numpy(digits.test.inputs)
    with torch.no_grad():
        accuracy = [float((m(test).argmax(1).numpy() == digits.test.labels).mean()) for m in models]
    assert min(accuracy) > 0.88  # nearest centroid of the same rows reaches 0.87
    assert not any(m.training for m in models)


def test_a_model_alone_is_the_same_bits_as_among_others_one_by_one(digits):
    factory = functools.partial(CNN, channels=[4, 8], dropout=0.3)
    folds = [np.arange(200), np.arange(0, 200, 2), np.arange(50, 200)]
    among = train(digits, factory, SEEDS[:3], rows=folds, augment=ShiftImages(), way="one_by_one")
    (alone,) = train(digits, factory, [SEEDS[1]], rows=[folds[1]], augment=ShiftImages(), way="one_by_one")
    assert same_bits(alone.state_dict(), among[1].state_dict())
    assert not same_bits(alone.state_dict(), among[0].state_dict())


def test_steps_beyond_a_block_do_not_change_the_draws(digits):
    constant = functools.partial(
        Optimization, batch_size=32, learning_rate=3e-3, schedule="constant", warmup=0.0
    )
    long = train(digits, MLP, [1], optimization=constant(steps=BLOCK + 5), augment=ShiftImages())
    longer = train(digits, MLP, [1], optimization=constant(steps=BLOCK + 6), augment=ShiftImages())
    # One more step: at most (1 - beta1) / sqrt(1 - beta2) = 3.2 learning rates (Kingma and Ba, 2015, section
    # 2.1); other draws: 0.02.
    assert 0 < difference(long[0].state_dict(), longer[0].state_dict()) < 3.2 * 3e-3


def test_label_smoothing_and_weight_decay_are_used(digits):
    plain, smooth, decayed = (
        train(digits, MLP, [1], optimization=o)[0].state_dict()
        for o in (
            QUICK,
            Optimization(80, 32, 5e-3, label_smoothing=0.1),
            Optimization(80, 32, 5e-3, weight_decay=1.0),
        )
    )
    assert difference(plain, smooth) > 1e-3
    assert sum(float(v.norm()) for v in decayed.values()) < sum(float(v.norm()) for v in plain.values())


def test_set_smaller_than_the_batch(digits):
    (model,) = train(digits, MLP, [1], rows=[np.arange(3)])
    assert (
        model(torch.from_numpy(digits.labelled.inputs[:3])).argmax(1).numpy() == digits.labelled.labels[:3]
    ).all()


@pytest.mark.parametrize("way", ["stacked", "one_by_one", "side_by_side"])
def test_a_loss_that_is_not_finite_names_model_and_step(digits, way):
    inputs = digits.labelled.inputs.copy()
    inputs[7] = np.nan
    rows = [np.arange(8, 200), np.arange(0, 8)]
    with pytest.raises(FloatingPointError, match=r"second: the loss is nan at step 0 of 80"):
        train_stack(
            MLP,
            inputs,
            digits.labelled.labels,
            classes=10,
            seeds=[1, 2],
            rows=rows,
            names=["first", "second"],
            optimization=QUICK,
            way=way,
        )


def test_bad_arguments(digits):
    shared = MLP()
    with pytest.raises(ValueError, match=r"model 1 shares 1\.weight with model 0"):
        train(digits, lambda: shared, [1, 2])
    widths = iter([4, 5])
    with pytest.raises(ValueError, match="model 1 differ"):
        train(digits, lambda: MLP(64, [next(widths)]), [1, 2])
    with pytest.raises(ValueError, match=r"expected 10 outputs per sample.*got \[32, 7\]"):
        train(digits, functools.partial(MLP, outputs=7), [1])
    with pytest.raises(TypeError, match=r"factory: expected a torch\.nn\.Module; got int"):
        train(digits, lambda: 3, [1])
    with pytest.raises(ValueError, match=r"rows: model 0: expected positions in 0\.\.199"):
        train(digits, MLP, [1], rows=[np.array([200])])
    with pytest.raises(ValueError, match="way: expected"):
        train(digits, MLP, [1], way="both")
    with pytest.raises(ValueError, match=r"labels: model 0: expected 0\.\.8; row \d+ has 9"):
        train_stack(MLP, digits.labelled.inputs, digits.labelled.labels, classes=9, seeds=[1])
    with pytest.raises(ValueError, match="inputs: expected float32"):
        train_stack(
            MLP, digits.labelled.inputs.astype(np.float64), digits.labelled.labels, classes=10, seeds=[1]
        )


def test_training_leaves_the_global_random_state_alone(digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(digits, MLP, [1], optimization=Optimization(steps=2))
    assert torch.equal(torch.rand(3), expected)


def test_schedules():
    def rates(**options):
        optimizer, scheduler = Optimization(steps=100, learning_rate=1.0, **options).build(
            [torch.zeros(1, requires_grad=True)]
        )
        out = []
        for _ in range(100):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return np.array(out)

    constant = rates(schedule="constant", warmup=0.1)
    np.testing.assert_allclose(constant[:10], np.arange(1, 11) / 10)
    assert (constant[10:] == 1).all()
    cosine = rates(schedule="cosine", warmup=0.0)
    np.testing.assert_allclose(cosine, (1 + np.cos(np.pi * np.arange(100) / 100)) / 2)
    one_cycle = rates(schedule="one_cycle", warmup=0.3)
    assert one_cycle.argmax() == 29
    assert one_cycle[-1] < 1e-4 < one_cycle[0] < 0.05


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"learning_rate": float("nan")}, "learning_rate.*nan"),
        ({"warmup": 1.0}, "warmup"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"schedule": "linear"}, "schedule.*linear"),
        ({"weight_decay": -1}, "weight_decay"),
    ],
)
def test_bad_optimization(options, words):
    with pytest.raises(ValueError, match=words):
        Optimization(**options)


def test_only_the_models_that_are_to_use_it_are_augmented(digits):
    def trained(way, augmented, seeds=(1, 1)):
        return train(digits, SMALL, list(seeds), way=way, augment=ShiftImages(), augmented=augmented)

    plain, shifted = (model.state_dict() for model in trained("one_by_one", [False, True]))
    mixed = [model.state_dict() for model in trained("stacked", [False, True])]
    assert difference(mixed[0], plain) < 1e-4
    assert difference(mixed[1], shifted) < 1e-4
    assert difference(plain, shifted) > 1e-2
    with pytest.raises(ValueError, match="augmented: expected 2 values"):
        trained("auto", [True])


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("steps", range(1, 41))
def test_every_length_has_a_schedule(steps, schedule):
    # k / steps is a warm-up of k steps, and 1 / 2 the one of a cycle that is stretched to two.
    for warmup in sorted({0, 0.05, 0.1, 0.5, 0.99, *(k / steps for k in range(steps))}):
        optimization = Optimization(steps=steps, warmup=warmup, schedule=schedule, learning_rate=0.01)
        parameter = nn.Parameter(torch.ones(1))
        optimizer, scheduler = optimization.build([parameter])
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            parameter.grad = torch.ones(1)
            optimizer.step()
            scheduler.step()
        assert all(0 < rate <= 0.01 * (1 + 1e-9) for rate in rates), (warmup, rates)
        assert parameter.item() < 1
        # Unless nearly all of it is warm-up, it gets to where it was meant to be.
        assert max(rates) > 0.0049 or warmup * steps > steps - 1, (warmup, rates)


@pytest.mark.parametrize("way", ["stacked", "one_by_one", "side_by_side"])
def test_a_watcher_gets_losses_and_accuracies(digits, way):
    seen = []
    train(
        digits,
        MLP,
        [1, 2],
        way=way,
        watch=seen.append,
        names=["a", "b"],
        optimization=Optimization(steps=96, learning_rate=1e-2),
    )
    if way != "side_by_side":
        assert [s.step for s in seen] == ([32, 64, 96] if way == "stacked" else [32, 64, 96] * 2)
    assert {n for s in seen for n in s.names} == {"a", "b"}
    own = [s for s in seen if "a" in s.names]
    assert [s.step for s in own] == [32, 64, 96]
    losses, accuracies = [s.losses[0] for s in own], [s.accuracies[0] for s in own]
    assert losses == sorted(losses, reverse=True)
    assert accuracies == sorted(accuracies)
    assert 2.5 > losses[0] > losses[-1] > 0
    assert accuracies[-1] > 0.8
