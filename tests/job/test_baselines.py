"""The baseline that every claim is measured against: as strong as its folds allow, and not chosen by the test
rows."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from torch import nn

from ensdistill.common.files import read_json
from ensdistill.common.optimization import Optimization
from ensdistill.common.optimizers import StudentOptimization
from ensdistill.data import Split, stratified_split
from ensdistill.data.copies import equal_inputs
from ensdistill.job import direct as baselines
from ensdistill.job.config import DistillConfig
from ensdistill.job.direct import Recipe, dropout_of, train_baselines
from ensdistill.job.student_config import StudentConfig
from ensdistill.models import MLP
from ensdistill.report.metrics import ece, nll
from ensdistill.student.automatic import Automatic
from ensdistill.student.trainer import StudentTrainer
from ensdistill.teachers.fitting.calibration import probabilities
from ensdistill.teachers.members import load_member

STUDENT = StudentConfig(
    partial(MLP, inputs=5, hidden=[64], outputs=2), Optimization(steps=480, batch_size=32, learning_rate=0.02)
)
SETTINGS = DistillConfig({"mlp": STUDENT})


@pytest.fixture(scope="module")
def noisy() -> Split:
    """Two classes that overlap, and few labelled rows: a model that is trained to the end learns the
    noise."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(1080, 5)).astype(np.float32)
    labels = (inputs[:, 0] + inputs[:, 1] + 1.5 * rng.normal(size=1080) > 0).astype(np.int64)
    inputs[90:120], labels[90:120] = inputs[60:90], labels[60:90]
    return stratified_split(inputs, labels, "ab", labelled=80, pool=0, test=None, seed=0)


