"""Within pipelines, searches and routing; cloned, pickled and saved."""

import json
import pickle
from dataclasses import replace

import joblib
import numpy as np
import pytest
from lightgbm import LGBMClassifier
from sklearn import config_context
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn_helpers import FAST, STUDENT, numbers, small, table, takes_gaps
from torch.optim import SGD

from ensdistill import Ensemble
from ensdistill.common.optimizers import StudentOptimization
from ensdistill.data.transfer import Munge
from ensdistill.loss.settings import LossSettings
from ensdistill.sklearn import DistilledClassifier

X, Y = numbers()


def test_in_a_pipeline():
    model = make_pipeline(QuantileTransformer(n_quantiles=50), small()).fit(X, Y)
    assert model.score(X, Y) > 0.8
    assert model[-1].n_features_in_ == 2


def test_a_pipeline_changes_the_unlabelled_rows_as_well():
    with config_context(enable_metadata_routing=True):
        final = small().set_fit_request(X_unlabeled=True)
        pipeline = make_pipeline(StandardScaler(), final, transform_input=["X_unlabeled"])
        routed = pipeline.fit(X[:120], Y[:120], X_unlabeled=X[120:])
    scaler = StandardScaler().fit(X[:120])
    alone = small().fit(scaler.transform(X[:120]), Y[:120], X_unlabeled=scaler.transform(X[120:]))
    np.testing.assert_array_equal(routed.predict_proba(X), alone.predict_proba(scaler.transform(X)))


def test_cross_validation_and_search():
    assert cross_val_score(small(), X, Y, cv=2).min() > 0.75
    search = GridSearchCV(small(student=DecisionTreeClassifier()), {"student__max_depth": [1, 5]}, cv=2)
    search.fit(X, Y)
    assert search.best_params_ == {"student__max_depth": 5}
    scores = GridSearchCV(
        small(), {"alpha": [0.0, 1.0], "temperature": [1.0, 4.0]}, cv=2, scoring="neg_log_loss"
    )
    assert len(set(scores.fit(X, Y).cv_results_["mean_test_score"])) >= 3


def test_as_a_part_of_another_ensemble():
    votes = VotingClassifier([("distilled", small()), ("tree", DecisionTreeClassifier())], voting="soft")
    assert votes.fit(X, Y).score(X, Y) > 0.8
    assert small([small(), LogisticRegression()]).fit(X, Y).score(X, Y) > 0.75


def test_weights_are_routed():
    weights = np.where(Y == "yes", 5.0, 1.0)
    with config_context(enable_metadata_routing=True):
        model = small().set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        scores = cross_validate(model, X, Y, cv=2, params={"sample_weight": weights}, return_estimator=True)
        assert clone(model).get_metadata_routing().fit.requests["sample_weight"] is True
    without = cross_validate(small(), X, Y, cv=2, return_estimator=True)
    mean = [
        np.mean([e.predict_proba(X)[:, 1].mean() for e in found["estimator"]]) for found in (scores, without)
    ]
    assert mean[0] > mean[1] + 0.05


def test_a_clone_is_unfitted_and_has_the_same_parameters():
    model = small(temperature=2.0, n_jobs=1).fit(X, Y)
    copy = clone(model)
    assert not hasattr(copy, "student_")
    assert copy.get_params()["temperature"] == 2.0
    assert copy.teachers is not model.teachers
    np.testing.assert_array_equal(copy.fit(X, Y).predict_proba(X), model.predict_proba(X))


def test_a_clone_keeps_fitted_teachers():
    fitted = [RandomForestClassifier(10, random_state=0).fit(X[:100], Y[:100])]
    for teachers, prefit in ((fitted, True), (Ensemble.from_members(fitted), False)):
        model = small(teachers, prefit=prefit)
        assert clone(model).teachers is teachers
        assert cross_val_score(model, X[100:], Y[100:], cv=2).min() > 0.75


@pytest.fixture(scope="module")
def of_frames():
    """A classifier of frames with a report, the frame, and its boolean labels."""
    frame, labels = table()
    return takes_gaps(validation_fraction=0.25).fit(frame, labels == "yes"), frame, labels == "yes"


