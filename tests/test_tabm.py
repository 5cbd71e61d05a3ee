"""Several MLPs in one network, with shared matrices."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.models import TabM, TabularMLP
from ensdistill.teachers import Ensemble, train_ensemble
from ensdistill.teachers.recipes import TorchMembers


def network(**changes):
    torch.manual_seed(0)
    return TabM(**{"inputs": 5, "hidden": [7, 6], "outputs": 3, "members": 4} | changes)


def outputs_of(model, rows, member):
    """By the definition: the inputs and the outputs of each matrix are scaled by the member's own numbers."""
    head, x = model.head, rows
    layers = (head.scales_in, head.shared, head.scales_out, head.biases)
    for scale_in, linear, scale_out, bias in zip(*layers, strict=True):
        matrix = scale_out[member][:, None] * linear.weight * scale_in[member]
        x = nn.functional.silu(x @ matrix.T + bias[member])
    return x @ head.last[member] + head.last_bias[member]


@pytest.fixture
def changed():
    """A network whose scales are no ones."""
    model, rows = network(), torch.randn(9, 5)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model, rows


def test_a_row_in_training_goes_through_one_member_in_turn(changed):
    model, rows = changed
    wanted = torch.stack([outputs_of(model, rows, i % 4)[i] for i in range(9)])
    torch.testing.assert_close(model.train()(rows), wanted)


@pytest.mark.parametrize("average", ["softmax", "sigmoid", "outputs"])
def test_evaluation_averages_the_members(changed, average):
    model, rows = changed
    model.head.average = average
    members = torch.stack([outputs_of(model, rows, i) for i in range(4)])
    found = model.eval()(rows)
    if average == "softmax":
        torch.testing.assert_close(found.softmax(1), members.softmax(2).mean(0))
    elif average == "sigmoid":
        torch.testing.assert_close(found.sigmoid(), members.sigmoid().mean(0))
    else:
        torch.testing.assert_close(found, members.mean(0))


def test_members_begin_unlike_and_one_member_is_an_mlp():
    model, rows = network(), torch.randn(9, 5)
    begin = torch.stack([outputs_of(model, rows, i) for i in range(4)])
    assert (begin[0] - begin[1]).abs().mean() > 0.1
    alone = network(members=1)
    torch.testing.assert_close(alone.train()(rows).softmax(1), alone.eval()(rows).softmax(1))
    shared = sum(one.weight.numel() for one in model.head.shared)
    assert sum(p.numel() for p in model.parameters()) == shared + 4 * (5 + 2 * 7 + 6 + 7 + 6 + 3 * 7)


def test_columns_are_embedded_as_those_of_a_tabular_mlp():
    rows = torch.tensor([[0.1, 0.9, 1.0, -1.0], [0.2, 0.3, 0.0, 3.0]])
    model = network(inputs=4, numeric=2, cardinalities=[5]).eval()
    assert isinstance(model, TabularMLP)
    assert model(rows).shape == (2, 3)
    assert not torch.equal(model(rows), model(rows * torch.tensor([1.0, 1.0, 1.0, 0.0])))


def test_a_stack_of_them_learns_and_a_saved_one_predicts_the_same(tmp_path):
    rows = torch.rand(400, 2)
    labels = ((rows[:, 0] > 0.5) ^ (rows[:, 1] > 0.5)).long().numpy()
    optimization = Optimization(steps=400, learning_rate=0.03)
    recipe = TorchMembers(partial(TabM, hidden=[16], members=4), count=2, optimization=optimization)
    labelled = Rows(rows.numpy(), np.arange(400), labels)
    ensemble, _ = train_ensemble([recipe], labelled, ("no", "yes"), folds=2, seed=0)
    proba = ensemble.predict_proba(rows.numpy())
    assert (proba.argmax(1) == labels).mean() > 0.95
    ensemble.save(tmp_path / "saved")
    again = Ensemble.load(tmp_path / "saved").predict_proba(rows.numpy())
    assert abs(again - proba).max() == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"members": 0}, "members: expected at least 1; got 0"),
        ({"average": "mean"}, "average: expected softmax, sigmoid or outputs; got 'mean'"),
    ],
)
def test_wrong_arguments_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        network(**given)


def test_few_rows_reach_few_members():
    model = network()
    model.train()(torch.randn(1, 5)).sum().backward()
    assert model.head.last.grad[0].abs().sum() > 0
    assert model.head.last.grad[1:].abs().sum() == 0
    assert math.isfinite(float(model.head.shared[0].weight.grad.abs().sum()))
