"""Misspelled parameters of boosters, which XGBoost and LightGBM would take and ignore."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensdistill.teachers import Ensemble
from ensdistill.teachers.recipes import SklearnMembers

X = np.random.default_rng(0).normal(size=(30, 3))
PATHS = {
    "xgboost": "xgboost.XGBClassifier",
    "lightgbm": "lightgbm.LGBMClassifier",
    "catboost": "catboost.CatBoostClassifier",
}


def recipe(library, **settings):
    pytest.importorskip(library)
    return SklearnMembers({"class_path": PATHS[library], "init_args": settings}, name="trees")


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
@pytest.mark.parametrize(
    ("typo", "meant"),
    [("n_estimator", "n_estimators"), ("maxdepth", "max_depth"), ("learning_rat", "learning_rate")],
)
def test_a_misspelled_parameter_is_refused_with_the_nearest_name(library, typo, meant):
    words = (
        rf"estimator: trees: \w+ has no parameter '{typo}', which {library} would ignore; did you mean "
        rf"'{meant}'\?"
    )
    with pytest.raises(ValueError, match=words):
        recipe(library, **{typo: 3})
    pipeline = make_pipeline(StandardScaler(), recipe(library).estimator.set_params(**{typo: 3}))
    with pytest.raises(
        ValueError, match=rf"estimator: pipeline-1: .* has no parameter '{typo}'.*did you mean '{meant}'"
    ):
        Ensemble.train(pipeline, (X, (X[:, 0] > 0).astype(int)), members=1)


def test_catboost_refuses_it_itself():
    with pytest.raises(ValueError, match=r"CatBoostClassifier can't be made: TypeError: .*'n_estimator'"):
        recipe("catboost", n_estimator=3)


@pytest.mark.parametrize(
    ("library", "settings"),
    [
        (
            "xgboost",
            {"eta": 0.1, "lambda": 2.0, "rate_drop": 0.1, "booster": "dart", "nthread": 1, "verbosity": 0},
        ),
        (
            "xgboost",
            {"booster": "gblinear", "feature_selector": "shuffle", "updater": "coord_descent", "seed": 1},
        ),
        ("xgboost", {"max_cached_hist_node": 9, "min_split_loss": 0.1, "top_k": 1}),
        (
            "lightgbm",
            {
                "num_iteration": 3,
                "verbose": -1,
                "bagging_fraction": 0.5,
                "sub_row": 0.5,
                "min_data": 3,
                "num_threads": 1,
            },
        ),
        ("catboost", {"iterations": 3, "verbose": False, "thread_count": 1}),
    ],
)
def test_parameters_and_aliases_of_the_libraries_are_taken(library, settings):
    assert recipe(library, **settings).name == "trees"
