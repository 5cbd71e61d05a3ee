"""Odd models of XGBoost, LightGBM and CatBoost as members: they predict as their own ``predict_proba``, also
when loaded again."""

import json
import tempfile
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import BoostedMember, load_member

pytestmark = pytest.mark.filterwarnings("ignore:(?s).*Parameters.*not used", "ignore:.*eval_set.*deprecated")

LABELS = {
    "strings": ["zebra", "ant", "mouse", "bee"],
    "gaps": [7, 2, 40, -1],
    "whole floats": [3.0, 1.0, 2.0, 0.0],
    "booleans": [True, False],
    "indices": [0, 1, 2, 3],
}
EARLY = {"n_estimators": 40, "learning_rate": 1.0}
XGBOOST = {
    "plain": {},
    "dart": {"booster": "dart", "rate_drop": 0.5, "skip_drop": 0.2},
    "linear": {"booster": "gblinear"},
    "base score": {"base_score": 0.9},
    "zero is missing": {"missing": 0.0},
    "forests": {"num_parallel_tree": 3, "subsample": 0.6, "colsample_bynode": 0.5, "n_estimators": 3},
    "hard": {"objective": "multi:softmax", "num_class": 0},
    "named binary": {"objective": "multi:softprob", "num_class": 0},
    "stopped": {**EARLY, "early_stopping_rounds": 2},
    "dart stopped": {"booster": "dart", **EARLY, "early_stopping_rounds": 2},
    "one tree for all": {"multi_strategy": "multi_output_tree", "tree_method": "hist"},
    "exact": {"tree_method": "exact", "max_delta_step": 1},
    "categories": {"enable_categorical": True, "feature_types": ["q"] * 4 + ["c"], "tree_method": "hist"},
    "weighted": {"scale_pos_weight": 9, "reg_lambda": 0},
    "steep": {"learning_rate": 30.0, "n_estimators": 3, "reg_lambda": 0},
    "hinge": {"objective": "binary:hinge"},
}
LIGHTGBM = {
    "plain": {},
    "dart": {"boosting_type": "dart", "drop_rate": 0.6},
    "forest": {"boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": 0.6},
    "forest against the rest": {
        "boosting_type": "rf",
        "bagging_freq": 1,
        "bagging_fraction": 0.6,
        "objective": "multiclassova",
    },
    "goss": {"data_sample_strategy": "goss"},
    "against the rest": {"objective": "multiclassova"},
    "weighted": {"class_weight": "balanced"},
    "unbalanced": {"is_unbalance": True},
    "slope": {"sigmoid": 2.5},
    "slope against the rest": {"objective": "multiclassova", "sigmoid": 0.4},
    "zero is missing": {"zero_as_missing": True},
    "nothing is missing": {"use_missing": False},
    "stopped": {**EARLY, "stop": True},
    "categories": {"categories": [4]},
    "linear leaves": {"linear_tree": True},
    "answers cut short": {
        "pred_early_stop": True,
        "pred_early_stop_freq": 1,
        "pred_early_stop_margin": 0.3,
        "n_estimators": 30,
    },
    "average": {"boost_from_average": False, "extra_trees": True},
    "cross entropy": {"objective": "cross_entropy"},
}
CATBOOST = {
    "plain": {},
    "many classes": {"loss_function": "MultiClass"},
    "against the rest": {"loss_function": "MultiClassOneVsAll"},
    "balanced": {"auto_class_weights": "Balanced"},
    "weights": {"class_weights": "given"},
    "few borders": {"border_count": 3, "feature_border_type": "Uniform"},
    "missing last": {"nan_mode": "Max"},
    "lossguide": {"grow_policy": "Lossguide", "max_leaves": 5, "depth": 5},
    "depthwise": {"grow_policy": "Depthwise"},
    "ordered": {"boosting_type": "Ordered", "bootstrap_type": "Bernoulli", "subsample": 0.7},
    "langevin": {"langevin": True, "diffusion_temperature": 100},
    "focal": {"loss_function": "Focal:focal_alpha=0.3;focal_gamma=2"},
    "stopped": {
        "iterations": 60,
        "learning_rate": 1.0,
        "early_stopping_rounds": 2,
        "use_best_model": True,
        "stop": True,
    },
    "baseline": {"boost_from_average": True},
}


