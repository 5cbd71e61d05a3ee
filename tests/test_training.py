"""Training of several models: alone, one by one, side by side, stacked, killed and resumed."""

import functools

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

from ensdistill.augmentation import ShiftImages
from ensdistill.checkpoint import load_checkpoint, save_checkpoint
from ensdistill.data import Digits
from ensdistill.models import CNN, MLP
from ensdistill.optimization import Optimization
from ensdistill.training import BLOCK, stack, train_stack, train_trajectory, ways
from ensdistill.training.dropout import OwnDropout, keys

QUICK = Optimization(steps=80, batch_size=32, learning_rate=5e-3)


@pytest.fixture(scope="module")
def digits():
    return Digits().split(seed=0)


def train(digits, factory, seeds, **options):
    options.setdefault("optimization", QUICK)
    return train_stack(factory, digits.labelled.inputs, digits.labelled.labels, classes=10, seeds=seeds, **options)


def difference(a, b):
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def same_bits(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


SMALL = functools.partial(CNN, channels=[4, 8])
SEEDS = [11, 12, 13, 14, 15]


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


def test_a_model_alone_is_the_same_as_in_a_stack_up_to_rounding(digits):
    # AdamW divides by the root of a running square, so that rounding (1e-7) of a small gradient grows with the steps: measured
    # 2e-6 after 80 steps; a wrong batch, draw or schedule moves parameters by more than 1e-2.
    rows = [np.arange(i, 200) for i in range(5)]
    among = train(digits, SMALL, SEEDS, rows=rows, augment=ShiftImages(), way="stacked")
    (alone,) = train(digits, SMALL, [SEEDS[3]], rows=[rows[3]], augment=ShiftImages(), way="one_by_one")
    assert difference(alone.state_dict(), among[3].state_dict()) < 1e-4
    (other,) = train(digits, SMALL, [SEEDS[3]], rows=[rows[4]], augment=ShiftImages(), way="one_by_one")
    assert difference(other.state_dict(), among[3].state_dict()) > 1e-2


def test_steps_beyond_a_block_do_not_change_the_draws(digits):
    constant = functools.partial(Optimization, batch_size=32, schedule="constant", warmup=0.0)
    long = train(digits, MLP, [1], optimization=constant(steps=BLOCK + 5), augment=ShiftImages())
    longer = train(digits, MLP, [1], optimization=constant(steps=BLOCK + 6), augment=ShiftImages())
    # One more step: at most (1 - beta1) / sqrt(1 - beta2) = 3.2 learning rates (Kingma and Ba, 2015, section 2.1); other draws: 0.02.
    assert 0 < difference(long[0].state_dict(), longer[0].state_dict()) < 3.2 * 3e-3


def test_label_smoothing_and_weight_decay_are_used(digits):
    plain, smooth, decayed = (
        train(digits, MLP, [1], optimization=o)[0].state_dict()
        for o in (QUICK, Optimization(80, 32, 5e-3, label_smoothing=0.1), Optimization(80, 32, 5e-3, weight_decay=1.0))
    )
    assert difference(plain, smooth) > 1e-3
    assert sum(float(v.norm()) for v in decayed.values()) < sum(float(v.norm()) for v in plain.values())


def test_set_smaller_than_the_batch(digits):
    (model,) = train(digits, MLP, [1], rows=[np.arange(3)])
    assert (model(torch.from_numpy(digits.labelled.inputs[:3])).argmax(1).numpy() == digits.labelled.labels[:3]).all()


def normed():
    # No bias before the normalisation: its gradient would be nothing but rounding, which AdamW scales up to whole steps.
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def test_batch_norm_buffers_are_each_models_own(digits):
    stacked = train(digits, normed, SEEDS[:4], way="stacked")
    alone = train(digits, normed, SEEDS[:4], way="one_by_one")
    for a, b in zip(stacked, alone, strict=True):
        assert a[2].num_batches_tracked == QUICK.steps
        assert difference(a.state_dict(), b.state_dict()) < 1e-3
    assert difference(stacked[0].state_dict(), stacked[1].state_dict()) > 1e-2


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.layer(x) if x.sum().item() > 0 else self.layer(-x)


def test_what_cannot_be_stacked_is_trained_one_by_one_with_a_reason(digits):
    with pytest.warns(UserWarning, match=r"Branching can't be trained as a stack: .*item"):
        models = train(digits, Branching, SEEDS[:4])
    assert len(models) == 4


class Subspace(nn.Linear):
    """Sees pixels of its own, which no parameter knows of."""

    def __init__(self):
        super().__init__(20, 10)
        self.pixels = torch.randperm(64)[:20].tolist()
        nn.init.zeros_(self.weight)

    def forward(self, x):
        return super().forward(x.flatten(1)[:, self.pixels])


class HiddenRate(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
        self.rate = 0.1 + 0.8 * float(torch.rand(1))

    def forward(self, x):
        return super().forward(F.dropout(x.flatten(1), self.rate, self.training))


class Recomputed(nn.Linear):
    """Forgets its activations, and finds out in the backward pass that vmap has gone."""

    def __init__(self):
        super().__init__(64, 10)

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(super().forward, x.flatten(1), use_reentrant=False)


class WithinVmap(nn.Linear):
    """Fails where it is vmapped."""

    def __init__(self, error):
        super().__init__(64, 10)
        self.error = error

    def forward(self, x):
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            raise self.error
        return super().forward(x.flatten(1))


def rates():
    return nn.Sequential(nn.Flatten(), nn.Dropout(float(torch.rand(1))), nn.Linear(64, 10))


def attentive():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    return nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten(), nn.Linear(64, 10))


def alpha():
    return nn.Sequential(nn.Flatten(), nn.AlphaDropout(0.3), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (Subspace, "model [1-3] computes something else than model 0 by what is no parameter of it"),
        (HiddenRate, "model [1-3] computes something else"),
        (rates, "model 1 is built otherwise than model 0"),
        (Recomputed, ""),
        (functools.partial(WithinVmap, TypeError("no such thing")), "no such thing"),
        (functools.partial(WithinVmap, MemoryError("no room")), "no room"),
    ],
)
@pytest.mark.parametrize("way", ["auto", "stacked", "measured"])
def test_what_a_stack_would_train_otherwise_is_not_stacked(digits, monkeypatch, factory, reason, way):
    monkeypatch.setattr(stack, "MEASURE_FROM", 1)
    monkeypatch.setattr(ways, "workers", lambda count: 1)
    once = Optimization(steps=5, batch_size=8)
    with pytest.warns(UserWarning, match=f"can't be trained as a stack: {reason}"):
        models = train(digits, factory, SEEDS[:4], way=way, optimization=once)
    alone = train(digits, factory, SEEDS[:4], way="one_by_one", optimization=once)
    assert all(same_bits(a.state_dict(), b.state_dict()) for a, b in zip(models, alone, strict=True))


