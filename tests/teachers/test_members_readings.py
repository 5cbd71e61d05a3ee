"""Readings of outputs that a stranger's models have: one-hot regressors, few rows, rare sigmoids, softmax
endings in training."""

import functools

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

from ensdistill import (
    ArrayMember,
    Ensemble,
    Optimization,
    Rows,
    SklearnMember,
    StudentTrainer,
    TorchMember,
    cache_targets,
)
from ensdistill.cache import CacheMismatch

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.digitize(X[:, 0], [-0.5, 0.5])


def test_a_float64_module_predicts_float64_rows_as_it_is():
    module = nn.Linear(2, 2).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1e3, 0.0], [-1e3, 0.0]], dtype=torch.float64))
        module.bias.copy_(torch.tensor([-1.7e12, 1.7e12], dtype=torch.float64))
    rows = np.array([[1.7e9 + 0.001, 0], [1.7e9 - 0.001, 0]])
    expected = module(torch.from_numpy(rows)).softmax(-1).detach().numpy()
    assert abs(expected[0, 0] - 0.5) > 0.3
    np.testing.assert_allclose(Ensemble.from_members([module]).predict_proba(rows), expected, atol=1e-4)


@pytest.mark.parametrize("regressor", [RandomForestRegressor(5, random_state=0), LinearRegression()])
def test_a_regressor_of_one_hot_rows_has_several_readings(regressor):
    fitted = regressor.fit(X, np.eye(3)[Y])
    with pytest.raises(ValueError, match=r"task: .*predicts 3 numbers a row.*task='classification'"):
        Ensemble.from_members([fitted])
    with pytest.raises(ValueError, match=r"output: .*sum to 1.*output='probability'"):
        Ensemble.from_members([fitted], task="classification").predict_proba(X)
    scores = SklearnMember(fitted, output="decision").predict_logits(X)
    np.testing.assert_allclose(scores, fitted.predict(X), atol=1e-6)
    if isinstance(regressor, RandomForestRegressor):
        proba = Ensemble.from_members([SklearnMember(fitted, output="probability")]).predict_proba(X)
        np.testing.assert_allclose(proba, fitted.predict(X), atol=1e-5)
    else:
        with pytest.raises(ValueError, match="at least 0"):
            SklearnMember(fitted, output="probability").predict_logits(X)


def test_scores_of_a_regressor_of_signs_are_taken():
    fitted = LinearRegression().fit(X, 2.0 * np.eye(3)[Y] - 1)
    np.testing.assert_allclose(SklearnMember(fitted).predict_logits(X), fitted.predict(X), atol=1e-5)


class Average(nn.Module):
    """Probabilities that end in no softmax."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return (self.one(5 * x).softmax(1) + self.other(5 * x).softmax(1)) / 2


@pytest.mark.parametrize("count", [1, 7, 60])
def test_rows_of_distributions_are_refused_at_any_number(count):
    with pytest.raises(ValueError, match=r"output: average: .*probabilities"):
        Ensemble.from_members([Average()]).predict_proba(X[:count])


def test_sigmoids_of_rare_labels_have_two_readings():
    class Rare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, x):
            return torch.sigmoid(self.layer(x) - 3).clamp(1e-7, 1 - 1e-7)

    with pytest.raises(ValueError, match="sigmoids"):
        Ensemble.from_members([Rare()]).predict_proba(X)


@pytest.mark.parametrize(("layer", "word"), [(nn.Softmax(-1), "softmax"), (nn.Sigmoid(), "sigmoid")])
def test_training_refuses_a_network_that_ends_in_probabilities(tmp_path, layer, word):
    def ended():
        return nn.Sequential(nn.Linear(4, 3), layer)

    rows = Rows(X, np.arange(60), Y.astype(np.int64))
    cache = cache_targets(Ensemble.from_members([nn.Linear(4, 3)]), rows, tmp_path / "c")
    trainer = StudentTrainer(Optimization(steps=5))
    with pytest.raises(ValueError, match=f"factory: .*ends in a {word}"):
        trainer.distill(ended, rows, cache)
    with pytest.raises(ValueError, match=f"factory: .*ends in a {word}"):
        trainer.direct(ended, rows, classes=3)
    with pytest.raises(ValueError, match=f"factory: .*ends in a {word}"):
        Ensemble.train(ended, (X, Y), members=2, optimization=Optimization(steps=5))


@pytest.mark.parametrize(
    "values", [np.array([[1 + 1j, 2]] * 3), np.array([["1", "2"]] * 3), np.array([[True, False]] * 3)]
)
def test_stored_outputs_of_other_kinds_are_refused(values):
    with pytest.raises(TypeError, match="logits: m: expected floating-point numbers"):
        ArrayMember(name="m", logits=values)


SCALED = """
K = 1.0
def pre(x):
    return x * K
"""


def test_code_within_an_estimator_counts(tmp_path, module_of):
    def made(source):
        module = module_of(source, "own_preprocessing")
        return make_pipeline(FunctionTransformer(module.pre), LogisticRegression()).fit(X, Y)

    rows, model = Rows(X, np.arange(60), np.full(60, -100)), made(SCALED)
    cache_targets(Ensemble.from_members([model]), rows, tmp_path / "c", codec="fp32")
    other = made(SCALED)
    assert Ensemble.from_members([other]).fingerprint() == Ensemble.from_members([model]).fingerprint()
    changed = made(SCALED.replace("1.0", "-5.0"))
    changed.steps[1] = model.steps[1]  # the same fitted numbers behind another function
    with pytest.raises(CacheMismatch):
        cache_targets(Ensemble.from_members([changed]), rows, tmp_path / "c", codec="fp32")


def test_a_stated_output_stays_when_saved():
    member = TorchMember(
        Average(), name="average", factory=functools.partial(Average), output="probabilities"
    )
    np.testing.assert_allclose(
        Ensemble.from_members([member]).predict_proba(X[:3]),
        member.module(torch.from_numpy(X[:3])).detach().numpy(),
        atol=1e-4,
    )