def rows(count, dtype, seed, nan):
    rng = np.random.default_rng(seed)
    index = rng.permutation(np.arange(90) % count)
    x = rng.normal(size=(90, 5)) + np.eye(5)[index] * 1.5
    x[:, 3] *= rng.random(90) < 0.7  # zeros
    x[:, 4] = rng.integers(0, 4, 90)
    if nan:
        x[:, :4][rng.random((90, 4)) < 0.2] = np.nan
    return x.astype(dtype), index


def xgboost_of(odd, x, y, index, count):
    more = dict(XGBOOST[odd])
    if "num_class" in more:
        more["num_class"] = count
    if odd == "hinge" and count > 2:
        more.pop("objective")
    if odd == "base score" and count > 2:
        more["base_score"] = 0.2
    library = pytest.importorskip("xgboost")
    kind = library.XGBRFClassifier if odd == "forests" else library.XGBClassifier
    known = {"eval_set": [(x[60:], index[60:])], "verbose": False} if "early_stopping_rounds" in more else {}
    return kind(**{"n_estimators": 6, "max_depth": 3, "n_jobs": 1, "random_state": 0, **more}).fit(
        x[:60], index[:60], **known
    )


def lightgbm_of(odd, x, y, index, count):
    library = pytest.importorskip("lightgbm")
    more = dict(LIGHTGBM[odd])
    if more.get("objective") == ("multiclassova" if count == 2 else "cross_entropy"):
        more.pop("objective")
    stop, categories = more.pop("stop", False), more.pop("categories", "auto")
    known = (
        {"eval_set": [(x[60:], y[60:])], "callbacks": [library.early_stopping(2, verbose=False)]}
        if stop
        else {}
    )
    options = {
        "n_estimators": 6,
        "num_leaves": 5,
        "min_child_samples": 3,
        "n_jobs": 1,
        "verbose": -1,
        "random_state": 0,
    }
    return library.LGBMClassifier(**{**options, **more}).fit(
        x[:60], y[:60], categorical_feature=categories, **known
    )


def catboost_of(odd, x, y, index, count):
    library = pytest.importorskip("catboost")
    more = dict(CATBOOST[odd])
    if odd == "weights":
        more["class_weights"] = [1.0, 5.0, 0.5, 2.0][:count]
    if odd in ("focal", "baseline") and count > 2:  # of two classes only
        more.popitem()
    known = {"eval_set": (x[60:], y[60:])} if more.pop("stop", False) else {}
    options = {
        "iterations": 6,
        "depth": 3,
        "thread_count": 1,
        "verbose": False,
        "allow_writing_files": False,
        "random_seed": 0,
    }
    return library.CatBoostClassifier(**{**options, **more}).fit(x[:60], y[:60], **known)


MODELS = {
    "xgboost": (XGBOOST, xgboost_of),
    "lightgbm": (LIGHTGBM, lightgbm_of),
    "catboost": (CATBOOST, catboost_of),
}


