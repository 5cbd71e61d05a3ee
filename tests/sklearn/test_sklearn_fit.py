"""Teachers, students and reports of every kind."""

import warnings
from functools import partial

import numpy as np
import pytest
from catboost import CatBoostClassifier
from lightgbm import LGBMClassifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier
from sklearn_helpers import FAST, STUDENT, numbers, small, table
from xgboost import XGBClassifier

from ensdistill import Ensemble
from ensdistill.data.transfer import Munge
from ensdistill.job.student_config import StudentConfig, ValidationConfig
from ensdistill.loss.settings import LossSettings
from ensdistill.models import MLP
from ensdistill.sklearn import DistilledClassifier
from ensdistill.sklearn.inputs import check_fit, split_of
from ensdistill.student import StudentTrainer
from ensdistill.teachers.recipes import SklearnMembers, TorchMembers

X, Y = numbers()
FITTED = [
    RandomForestClassifier(20, random_state=0).fit(X[:120], Y[:120]),
    LogisticRegression().fit(X[:120], Y[:120]),
]


@pytest.fixture(scope="module")
def judged():
    """A fit with its report."""
    teachers = [ExtraTreesClassifier(30), LogisticRegression()]
    return small(teachers, validation_fraction=0.25).fit(X, Y)


def test_teachers_of_every_kind():
    teachers = [
        ("forest", RandomForestClassifier(20)),
        LogisticRegression(),
        LogisticRegression(C=0.1),
        SklearnMembers(ExtraTreesClassifier(5), 2, name="tree"),
        STUDENT,
        ("wide", partial(MLP, hidden=[32])),
        TorchMembers(partial(MLP, hidden=[8]), 1, name="own", optimization=FAST),
    ]
    model = small(teachers).fit(X, Y)
    assert model.ensemble_.names == (
        "forest", "logisticregression-1", "logisticregression-2", "tree-1", "tree-2", "mlp", "wide", "own",
    )  # fmt: skip
    assert model.ensemble_.weights.sum() == pytest.approx(1)
    assert (model.ensemble_.temperatures != 1).any()
    assert model.score(X, Y) > 0.8
    assert teachers[1].__dict__ == LogisticRegression().__dict__, "the given estimators stay unfitted"


def test_the_boosters():
    teachers = [
        LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1),
        XGBClassifier(n_estimators=10, n_jobs=1),
        CatBoostClassifier(10, thread_count=1, verbose=False, allow_writing_files=False),
    ]
    frame, labels = table()
    frame = frame.assign(city=frame["city"].astype("category"))
    model = small(teachers, LGBMClassifier(n_estimators=30, verbose=-1, n_jobs=1)).fit(frame, labels)
    assert model.score(frame, labels) > 0.8
    assert model.ensemble_.names == ("lgbmclassifier", "xgbclassifier", "catboostclassifier")


def test_fitted_teachers_are_kept_calibrated_and_weighed():
    teachers = [("forest", FITTED[0]), FrozenEstimator(FITTED[1]), MLP(2, [8], 2)]
    model = small(teachers, prefit=True).fit(X[120:], Y[120:])
    assert model.ensemble_.names == ("forest", "logisticregression", "mlp")
    assert model.ensemble_.members[0].estimator is FITTED[0]
    raw = Ensemble.from_members([*FITTED, teachers[2]], classes=("no", "yes"))
    logits = raw.raw_logits(X[120:])
    raw.calibrate(logits, (Y[120:] == "yes").astype(int)).weigh(logits, (Y[120:] == "yes").astype(int))
    np.testing.assert_allclose(model.ensemble_.weights, raw.weights)
    np.testing.assert_allclose(model.ensemble_.temperatures, raw.temperatures)
    assert model.score(X, Y) > 0.75


def test_an_ensemble_keeps_its_temperatures_and_weights():
    ensemble = Ensemble.from_members(FITTED, weights=[3, 1])
    ensemble.temperatures = np.array([0.5, 2.0])
    model = small(ensemble).fit(X[120:], Y[120:])
    assert model.ensemble_.weights.tolist() == [0.75, 0.25]
    assert model.ensemble_.temperatures.tolist() == [0.5, 2.0]
    np.testing.assert_allclose(model.ensemble_.predict_proba(X), ensemble.predict_proba(X))


def test_an_ensemble_of_another_order_of_classes_is_aligned():
    ensemble = Ensemble.from_members(FITTED, classes=("yes", "no"))
    model = small(ensemble).fit(X[120:], Y[120:])
    np.testing.assert_allclose(model.ensemble_.predict_proba(X), ensemble.predict_proba(X)[:, ::-1])
    assert model.score(X, Y) > 0.75


