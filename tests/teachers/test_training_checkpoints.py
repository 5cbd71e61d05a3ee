"""Training that is killed and resumed, and its trajectory."""

import functools

import pytest
import torch
from torch import nn
from training_helpers import SEEDS, SMALL, dropped, same_bits, train

from ensdistill.common.checkpoint import load_checkpoint, save_checkpoint
from ensdistill.common.optimization import Optimization
from ensdistill.data.augmentation import ShiftImages
from ensdistill.models import CNN, MLP
from ensdistill.teachers.stack import BLOCK, train_trajectory


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
        train(
            digits,
            factory,
            SEEDS[:2],
            checkpoint=tmp_path,
            checkpoint_every=64,
            progress=interrupt,
            **options,
        )
    again = []
    resumed = train(
        digits,
        factory,
        SEEDS[:2],
        checkpoint=tmp_path,
        progress=lambda done, total: again.append(done),
        **options,
    )
    assert min(again) > min(seen)  # it went on, it did not start again
    assert all(same_bits(a.state_dict(), b.state_dict()) for a, b in zip(whole, resumed, strict=True))


class Running(nn.Module):
    """A network whose forward pass puts a new tensor in the place of its buffer, which the next pass uses."""

    def __init__(self):
        super().__init__()
        self.net = MLP(64, [8], 10)
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + x.mean()
        return self.net(x) + self.mean * x.flatten(1)[:, :10]


def test_buffers_that_are_assigned_anew_are_kept_and_never_stacked(digits, tmp_path):
    options = {"way": "one_by_one", "optimization": Optimization(steps=128, batch_size=16)}
    (whole,) = train(digits, Running, [3], **options)
    assert whole.mean.item() > 0.1

    def interrupt(done, total):
        if done >= 64:
            raise Stop

    with pytest.raises(Stop):
        train(digits, Running, [3], checkpoint=tmp_path, checkpoint_every=32, progress=interrupt, **options)
    (resumed,) = train(digits, Running, [3], checkpoint=tmp_path, **options)
    assert same_bits(whole.state_dict(), resumed.state_dict())
    with pytest.warns(UserWarning, match="assigns buffers anew"):
        among = train(digits, Running, [2, 3], way="stacked", optimization=options["optimization"])
    assert same_bits(whole.state_dict(), among[1].state_dict())


def test_a_checkpoint_of_another_training_is_not_resumed(digits, tmp_path):
    train(digits, MLP, [1], checkpoint=tmp_path)
    (fresh,) = train(digits, MLP, [1], optimization=Optimization(80, 32, 1e-3))
    (again,) = train(digits, MLP, [1], optimization=Optimization(80, 32, 1e-3), checkpoint=tmp_path)
    assert same_bits(fresh.state_dict(), again.state_dict())


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
    train(
        digits,
        SMALL,
        [1],
        augment=scale,
        checkpoint=tmp_path,
        progress=lambda done, total: steps.append(done),
    )
    assert steps[0] == BLOCK


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_checkpoint_round_trip(tmp_path, schedule):
    def make():
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        return (
            module,
            *Optimization(20, learning_rate=3e-3, schedule=schedule).build(module.parameters()),
            torch.Generator().manual_seed(1),
        )

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
    kept = {
        "tensors": half[0].state_dict(),
        "optimizer": half[1],
        "scheduler": half[2],
        "generators": {"data": half[3]},
    }
    save_checkpoint(tmp_path / "c", step=9, fingerprint="f", values={"curve": [1.5]}, **kept)
    back = make()
    into = {
        "tensors": back[0].state_dict(),
        "optimizer": back[1],
        "scheduler": back[2],
        "generators": {"data": back[3]},
    }
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
    with pytest.raises(
        ValueError,
        match=r"weight: expected torch.float32 \[2, 4\]; the checkpoint has torch.float32 \[2, 3\]",
    ):
        load_checkpoint(tmp_path / "c", fingerprint="f", tensors=nn.Linear(4, 2).state_dict())
    with pytest.raises(ValueError, match="expected tensors"):
        load_checkpoint(tmp_path / "c", fingerprint="f", tensors=nn.Linear(3, 2, bias=False).state_dict())
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "c", fingerprint="f", tensors=module.state_dict())


def test_a_trajectory_is_the_training_as_it_was_on_its_way(digits, tmp_path):
    constant = functools.partial(Optimization, batch_size=32, schedule="constant", warmup=0.0)
    x, y = digits.labelled.inputs, digits.labelled.labels

    def go(**options):
        return train_trajectory(
            dropped,
            x,
            y,
            classes=10,
            seed=5,
            captures=[40, 70, 90],
            optimization=constant(steps=90),
            **options,
        )

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
    assert all(
        same_bits(a.state_dict(), b.state_dict()) for a, b in zip(taken, go(checkpoint=tmp_path), strict=True)
    )
    with pytest.raises(ValueError, match=r"captures: expected growing steps in 1\.\.90; got \[50, 100\]"):
        train_trajectory(
            dropped, x, y, classes=10, seed=5, captures=[50, 100], optimization=constant(steps=90)
        )
