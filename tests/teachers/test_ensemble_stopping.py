"""Early stopping: by rows that a member is not fitted to, in every ensemble, or an error that names the
parameter."""

import functools

import numpy as np
import pytest
from catboost import CatBoostClassifier
from lightgbm import LGBMClassifier
from sklearn.base import clone
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, VotingClassifier
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier

from ensdistill.teachers import Ensemble
from ensdistill.teachers.jobs import Job
from ensdistill.teachers.recipes import SklearnMembers
from ensdistill.teachers.stack.fitting import TrainingRows, fitted, held_out

BOOSTERS = [
    (XGBClassifier(n_estimators=80, learning_rate=0.3, n_jobs=1), "early_stopping_rounds"),
    (LGBMClassifier(n_estimators=80, learning_rate=0.3, n_jobs=1, verbose=-1), "early_stopping_round"),
    (LGBMClassifier(n_estimators=80, learning_rate=0.3, n_jobs=1, verbose=-1), "n_iter_no_change"),
    (
        CatBoostClassifier(
            iterations=80, learning_rate=0.3, thread_count=1, verbose=0, allow_writing_files=False
        ),
        "early_stopping_rounds",
    ),
    (
        CatBoostClassifier(
            iterations=80, learning_rate=0.3, thread_count=1, verbose=0, allow_writing_files=False
        ),
        "od_wait",
    ),
]


def told(booster, parameter):
    """The same, and to stop after three rounds without a gain."""
    return (
        type(booster)(**booster.get_params(), **{parameter: 3})
        if "CatBoost" in repr(booster)
        else booster_with(booster, parameter)
    )


def booster_with(booster, parameter):
    return clone(booster).set_params(**{parameter: 3})


def noise(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    return x, (x[:, 0] + 3 * rng.normal(size=rows) > 0).astype(int)


def trees(fitted):
    if hasattr(fitted, "tree_count_"):
        return fitted.tree_count_
    return fitted.best_iteration_ if hasattr(fitted, "best_iteration_") else fitted.best_iteration + 1


@pytest.mark.filterwarnings("ignore:.* answers just as .* does")  # with all rows, seeds change nothing
@pytest.mark.parametrize(
    ("booster", "parameter"), BOOSTERS, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
@pytest.mark.parametrize("method", ["bagging", "subsample", "seeds"])
def test_boosters_stop_by_rows_of_their_own(booster, parameter, method):
    """So noise is not learned: on other rows they are better than all their trees."""
    x, y = noise(900)

    def nll(factory):
        p = Ensemble.train(factory, (x[:300], y[:300]), members=2, method=method).predict_proba(x[300:])
        return float(-np.log(p[np.arange(600), y[300:]]).mean())

    assert nll(told(booster, parameter)) < min(0.7, nll(booster) - 0.02)


@pytest.mark.parametrize(
    ("booster", "parameter"),
    [BOOSTERS[0], BOOSTERS[1], BOOSTERS[3]],
    ids=lambda v: v if isinstance(v, str) else "",
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_rows_and_their_weights_are_those_of_the_library_by_hand(booster, parameter, weighted):
    x, y = noise()
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, 300).astype(float) if weighted else None
    rows = np.sort(rng.integers(0, 300, 300))
    spare = np.setdiff1d(np.arange(300), rows)
    data = TrainingRows(x, y, ("0", "1"), weights)
    mine = fitted(told(booster, parameter), "m", 7, rows, data, spare=spare)
    away = spare if weights is None else spare[weights[spare] > 0]
    seed = {"random_seed": 7} if "CatBoost" in repr(booster) else {"random_state": 7}
    other = told(booster, parameter).set_params(**seed)
    own = {} if weights is None else {"sample_weight": weights[rows]}
    if isinstance(booster, XGBClassifier):
        own |= {"verbose": False} | ({} if weights is None else {"sample_weight_eval_set": [weights[away]]})
        other.fit(x[rows], y[rows], eval_set=[(x[away], y[away])], **own)
    elif isinstance(booster, LGBMClassifier):
        own |= {} if weights is None else {"eval_sample_weight": [weights[away]]}
        other.fit(x[rows], y[rows], eval_X=x[away], eval_y=y[away], **own)
    else:
        from catboost import Pool

        pool = Pool(x[away], y[away], weight=None if weights is None else weights[away])
        other.set_params(allow_writing_files=False).fit(x[rows], y[rows], eval_set=pool, **own)
    assert trees(mine) == trees(other) < 60
    np.testing.assert_array_equal(mine.predict_proba(x), other.predict_proba(x))


def test_a_share_of_each_class_is_held_out_by_the_seed():
    labels = np.repeat([0, 1, 2], [90, 10, 1])
    data = TrainingRows(np.arange(101.0)[:, None], labels, ("0", "1", "2"))
    everything = np.arange(101)
    fit, away = held_out("p", "m", everything, data, 5)
    assert np.bincount(labels[away], minlength=3).tolist() == [18, 2, 0]
    assert np.sort(np.concatenate([fit, away])).tolist() == everything.tolist()
    assert held_out("p", "m", everything, data, 5)[1].tolist() == away.tolist()
    assert held_out("p", "m", everything, data, 6)[1].tolist() != away.tolist()
    # A bootstrap of all rows, by chance: its copies go together.
    fit, away = held_out("p", "m", np.repeat(everything, 2), data, 5, np.zeros(0, np.int64))
    assert not set(fit) & set(away)
    assert len(away) == 20
    # Rows without weight are no judges.
    light = TrainingRows(data.inputs, labels, data.classes, (everything % 2).astype(float))
    assert (held_out("p", "m", everything[:60], light, 5, everything[60:])[1] % 2 == 1).all()
    assert (held_out("p", "m", everything, light, 5)[1] % 2 == 1).all()


def test_copies_of_a_row_are_on_one_side():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))[rng.integers(0, 60, 200)]
    data = TrainingRows(x, rng.integers(0, 2, 200), ("0", "1"))
    everything = np.arange(200)

    def meet(fit, away):
        return {tuple(row) for row in x[fit]} & {tuple(row) for row in x[away]}

    fit, away = held_out("p", "m", everything, data, 3)
    assert not meet(fit, away)
    assert 25 < len(away) <= 40
    assert len(fit) + len(away) == 200
    rows = np.sort(rng.integers(0, 200, 60))
    spare = np.setdiff1d(everything, rows)
    fit, away = held_out("p", "m", rows, data, 3, spare)
    assert not meet(fit, away)
    assert fit.tolist() == rows.tolist()
    assert set(away) < set(spare)
    # Of a few coarse rows, all are left out and taken too: then some are drawn.
    coarse = TrainingRows(np.arange(200.0)[:, None] % 10, np.arange(200) % 2, ("0", "1"))
    fit, away = held_out("p", "m", everything[:100], coarse, 3, everything[100:])
    assert not set(fit % 10) & set(away % 10)
    assert np.bincount(coarse.labels[away]).tolist() == [10, 10]