def test_teachers_that_have_seen_the_rows_are_suspected():
    tree = DecisionTreeClassifier().fit(X, Y)
    with pytest.warns(
        UserWarning, match="prefit: decisiontreeclassifier made no error on 240 rows. If it was fitted"
    ):
        small([tree, FITTED[1]], prefit=True).fit(X, Y)


def test_neighbours_teach_by_predictions_out_of_fold():
    """One nearest neighbour answers labelled rows by their own labels."""
    generator = np.random.default_rng(1)
    y = generator.integers(0, 2, len(X))  # nothing can be learned
    model = small([KNeighborsClassifier(1)]).fit(X, y)
    assert np.abs(model.score(X, y) - 0.5) < 0.2


@pytest.mark.parametrize(
    "student",
    [
        DecisionTreeClassifier(max_depth=6),
        LGBMClassifier(n_estimators=40, verbose=-1, n_jobs=1),
        CalibratedClassifierCV(DecisionTreeClassifier(max_depth=3)),
        MLP,
        StudentConfig(STUDENT, FAST),
    ],
    ids=lambda s: getattr(s, "__name__", type(s).__name__),
)
def test_students_of_every_kind(student):
    model = small(student=student, synthetic=[Munge(rows=300)]).fit(X, Y)
    assert model.score(X, Y) > 0.75


def test_the_settings_of_a_student_s_method_and_generations_are_used(monkeypatch):
    trained = []
    distill = StudentTrainer.distill

    def counted(self, *arguments, **options):
        trained.append((type(self.loss).__name__, type(arguments[2]).__name__, options.get("member")))
        return distill(self, *arguments, **options)

    monkeypatch.setattr(StudentTrainer, "distill", counted)
    student = StudentConfig(STUDENT, FAST, method="dist", generations=2)
    small(student=student, validation_fraction=None).fit(X, Y)
    assert trained == [("Correlation", "TargetCache", None), ("Correlation", "OnlineTeachers", None)]


def test_a_booster_is_trained_at_the_temperature_and_stops_by_its_settings():
    rounds = {}
    for temperature in (1.0, 3.0):
        booster = LGBMClassifier(n_estimators=60, verbose=-1, n_jobs=1)
        student = StudentConfig(estimator=booster, validation=ValidationConfig(patience=5))
        model = small(student=student, temperature=temperature, synthetic=[Munge(rows=300)]).fit(X, Y)
        same = model.predict_proba(X).argmax(1) == model.ensemble_.predict_proba(X).argmax(1)
        assert same.mean() > 0.8
        rounds[temperature] = model.student_.member._model.booster.num_trees()
    assert rounds[1.0] != rounds[3.0]
    assert max(rounds.values()) <= 60


def test_a_student_follows_the_ensemble_and_not_the_labels():
    wrong = Ensemble.from_members([LogisticRegression().fit(X, np.where(Y == "yes", "no", "yes"))])
    for student in (STUDENT, DecisionTreeClassifier(max_depth=6)):
        model = small(wrong, student).fit(X, Y)
        assert (model.predict(X) == wrong.predict_proba(X).argmax(1).astype(str)).mean() < 1
        agreed = model.predict_proba(X).argmax(1) == wrong.predict_proba(X).argmax(1)
        assert agreed.mean() > 0.9
        assert model.score(X, Y) < 0.5
        half = small(wrong, student, alpha=0.0).fit(X, Y)
        assert half.score(X, Y) > 0.8, "alpha=0 learns the labels alone"


def test_the_loss_may_be_given_in_two_ways():
    one = small(temperature=3.0, alpha=0.7).fit(X, Y)
    other = small(loss=LossSettings(temperature=3.0, alpha=0.7)).fit(X, Y)
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    assert not np.array_equal(one.predict_proba(X), small().fit(X, Y).predict_proba(X))
    with pytest.raises(ValueError, match="loss: expected either loss or alpha; got both"):
        small(loss=LossSettings(), alpha=0.7).fit(X, Y)
    with pytest.raises(ValueError, match=r"loss\.temperature: expected 1 for DecisionTreeClassifier"):
        small(student=DecisionTreeClassifier(), temperature=3.0).fit(X, Y)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, second = (small([ExtraTreesClassifier(10)]).fit(X, Y) for _ in range(2))
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    other = small([ExtraTreesClassifier(10)], random_state=1).fit(X, Y)
    assert not np.array_equal(first.predict_proba(X), other.predict_proba(X))
    states = (small([ExtraTreesClassifier(10)], random_state=np.random.RandomState(7)) for _ in range(2))
    one, same = (model.fit(X, Y).predict_proba(X) for model in states)
    np.testing.assert_array_equal(one, same)


