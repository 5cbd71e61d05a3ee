"""``teachers: auto`` for several labels and for numbers: the members of each task, their training and selection."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor

from ensdistill.data import Rows
from ensdistill.teachers import train_ensemble
from ensdistill.teachers.auto import Facts, Plan, auto_plan, facts_of, portfolio
from ensdistill.teachers.auto.portfolio import PORTFOLIO
from ensdistill.teachers.jobs import TrainingRows
from ensdistill.teachers.members import load_member
from ensdistill.teachers.members.moments import predictions_of
from ensdistill.teachers.prepared import prepare_recipes
from ensdistill.teachers.recipes import TorchMembers

X = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float32)
FRAME = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": np.where(X[:, 2] > 0, "x", "y"), "d": X[:, 3]})
LABELS = (X[:, :3] > 0).astype(np.int8)
GAPS = np.where(np.arange(450).reshape(150, 3) % 7 == 0, -1, LABELS).astype(np.int8)
NUMBERS = 100 + X[:, :2].astype(np.float64) * [1.0, 50.0]
FEW = {"rounds": 30, "learning_rate": 0.3, "trees": 5, "epochs": 0.5, "steps": 200}
KINDS = {"labels": LABELS, "gaps": GAPS, "number": NUMBERS[:, :1], "numbers": NUMBERS}


def facts(kind: str, samples: np.ndarray | pd.DataFrame = X) -> Facts:
    labels = KINDS[kind]
    task = "multilabel" if labels.dtype == np.int8 else "regression"
    return facts_of(samples, labels.shape[1], task, kind == "gaps")


def entries(kind: str) -> list:
    return [entry for entry in PORTFOLIO if facts(kind).task in entry.tasks]


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_models_of_the_task(kind):
    about = facts(kind)
    for entry in entries(kind):
        recipe = entry.make(entry.name, about, entry.sizes[-1])
        if isinstance(recipe, TorchMembers):
            continue
        model = recipe.estimator
        name = type(model).__name__
        inner = (
            type(model.estimator).__name__
            if isinstance(model, (MultiOutputClassifier, MultiOutputRegressor))
            else name
        )
        assert ("Regressor" in inner or inner == "Ridge") == (about.task == "regression"), entry.name
        if kind == "gaps":  # nothing else takes unknown labels
            assert isinstance(model, MultiOutputClassifier), entry.name


def test_a_plan_has_the_task_and_linear_members_of_it():
    planned = auto_plan(X, 2, minutes=1, task="regression")
    assert "linear" in [member.name for member in planned.members]
    assert planned.facts.task == "regression"
    assert Plan.of(planned.plain()).plain() == planned.plain()
    classes = auto_plan(X, 2, minutes=1)
    assert "linear" not in [*classes.left_out, *(member.name for member in classes.members)]
    assert "task" in planned.plain()["rows"]
    older = {
        **classes.plain(),
        "rows": {k: v for k, v in classes.plain()["rows"].items() if k not in ("task", "gaps")},
    }
    assert Plan.of(older).plain() == classes.plain()  # of a file that an earlier version wrote
    with pytest.raises(ValueError, match=r"columns and 2 numbers; got 0.0001"):
        auto_plan(X, 2, minutes=1e-4, task="regression")


def test_unknown_labels_cost_a_forest_for_each():
    forest = next(entry for entry in PORTFOLIO if entry.name == "extra_trees")
    plain, gaps = (forest.seconds(facts(kind), forest.sizes[0]) for kind in ("labels", "gaps"))
    assert gaps > plain


def check_member(entry, kind, samples, tmp_path):
    labels = KINDS[kind]
    about, names = facts(kind, samples), tuple("abc"[: labels.shape[1]])
    recipe = entry.make(entry.name, about, FEW)
    recipe.check_storable()
    rows = Rows(samples, np.arange(len(labels)), labels)
    (own,) = prepare_recipes([recipe], rows.inputs, len(names), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of features without names
        ((_, member),) = own.fit(TrainingRows(rows.inputs, labels, names), own.jobs(labels, 0))
        found = predictions_of(member, samples)
        member.save(tmp_path / entry.name)
        again = predictions_of(load_member(tmp_path / entry.name, recipe.trusted), samples)
    assert found.shape == labels.shape, entry.name
    unit = 1.0 if about.task == "multilabel" else labels.std(0)
    np.testing.assert_allclose(again / unit, found / unit, rtol=1e-5, atol=1e-4, err_msg=entry.name)
    if "mlp" in entry.name:  # three steps
        return
    if about.task == "multilabel":
        assert ((found > 0) == LABELS)[labels >= 0].mean() > 0.75, entry.name
    else:
        assert np.sqrt(np.mean(((found - labels) / unit) ** 2)) < 0.8, entry.name


@pytest.mark.parametrize("kind", KINDS)
def test_unlike_members_are_trained_saved_and_loaded(kind, tmp_path):
    for entry in entries(kind):
        if entry.name in ("extra_trees", "linear"):
            check_member(entry, kind, X, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", ["array", "frame"])
def test_every_member_is_trained_saved_and_loaded(kind, samples, monkeypatch, tmp_path):
    monkeypatch.setattr(portfolio, "LEAST_STEPS", 3)
    for entry in entries(kind):
        check_member(entry, kind, X if samples == "array" else FRAME, tmp_path)


def test_the_selection_leaves_a_useless_regressor_out():
    recipes = [
        entry.make(entry.name, facts("number"), FEW)
        for entry in entries("number")
        if entry.name in ("linear", "extra_trees")
    ]
    ensemble, _ = train_ensemble(
        recipes, Rows(X, np.arange(150), NUMBERS[:, :1]), ("n",), folds=2, select=True
    )
    weights = dict(zip(ensemble.names, ensemble.weights, strict=True))
    assert weights["linear"] > 0.9  # the number is linear in the inputs
