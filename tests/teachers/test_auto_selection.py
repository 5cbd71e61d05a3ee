"""A selection among trained members, and boosters that are fitted again to all of their rows."""

import numpy as np
import pytest
from catboost import CatBoostClassifier
from lightgbm import LGBMClassifier
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from xgboost import XGBClassifier
from xgboost.callback import EarlyStopping

from ensdistill.data import Rows
from ensdistill.teachers import Ensemble, train_ensemble
from ensdistill.teachers.jobs import TrainingRows
from ensdistill.teachers.recipes import SklearnMembers
from ensdistill.teachers.stack.fitting import without_stopping

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(300, 3))
Y = (X[:, 0] + 0.5 * RANDOM.normal(size=300) > 0).astype(np.int64)
ROWS = Rows(X, np.arange(300), Y)
GOOD, BAD = SklearnMembers(LogisticRegression(), name="good"), SklearnMembers(DummyClassifier(), name="bad")
BOOSTERS = [
    XGBClassifier(n_estimators=200, learning_rate=0.5, early_stopping_rounds=3),
    LGBMClassifier(n_estimators=200, learning_rate=0.5, early_stopping_round=3, verbose=-1),
    XGBClassifier(n_estimators=200, learning_rate=0.5, callbacks=[EarlyStopping(3)]),
    CatBoostClassifier(iterations=200, learning_rate=0.5, early_stopping_rounds=3, verbose=False),
]


def rounds_of(fitted):
    if isinstance(fitted, XGBClassifier):
        return fitted.get_booster().num_boosted_rounds()
    return fitted.tree_count_ if isinstance(fitted, CatBoostClassifier) else fitted.booster_.num_trees()


def nll(ensemble, held_out, labels):
    p = ensemble.combine(ensemble.apply_temperatures(held_out))
    return -np.log(p[np.arange(len(labels)), labels]).mean()


def test_weak_members_get_no_weight_and_stay_with_their_predictions():
    kept, _ = train_ensemble([BAD, GOOD], ROWS, ("no", "yes"), folds=3)
    assert (kept.weights > 0).all()
    chosen, held_out = train_ensemble([BAD, GOOD], ROWS, ("no", "yes"), folds=3, select=True)
    assert chosen.weights.tolist() == [0.0, 1.0]
    assert held_out.shape == (2, 300, 2)
    assert nll(chosen, held_out, Y) < nll(kept, held_out, Y)
    assert chosen.weighted().names == ("good",)
    np.testing.assert_array_equal(chosen.weighted().predict_proba(X), chosen.predict_proba(X))


def test_the_choice_goes_by_rows_with_weight():
    """Where only rows that the other member gets right have weight, that member is chosen."""
    biased = SklearnMembers(DummyClassifier(strategy="constant", constant=1), name="yes", ignore_weights=True)
    weights = np.where(Y == 1, 1.0, 1e-9)
    rows = Rows(X, np.arange(300), Y, weights)
    plain = SklearnMembers(GaussianNB(), name="plain", ignore_weights=True)
    ensemble, _ = train_ensemble([plain, biased], rows, ("no", "yes"), folds=3, select=True)
    assert ensemble.weights[1] > 0.5


def test_a_prior_for_equal_weights_does_not_drown_one_good_member():
    """Nine members that guess beside one that knows: the mixture is as good as that one."""
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 3, 60)
    good = 4 * np.eye(3)[labels] + generator.normal(size=(60, 3))
    logits = np.stack([good, *generator.normal(size=(9, 60, 3))]).astype(np.float32)
    from ensdistill.teachers.held_out import weigh

    ensemble = Ensemble.from_members(list(logits), output="logits")
    ensemble.calibrate(logits, labels)
    rows = Rows(np.zeros((60, 1)), np.arange(60), labels)
    weigh(ensemble, logits, rows, 3.0, select=False)
    equal = nll(ensemble, logits, labels)
    weigh(ensemble, logits, rows, 3.0, select=True)
    alone = ensemble.only("ndarray-1")
    assert nll(ensemble, logits, labels) < min(equal, nll(alone, logits[:1], labels) + 0.02)