@pytest.fixture(scope="module")
def trained(noisy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("direct")
    return folder, train_baselines(STUDENT, SETTINGS, noisy, 0, folder, lambda *_: None)


def test_a_direct_model_that_overfits_is_held_back(noisy, trained):
    folder, found = trained
    inputs, labels = noisy.test.inputs, noisy.test.labels
    kept = probabilities(load_member(folder / "direct").predict_logits(inputs))
    own = StudentTrainer(STUDENT.baseline).direct(STUDENT.model, noisy.labelled, classes=2, seed=0).module
    import torch

    with torch.no_grad():
        plain = probabilities(own(torch.from_numpy(inputs)).numpy())
    assert nll(plain, labels) > 1.0  # the configured training is far too sure
    assert nll(kept, labels) < 0.66 < 0.69 < nll(plain, labels)
    assert ece(kept, labels) < 0.5 * ece(plain, labels)
    assert found["recipe"] != "plain, 480 steps, weight decay 0.01, dropout 0"
    # The chosen recipe has the lowest held-out loss of all that were tried without label smoothing.
    tried = {name: loss for name, loss in found["held_out_nll"].items() if "smoothing" not in name}
    assert min(tried, key=tried.get) == found["recipe"]
    assert "plain, 480 steps" in " ".join(tried)
    assert len(tried) <= 9  # a modest search


def test_the_smoothed_model_has_a_temperature_of_its_own(noisy, trained):
    folder, found = trained
    assert found["label_smoothing_temperature"] != found["temperature"]
    assert f"{found['recipe']}, label smoothing 0.1" in found["held_out_nll"]
    assert (
        load_member(folder / "direct_label_smoothing").parameters == load_member(folder / "direct").parameters
    )


def test_a_search_goes_on_where_it_was_killed(noisy, trained, tmp_path, monkeypatch):
    folder, found = trained
    shutil.copy(folder / "choice.json", tmp_path / "choice.json")
    monkeypatch.setattr(baselines, "train_stack", None)  # nothing is left to search
    assert train_baselines(STUDENT, SETTINGS, noisy, 0, tmp_path, lambda *_: None) == found
    assert (tmp_path / "direct" / "model.safetensors").read_bytes() == (
        folder / "direct" / "model.safetensors"
    ).read_bytes()


def test_folds_keep_the_copies_of_a_row_together(noisy, monkeypatch, tmp_path):
    parts = []

    def stop(*_, rows, **__):
        parts.extend(rows)
        raise InterruptedError

    monkeypatch.setattr(baselines, "train_stack", stop)
    with pytest.raises(InterruptedError):
        train_baselines(STUDENT, SETTINGS, noisy, 0, tmp_path, lambda *_: None)
    (groups,) = equal_inputs(noisy.labelled.inputs)
    assert len(np.unique(groups)) < len(groups)
    for train in parts:
        held = np.setdiff1d(np.arange(len(groups)), train)
        assert not np.intersect1d(groups[train], groups[held]).size


def test_a_recipe_that_diverges_is_no_choice(noisy, monkeypatch, tmp_path):
    train_stack = baselines.train_stack

    def diverges(*args, optimization, **more):
        if optimization.weight_decay > 0.01:
            raise FloatingPointError("the loss is nan")
        return train_stack(*args, optimization=optimization, **more)

    monkeypatch.setattr(baselines, "train_stack", diverges)
    quick = StudentConfig(STUDENT.model, Optimization(steps=32, learning_rate=0.01))
    found = train_baselines(quick, SETTINGS, noisy, 0, tmp_path, lambda *_: None)
    assert "weight decay 0.01" in found["recipe"]
    assert None in found["held_out_nll"].values()
    assert read_json(tmp_path / "choice.json")["tried"]["plain, 8 steps, weight decay 0.1, dropout 0"] == {
        "nll": None,
        "temperature": 1.0,
    }


class Plain(nn.Linear):
    def __init__(self) -> None:
        super().__init__(5, 2)


@pytest.mark.parametrize(
    ("model", "dropout"),
    [(MLP, 0.0), (partial(MLP, dropout=0.3), 0.3), (partial(MLP, hidden=[8]), 0.0), (Plain, None)],
)
def test_the_dropout_of_a_model(model, dropout):
    assert dropout_of(model) == dropout
    made = Recipe(1, 0.0, 0.5, augmented=False).factory(model)
    assert (made is model) == (dropout is None)


def test_a_model_without_dropout_is_searched_without(noisy, tmp_path):
    quick = StudentConfig(Plain, Optimization(steps=32, learning_rate=0.01))
    found = train_baselines(quick, SETTINGS, noisy, 0, tmp_path, lambda *_: None)
    assert all("dropout 0" in name and "dropout 0." not in name for name in found["held_out_nll"])


class Folds:
    """Recipes are judged by a function in place of trainings."""

    def __init__(self, loss):
        self.loss, self.tried = loss, []

    def best(self, *recipes):
        self.tried += recipes
        return min(recipes, key=self.loss)


def rate(recipe):
    return recipe.optimization(BASE).learning_rate


BASE = StudentOptimization(steps=64, learning_rate=0.04, batch_size=8)


@pytest.mark.parametrize(("lowest", "chosen"), [(0.01, 0.013), (0.03, 0.04), (0.5, 0.36)])
def test_the_folds_try_other_rates_than_the_one_that_was_found(lowest, chosen):
    folds = Folds(lambda one: abs(np.log10(rate(one) / lowest)))
    found = baselines._search(StudentConfig(Plain, BASE), SETTINGS, folds, baselines.FOUND)
    assert rate(found) == pytest.approx(chosen)
    assert rate(baselines._search(StudentConfig(Plain, BASE), SETTINGS, folds, baselines.GIVEN)) == 0.04
    assert len(set(folds.tried)) <= 13


def test_a_rate_that_is_better_for_short_trainings_alone_is_not_chosen():
    folds = Folds(lambda one: (one.steps < 64, rate(one) if one.steps >= 64 else -rate(one)))
    found = baselines._search(StudentConfig(Plain, BASE), SETTINGS, folds, baselines.FOUND)
    assert (found.steps, found.learning_rate) == (64, None)
    assert {rate(one) for one in folds.tried if one.steps == 64} == {0.04, 0.36, 0.12}


def test_full_length_may_be_better_at_a_lower_rate_than_short_trainings_and_be_exceeded():
    folds = Folds(lambda one: (-one.steps, rate(one)) if rate(one) == 0.013 else (0, abs(rate(one) - 0.04)))
    found = baselines._search(
        StudentConfig(Plain, replace(BASE, steps=2000)), SETTINGS, folds, baselines.FOUND
    )
    assert (found.steps, found.learning_rate) == (4000, 0.013)  # four times the steps are beyond the most
    given = Folds(lambda one: -one.steps)
    assert baselines._search(StudentConfig(Plain, BASE), SETTINGS, given, baselines.GIVEN).steps == 64


def test_no_decay_outweighs_the_gradient_at_a_higher_rate():
    strong = replace(BASE, weight_decay=0.5)
    folds = Folds(lambda one: -rate(one))
    baselines._search(StudentConfig(Plain, strong), SETTINGS, folds, baselines.FOUND)
    assert max(rate(one) for one in folds.tried) == 0.12


def test_few_rows_have_more_settings_tried_where_the_rate_was_found():
    found = Automatic(("learning_rate",), 64, 8, 0.04)
    grids = [baselines._grid(one, rows) for one in (None, found) for rows in (1000, 1001)]
    assert grids == [baselines.GIVEN, baselines.GIVEN, baselines.OF_FEW, baselines.FOUND]
    assert baselines._grid(Automatic(("steps",), 64, 8, 0.04), 10) == baselines.GIVEN
    for decay in (0.06, 0.6):
        folds = Folds(lambda one, decay=decay: abs(np.log(one.weight_decay / decay)))
        chosen = baselines._search(StudentConfig(Plain, BASE), SETTINGS, folds, baselines.OF_FEW)
        assert chosen.weight_decay == pytest.approx(decay)


def test_a_recipes_rate_is_part_of_its_name_and_of_its_training():
    recipe = Recipe(5, 0.1, 0.0, augmented=False, learning_rate=0.2)
    assert str(recipe) == "plain, 5 steps, weight decay 0.1, dropout 0, learning rate 0.2"
    assert (rate(recipe), rate(replace(recipe, learning_rate=None))) == (0.2, 0.04)