@pytest.mark.parametrize("factory", [attentive, alpha])
def test_what_draws_beside_dropout_is_not_stacked_unless_one_insists(digits, factory):
    once = Optimization(steps=5, batch_size=8)
    with pytest.warns(UserWarning, match="can't be trained as a stack: it draws from a global generator beside dropout"):
        among = train(digits, factory, SEEDS[:4], optimization=once)
    (alone,) = train(digits, factory, [SEEDS[3]], optimization=once)
    assert same_bits(among[3].state_dict(), alone.state_dict())
    with pytest.warns(UserWarning, match="draws from a global generator .*: stacked, a model depends on those"):
        stacked = train(digits, factory, SEEDS[:4], way="stacked", optimization=once)
    assert difference(stacked[3].state_dict(), alone.state_dict()) > 1e-3


def test_a_stack_that_fails_when_it_is_measured_is_not_chosen(digits, monkeypatch):
    def fail(block, hopeless=None):
        if hopeless is not None:
            raise MemoryError("no room")
        return 1.0

    monkeypatch.setattr(ways, "step_seconds", fail)
    with pytest.warns(UserWarning, match="MLP can't be trained as a stack: no room"):
        train(digits, MLP, SEEDS[:2], way="measured", optimization=Optimization(steps=200, batch_size=2))


class Stop(Exception):
    pass


@pytest.mark.parametrize("way", ["stacked", "one_by_one", "side_by_side"])
def test_an_interrupted_training_ends_with_the_same_bits(digits, tmp_path, way):
    factory = functools.partial(CNN, channels=[4], dropout=0.3)
    options = {"augment": ShiftImages(), "way": way, "optimization": Optimization(steps=150, batch_size=16)}
    whole = train(digits, factory, SEEDS[:2], **options)
    seen = []

    def interrupt(done, total):
        seen.append(done)
        if done >= total * 0.7:
            raise Stop

    with pytest.raises(Stop):
        train(digits, factory, SEEDS[:2], checkpoint=tmp_path, checkpoint_every=64, progress=interrupt, **options)
    again = []
    resumed = train(digits, factory, SEEDS[:2], checkpoint=tmp_path, progress=lambda done, total: again.append(done), **options)
    assert min(again) > min(seen)  # it went on, it did not start again
    assert all(same_bits(a.state_dict(), b.state_dict()) for a, b in zip(whole, resumed, strict=True))