def test_some_members_keep_the_ratio_of_their_weights():
    ensemble = Ensemble.from_members(list(np.zeros((3, 4, 2), np.float32)), weights=[3, 0, 1])
    assert ensemble.only("ndarray-3", "ndarray-1").names == ("ndarray-1", "ndarray-3")
    assert ensemble.only("ndarray-3", "ndarray-1").weights.tolist() == [0.75, 0.25]
    assert ensemble.only("ndarray-2").weights.tolist() == [1.0]
    for names in ([], ["ndarray-1", "none"]):
        with pytest.raises(ValueError, match=r"^name: expected one of ndarray-1, ndarray-2, ndarray-3; got"):
            ensemble.only(*names)


@pytest.mark.parametrize("booster", BOOSTERS, ids=["xgboost", "lightgbm", "callback", "catboost"])
def test_a_booster_is_fitted_again_to_all_rows_with_the_rounds_at_which_it_stopped(booster):
    data = TrainingRows(X, Y, ("no", "yes"))
    members = {}
    for refit in (False, True):
        recipe = SklearnMembers(booster, name="one", refit=refit)
        ((_, members[refit]),) = recipe.fit(data, recipe.jobs(Y, 0))
    stopped, again = (members[refit]._model.model for refit in (False, True))
    expected = without_stopping(stopped)
    count = {**expected.get_params()}.get("n_estimators") or expected.get_params().get("iterations")
    assert 0 < count < 100
    assert rounds_of(again) == count
    expected.set_params(**{n: v for n, v in stopped.get_params().items() if "random" in n})
    own = expected.fit(X, Y).predict_proba(X)  # all rows, by the library itself
    p = np.exp(members[True].predict_logits(X).astype(np.float64))
    np.testing.assert_allclose(p / p.sum(1, keepdims=True), own, atol=1e-5)


def test_refit_needs_a_booster_that_stops_early():
    with pytest.raises(ValueError, match=r"^refit: logisticregression: expected a booster that stops early"):
        SklearnMembers(LogisticRegression(), refit=True)
    plain, again = (SklearnMembers(BOOSTERS[0], refit=refit).fingerprint() for refit in (False, True))
    assert plain != again


@pytest.mark.parametrize("groups", [np.arange(60) // 6, np.repeat(np.arange(10), 6) * 7])
def test_priors_are_compared_by_rows_of_other_groups(groups, monkeypatch):
    from ensdistill.teachers import held_out

    fitted = []

    def selected(ensemble, z, rows, prior_rows):
        fitted.append(set(rows.groups.tolist()))
        return ensemble

    monkeypatch.setattr(held_out, "_selected", selected)
    logits = np.zeros((2, 60, 3), np.float32)
    ensemble = Ensemble.from_members(list(logits), output="logits")
    rows = Rows(np.zeros((60, 1)), np.arange(60), np.arange(60) % 3, groups=groups)
    held_out._loss_of_selection(ensemble, logits, rows, 3.0)
    everything = set(groups.tolist())
    held = [everything - part for part in fitted]
    assert len(held) == 3
    assert all(held)
    assert set.union(*held) == everything
    assert sum(map(len, held)) == len(everything)


def test_copies_of_a_row_choose_the_prior_together(monkeypatch):
    from ensdistill.teachers import held_out

    seen = []
    monkeypatch.setattr(held_out, "_loss_of_selection", lambda _, z, rows, prior: seen.append(rows) or 0.0)
    twice = Rows(np.concatenate([X[:60], X[:60]]), np.arange(120), np.concatenate([Y[:60], Y[:60]]))
    train_ensemble([GOOD], twice, ("no", "yes"), folds=3, select=True)
    assert len(seen) == 3
    assert (seen[0].groups[:60] == seen[0].groups[60:]).all()
