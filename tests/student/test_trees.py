"""Boosted trees as students: the objective against the specification of the loss, and the libraries' own files."""

import json

import catboost
import lightgbm
import numpy as np
import pandas as pd
import pytest
import torch
import xgboost
from scipy.special import softmax
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from ensdistill import Ensemble, cache_targets
from ensdistill.data import Rows
from ensdistill.data.augmentation import ShiftImages
from ensdistill.loss.reference import distill_loss
from ensdistill.loss.settings import LossSettings
from ensdistill.student.trees import Objective, TreeStudent
from ensdistill.student.validation import Validation
from ensdistill.teachers.members import load_member
from ensdistill.teachers.members.preprocessed import inner

LIGHTGBM = {"n_estimators": 12, "num_leaves": 5, "min_child_samples": 4, "n_jobs": 1, "verbose": -1}
XGBOOST = {"n_estimators": 12, "max_depth": 3, "n_jobs": 1}
CATBOOST = {
    "iterations": 12,
    "depth": 3,
    "thread_count": 1,
    "learning_rate": 0.3,
    "allow_writing_files": False,
}
BOOSTERS = [
    lightgbm.LGBMClassifier(**LIGHTGBM),
    xgboost.XGBClassifier(**XGBOOST),
    catboost.CatBoostClassifier(**CATBOOST),
]


def by_name(value):
    return type(value).__name__


