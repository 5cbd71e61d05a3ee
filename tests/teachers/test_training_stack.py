"""Training as a stack: each model has the result that it would have alone, or it is not stacked."""

import functools

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.func import vmap
from torch.nn import functional as F
from training_helpers import QUICK, SEEDS, SMALL, difference, dropped, same_bits, train

from ensdistill.common.optimization import Optimization
from ensdistill.data.augmentation import ShiftImages
from ensdistill.models import MLP
from ensdistill.teachers.stack import strategies
from ensdistill.teachers.stack import train as stack
from ensdistill.teachers.stack.dropout import OwnDropout, keys


def normed():
    # No bias before the normalisation: its gradient would be nothing but rounding, which AdamW scales up to
    # whole steps.
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    )


def test_batch_norm_buffers_are_each_models_own(digits):
    stacked = train(digits, normed, SEEDS[:4], way="stacked")
    alone = train(digits, normed, SEEDS[:4], way="one_by_one")
    for a, b in zip(stacked, alone, strict=True):
        assert a[2].num_batches_tracked == QUICK.steps
        assert difference(a.state_dict(), b.state_dict()) < 1e-3
    assert difference(stacked[0].state_dict(), stacked[1].state_dict()) > 1e-2


def test_a_model_alone_is_the_same_as_in_a_stack_up_to_rounding(digits):
    # AdamW divides by the root of a running square, so that rounding (1e-7) of a small gradient grows with
    # the steps: measured 2e-6 after 80 steps; a wrong batch, draw or schedule moves parameters by more than
    # 1e-2.
    rows = [np.arange(i, 200) for i in range(5)]
    among = train(digits, SMALL, SEEDS, rows=rows, augment=ShiftImages(), way="stacked")
    (alone,) = train(digits, SMALL, [SEEDS[3]], rows=[rows[3]], augment=ShiftImages(), way="one_by_one")
    assert difference(alone.state_dict(), among[3].state_dict()) < 1e-4
    (other,) = train(digits, SMALL, [SEEDS[3]], rows=[rows[4]], augment=ShiftImages(), way="one_by_one")
    assert difference(other.state_dict(), among[3].state_dict()) > 1e-2


def test_member_3_of_8_trained_alone_is_member_3_of_8(digits):
    """With batch normalisation, dropout, an order and rows of its own. The tolerance is that of the stack
    without dropout, above."""
    seeds, rows = list(range(20, 28)), [np.arange(i, 200) for i in range(8)]
    among = train(digits, dropped, seeds, rows=rows, way="stacked")
    (alone,) = train(digits, dropped, [seeds[3]], rows=[rows[3]], way="one_by_one")
    assert difference(alone.state_dict(), among[3].state_dict()) < 1e-4
    (other,) = train(digits, dropped, [seeds[4]], rows=[rows[3]], way="one_by_one")
    assert difference(other.state_dict(), among[3].state_dict()) > 1e-2


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.layer(x) if x.sum().item() > 0 else self.layer(-x)


def test_a_model_that_cannot_be_stacked_is_trained_one_by_one_with_a_reason(digits):
    with pytest.warns(UserWarning, match=r"Branching can't be trained as a stack: .*item"):
        models = train(digits, Branching, SEEDS[:4])
    assert len(models) == 4


class Subspace(nn.Linear):
    """Sees pixels of its own, which are in no parameter."""

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
def test_a_model_that_a_stack_would_train_otherwise_is_not_stacked(digits, monkeypatch, factory, reason, way):
    monkeypatch.setattr(stack, "MEASURE_FROM", 1)
    monkeypatch.setattr(strategies, "workers", lambda count: 1)
    once = Optimization(steps=5, batch_size=8)
    with pytest.warns(UserWarning, match=f"can't be trained as a stack: {reason}"):
        models = train(digits, factory, SEEDS[:4], way=way, optimization=once)
    alone = train(digits, factory, SEEDS[:4], way="one_by_one", optimization=once)
    assert all(same_bits(a.state_dict(), b.state_dict()) for a, b in zip(models, alone, strict=True))


@pytest.mark.parametrize("factory", [attentive, alpha])
def test_a_model_that_draws_beside_dropout_is_not_stacked_unless_one_insists(digits, factory):
    once = Optimization(steps=5, batch_size=8)
    with pytest.warns(
        UserWarning, match="can't be trained as a stack: it draws from a global generator beside dropout"
    ):
        among = train(digits, factory, SEEDS[:4], optimization=once)
    (alone,) = train(digits, factory, [SEEDS[3]], optimization=once)
    assert same_bits(among[3].state_dict(), alone.state_dict())
    with pytest.warns(
        UserWarning, match="draws from a global generator .*: stacked, a model depends on those"
    ):
        stacked = train(digits, factory, SEEDS[:4], way="stacked", optimization=once)
    assert difference(stacked[3].state_dict(), alone.state_dict()) > 1e-3


def test_a_stack_that_fails_when_it_is_measured_is_not_chosen(digits, monkeypatch):
    def fail(block, hopeless=None):
        if hopeless is not None:
            raise MemoryError("no room")
        return 1.0

    monkeypatch.setattr(strategies, "step_seconds", fail)
    with pytest.warns(UserWarning, match="MLP can't be trained as a stack: no room"):
        train(digits, MLP, SEEDS[:2], way="measured", optimization=Optimization(steps=200, batch_size=2))


@pytest.mark.parametrize(("drop", "shape"), [(F.dropout, (50, 400)), (F.dropout2d, (200, 100, 3, 3))])
def test_dropout_keeps_its_share_of_units(drop, shape):
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