@pytest.mark.parametrize("dump", [pickle, joblib], ids=["pickle", "joblib"])
def test_a_pickled_classifier_predicts_as_before(dump, tmp_path, of_frames):
    model, frame, labels = of_frames
    file = tmp_path / "model"
    with file.open("wb") as out:
        dump.dump(model, out)
    with file.open("rb") as source:
        again = dump.load(source)
    np.testing.assert_array_equal(again.predict_proba(frame), model.predict_proba(frame))
    assert str(again.report_) == str(model.report_)
    again.set_params(validation_fraction=None)
    assert again.fit(frame, labels).score(frame, labels) > 0.8


STUDENTS = {
    "network": STUDENT,
    "tree": DecisionTreeClassifier(max_depth=5),
    "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
    "booster": LGBMClassifier(n_estimators=20, verbose=-1, n_jobs=1),
}


def seeds(estimator):
    return [(n, value) for n, value in sorted(estimator.get_params().items()) if n.endswith("random_state")]


@pytest.mark.filterwarnings("ignore:save. student can't be written")
@pytest.mark.parametrize("student", STUDENTS)
def test_a_saved_classifier_predicts_as_before_without_pickle(student, tmp_path, monkeypatch):
    model = small([ExtraTreesClassifier(10), ("lr", LogisticRegression())], STUDENTS[student]).fit(X, Y)
    monkeypatch.setattr(pickle, "dumps", None)
    monkeypatch.setattr(pickle, "loads", None)
    model.save(tmp_path / "model")
    again = DistilledClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert again.predict(X).dtype == Y.dtype
    np.testing.assert_allclose(again.ensemble_.predict_proba(X), model.ensemble_.predict_proba(X))
    assert again.n_features_in_ == 2
    if student in ("tree", "pipeline"):
        assert seeds(again.student) == seeds(STUDENTS[student]) != [], "the next fit has a seed of its own"
    with pytest.raises(ValueError, match="X has 1 features, but DistilledClassifier is expecting 2"):
        again.predict(X[:, :1])


def test_a_saved_classifier_of_frames_and_its_report(tmp_path, of_frames):
    model, frame, _ = of_frames
    model.save(tmp_path)
    again = DistilledClassifier.load(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(frame), model.predict_proba(frame))
    assert again.classes_.tolist() == [False, True]
    assert again.predict(frame).dtype == bool
    assert again.report_ == model.report_
    assert again.retained_gain_ == model.retained_gain_
    assert again.feature_names_in_.tolist() == list(frame.columns)
    with pytest.raises(ValueError, match="Feature names unseen at fit time"):
        again.predict(frame.rename(columns={"age": "years"}))


def test_a_loaded_classifier_has_its_parameters_and_can_be_fitted(tmp_path):
    loss = LossSettings(temperature=2.0)
    model = small(
        temperature=None, loss=loss, random_state=np.random.RandomState(0), synthetic=[Munge(rows=50)]
    )
    model.fit(X, Y)
    with pytest.warns(UserWarning, match="save: random_state, synthetic can't be written"):
        model.save(tmp_path)
    again = DistilledClassifier.load(tmp_path)
    assert (again.loss, again.optimization, again.validation_fraction) == (loss, FAST, None)
    assert again.student.keywords["hidden"] == [16]
    assert again.random_state is None
    assert again.fit(X, Y).ensemble_.names == model.ensemble_.names
    assert again.score(X, Y) > 0.75


def test_a_students_own_optimization_trains_it_and_is_not_saved_where_it_names_a_class(tmp_path):
    plain = StudentOptimization(steps=40, batch_size=32, learning_rate=0.02)
    own = replace(plain, optimizer=SGD, clip_norm=1.0)
    models = [small(optimization=optimization).fit(X, Y) for optimization in (plain, own)]
    assert not np.array_equal(*[model.predict_proba(X) for model in models])
    models[0].save(tmp_path / "plain")
    assert DistilledClassifier.load(tmp_path / "plain").optimization == plain
    with pytest.warns(UserWarning, match="save: optimization can't be written"):
        models[1].save(tmp_path / "own")
    again = DistilledClassifier.load(tmp_path / "own")
    np.testing.assert_array_equal(again.predict_proba(X), models[1].predict_proba(X))


def test_folders_that_hold_no_whole_classifier_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected a saved DistilledClassifier; there is no classifier\.json"
    ):
        DistilledClassifier.load(tmp_path)
    small().fit(X, Y).save(tmp_path)
    file = tmp_path / "classifier.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "format": 99, "version": "9.0"}))
    with pytest.raises(ValueError, match=r"was written by ensdistill 9\.0 .format 99.; this is version"):
        DistilledClassifier.load(tmp_path)