def made(classes, seed=0, count=160):
    """Rows of three features, the noisy labels of some, and an ensemble that was fitted to these."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 3))
    y = (x @ generator.normal(size=(3, classes)) + generator.gumbel(size=(count, classes)) / 2).argmax(1)
    members = [
        GaussianNB().fit(x[:60], y[:60]),
        DecisionTreeClassifier(min_samples_leaf=6).fit(x[:60], y[:60]),
    ]
    labels = np.where(np.arange(count) < 60, y, -100)
    names = [f"class {i}" for i in range(classes)]
    ensemble = Ensemble.from_members([*members], classes=names)
    return Rows(x, np.arange(count) * 3 + 5, labels), ensemble


@pytest.fixture(scope="module", params=[2, 3])
def taught(request, tmp_path_factory):
    rows, ensemble = made(request.param)
    folder = tmp_path_factory.mktemp("trees")
    return rows, ensemble, cache_targets(ensemble, rows, folder / "targets", codec="fp32")


SETTINGS = [
    LossSettings(),
    LossSettings(temperature=3.0),
    LossSettings(temperature=0.7, alpha=0.6),
    LossSettings(temperature=2.0, alpha=0.3, label_smoothing=0.2),
    LossSettings(alpha=0.0),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"T{s.temperature} alpha{s.alpha}")
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
def test_loss_and_derivatives_are_those_of_the_specification(settings, weighted):
    generator = np.random.default_rng(3)
    z, teacher = 3 * generator.normal(size=(7, 4)), generator.normal(size=(7, 4))
    labels = np.array([0, 3, -100, 1, -100, 2, 2])
    weights = generator.uniform(0.2, 3, 7) if weighted else None
    p = softmax(teacher / settings.temperature, axis=1)
    own = Objective.of(settings, p, labels, weights)
    scores = torch.tensor(z, requires_grad=True)
    loss, _ = distill_loss(
        scores,
        torch.tensor(teacher)[None],
        labels=torch.tensor(labels),
        sample_weights=None if weights is None else torch.tensor(weights / weights.mean()),
        temperature=settings.temperature,
        alpha=settings.alpha,
        label_smoothing=settings.label_smoothing,
    )
    (7 * loss).backward()
    np.testing.assert_allclose(own.loss(z).mean(), loss.item(), rtol=1e-12)
    np.testing.assert_allclose(own.gradient(z), scores.grad.numpy(), rtol=1e-10, atol=1e-12)
    step = 1e-5
    for column in range(4):
        shift = step * np.eye(4)[column]
        slope = (own.gradient(z + shift) - own.gradient(z - shift)) / (2 * step)
        np.testing.assert_allclose(own.curvature(z)[:, column], slope[:, column], rtol=1e-6, atol=1e-8)


def test_targets_and_labels_are_merged_where_one_distribution_has_both_derivatives():
    generator = np.random.default_rng(4)
    z, p = generator.normal(size=(6, 3)), softmax(generator.normal(size=(6, 3)), axis=1)
    labels = np.array([0, -100, 2, 1, -100, 1])
    own = Objective.of(LossSettings(alpha=0.4), p, labels, generator.uniform(1, 2, 6))
    targets, weights, scale = own.merged()
    assert scale == 1
    np.testing.assert_allclose(weights[:, None] * (softmax(z, axis=1) - targets), own.gradient(z), atol=1e-12)
    warm = Objective.of(LossSettings(temperature=2.0), p, labels)
    assert warm.merged()[2] == 2
    assert Objective.of(LossSettings(temperature=2.0, alpha=0.5), p, labels).merged() is None


@pytest.mark.parametrize("classes", [2, 3])
def test_on_labels_alone_the_trees_are_those_of_the_library_itself(classes):
    rows, _ = made(classes)
    x, y = rows.inputs[:60], rows.labels[:60]
    hot = Objective.of(LossSettings(), np.eye(classes)[y], y)
    names = [str(i) for i in range(classes)]

    def fitted(estimator):
        return TreeStudent(estimator).fit_to(x, hot, names).member.predict_logits(rows.inputs)

    settings = {**LIGHTGBM, "deterministic": True, "force_row_wise": True}
    own = lightgbm.LGBMClassifier(**settings).fit(x, y).predict_proba(rows.inputs)
    np.testing.assert_allclose(softmax(fitted(BOOSTERS[0]), axis=1), own, atol=1e-6)

    start = np.log(np.bincount(y) / len(y))
    base = start.tolist() if classes > 2 else float(np.mean(y))
    more = (
        {"objective": "multi:softprob", "num_class": classes}
        if classes > 2
        else {"objective": "binary:logistic"}
    )
    booster = xgboost.train({"max_depth": 3, "base_score": base, **more}, xgboost.DMatrix(x, y), 12)
    own = booster.predict(xgboost.DMatrix(rows.inputs))
    own = own if classes > 2 else np.stack([1 - own, own], 1)
    np.testing.assert_allclose(softmax(fitted(BOOSTERS[1]), axis=1), own, atol=1e-5)


@pytest.mark.parametrize(
    "estimator",
    [lightgbm.LGBMClassifier(**LIGHTGBM, min_split_gain=1e9), xgboost.XGBClassifier(**XGBOOST, gamma=1e9)],
    ids=by_name,
)
@pytest.mark.parametrize("settings", [LossSettings(), LossSettings(temperature=2.0)], ids=["T1", "T2"])
def test_a_booster_without_a_split_predicts_the_weighted_mean_of_the_targets(estimator, settings):
    p = softmax(np.random.default_rng(0).normal(size=(40, 3)), axis=1)
    weights = np.linspace(0, 2, 40)
    none = np.full(40, -100)
    objective = Objective.of(settings, p, none, weights)
    x = np.random.default_rng(1).normal(size=(40, 2))
    member = TreeStudent(estimator, settings).fit_to(x, objective, "abc").member
    q = softmax(member.predict_logits(x[:1]) / settings.temperature, axis=1)
    np.testing.assert_allclose(q[0], np.average(p, axis=0, weights=weights), atol=2e-6)


def of_library(folder, member, x):
    """The probabilities that the library itself reads from the saved file."""
    name = json.loads((folder / "member.json").read_text())["kind"]
    if name == "lightgbm":
        p = lightgbm.Booster(model_file=folder / "model.txt").predict(x)
    elif name == "xgboost":
        booster = xgboost.Booster(model_file=folder / "model.ubj")
        p = booster.predict(xgboost.DMatrix(x))
    else:
        p = (
            catboost.CatBoost()
            .load_model(str(folder / "model.cbm"))
            .predict(x, prediction_type="Probability")
        )
    return np.stack([1 - p, p], 1) if p.ndim == 1 else p


@pytest.mark.parametrize("estimator", BOOSTERS, ids=by_name)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_saved_file_predicts_in_its_library_what_the_student_predicts(
    taught, tmp_path, estimator, temperature
):
    rows, ensemble, cache = taught
    settings = LossSettings(temperature=temperature)
    member = TreeStudent(estimator, settings).fit(rows, cache, validation=None, seed=1).member
    assert member.classes == tuple(cache.classes)
    member.save(tmp_path)
    logits = member.predict_logits(rows.inputs)
    np.testing.assert_allclose(of_library(tmp_path, member, rows.inputs), softmax(logits, axis=1), atol=1e-6)
    np.testing.assert_array_equal(load_member(tmp_path).predict_logits(rows.inputs), logits)
    agreement = (logits.argmax(1) == ensemble.predict_proba(rows.inputs).argmax(1)).mean()
    assert agreement > 0.85
    again = TreeStudent(estimator, settings).fit(rows, cache, validation=None, seed=1).member
    np.testing.assert_array_equal(again.predict_logits(rows.inputs), logits)


@pytest.mark.parametrize("metric", ["kl", pytest.param("agreement", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "estimator",
    [
        *BOOSTERS,
        pytest.param(
            catboost.CatBoostClassifier(
                **CATBOOST | {"depth": 6, "l2_leaf_reg": 0.1}, grow_policy="Lossguide"
            ),
            id="lossguide",
        ),
    ],
    ids=by_name,
)
def test_the_round_that_is_kept_is_the_best_on_the_validation_rows(taught, estimator, metric):
    rows, _, cache = taught
    own, other = rows.take(np.arange(110)), rows.take(np.arange(110, 160))
    p = softmax(cache.gather_logits(other.uids)[0], axis=1) / 2
    p += softmax(cache.gather_logits(other.uids)[1], axis=1) / 2
    longest = type(estimator)(**{**estimator.get_params(), "learning_rate": 0.9})

    def judged(member):
        q = softmax(member.predict_logits(other.inputs).astype(np.float64), axis=1)
        divergence = float((p * np.log(p / q)).sum(1).mean())
        same = float((q.argmax(1) == p.argmax(1)).mean())
        return -divergence if metric == "kl" else same - 1e-9 * divergence

    settings = Validation(rows=other, patience=12, metric=metric)
    kept = TreeStudent(longest).fit(own, cache, validation=settings)
    name = "iterations" if "iterations" in longest.get_params() else "n_estimators"
    values = []
    for rounds in range(1, 13):
        shorter = type(estimator)(**{**longest.get_params(), name: rounds})
        values.append(judged(TreeStudent(shorter).fit(own, cache, validation=None).member))
    assert kept.way == f"KL objective, {int(np.argmax(values)) + 1} of 12 rounds"
    ((_, (agreement, divergence)),) = kept.validation.items()
    expected = -divergence if metric == "kl" else agreement - 1e-9 * divergence
    np.testing.assert_allclose([judged(kept.member), expected], max(values), atol=1e-6)


@pytest.mark.parametrize(
    "estimator",
    [
        lightgbm.LGBMClassifier(**LIGHTGBM, boosting_type="dart", learning_rate=0.9),
        xgboost.XGBClassifier(**XGBOOST, booster="dart", rate_drop=0.5, learning_rate=0.9),
    ],
    ids=by_name,
)
def test_dart_is_trained_and_keeps_all_its_rounds(taught, estimator):
    rows, _, cache = taught
    found = TreeStudent(estimator).fit(rows, cache, validation=Validation(rows=0.3, patience=1))
    assert found.way == "KL objective, 12 of 12 rounds"
    own = estimator.get_params()
    other = {"boosting_type": "gbdt"} if "boosting_type" in own else {"booster": "gbtree", "rate_drop": None}
    plain = TreeStudent(type(estimator)(**own | other)).fit(rows, cache, validation=None)
    trees = plain.member.predict_logits(rows.inputs)
    assert np.abs(found.member.predict_logits(rows.inputs) - trees).max() > 0.01


@pytest.mark.parametrize("estimator", BOOSTERS, ids=by_name)
@pytest.mark.parametrize("absent", [0, 1])
def test_a_class_without_probability_on_any_row_stays_an_output(estimator, absent):
    generator = np.random.default_rng(0)
    x, p = generator.normal(size=(60, 2)), softmax(generator.normal(size=(60, 3)), axis=1)
    p[:, absent] = 0
    p /= p.sum(1, keepdims=True)
    objective = Objective.of(LossSettings(), p, np.full(60, -100))
    member = TreeStudent(estimator).fit_to(x, objective, "abc").member
    q = softmax(member.predict_logits(x), axis=1)
    assert q.shape == (60, 3)
    assert q[:, absent].max() < 0.1  # CatBoost starts at equal shares
    assert (q.argmax(1) == p.argmax(1)).mean() > 0.6


@pytest.mark.parametrize("estimator", BOOSTERS, ids=by_name)
def test_rows_of_weight_zero_and_labels_count_as_in_the_loss(taught, estimator):
    rows, _, cache = taught
    weights = np.where(np.arange(160) % 4 == 0, 0.0, 1.0)
    some = np.flatnonzero(weights)
    student = TreeStudent(estimator, LossSettings(alpha=1.0))
    left_out = student.fit(Rows(rows.inputs, rows.uids, rows.labels, weights), cache, validation=None).member
    without = student.fit(rows.take(some), cache, validation=None).member
    np.testing.assert_array_equal(left_out.predict_logits(rows.inputs), without.predict_logits(rows.inputs))
    labelled = np.flatnonzero(rows.labels >= 0)
    hard = TreeStudent(estimator, LossSettings(alpha=0.0)).fit(rows, cache, validation=None).member
    right = hard.predict_logits(rows.inputs[labelled]).argmax(1) == rows.labels[labelled]
    soft = student.fit(rows, cache, validation=None).member.predict_logits(rows.inputs[labelled]).argmax(1)
    assert right.mean() > (soft == rows.labels[labelled]).mean()


def test_one_member_is_distilled_and_a_mixture_alone(taught, tmp_path):
    rows, ensemble, cache = taught
    booster = lightgbm.LGBMClassifier(**LIGHTGBM | {"n_estimators": 60})
    tree = TreeStudent(booster).fit(rows, cache, member=cache.names[1], validation=None).member
    own = np.asarray(ensemble.predict_logits(rows.inputs))[1]
    mine = (tree.predict_logits(rows.inputs).argmax(1) == own.argmax(1)).mean()
    others = np.asarray(ensemble.predict_logits(rows.inputs))[0].argmax(1)
    assert mine > 0.9 > (tree.predict_logits(rows.inputs).argmax(1) == others).mean()
    alone = cache_targets(ensemble, rows, tmp_path / "mixture", codec="fp32", mixture_at=1.0)
    one, other = (TreeStudent(booster).fit(rows, c, validation=None).member for c in (alone, cache))
    np.testing.assert_allclose(one.predict_logits(rows.inputs), other.predict_logits(rows.inputs), atol=1e-3)
    with pytest.raises(
        ValueError, match=r"temperature: 2\.0, but the cache .* holds the mixture at 1\.0 only"
    ):
        TreeStudent(booster, LossSettings(temperature=2.0)).fit(rows, alone)
    with pytest.raises(
        ValueError, match=r"combiner: 'logit', but the cache .* holds the mixture by 'prob' only"
    ):
        TreeStudent(booster, LossSettings(combiner="logit")).fit(rows, alone)


def test_all_versions_of_a_row_are_learned_from(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 1, 4, 4)).astype(np.float32)
    y = (x[:, 0, 1:3, 1:3].sum((1, 2)) > 0).astype(np.int64)
    flat = DecisionTreeClassifier(max_depth=4).fit(x.reshape(50, -1), y)
    rows, ensemble = Rows(x, np.arange(50), np.full(50, -100)), Ensemble.from_members([flat])
    augment = ShiftImages(1)
    cache = cache_targets(ensemble, rows, tmp_path / "targets", codec="fp32", views=3, augment=augment)
    booster = lightgbm.LGBMClassifier(**LIGHTGBM)
    fitted = TreeStudent(booster).fit(rows, cache, augment=augment)
    assert fitted.member.predict_logits(x).shape == (50, 2)
    assert len(fitted.validation) == 1
    with pytest.raises(ValueError, match="augment: the cache"):
        TreeStudent(booster).fit(rows, cache)


@pytest.mark.parametrize("estimator", BOOSTERS, ids=by_name)
def test_a_frame_with_categories_and_gaps_is_taken_raw(tmp_path, estimator):
    generator = np.random.default_rng(0)
    city = generator.choice(np.array(["Rome", "Oslo", "Bonn", None], object), 80)
    frame = pd.DataFrame(
        {"city": city, "age": np.where(generator.random(80) < 0.1, np.nan, generator.random(80))}
    )
    y = (city == "Oslo").astype(np.int64)
    member = lightgbm.LGBMClassifier(**LIGHTGBM).fit(frame.astype({"city": "category"}), y)
    rows, ensemble = Rows(frame, np.arange(80), y), Ensemble.from_members([member])
    cache = cache_targets(ensemble, rows, tmp_path / "targets", codec="fp32")
    student = TreeStudent(estimator).fit(rows, cache, validation=0.2).member
    student.save(tmp_path / "student")
    logits = load_member(tmp_path / "student").predict_logits(frame)
    np.testing.assert_array_equal(logits, student.predict_logits(frame))
    assert (logits.argmax(1) == y).all()
    assert type(inner(student)).__name__ == "BoostedMember"


@pytest.mark.parametrize(
    ("estimator", "settings", "message"),
    [
        (lightgbm.LGBMClassifier(class_weight="balanced"), {}, "class_weight: expected none for a student"),
        (
            lightgbm.LGBMClassifier(objective="multiclassova"),
            {},
            "objective: expected 'binary' or 'multiclass' for a student",
        ),
        (
            lightgbm.LGBMClassifier(boosting_type="rf"),
            {},
            "boosting_type: expected 'gbdt' or .* got 'rf'",
        ),
        (xgboost.XGBClassifier(base_score=0.3), {}, "base_score: expected none for a student"),
        (
            xgboost.XGBClassifier(booster="gblinear"),
            {},
            "booster: expected 'gbtree' or 'dart' for a student, .* got 'gblinear'",
        ),
        (
            catboost.CatBoostClassifier(auto_class_weights="Balanced"),
            {},
            "auto_class_weights: expected 'None' for",
        ),
        (lightgbm.LGBMRegressor(), {}, "expected a classifier; got LGBMRegressor"),
        (lightgbm.LGBMClassifier(), {"divergence": "jsd"}, "loss.divergence: expected 'forward_kl'"),
        (lightgbm.LGBMClassifier(), {"z_loss": 0.1}, "loss.z_loss: expected 0.0"),
        (
            BOOSTERS[2],
            {"temperature": 2.0, "alpha": 0.5},
            "loss.temperature: expected 1 for CatBoostClassifier",
        ),
        (lightgbm.LGBMClassifier(num_leafs=9), {}, "num_leafs: no such parameter; did you mean num_leaves"),
        (lightgbm.LGBMClassifier(zeal=9), {}, "zeal: no such parameter; LightGBM would ignore it"),
        (xgboost.XGBClassifier(max_dept=9), {}, "max_dept: no such parameter; did you mean max_depth"),
    ],
    ids=[str(i) for i in range(13)],
)
def test_settings_without_a_part_in_the_objective_are_refused(estimator, settings, message):
    with pytest.raises(ValueError, match=message):
        TreeStudent(estimator, LossSettings(**settings))


def test_names_of_the_libraries_own_are_taken():
    for estimator in (
        lightgbm.LGBMClassifier(bagging_fraction=0.5, num_iterations=4, early_stopping_rounds=3),
        xgboost.XGBClassifier(eta=0.2, alpha=0.1, sample_type="weighted"),
    ):
        assert TreeStudent(estimator).estimator is estimator


@pytest.mark.parametrize(
    "estimator",
    [lightgbm.LGBMClassifier(objective="binary"), catboost.CatBoostClassifier(loss_function="Logloss")],
)
def test_an_objective_of_two_classes_is_refused_for_three(estimator):
    x, p = np.arange(20.0)[:, None], np.full((20, 3), 1 / 3)
    objective = Objective.of(LossSettings(), p, np.full(20, -100))
    with pytest.raises(
        ValueError, match=r"'(binary|Logloss)' is for two classes, and student has 3; leave it"
    ):
        TreeStudent(estimator).fit_to(x, objective, "abc")


@pytest.mark.parametrize(
    "library", [lightgbm.LGBMClassifier, xgboost.XGBClassifier, catboost.CatBoostClassifier]
)
def test_a_fit_prints_nothing_unless_asked(library, capfd):
    p = softmax(np.random.default_rng(0).normal(size=(40, 3)), axis=1)
    objective = Objective.of(LossSettings(), p, np.full(40, -100))
    x = np.random.default_rng(1).normal(size=(40, 2))
    TreeStudent(library(n_estimators=3)).fit_to(x, objective, "abc")
    assert capfd.readouterr() == ("", "")


def test_columns_that_no_tree_can_split_by_leave_the_base_score_or_are_named():
    p = np.tile([[0.2, 0.3, 0.5]], (8, 1))
    objective = Objective.of(LossSettings(), p, np.full(8, -100))
    student = TreeStudent(lightgbm.LGBMClassifier(verbose=-1))  # leaves of at least 20 rows
    x = np.random.default_rng(0).normal(size=(8, 2))
    found = softmax(student.fit_to(x, objective, "abc").member.predict_logits(x), axis=1)
    np.testing.assert_allclose(found, p, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"rows\.inputs: student: expected a column with more than one value"
    ):
        student.fit_to(np.zeros((8, 2)), objective, "abc")


@pytest.mark.parametrize(
    ("estimator", "x", "reason"),
    [
        (BOOSTERS[1], [np.inf, 1.0], "Check failed: valid: Input data contains `inf`"),
        (BOOSTERS[2], [1.0, 1.0], "All features are either constant or ignored"),
        (lightgbm.LGBMClassifier(**LIGHTGBM | {"num_leaves": 1}), [1.0, 2.0], "Check failed: "),
    ],
    ids=["xgboost", "catboost", "lightgbm"],
)
def test_a_refusal_of_the_library_names_it_and_the_reason(estimator, x, reason):
    p = np.array([[0.9, 0.1], [0.2, 0.8]] * 10)
    objective = Objective.of(LossSettings(), p, np.full(20, -100))
    kind = type(estimator).__name__
    with pytest.raises(ValueError, match=f"^estimator: student: {kind} refuses the fit: {reason}") as raised:
        TreeStudent(estimator).fit_to(np.array([x]).repeat(10, 0).reshape(20, 1), objective, "ab")
    assert "\n" not in str(raised.value)


def test_wrong_validations_are_refused(taught):
    rows, _, cache = taught
    none = Rows(rows.inputs[:9], rows.uids[:9], rows.labels[:9], np.zeros(9))
    with pytest.raises(ValueError, match="validation: expected a row of a weight above 0; got none"):
        TreeStudent(BOOSTERS[0]).fit(rows.take(np.arange(9, 160)), cache, validation=none)
    student = TreeStudent(BOOSTERS[0])
    with pytest.raises(ValueError, match="validation: uid 5 is among the rows that are trained on, too"):
        student.fit(rows, cache, validation=rows.take(np.arange(9)))
    strange = Rows(rows.inputs[:9], np.arange(9) * 3 + 6, rows.labels[:9])
    with pytest.raises(ValueError, match=r"validation: uid 6 has no targets in the cache .* \(9 such uids\)"):
        student.fit(rows, cache, validation=strange)
    with pytest.raises(ValueError, match=r"validation\.every: expected none for an estimator"):
        student.fit(rows, cache, validation=Validation(rows=0.1, every=32))
    with pytest.raises(
        ValueError, match=r"validation\.metric: expected one of kl, agreement for an estimator"
    ):
        student.fit(rows, cache, validation=Validation(rows=0.1, metric="nll"))
    with pytest.raises(
        TypeError, match=r"cache: expected a TargetCache, .* got object: store its targets by"
    ):
        student.fit(rows, object())
    with pytest.raises(TypeError, match=r"estimator: expected one of scikit-learn, .* got <class"):
        TreeStudent(lightgbm.LGBMClassifier)
