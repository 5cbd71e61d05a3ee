"""Members as functions of tensors: equal to the ensemble's predictions, with gradients."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from ensdistill.data.preprocess import Transformer
from ensdistill.data.transfer import Diversity
from ensdistill.models import MLP
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import Preprocessed, SklearnMember, TorchMember


def members():
    torch.manual_seed(0)
    return [
        TorchMember(MLP(4, [8], 3), name="plain"),
        TorchMember(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), name="softmax"),
        TorchMember(nn.Linear(4, 3).double(), name="other_order", classes=("c", "a", "b")),
        TorchMember(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).bfloat16(), name="half"),
    ]


def inputs(rows=40):
    return np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)


@pytest.mark.parametrize("calibration", [None, "temperature", "vector"])
def test_equal_to_the_ensembles_logits(calibration):
    ensemble = Ensemble.from_members(members(), classes=("a", "b", "c"))
    x = inputs()
    if calibration is not None:
        ensemble.calibrate(ensemble.raw_logits(x), np.arange(40) % 3, method=calibration)
    ensemble.temperature = 1.5
    expected = ensemble.predict_logits(x)
    for function, logits in zip(ensemble.differentiable(), expected, strict=True):
        tensor = torch.from_numpy(x).requires_grad_()
        found = function(tensor)
        np.testing.assert_allclose(found.detach(), logits, rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(found[:, 0].sum(), tensor)
        assert (gradient != 0).any(1).all()


def test_margins_and_single_probabilities():
    torch.manual_seed(0)
    one = [
        TorchMember(nn.Linear(4, 1), name="margin", output="margin"),
        TorchMember(nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), name="second", output="probabilities"),
    ]
    ensemble = Ensemble.from_members(one)
    tensor = torch.from_numpy(inputs())
    for function, logits in zip(ensemble.differentiable(), ensemble.predict_logits(inputs()), strict=True):
        found = function(tensor)
        np.testing.assert_allclose(found.softmax(1).detach(), logits.softmax(1), rtol=1e-5, atol=1e-6)


def test_training_mode_is_kept_and_rows_are_made():
    ensemble = Ensemble.from_members(members()[:1])
    module = ensemble.members[0].module.train()
    made = Diversity(rows=20, step=0.1).make(inputs(), np.random.default_rng(0), ensemble)
    assert module.training
    assert made.dtype == np.float32
    assert (made != inputs()[:20]).all(1).any()
    assert all(parameter.grad is None for parameter in module.parameters())


def test_other_members_are_refused():
    x, y = inputs(), np.arange(40) % 3
    ensemble = Ensemble.from_members([SklearnMember(LogisticRegression().fit(x, y), name="logistic")])
    with pytest.raises(ValueError, match=r"expected torch modules.*logistic is a SklearnMember"):
        Diversity(rows=2).make(x, np.random.default_rng(0), ensemble)


class Scaled:
    """A preprocess through which gradients flow."""

    def __call__(self, batch):
        return batch / 3

    def fingerprint(self):
        return "scaled"

    def save(self, folder):
        raise NotImplementedError


def test_a_preprocess_is_part_of_the_function():
    torch.manual_seed(0)
    x = inputs()
    member = TorchMember(MLP(4, [8], 3), name="mlp")
    ensemble = Ensemble.from_members([Preprocessed(member, Scaled())])
    tensor = torch.from_numpy(x).requires_grad_()
    (function,) = ensemble.differentiable()
    found = function(tensor)
    np.testing.assert_allclose(found.detach(), ensemble.predict_logits(x)[0], rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), tensor)
    assert (gradient != 0).any(1).all()
    scaler = Transformer(StandardScaler().fit(x))
    (function,) = Ensemble.from_members([Preprocessed(member, scaler)]).differentiable()
    with pytest.raises(ValueError, match="preprocess: mlp: expected one through which gradients flow"):
        function(tensor)
