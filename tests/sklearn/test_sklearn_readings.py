"""Labels, classes and values that a fit could misread, each against the library that has them."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier

from ensdistill import Ensemble, TorchMember
from ensdistill.models import MLP
from ensdistill.sklearn import DistilledClassifier


def test_an_ensemble_of_modules_without_names_keeps_its_own_order():
    x, y = load_digits(return_X_y=True)
    x, y = x[y < 3][:200].astype(np.float32), np.array(["z", "a", "m"])[y[y < 3][:200]]
    torch.manual_seed(0)
    own = Ensemble.from_members([TorchMember(MLP(64, [8], 3), output="logits")], classes=["z", "a", "m"])
    model = DistilledClassifier(
        own, LogisticRegression(max_iter=500), validation_fraction=None, synthetic=None, random_state=0
    ).fit(x, y)
    np.testing.assert_allclose(
        model.ensemble_.predict_proba(x), own.predict_proba(x)[:, [1, 2, 0]], rtol=1e-6
    )


@pytest.mark.parametrize("labels", [["z", "a", "m"], [3, 20, 100], [20.0, 10.0, 30.0]])
def test_fitted_teachers_of_indices_have_the_classes_by_index(labels):
    x, y = load_digits(return_X_y=True)
    x, y = x[y < 3], np.array(labels)[y[y < 3]]
    classes, indices = np.unique(y, return_inverse=True)
    trees = ExtraTreesClassifier(20, random_state=0).fit(x[:300], indices[:300])
    booster = XGBClassifier(n_estimators=5, n_jobs=1).fit(x[:300], indices[:300])
    model = DistilledClassifier(
        [trees, booster],
        LogisticRegression(max_iter=500),
        prefit=True,
        validation_fraction=None,
        synthetic=None,
    ).fit(x[300:], y[300:])
    assert model.classes_.tolist() == classes.tolist()
    assert model.score(x[300:], y[300:]) > 0.95
    own = DistilledClassifier(
        [ExtraTreesClassifier(20, random_state=0).fit(x[:300], y[:300])], LogisticRegression(max_iter=500), prefit=True,
        validation_fraction=None, synthetic=None,
    ).fit(x[300:], y[300:])  # fmt: skip
    assert own.score(x[300:], y[300:]) > 0.95


def test_nullable_labels_keep_their_kind():
    x, y = load_digits(return_X_y=True)
    x, y = x[y < 2], y[y < 2]
    for dtype, kind in (("Int64", "i"), ("boolean", "b")):
        model = DistilledClassifier(
            [DecisionTreeClassifier(max_depth=4)],
            LogisticRegression(max_iter=500),
            validation_fraction=None,
            synthetic=None,
        ).fit(x, pd.Series(y).astype(dtype))
        assert model.classes_.dtype.kind == kind


def test_dates_as_labels_are_saved(tmp_path):
    x, y = load_digits(return_X_y=True)
    x, y = x[y < 2], np.array(["2020-01-01", "2021-01-01"], "M8[D]")[y[y < 2]]
    model = DistilledClassifier(
        [DecisionTreeClassifier(max_depth=4)],
        LogisticRegression(max_iter=500),
        validation_fraction=None,
        synthetic=None,
    ).fit(x, y)
    model.save(tmp_path / "m")
    assert (DistilledClassifier.load(tmp_path / "m").predict(x) == model.predict(x)).all()


def test_infinity_in_a_frame_is_named_before_any_work():
    frame = pd.DataFrame({"a": np.arange(60.0), "b": np.tile([1.0, 2.0], 30)})
    frame.loc[7, "a"] = np.inf
    model = DistilledClassifier(
        [DecisionTreeClassifier()], LogisticRegression(max_iter=500), validation_fraction=None
    )
    with pytest.raises(
        ValueError, match="column 'a': expected finite numbers or gaps; row 7 has an infinity"
    ):
        model.fit(frame, np.arange(60) % 2)
    with pytest.raises(ValueError, match="X_unlabeled: column 'a'"):
        model.fit(frame.fillna(0).replace(np.inf, 0), np.arange(60) % 2, X_unlabeled=frame)


def test_a_pipeline_that_fills_gaps_takes_them():
    x = np.random.default_rng(0).normal(size=(80, 3))
    y = x[:, 0] > 0
    x[::9, 1] = np.nan
    teacher = make_pipeline(SimpleImputer(), LogisticRegression(max_iter=500))
    model = DistilledClassifier([teacher], clone(teacher), validation_fraction=None, synthetic=None)
    assert model.fit(x, y).score(x, y) > 0.9


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"synthetic": [3]}, TypeError, "synthetic: expected sources, such as Munge"),
        ({"synthetic": ["munge"]}, TypeError, "synthetic: expected sources, such as Munge"),
        (
            {"student": "auto", "optimization": 3},
            TypeError,
            "optimization: expected an Optimization, or None",
        ),
        ({"temperature": 4.0}, ValueError, r"loss\.temperature: expected 1 for"),
        ({"validation_fraction": True}, ValueError, r"validation_fraction: expected a share in \(0, 1\)"),
    ],
)
def test_parameters_are_refused_before_a_teacher_is_fitted(parameters, error, message):
    class Counted(DecisionTreeClassifier):
        fits = 0

        def fit(self, *arguments, **more):
            Counted.fits += 1
            return super().fit(*arguments, **more)

    x, y = load_digits(return_X_y=True)
    given = {"student": LogisticRegression(), "validation_fraction": None, **parameters}
    with pytest.raises(error, match=message):
        DistilledClassifier([Counted()], **given).fit(x, y)
    assert Counted.fits == 0


def test_a_share_of_numpy_is_one():
    x, y = load_digits(return_X_y=True)
    model = DistilledClassifier(
        [DecisionTreeClassifier()],
        DecisionTreeClassifier(),
        validation_fraction=np.float32(0.2),
        synthetic=None,
        random_state=0,
    ).fit(x[:300], y[:300])
    assert model.report_.figures["dataset"]["test"] == 60


def test_columns_of_one_name_are_refused():
    frame = pd.DataFrame(np.zeros((20, 2)), columns=["a", "a"])
    with pytest.raises(ValueError, match="X: expected columns of different names; 2 are 'a'"):
        DistilledClassifier([DecisionTreeClassifier()]).fit(frame, np.arange(20) % 2)