def test_the_report_holds_the_figures_of_rows_that_no_model_has_seen(judged):
    data, _ = check_fit(small(), X, Y, None, None, False)
    split, _ = split_of(data, 0.25, seed=0)
    test, truth = split.test.inputs, split.test.labels
    models = judged.report_.figures["models"]
    assert judged.report_.figures["dataset"] == {
        "name": "data of the fit", "labelled": 180, "pool": 0, "transfer": 180, "test": 60, "classes": 2,
    }  # fmt: skip
    for kind, p in (
        ("student", judged.predict_proba(test)),
        ("ensemble", judged.ensemble_.predict_proba(test)),
    ):
        assert models[kind]["accuracy"]["mean"] == pytest.approx(accuracy_score(truth, p.argmax(1)))
        assert models[kind]["nll"]["mean"] == pytest.approx(log_loss(truth, p), abs=1e-5)
    assert [member["name"] for member in judged.report_.figures["members"]] == list(judged.ensemble_.names)
    assert judged.report_.figures["copies"]["test"] == 0


def test_the_retained_gain_is_that_of_the_report(judged):
    gain = judged.retained_gain_
    assert set(gain) == {"accuracy", "nll", "brier"}
    assert set(gain["nll"]) == {"mean", "ci95", "meaningful", "share_without_gain"}
    gains = judged.report_.figures["gains"]
    kept, whole = gains["student"]["nll"]["mean"], gains["ensemble"]["nll"]["mean"]
    assert gain["nll"]["mean"] == (pytest.approx(kept / whole) if whole > 0 else None)


def test_the_report_is_readable(judged):
    text = str(judged.report_)
    for line in (
        "student (distilled)",
        "direct, label smoothing",
        "Retained gain over direct",
        "extratreesclassifier",
    ):
        assert line in text
    assert "number of steps by NLL on held-out folds" in text
    assert judged.report_.verdict in " ".join(text.split())
    page = judged._repr_html_()
    assert "on 60 held-out rows" in page
    assert "sk-top-container" in page
    assert "held-out" not in small()._repr_html_()


def test_the_report_of_an_estimator_names_its_own_search():
    model = small(student=DecisionTreeClassifier(max_depth=4), validation_fraction=0.25).fit(X, Y)
    text = " ".join(str(model.report_).split())
    assert "Direct: the same estimator on labels with its library's own loss" in text
    assert "augmentation" not in text
    assert model.report_.figures["models"]["direct"]["note"].startswith("min_samples_leaf=")


def test_weights_count_in_the_report():
    weights = np.where(Y == "yes", 3.0, 1.0)
    model = small(validation_fraction=0.25).fit(X, Y, sample_weight=weights)
    assert model.report_.figures["weighted"]


def test_too_few_rows_give_no_report_and_say_so():
    x, y = load_iris(return_X_y=True)
    few = np.r_[0:12, 50:62, 100:104]
    with pytest.warns(UserWarning, match="there is no report, because the rarest class has 4 of 28 rows"):
        model = small(validation_fraction=0.2).fit(x[few], y[few])
    assert model.report_ is None
    assert model.retained_gain_ is None
    with pytest.warns(
        UserWarning, match="neither calibrated nor weighed, because class '2' has too few different"
    ):
        small().fit(x[few[:-3]], y[few[:-3]])


def test_equal_rows_stay_together():
    x = np.repeat(np.arange(6.0), 40)[:, None]
    with pytest.warns(UserWarning, match="there is no report, because"):
        model = small(validation_fraction=0.2).fit(x, (x[:, 0] > 2).astype(int))
    assert model.score(x, x[:, 0] > 2) == 1


def test_verbose_names_the_stages(capsys):
    small(verbose=1).fit(X, Y)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "[DistilledClassifier] teachers", "[DistilledClassifier] cache", "[DistilledClassifier] student",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_budget_is_all_that_is_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = DistilledClassifier(teacher_minutes=0.5, random_state=0).fit(X, Y)
    assert len(model.ensemble_) > 1
    assert (model.ensemble_.weights > 0).all()
    assert model.score(X, Y) > 0.85
    assert model.report_.figures["dataset"]["transfer"] > 5000