def test_a_checkpoint_of_another_training_is_not_resumed(digits, tmp_path):
    train(digits, MLP, [1], checkpoint=tmp_path)
    (fresh,) = train(digits, MLP, [1], optimization=Optimization(80, 32, 1e-3))
    (again,) = train(digits, MLP, [1], optimization=Optimization(80, 32, 1e-3), checkpoint=tmp_path)
    assert same_bits(fresh.state_dict(), again.state_dict())


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_checkpoint_round_trip(tmp_path, schedule):
    def make():
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        return module, *Optimization(steps=20, schedule=schedule).build(module.parameters()), torch.Generator().manual_seed(1)

    def go(module, optimizer, scheduler, generator, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            module(torch.randn(4, 3, generator=generator)).square().sum().backward()
            optimizer.step()
            scheduler.step()

    whole = make()
    go(*whole, 20)
    half = make()
    go(*half, 9)
    kept = {"tensors": half[0].state_dict(), "optimizer": half[1], "scheduler": half[2], "generators": {"data": half[3]}}
    save_checkpoint(tmp_path / "c", step=9, fingerprint="f", values={"curve": [1.5]}, **kept)
    back = make()
    into = {"tensors": back[0].state_dict(), "optimizer": back[1], "scheduler": back[2], "generators": {"data": back[3]}}
    assert load_checkpoint(tmp_path / "c", fingerprint="another", **into) is None
    assert same_bits(back[0].state_dict(), make()[0].state_dict())
    resumed = load_checkpoint(tmp_path / "c", fingerprint="f", **into)
    assert (resumed.step, resumed.values) == (9, {"curve": [1.5]})
    go(*back, 11)
    assert same_bits(back[0].state_dict(), whole[0].state_dict())
    assert back[2].get_last_lr() == whole[2].get_last_lr()
    assert load_checkpoint(tmp_path / "none", fingerprint="f", **into) is None


def test_damaged_and_foreign_checkpoints(tmp_path):
    module = nn.Linear(3, 2)
    save_checkpoint(tmp_path / "c", step=1, fingerprint="f", tensors=module.state_dict())
    with pytest.raises(ValueError, match=r"weight: expected torch.float32 \[2, 4\]; the checkpoint has torch.float32 \[2, 3\]"):
        load_checkpoint(tmp_path / "c", fingerprint="f", tensors=nn.Linear(4, 2).state_dict())
    with pytest.raises(ValueError, match="expected tensors"):
        load_checkpoint(tmp_path / "c", fingerprint="f", tensors=nn.Linear(3, 2, bias=False).state_dict())
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "c", fingerprint="f", tensors=module.state_dict())


@pytest.mark.parametrize("way", ["stacked", "one_by_one", "side_by_side"])
def test_a_loss_that_is_not_finite_names_model_and_step(digits, way):
    inputs = digits.labelled.inputs.copy()
    inputs[7] = np.nan
    rows = [np.arange(8, 200), np.arange(0, 8)]
    with pytest.raises(FloatingPointError, match=r"second: the loss is nan at step 0 of 80"):
        train_stack(
            MLP, inputs, digits.labelled.labels, classes=10, seeds=[1, 2], rows=rows, names=["first", "second"], optimization=QUICK, way=way
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
        train_stack(MLP, digits.labelled.inputs.astype(np.float64), digits.labelled.labels, classes=10, seeds=[1])


def test_training_leaves_the_global_random_state_alone(digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(digits, MLP, [1], optimization=Optimization(steps=2))
    assert torch.equal(torch.rand(3), expected)


def test_schedules():
    def rates(**options):
        optimizer, scheduler = Optimization(steps=100, learning_rate=1.0, **options).build([torch.zeros(1, requires_grad=True)])
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


AUGMENTATION = """
import numpy as np
class Scale:
    def __repr__(self):
        return "Scale()"
    def draw(self, count, generator):
        return generator.random(count).astype(np.float32)
    def apply(self, inputs, draws):
        return inputs * (1 + {share} * draws[:, None, None, None])
"""


def test_a_checkpoint_of_an_augmentation_that_was_edited_is_not_resumed(digits, tmp_path, module_of):
    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    scale = module_of(AUGMENTATION.format(share=0.1)).Scale()
    with pytest.raises(Stop):
        train(digits, SMALL, [1], augment=scale, checkpoint=tmp_path, checkpoint_every=1, progress=stop)
    steps = []
    scale = module_of(AUGMENTATION.format(share=0.2)).Scale()
    train(digits, SMALL, [1], augment=scale, checkpoint=tmp_path, progress=lambda done, total: steps.append(done))
    assert steps[0] == BLOCK


def dropped():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32, bias=False),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(16, 10),
    )


