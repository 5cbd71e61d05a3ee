"""Recipes for several labels and for numbers: networks, estimators, unknown labels, held-out predictions, kills."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.special import expit
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier, MultiOutputRegressor

from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.models import MLP
from ensdistill.teachers import Ensemble, train_ensemble
from ensdistill.teachers.existing import MemberFile, StoredPredictions
from ensdistill.teachers.labelled_targets import LabelledTargets
from ensdistill.teachers.members import Moments
from ensdistill.teachers.methods import Bagging
from ensdistill.teachers.recipes import SklearnMembers, TorchMembers
from ensdistill.teachers.stack import LabelLoss
from ensdistill.teachers.stack.objectives import Objective, units_of

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(90, 4))
LOG_ODDS = 3 * X[:, :3] + 0.5 * X[:, [3]]
LABELS = (LOG_ODDS + GENERATOR.logistic(size=(90, 3)) > 0).astype(np.int8)
NUMBERS = np.stack([5000 + 300 * X[:, 0] - 200 * X[:, 1], 1e-3 * X[:, 2]], axis=1)
NUMBERS = NUMBERS + GENERATOR.normal(size=(90, 2)) * [60, 2e-4]
NAMES = ("a", "b", "c")
FAST = Optimization(steps=96, batch_size=16, learning_rate=0.02)
NET = partial(MLP, inputs=4, hidden=[8])


def rows(labels, inputs=X):
    return Rows(np.asarray(inputs), np.arange(len(labels)), labels)


def test_several_labels_are_learned_by_networks_and_estimators():
    recipes = [
        TorchMembers(NET, 2, optimization=FAST),
        SklearnMembers(RandomForestClassifier(10), name="forest"),
        SklearnMembers(MultiOutputClassifier(LogisticRegression()), name="each"),
        SklearnMembers(ClassifierChain(LogisticRegression()), name="chain"),
        SklearnMembers(OneVsRestClassifier(LogisticRegression()), name="rest"),
    ]
    ensemble, held_out = train_ensemble(recipes, rows(LABELS), NAMES, folds=3, seed=1)
    assert ensemble.task == "multilabel"
    assert held_out.shape == (6, 90, 3)
    assert np.isfinite(held_out).all()
    p = ensemble.predict_proba(X)
    assert ((p > 0.5) == (LABELS == 1)).mean() > 0.85
    assert ensemble.classes == NAMES
    # Held-out predictions are of members that did not see the row: they are less sure than the members' own.
    forest = ensemble.names.index("forest")
    in_sample = ensemble.raw_logits(X)[forest]
    assert np.abs(in_sample).mean() > np.abs(held_out[forest]).mean()


def test_an_estimator_of_each_label_is_fitted_as_by_its_own_library():
    ensemble = Ensemble.train(
        MultiOutputClassifier(LogisticRegression(C=2.0)), (X, LABELS), members=1, task="multilabel"
    )
    for c, own in enumerate(MultiOutputClassifier(LogisticRegression(C=2.0)).fit(X, LABELS).estimators_):
        np.testing.assert_allclose(ensemble.predict_proba(X)[:, c], own.predict_proba(X)[:, 1], atol=2e-6)


def test_unknown_labels_have_no_part_in_a_fit():
    labels = LABELS.copy()
    labels[::3, 1] = -1
    labels[1::3, 2] = 1  # alike in all rows that are left
    labels[0::3, 2] = labels[2::3, 2] = -1
    recipe = SklearnMembers(MultiOutputClassifier(LogisticRegression()), name="each")
    ensemble, _ = train_ensemble([recipe], rows(labels), NAMES, folds=2)
    known = labels[:, 1] != -1
    own = LogisticRegression().fit(X[known], labels[known, 1])
    logits = ensemble.raw_logits(X)[0]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, 1])), own.predict_proba(X)[:, 1], atol=2e-6)
    assert (logits[:, 2] > 10).all()
    other = labels.copy()
    other[other == -1] = 0
    net = TorchMembers(NET, 1, name="net", optimization=FAST)
    masked, _ = train_ensemble([net], rows(labels), NAMES, folds=2)
    filled, _ = train_ensemble([net], rows(other), NAMES, folds=2)
    assert masked.predict_proba(X)[:, 2].mean() > 0.9 > filled.predict_proba(X)[:, 2].mean()
    with pytest.raises(ValueError, match=r"^labels: forest.*: expected known labels; row \d+ lacks"):
        train_ensemble(
            [SklearnMembers(RandomForestClassifier(2), name="forest")], rows(labels), NAMES, folds=2
        )


def test_the_objective_of_masked_labels_is_that_of_the_others():
    import torch
    from torch.nn import functional as F

    labels = torch.tensor([[1, -1, 0], [0, 1, 1], [-1, -1, 1], [1, 0, 0]], dtype=torch.int8)
    z = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    objective = Objective("multilabel", 3)
    losses, accuracies = objective.losses(z, labels), objective.accuracies(z, labels)
    flat, known = z.view(4, 3), labels >= 0
    for row in range(4):
        own = F.binary_cross_entropy_with_logits(
            flat[row][known[row]], labels[row][known[row]].float(), reduction="sum"
        )
        assert torch.isclose(losses.view(-1)[row], own)
    right = ((flat > 0) == (labels > 0)) & known
    assert accuracies[0] == right[:2].sum() / known[:2].sum()


def test_the_objective_weighs_labels_as_torch_does():
    import torch
    from torch.nn import functional as F

    labels = np.array([[1, -1, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0]], np.int8)
    own = [np.array([0, 1]), np.array([1, 2, 3])]
    z = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    drawn = torch.from_numpy(labels[[0, 1, 2, 3]])
    each, smoothing = (2.0, 0.0, 0.5), 0.1
    for weight in ("balanced", (3.0, 1.0, 0.25)):
        loss = LabelLoss(pos_weight=weight, class_weights=each)
        found = Objective.of(labels, own, 3, loss, smoothing, z.device).losses(z, drawn)
        # Of the second model's rows the first label applies to none, the second to one of three.
        positive = [[1, 1, 1], [1, 2, 0.5]] if weight == "balanced" else [weight] * 2
        known, target = (drawn >= 0).view(2, 2, 3), drawn.clamp(min=0).view(2, 2, 3).float()
        target = target * (1 - smoothing) + smoothing / 2
        for model in range(2):
            expected = F.binary_cross_entropy_with_logits(
                z[model], target[model], weight=known[model] * torch.tensor(each), reduction="none",
                pos_weight=torch.tensor(positive[model]),
            ).sum(1)  # fmt: skip
            torch.testing.assert_close(found[model], expected)


def test_networks_find_rare_labels_by_their_weight(tmp_path):
    labels = (LOG_ODDS - [2, 5, 2] + np.random.default_rng(1).logistic(size=(90, 3)) > 0).astype(np.int8)
    plain = TorchMembers(NET, 1, name="net", optimization=FAST)
    weighed = TorchMembers(NET, 1, name="net", optimization=FAST, pos_weight="balanced")
    stated = (labels == 0).sum(0) / (labels == 1).sum(0)

    def chances(recipe):
        ensemble, _ = train_ensemble([recipe], rows(labels), NAMES, folds=2, folder=tmp_path)
        return expit(ensemble.raw_logits(X)[0])

    rare, common = chances(plain)[:, 1].mean(), labels[:, 1].mean()
    found = chances(weighed)  # the same folder: the members are trained anew
    assert rare < 1.5 * common < found[:, 1].mean()
    np.testing.assert_array_equal(found, chances(replace(weighed, pos_weight=list(stated))))
    alone = chances(replace(plain, class_weights=[0, 1, 0]))
    assert (labels[:, 0] == 1).mean() > 0.2 > alone[:, 1].mean()
    assert ((alone[:, [0]] > 0.5) == labels[:, [0]]).mean() < ((found[:, [0]] > 0.5) == labels[:, [0]]).mean()


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({"pos_weight": "even"}, LABELS, r"^pos_weight: expected 'balanced', or a number for each label"),
        ({"pos_weight": [1, 0, 1]}, LABELS, r"^pos_weight: expected finite numbers above 0, one for each"),
        ({"class_weights": [0, 0, 0]}, LABELS, r"^class_weights: expected one above 0"),
        ({"class_weights": [1, np.inf, 1]}, LABELS, r"^class_weights: expected finite numbers of at least 0"),
        ({"class_weights": 2.0}, LABELS, r"^class_weights: mlp: expected 3 numbers, .*; got 1"),
        ({"pos_weight": [1, 2]}, LABELS, r"^pos_weight: mlp: expected 3 numbers, .*; got 2"),
        ({"pos_weight": "balanced"}, NUMBERS, r"^pos_weight: mlp: .* with the task multilabel alone; got"),
        ({"variance": True}, LABELS, r"^variance: mlp: expected with the task regression alone"),
    ],
)
def test_factors_of_labels_that_do_not_fit_are_refused(settings, labels, message):
    with pytest.raises(ValueError, match=message):
        train_ensemble(
            [TorchMembers(NET, 1, optimization=FAST, **settings)], rows(labels), NAMES[: labels.shape[1]]
        )


def test_class_weights_of_estimators_are_scikit_learns():
    labels = (LOG_ODDS - 2 > 0).astype(np.int8)
    labels[::4, 1] = -1
    recipe = SklearnMembers(MultiOutputClassifier(LogisticRegression(class_weight="balanced")), name="each")
    ensemble, _ = train_ensemble([recipe], rows(labels), NAMES, folds=2)
    known = labels[:, 1] >= 0
    own = LogisticRegression(class_weight="balanced").fit(X[known], labels[known, 1])
    p = 1 / (1 + np.exp(-ensemble.raw_logits(X)[0][:, 1]))
    np.testing.assert_allclose(p, own.predict_proba(X)[:, 1], atol=2e-6)


def test_numbers_are_learned_in_the_data_s_units():
    recipes = [
        TorchMembers(NET, 2, name="net", optimization=FAST),
        TorchMembers(NET, 1, name="both", optimization=FAST, variance=True),
        SklearnMembers(MultiOutputRegressor(HistGradientBoostingRegressor(max_iter=20)), name="boosting"),
        SklearnMembers(Ridge(), name="ridge"),
    ]
    ensemble, held_out = train_ensemble(recipes, rows(NUMBERS), ("price", "size"), folds=3, seed=1)
    assert ensemble.task == "regression"
    assert isinstance(held_out, Moments)
    assert held_out.mean.shape == held_out.variance.shape == (5, 90, 2)
    spread, errors = NUMBERS.std(0), held_out.mean - NUMBERS
    assert (np.sqrt(np.square(errors).mean(1)) < 0.75 * spread).all()
    # Members without a variance have that of the one with it.
    np.testing.assert_array_equal(held_out.variance[0], held_out.variance[2])
    found = ensemble.predict_distribution(X)
    assert (np.sqrt(np.square(found.mean - NUMBERS).mean(0)) < 0.5 * spread).all()
    z = (NUMBERS - ensemble.combine(held_out).mean) / np.sqrt(ensemble.combine(held_out).variance)
    assert 0.5 < np.square(z).mean() < 2
    assert ensemble.weights.sum() == pytest.approx(1)


def test_a_network_s_scale_is_that_of_its_own_rows():
    ensemble = Ensemble.train(
        NET, (X, NUMBERS), members=2, task="regression", method=Bagging(0.3), optimization=FAST, seed=3
    )
    moved = Ensemble.train(
        NET,
        (X, 7 + 3 * NUMBERS),
        members=2,
        task="regression",
        method=Bagging(0.3),
        optimization=FAST,
        seed=3,
    )
    np.testing.assert_allclose(moved.predict(X), 7 + 3 * ensemble.predict(X), rtol=1e-6)
    constant = units_of(np.full((5, 1), 0.1))
    assert constant[1].tolist() == [1.0]


def test_members_that_give_no_variance_get_a_noise():
    ensemble, held_out = train_ensemble([SklearnMembers(Ridge())], rows(NUMBERS[:, :1]), ("price",), folds=3)
    assert held_out.variance is None
    assert ensemble.noise is not None
    errors = NUMBERS[:, :1] - held_out.mean[0]
    np.testing.assert_allclose(ensemble.noise, np.square(errors).mean(0), rtol=1e-3)


def test_a_selection_leaves_bad_regressors_out():
    gaussian = GaussianProcessRegressor(RBF(2.0) + WhiteKernel(0.1), normalize_y=True, optimizer=None)
    recipes = [
        SklearnMembers(gaussian, name="process"),
        SklearnMembers(Ridge(), name="ridge"),
        SklearnMembers(Ridge(1e9), name="mean"),
    ]
    ensemble, held_out = train_ensemble(
        recipes, rows(NUMBERS[:, :1]), ("price",), folds=3, select=True, prior_rows=0.0
    )
    weights = dict(zip(ensemble.names, ensemble.weights, strict=True))
    assert weights["mean"] == 0
    assert weights["ridge"] > 0.3
    chosen = ensemble.weighted()
    own = Moments(held_out.mean[ensemble.weights > 0], None)
    if chosen.names == ("ridge",):  # its variance is a noise, and not that of the process that was left out
        assert ensemble.noise is not None
    assert chosen.combine(own).mean.shape == (90, 1)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_killed_ensemble_of_another_task_ends_with_the_same_bits(tmp_path, task):
    data = rows(LABELS if task == "multilabel" else NUMBERS)
    names = NAMES[: data.labels.shape[1]]
    estimator = RandomForestClassifier(3) if task == "multilabel" else Ridge()
    recipes = [
        SklearnMembers(estimator, name="estimator"),
        TorchMembers(NET, 2, name="net", optimization=FAST, checkpoint_every=32, way="one_by_one"),
    ]
    whole, held_out = train_ensemble(recipes, data, names, folds=2, seed=5)
    seen = []

    def stop(status):
        seen.append(status.names)
        if len(seen) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_ensemble(recipes, data, names, folds=2, seed=5, folder=tmp_path, progress=stop)
    again, held_again = train_ensemble(recipes, data, names, folds=2, seed=5, folder=tmp_path)
    for one, other in zip(
        (held_out, held_again) if task == "multilabel" else (held_out.mean, held_again.mean),
        (held_again, held_out) if task == "multilabel" else (held_again.mean, held_out.mean),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    again.save(tmp_path / "saved")
    read = type(again).load(tmp_path / "saved")
    predict = "predict" if task == "regression" else "predict_proba"
    np.testing.assert_array_equal(getattr(read, predict)(X), getattr(whole, predict)(X))


def test_recipes_of_another_task_are_refused_by_name():
    classifier, regressor = SklearnMembers(RandomForestClassifier(2)), SklearnMembers(Ridge())
    cases = (
        (
            classifier,
            NUMBERS,
            ("a", "b"),
            r"^estimator: .*expected a regressor for labels of the task regression",
        ),
        (regressor, LABELS, NAMES, r"^estimator: .*expected a classifier for labels of the task multilabel"),
        (
            TorchMembers(NET, variance=True),
            LABELS,
            NAMES,
            r"^variance: mlp: expected with the task regression",
        ),
        (TorchMembers(NET), LABELS[:, :2], NAMES, r"^labelled: expected rows with labels \[N, 3\]"),
    )
    for recipe, labels, names, message in cases:
        with pytest.raises(ValueError, match=message):
            train_ensemble([recipe], rows(labels), names, folds=2)
    smooth, gaps = Optimization(steps=2, label_smoothing=0.1), NUMBERS.copy()
    gaps[2] = np.nan
    with pytest.raises(ValueError, match=r"^optimization.label_smoothing: expected 0 for the numbers"):
        Ensemble.train(NET, (X, NUMBERS), members=1, task="regression", optimization=smooth)
    with pytest.raises(ValueError, match=r"^data: expected a label in each row; row 2 has none"):
        Ensemble.train(Ridge(), (X, gaps), members=1, task="regression")
    with pytest.raises(ValueError, match=r"^task: expected regression, of which the labels"):
        Ensemble.train(Ridge(), rows(NUMBERS), members=1, task="multilabel")


def test_a_recipe_of_several_labels_is_tried_on_a_few_rows():
    each = SklearnMembers(MultiOutputClassifier(HistGradientBoostingClassifier(max_iter=3)))
    each.check(rows(LABELS), NAMES)
    SklearnMembers(MultiOutputRegressor(HistGradientBoostingRegressor(max_iter=3))).check(
        rows(NUMBERS), ("a", "b")
    )
    with pytest.raises(ValueError, match=r"^estimator: .*it can't be used: .*expected a regressor"):
        SklearnMembers(LogisticRegression()).check(rows(NUMBERS), ("a", "b"))
    with pytest.raises(ValueError, match=r"it can't be used: .*For 2 columns: MultiOutputRegressor\(est"):
        SklearnMembers(HistGradientBoostingRegressor(max_iter=3)).check(rows(NUMBERS), ("a", "b"))
    with pytest.raises(ValueError, match=r"it can't be used: .*For 3 columns: MultiOutputClassifier\(est"):
        SklearnMembers(HistGradientBoostingClassifier(max_iter=3)).check(rows(LABELS), NAMES)


def test_targets_of_labelled_rows_are_mixed_by_task():
    uids = np.arange(90)
    labels = LABELS.copy()
    labels[0, 1] = -1
    ensemble, _ = train_ensemble([SklearnMembers(RandomForestClassifier(3))], rows(LABELS), NAMES, folds=2)
    mixed = LabelledTargets(ensemble, uids[:5], labels=labels[:5], share=0.25).for_uids(uids[:7], uids)
    p = 1 / (1 + np.exp(-mixed.predict_logits(X[:7]).numpy().astype(float)))[0]
    own = ensemble.predict_proba(X[:7])
    expected = np.where(labels[:7] == -1, own, 0.75 * own + 0.25 * labels[:7])
    np.testing.assert_allclose(p[:5], expected[:5], atol=1e-6)
    np.testing.assert_allclose(p[5:], own[5:], atol=1e-6)
    numbers, moments = train_ensemble([SklearnMembers(Ridge())], rows(NUMBERS), ("a", "b"), folds=2)
    asked = LabelledTargets(numbers, uids[:5], held_out=moments_of(moments, 5)).for_uids(uids[:7], uids)
    found = asked.predict_moments(X[:7]).mean[0]
    np.testing.assert_array_equal(found[:5], moments.mean[0, :5])
    np.testing.assert_array_equal(found[5:], numbers.predict(X[:7])[5:])
    half = LabelledTargets(numbers, uids[:5], labels=NUMBERS[:5], share=0.5).for_uids(uids[:7], uids)
    np.testing.assert_allclose(
        half.predict_moments(X[:7]).mean[0, :5], (numbers.predict(X[:5]) + NUMBERS[:5]) / 2
    )
    with pytest.raises(ValueError, match=r"^labels: expected \[5\].* task regression; got int8"):
        LabelledTargets(numbers, uids[:5], labels=LABELS[:5], share=0.5)


def moments_of(moments, count):
    return Moments(moments.mean[:, :count], None)


def test_existing_members_state_their_task(tmp_path):
    import skops.io

    file = tmp_path / "ridge.skops"
    skops.io.dump(Ridge().fit(X, NUMBERS), file)
    np.save(tmp_path / "stored.npy", NUMBERS + 1)
    recipes = [
        MemberFile(file, task="regression"),
        StoredPredictions(tmp_path / "stored.npy", task="regression", held_out=True),
    ]
    for recipe in recipes:
        recipe.check(rows(NUMBERS), ("a", "b"))
    ensemble, held_out = train_ensemble(recipes, rows(NUMBERS), ("a", "b"), folds=2)
    assert np.isnan(held_out.mean[0]).all()
    assert not np.isnan(held_out.mean[1]).any()
    np.testing.assert_allclose(ensemble.noise, 1.0, rtol=1e-3)
    with pytest.raises(ValueError, match=r"^task: ridge: .* of the task multilabel, .* one of regression"):
        recipes[0].check(rows(LABELS), NAMES)