def test_too_few_rows_to_stop_by():
    x, y = noise(4)
    y[:] = [0, 1, 0, 1]
    with pytest.raises(
        ValueError, match=r"early_stopping_rounds: xgbclassifier-1: .*none of its 4 rows can be spared"
    ):
        Ensemble.train(XGBClassifier(early_stopping_rounds=2), (x, y), members=1)


def test_rows_to_stop_by_can_not_be_passed_to_a_part(monkeypatch):
    x, y = noise(60)
    monkeypatch.setattr("ensdistill.teachers.estimators.fit", lambda *a: pytest.fail("fitted"))
    for booster, parameter in BOOSTERS:
        inner = told(booster, parameter)
        name = type(inner).__name__.lower()
        for whole, place in (
            (make_pipeline(StandardScaler(), inner), name),
            (VotingClassifier([("v", inner)]), "v"),
        ):
            with pytest.raises(
                ValueError,
                match=rf"^{place}__{parameter}: .*-1: expected {parameter} of a factory itself; inside a ",
            ):
                Ensemble.train(whole, (x, y), members=1)
            with pytest.raises(ValueError, match=rf"^{place}__{parameter}: m: expected"):
                SklearnMembers(whole, name="m")
        with pytest.raises(ValueError, match=f"estimator__{parameter}: m: expected"):
            SklearnMembers(inner, name="m", one_vs_rest=True)


OWN = [
    HistGradientBoostingClassifier(
        early_stopping=True, max_iter=60, learning_rate=0.5, min_samples_leaf=5, n_iter_no_change=3
    ),
    GradientBoostingClassifier(n_iter_no_change=3, n_estimators=60, learning_rate=0.5),
    MLPClassifier(early_stopping=True, max_iter=20),
    SGDClassifier(early_stopping=True, loss="log_loss"),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("estimator", OWN, ids=lambda e: type(e).__name__)
def test_an_estimator_that_splits_its_rows_gets_no_copies(estimator, monkeypatch):
    """It would stop by rows that it is fitted to."""
    x, y = noise()
    fit, seen = type(estimator).fit, []

    @functools.wraps(fit)
    def watched(self, x, y, **more):
        seen.append((x, more.get("sample_weight")))
        return fit(self, x, y, **more)

    monkeypatch.setattr(type(estimator), "fit", watched)
    for method, copies in (("bagging", True), ("subsample", False), ("seeds", False)):
        seen.clear()
        Ensemble.train(estimator, (x, y), members=1, method=method)
        ((rows, weights),) = seen
        assert len(np.unique(rows, axis=0)) == len(rows)
        assert (weights is not None) == copies
        if copies:
            assert weights.sum() == 300
            assert set(weights) <= set(range(1, 10))
    with pytest.raises(
        ValueError,
        match=r"__(early_stopping|n_iter_no_change): pipeline-1: expected rows without copies.*'subsample'",
    ):
        Ensemble.train(make_pipeline(StandardScaler(), estimator), (x, y), members=1, method="bagging")
    Ensemble.train(make_pipeline(StandardScaler(), estimator), (x, y), members=1, method="subsample")


def test_boosters_of_a_job_stop_by_their_training_rows_alone():
    """The fold's other rows judge the member: it must not stop by them."""
    x, y = noise()
    recipe = SklearnMembers(
        XGBClassifier(n_estimators=80, learning_rate=0.3, n_jobs=1, early_stopping_rounds=3)
    )
    rows = np.arange(200)
    data = TrainingRows(x, y, ("0", "1"))
    ((_, one),) = recipe.fit(data, [Job("m", 5, rows)])
    x[200:], y[200:] = np.nan, 0
    ((_, other),) = recipe.fit(data, [Job("m", 5, rows)])
    assert one.fingerprint() == other.fingerprint()
    fit, away = held_out("p", "m", rows, TrainingRows(x, y, ("0", "1")), 5)
    expected = (
        clone(recipe.estimator)
        .set_params(random_state=5)
        .fit(x[fit], y[fit], eval_set=[(x[away], y[away])], verbose=False)
    )
    np.testing.assert_allclose(
        np.diff(one.predict_logits(x[:200]))[:, 0], expected.predict(x[:200], output_margin=True), atol=1e-5
    )