def test_member_3_of_8_trained_alone_is_member_3_of_8(digits):
    """With batch normalisation, dropout, an order and rows of its own. The tolerance is that of the stack without dropout, above."""
    seeds, rows = list(range(20, 28)), [np.arange(i, 200) for i in range(8)]
    among = train(digits, dropped, seeds, rows=rows, way="stacked")
    (alone,) = train(digits, dropped, [seeds[3]], rows=[rows[3]], way="one_by_one")
    assert difference(alone.state_dict(), among[3].state_dict()) < 1e-4
    (other,) = train(digits, dropped, [seeds[4]], rows=[rows[3]], way="one_by_one")
    assert difference(other.state_dict(), among[3].state_dict()) > 1e-2


@pytest.mark.parametrize(("drop", "shape"), [(F.dropout, (50, 400)), (F.dropout2d, (200, 100, 3, 3))])
def test_dropout_keeps_what_it_should(drop, shape):
    x = torch.ones(shape)
    key = torch.from_numpy(keys([1, 2], 0, 3))
    with OwnDropout() as mode:
        mode.begin(key[0, 0])
        first, second = drop(x, 0.3), drop(x, 0.3)
        mode.begin(key[0, 0])
        again = drop(x, 0.3)
        mode.begin(key[1, 0])
        later = drop(x, 0.3)
        mode.begin(key[0, 1])
        other = drop(x, 0.3)

        def one(key):
            mode.begin(key)
            return drop(x, 0.3)

        stacked = vmap(one)(key[0])
        assert torch.equal(drop(x, 0.3, training=False), x)
        assert drop(x, 1.0).abs().sum() == 0
    assert torch.equal(first, again)
    assert torch.equal(stacked, torch.stack([first, other]))
    masks = torch.stack([v.flatten() != 0 for v in (first, second, later, other)]).double()
    if len(shape) == 4:
        assert ((first == 0).sum((2, 3)) % 9 == 0).all()
        masks = masks.view(4, -1, 9)[:, :, 0]
    # 20 000 draws: the standard error of a share of 0.7 is 0.0032, of a correlation 0.0071; five of them.
    assert (masks.mean(1) - 0.7).abs().max() < 0.0162
    assert (torch.corrcoef(masks) - torch.eye(4)).abs().max() < 0.036
    neighbours = torch.corrcoef(torch.stack([masks[0, :-1], masks[0, 1:]]))[0, 1]
    assert abs(neighbours) < 0.036
    assert float(first.max()) == pytest.approx(1 / 0.7)


@pytest.mark.parametrize("way", ["stacked", "one_by_one", "side_by_side"])
def test_who_watches_is_told_losses_and_accuracies(digits, way):
    seen = []
    train(digits, MLP, [1, 2], way=way, watch=seen.append, names=["a", "b"], optimization=Optimization(steps=96, learning_rate=1e-2))
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


def test_a_trajectory_is_the_training_as_it_was_on_its_way(digits, tmp_path):
    constant = functools.partial(Optimization, batch_size=32, schedule="constant", warmup=0.0)
    x, y = digits.labelled.inputs, digits.labelled.labels

    def go(**options):
        return train_trajectory(dropped, x, y, classes=10, seed=5, captures=[40, 70, 90], optimization=constant(steps=90), **options)

    taken = go()
    for steps, module in zip([40, 70, 90], taken, strict=True):
        (short,) = train(digits, dropped, [5], optimization=constant(steps=steps))
        assert same_bits(short.state_dict(), module.state_dict())
        assert not module.training

    def interrupt(status):
        if status.step >= 64:
            raise Stop

    with pytest.raises(Stop):
        go(checkpoint=tmp_path, checkpoint_every=32, watch=interrupt)
    assert all(same_bits(a.state_dict(), b.state_dict()) for a, b in zip(taken, go(checkpoint=tmp_path), strict=True))
    with pytest.raises(ValueError, match=r"captures: expected growing steps in 1\.\.90; got \[50, 100\]"):
        train_trajectory(dropped, x, y, classes=10, seed=5, captures=[50, 100], optimization=constant(steps=90))