def own_probabilities(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightgbm: features without names
        return model.predict_proba(x).astype(np.float64)


def close(logits, own):
    """The same probabilities, or (where raw scores are no logits) these with the smoothing, which is
    meant."""
    own = own / own.sum(1, keepdims=True)  # one against the rest
    c = own.shape[1]
    found = softmax(logits.astype(float), -1)
    return min(np.abs(found - own).max(), np.abs(found - (own + 1e-6) / (1 + c * 1e-6)).max())


def check(library, odd, count, kind, dtype, nan, seed):
    count = min(count, len(LABELS[kind]))
    x, index = rows(count, dtype, seed, nan and odd not in ("linear", "linear leaves"))
    y = np.array(LABELS[kind])[index]
    model = MODELS[library][1](odd, x, y, index, count)
    own = own_probabilities(model, x)
    order = [str(int(c) if isinstance(c, float) else c) for c in model.classes_.tolist()]
    member = BoostedMember(model, classes=order[::-1], batch_size=32)
    logits = member.predict_logits(x)
    assert logits.dtype == np.float32
    assert close(logits, own[:, ::-1]) < 2e-6
    with tempfile.TemporaryDirectory() as folder:
        member.save(folder)
        loaded = load_member(folder)
    np.testing.assert_array_equal(loaded.predict_logits(x), logits)
    assert (loaded.fingerprint(), loaded.classes) == (member.fingerprint(), member.classes)
    for one in (member, loaded):
        for wrong in (x[:, :4], np.c_[x, x[:, :1]]):
            with pytest.raises(ValueError, match=r"was fitted to 5 features \(columns\)"):
                one.predict_logits(wrong)


every = [(library, odd) for library, (odds, _) in MODELS.items() for odd in odds]


@pytest.mark.parametrize(("library", "odd"), every)
def test_every_boosted_model_predicts_as_it_does_itself(library, odd):
    check(library, odd, 3, "indices", np.float32, True, 0)
    check(library, odd, 2, "indices", np.float64, False, 1)


drawn = st.builds(
    lambda which, **more: {"library": which[0], "odd": which[1], **more},
    which=st.sampled_from(every),
    count=st.integers(2, 4),
    kind=st.sampled_from(sorted(LABELS)),
    dtype=st.sampled_from([np.float32, np.float64]),
    nan=st.booleans(),
    seed=st.integers(0, 1000),
)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(drawn)
def test_odd_boosted_models_predict_as_they_do_themselves(case):
    check(**case)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(drawn)
def test_many_odd_boosted_models_predict_as_they_do_themselves(case):
    check(**case)


def test_rows_are_predicted_in_their_own_dtype():
    """float32 can't hold the difference of such rows; and a CatBoost model of categories takes whole numbers."""
    lightgbm, catboost = pytest.importorskip("lightgbm"), pytest.importorskip("catboost")
    x, y = np.c_[1.7e9 + np.arange(400) * 10.0, np.arange(400) % 7], (np.arange(400) // 5) % 2
    model = lightgbm.LGBMClassifier(
        n_estimators=60, min_child_samples=1, num_leaves=63, verbose=-1, n_jobs=1
    ).fit(x, y)
    for logits in (
        BoostedMember(model).predict_logits(x),
        Ensemble.from_members([model]).predict_logits(x)[0].numpy(),
    ):
        assert close(logits, own_probabilities(model, x)) < 2e-6
    assert close(logits, own_probabilities(model, x.astype(np.float32))) > 0.1
    codes = np.random.default_rng(0).integers(0, 4, (80, 3))
    quiet = {"iterations": 5, "verbose": False, "allow_writing_files": False, "thread_count": 1}
    model = catboost.CatBoostClassifier(cat_features=[0, 2], **quiet).fit(codes, codes[:, 0] == codes[:, 2])
    assert close(BoostedMember(model).predict_logits(codes), own_probabilities(model, codes)) < 2e-6
    # A job's table has one dtype: whole numbers in columns of categories are the codes, fractions are none.
    found = BoostedMember(model).predict_logits(codes.astype(np.float32))
    assert close(found, own_probabilities(model, codes)) < 2e-6
    with pytest.raises(ValueError, match="categor"):
        BoostedMember(model).predict_logits(codes + 0.5)


def test_boosters_agree_with_their_own_predict(tmp_path):
    """Of XGBoost all rounds, which its classifier cuts off; scores stand for the objectives of which predict
    returns no probability."""
    xgboost = pytest.importorskip("xgboost")
    x, index = rows(3, np.float32, 0, nan=True)
    stopped = xgboost_of("stopped", x, None, index, 3)
    data = xgboost.DMatrix(x)
    expected = {"stopped": (stopped.get_booster(), stopped.get_booster().predict(data))}
    assert np.abs(expected["stopped"][1] - stopped.predict_proba(x)).max() > 1e-3
    hard = xgboost_of("hard", x, None, index, 3)
    expected["hard"] = hard.get_booster(), hard.predict_proba(x)
    raw = xgboost.train({"objective": "binary:logitraw"}, xgboost.DMatrix(x, index > 0), 4)
    expected["raw"] = raw, expit(np.stack([-raw.predict(data), raw.predict(data)], 1))
    names = [f"column {i}" for i in range(5)]
    named = xgboost.train(
        {"objective": "binary:logistic"}, xgboost.DMatrix(x, index > 0, feature_names=names), 4
    )
    p = named.predict(xgboost.DMatrix(x, feature_names=names))
    expected["named"] = named, np.stack([1 - p, p], 1)
    forest = lightgbm_of("forest", x, index, index, 3)
    expected["forest"] = forest.booster_, forest.booster_.predict(x)
    for name, (booster, own) in expected.items():
        member = BoostedMember(booster, name=name)
        assert close(member.predict_logits(x), own) < 2e-6, name
        member.save(tmp_path / name)
        np.testing.assert_array_equal(
            load_member(tmp_path / name).predict_logits(x), member.predict_logits(x)
        )
        with pytest.raises(ValueError, match=rf"inputs: {name} was fitted to 5 features"):
            member.predict_logits(x[:, :3])
    assert json.loads((tmp_path / "stopped" / "member.json").read_text())["options"]["classifier"] is False


def test_models_without_a_probability_for_each_class_are_refused():
    xgboost, lightgbm, catboost = (pytest.importorskip(name) for name in MODELS)
    x, index = rows(2, np.float32, 0, nan=False)
    labels = np.c_[index, 1 - index, index]
    one = {"n_estimators": 2, "n_jobs": 1}
    quiet = {"iterations": 2, "verbose": False, "allow_writing_files": False}

    class Own(xgboost.XGBClassifier):
        def predict_proba(self, X, **more):
            return super().predict_proba(X, **more)[:, ::-1]

    for model, words in (
        (
            xgboost.XGBClassifier(objective="binary:logitraw", **one).fit(x, index),
            r"binary:logitraw; pass estimator\.get_booster\(\)",
        ),
        (xgboost.XGBClassifier(**one).fit(x, labels), "multi-label"),
        (
            catboost.CatBoostClassifier(loss_function="MultiLogloss", **quiet).fit(x, labels),
            "got the loss function MultiLogloss",
        ),
        (
            xgboost.XGBClassifier(objective="reg:squarederror", **one).fit(x, index),
            "got the objective reg:squarederror",
        ),
        (
            xgboost.XGBRegressor(objective="binary:logistic", **one).fit(x, index),
            "got XGBRegressor: pass the booster",
        ),
        (
            lightgbm.LGBMRegressor(objective="binary", verbose=-1, **one).fit(x, index),
            "got LGBMRegressor: pass the booster",
        ),
        (Own(**one).fit(x, index), r"Own has a predict_proba of its own, .*CallableMember"),
    ):
        with pytest.raises(ValueError, match=f"estimator: .*{words}"):
            BoostedMember(model)


@pytest.mark.parametrize("library", MODELS)
def test_raw_scores_are_taken_only_where_they_are_logits(library, monkeypatch):
    x, index = rows(3, np.float64, 0, nan=False)
    for odd, taken in (
        ("plain", True),
        ("dart" if library == "xgboost" else "against the rest", library == "xgboost"),
    ):
        member = BoostedMember(MODELS[library][1](odd, x, index, index, 3))
        raw, kind = member._model.scores(x), type(member._model)
        assert (np.abs(member.predict_logits(x) - raw).max() < 1e-5) == taken
        # A library in which they mean something else from now on.
        monkeypatch.setattr(kind, "scores", lambda self, x, own=kind.scores: 2 * own(self, x))
        assert close(member.predict_logits(x), own_probabilities(member._model.model, x)) < 2e-6
        monkeypatch.undo()
