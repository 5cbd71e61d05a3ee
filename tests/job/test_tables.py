"""Jobs whose data are tables of float64 or integers, with columns of category codes."""

import json
import re

import catboost
import numpy as np
import pytest
import xgboost
from job_helpers import run, succeed, write_job
from safetensors.numpy import load_file

from ensdistill.teachers import Ensemble

# jsonargparse 5 will leave the estimators within others to us, as it does with the outermost now.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*JsonargparseDeprecationWarning", "ignore:.*Instantiating a subclass spec"
)

COLUMN = 2  # holds the codes of five categories
ESTIMATORS = {
    "catboost.CatBoostClassifier": {
        "iterations": 30,
        "thread_count": 1,
        "verbose": False,
        "cat_features": [COLUMN],
    },
    "lightgbm.LGBMClassifier": {
        "n_estimators": 20,
        "n_jobs": 1,
        "min_child_samples": 3,
        "min_data_per_group": 1,
        "cat_smooth": 1,
        "verbose": -1,
        "categorical_feature": [COLUMN],
    },
    "xgboost.XGBClassifier": {
        "n_estimators": 20,
        "n_jobs": 1,
        "enable_categorical": True,
        "feature_types": ["q", "q", "c"],
    },
    "sklearn.ensemble.HistGradientBoostingClassifier": {
        "max_iter": 20,
        "min_samples_leaf": 3,
        "categorical_features": [COLUMN],
    },
}


def table(dtype):
    """Columns that float32 would round, of which the second decides, and a column of codes."""
    rng = np.random.default_rng(0)
    x = rng.integers(-500, 500, (300, 3)).astype(np.float64)
    x[:, COLUMN] = rng.integers(0, 5, 300)
    y = ((x[:, 0] > 0) ^ np.isin(x[:, COLUMN], [1, 3])).astype(np.int64)
    if dtype == np.float64:
        x[:, 1] += 2.0**30 + 1 / 64
    return x.astype(dtype), y


def job(tmp_path, dtype, labels=None, **change):
    x, y = table(dtype)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y if labels is None else labels(y))
    files = {
        "inputs": str(tmp_path / "x.npy"),
        "labels": str(tmp_path / "y.npy"),
        "labelled": 160,
        "pool": 40,
    }
    members = [
        {
            "class_path": "ensdistill.teachers.recipes.SklearnMembers",
            "init_args": {"estimator": {"class_path": path, "init_args": arguments}},
        }
        for path, arguments in ESTIMATORS.items()
    ]
    net = {"class_path": "ensdistill.models.MLP", "init_args": {"inputs": 3, "hidden": [8], "outputs": 2}}
    settings = {
        "data": {"class_path": "ensdistill.data.ArrayDataset", "init_args": files},
        "teachers.members": members,
        "cache.transfer.synthetic": [],
        "distill.students": {"small": {"model": net, "optimization": {"steps": 30, "batch_size": 32}}},
    }
    return write_job(tmp_path, settings | change)


def splits_by_category(members, ensemble):
    """The columns that the saved models of all four libraries treat as categories."""
    booster = catboost.CatBoost().load_model(str(members / "catboostclassifier" / "model.cbm"))
    found = set(booster.get_cat_feature_indices())
    assert re.search(r"num_cat=[1-9]", (members / "lgbmclassifier" / "model.txt").read_text())
    trees = xgboost.Booster(model_file=str(members / "xgbclassifier" / "model.ubj"))
    assert trees.feature_types == ["q", "q", "c"]
    histogram = ensemble.members[ensemble.names.index("histgradientboostingclassifier")].estimator
    return found | set(np.flatnonzero(histogram.is_categorical_).tolist())


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.int64, marks=pytest.mark.slow)])
def test_every_library_learns_categories_from_a_jobs_table(tmp_path, dtype):
    succeed("run", job(tmp_path, dtype, labels=lambda y: y.astype(np.float64)))
    folder = tmp_path / "runs" / "tiny"
    ensemble = Ensemble.load(folder / "seed-0" / "teachers" / "ensemble")
    x, y = table(dtype)
    rows = load_file(folder / "seed-0" / "cache" / "transfer.safetensors")["inputs"]
    assert rows.dtype == dtype
    assert {row.tobytes() for row in rows} <= {row.tobytes() for row in x}  # to the last bit
    for name, logits in zip(ensemble.names, ensemble.raw_logits(x), strict=True):
        assert (logits.argmax(1) == y).mean() > 0.85, name
    assert splits_by_category(folder / "seed-0" / "teachers" / "ensemble" / "members", ensemble) == {COLUMN}
    report = json.loads((folder / "report.json").read_text())
    assert set(report["students"]) == {"small"}


def test_codes_that_are_no_whole_numbers_are_refused_before_any_work(tmp_path):
    file = job(tmp_path, np.float64)
    x, _ = table(np.float64)
    x[:, COLUMN] += 0.5
    np.save(tmp_path / "x.npy", x)
    status, _, err = run("teachers", file)
    err = err.replace("\n", " ")
    assert status == 2
    assert (
        "teachers.members.0.init_args.estimator: catboostclassifier: it can't be used: BadRows: "
        "cat_features: column 2" in err
    )
    assert "expected codes of categories, which are whole numbers" in err
    assert not list((tmp_path / "runs").rglob("member.json"))


def test_synthetic_rows_hold_codes_that_the_columns_hold(tmp_path):
    mixup = [{"class_path": "ensdistill.data.transfer.Mixup", "init_args": {"rows": 20}}]
    path = job(tmp_path, np.int64, **{"cache.transfer.synthetic": mixup})
    status, _, err = run("cache", "build", path)
    assert status == 0, err
    rows = load_file(next((tmp_path / "runs").rglob("transfer.safetensors")))["inputs"]
    made, base = rows[-20:], rows[:-20]
    assert made.dtype == np.int64
    codes = [c for c in range(base.shape[1]) if len(np.unique(base[:, c])) <= 20]
    assert codes
    assert all(np.isin(made[:, c], base[:, c]).all() for c in codes)
    assert (made >= base.min(0)).all()
    assert (made <= base.max(0)).all()
