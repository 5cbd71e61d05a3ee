"""Data that Ensemble.train takes: labels of every kind, gaps, float64, weights, classes without a row."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from catboost import CatBoostClassifier
from lightgbm import LGBMClassifier
from scipy.special import softmax
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier

from ensdistill.common.optimization import Optimization
from ensdistill.data import BadRows, Rows
from ensdistill.data.labels import as_labels
from ensdistill.models import MLP
from ensdistill.teachers import Ensemble
from ensdistill.teachers.stack import train_stack

NAMES = np.array(["b", "a", "c", "a", "b"])
INDICES = [1, 0, 2, 0, 1]
FEW = Optimization(steps=4, batch_size=16)


@pytest.mark.parametrize(
    "labels",
    [
        NAMES,
        NAMES.tolist(),
        NAMES.astype(object),
        NAMES.astype(np.dtypes.StringDType()),
        NAMES.astype("S"),
        [np.str_(name) for name in NAMES],
        pd.Series(NAMES),
        pd.Series(NAMES, dtype="string"),
        pd.Series(NAMES, dtype="category"),
        pd.Series(pd.Categorical(NAMES, categories=["c", "b", "a", "never"])),
        pd.Index(NAMES),
    ],
    ids=lambda labels: f"{type(labels).__name__}-{getattr(labels, 'dtype', '')}",
)
def test_names_of_every_kind_are_the_same_classes(labels):
    found, names = as_labels(labels)
    assert (found.tolist(), found.dtype, names) == (INDICES, np.int64, ("a", "b", "c"))
    assert all(type(name) is str for name in names)
    assert as_labels(labels, ("c", "b", "a"))[0].tolist() == [1, 2, 0, 2, 1]


@pytest.mark.parametrize(
    "kind",
    [
        list,
        np.array,
        torch.tensor,
        pd.Series,
        lambda v: np.array(v, np.float32),
        lambda v: np.array(v, object),
        lambda v: [float(x) for x in v],
        lambda v: torch.tensor(v, dtype=torch.bfloat16),
        lambda v: pd.Series(v, dtype="Int64"),
        lambda v: pd.Series(v, dtype="Float64"),
        lambda v: pd.Series(v, dtype="category"),
        lambda v: np.array(v, np.uint64),
        lambda v: [torch.tensor(x) for x in v],
    ],
)
def test_whole_numbers_of_every_kind_are_indices(kind):
    found, names = as_labels(kind(INDICES))
    assert (found.tolist(), found.dtype, names) == (INDICES, np.int64, ("0", "1", "2"))


@pytest.mark.parametrize(
    "kind", [list, np.array, torch.tensor, pd.Series, lambda v: pd.Series(v, dtype="boolean")]
)
def test_booleans_are_names(kind):
    found, names = as_labels(kind([True, False, True]))
    assert (found.tolist(), names) == ([1, 0, 1], ("False", "True"))
    assert as_labels(kind([True, False, True]), ("True", "False"))[0].tolist() == [0, 1, 0]
    with pytest.raises(
        ValueError,
        match=(
            r"\['False', 'True'\] are missing from \['no', 'yes'\]; if False is the first "
            r".*labels\.astype\(int"
        ),
    ):
        as_labels(kind([True, False, True]), ("no", "yes"))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", None, "b"], r"the label of row 1, None, is missing \(rows \[1\], 1 in all\)"),
        (["a", float("nan"), "b"], "the label of row 1, nan, is missing"),
        ([0, None, 1], "the label of row 1, None, is missing"),
        (
            np.array([0, np.nan, 1, np.nan]),
            r"the label of row 1, nan, is missing \(rows \[1, 3\], 2 in all\)",
        ),
        (pd.Series(["a", None, "b"]), "row 1, nan, is missing"),
        (pd.Series(["a", None, "b"], dtype="category"), "row 1, nan, is missing"),
        (pd.Series(["a", None, "b"], dtype="string"), "row 1, .*, is missing"),
        (pd.Series([0, None, 1], dtype="Int64"), "row 1, .*, is missing"),
        (pd.Series([True, None, False], dtype="boolean"), "row 1, .*, is missing"),
        (pd.Series([pd.NaT, pd.NaT]), "missing|expected labels"),
        ([0.0, 0.5, 1.0], r"the label of row 1, 0\.5, is a fraction: expected class indices, or names"),
        ([0.0, np.inf], "row 1, inf, is infinite"),
        ([1e300, 0.0], r"row 0, 1e\+300, is no class index"),
        (np.array([0, 2**63 + 1], np.uint64), r"row 1, 9223372036854775809, is no class index"),
        ([0, "a"], r"labels of one kind.*row 0 holds 0, row 1 holds 'a'.*labels\.astype\(str\)"),
        ([True, 1], r"labels of one kind.*row 0 holds True, row 1 holds 1"),
        ([0, -100], r"expected labels in 0\.\.0; row 1 has -100|expected labels in 0"),
        (np.zeros((3, 1), int), r"expected labels \[N\] that are class indices or names; got int64 \[3, 1\]"),
        (np.array(["2020-01-01"], "M8[D]"), "expected labels .*; got datetime64"),
    ],
)
def test_labels_that_are_refused(labels, words):
    with pytest.raises(ValueError, match=words):
        as_labels(labels)


def test_labels_with_two_readings_are_refused():
    with pytest.raises(
        ValueError,
        match=r"in \['1', '0'\], label 0 is '1' by its index and '0' by its name; pass labels\.astype\(str\)",
    ):
        as_labels([0, 1], ("1", "0"))
    with pytest.raises(ValueError, match=r"in \['1', '2'\], label 1 is '2' by its index and '1' by its name"):
        as_labels([1, 2], ("1", "2"))
    assert as_labels(["0", "1"], ("1", "0"))[0].tolist() == [1, 0]
    assert as_labels([0, 1], ("1", "0"), indices=True)[0].tolist() == [0, 1]
    assert as_labels([0, 1], ("0", "1", "2"))[0].tolist() == [0, 1]


def table(rows=200, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, 4))
    return x, (x[:, 0] > 0).astype(int)


def test_a_frame_of_pandas_is_taken_by_its_rows():
    x, y = table()
    frame, names = pd.DataFrame(x), pd.Series(np.array(["no", "yes"])[y], dtype="category")
    ensemble = Ensemble.train(
        DecisionTreeClassifier(max_depth=2), (frame, names), members=2, method="bagging"
    )
    assert ensemble.classes == ("no", "yes")
    assert (np.array(ensemble.classes)[ensemble.predict_proba(x).argmax(1)] == names).mean() > 0.95
    for bad in ((frame, names[::-1]), (frame.iloc[::-1], names)):
        with pytest.raises(
            ValueError,
            match=r"labels: expected the index of the inputs; got another: align it by labels\.loc",
        ):
            Ensemble.train(GaussianNB(), bad, members=1)
    with pytest.raises(ValueError, match="sample_weight: expected the index of the inputs"):
        Ensemble.train(GaussianNB(), (frame, names), members=1, sample_weight=pd.Series(np.ones(200))[::-1])
    with pytest.raises(ValueError, match="data: expected inputs that are numbers; got object: pass texts"):
        Ensemble.train(GaussianNB(), (frame.assign(town="x"), names), members=1)


class Deaf(GaussianNB):
    """Would not notice a gap, and has no tag by which it takes any."""

    def fit(self, x, y):
        return super().fit(np.nan_to_num(x), y)

    def predict_proba(self, x):
        return super().predict_proba(np.nan_to_num(x))


def test_gaps_go_to_estimators_that_take_them():
    x, y = table()
    x[::7, 1] = np.nan
    takes = [
        XGBClassifier(n_estimators=5, n_jobs=1),
        LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1),
        CatBoostClassifier(iterations=5, verbose=0, thread_count=1),
        HistGradientBoostingClassifier(max_iter=5),
        make_pipeline(SimpleImputer(), LogisticRegression()),
        Deaf(),
    ]
    ensemble = Ensemble.train(takes, (x, y))
    for member in ensemble.members:
        p = member.predict_logits(x)
        assert (p.argmax(1) == y).mean() > 0.9, member.name
    told = r"data: row 0 holds nan \(29 such rows\), which {} does not take: .*NaN"
    for refuses, name in (
        (LogisticRegression(), "logisticregression-1"),
        (make_pipeline(SimpleImputer(add_indicator=True), KNeighborsClassifier()), None),
        (make_pipeline(LogisticRegression()), "pipeline-1"),
        (CatBoostClassifier(nan_mode="Forbidden"), "catboostclassifier-1"),
    ):
        if name is None:
            Ensemble.train(refuses, (x, y), members=1)
            continue
        with pytest.raises(BadRows, match=told.format(name)):
            Ensemble.train(refuses, (x, y), members=1)
    with pytest.raises(
        BadRows,
        match=(
            r"data: expected finite numbers; row 0 holds nan \(29 such rows\)\. member-2 is a network: fill"
        ),
    ):
        Ensemble.train([takes[0], lambda: MLP(4, [8], 2)], (x, y), optimization=FEW)
    x[3, 3] = np.inf
    with pytest.raises(BadRows, match=r"data: expected finite numbers; row 3 holds inf \(1 such rows\)"):
        Ensemble.train(takes[0], (x, y), members=1)


def fine_table():
    """Of unix time in steps of ten seconds, where float32 has steps of 128."""
    t = 1.7e9 + np.arange(600) * 10.0
    return np.c_[t, np.random.default_rng(0).normal(size=600)], (np.arange(600) // 5) % 2


@pytest.mark.parametrize(
    "estimator",
    [
        LGBMClassifier(
            n_estimators=60, min_child_samples=1, num_leaves=63, verbose=-1, n_jobs=1, random_state=0
        ),
        HistGradientBoostingClassifier(max_iter=60, min_samples_leaf=1, max_leaf_nodes=63, random_state=0),
        KNeighborsClassifier(1),
    ],
    ids=lambda e: type(e).__name__,
)
def test_float64_features_stay_so_for_estimators(estimator):
    x, y = fine_table()
    x = x[:, :1]
    ensemble = Ensemble.train(estimator, (x, y), members=1)
    np.testing.assert_allclose(ensemble.predict_proba(x), estimator.fit(x, y).predict_proba(x), atol=1e-5)
    assert (ensemble.predict_proba(x).argmax(1) == y).mean() > 0.85
    rounded = x.astype(np.float32)
    assert (estimator.fit(rounded, y).predict(rounded) == y).mean() < 0.8


def test_modules_are_trained_and_predict_in_float32():
    x, y = table()
    options = {"members": 2, "optimization": FEW, "seed": 3}
    wide, narrow = (
        Ensemble.train(lambda: MLP(4, [8], 2), (rows, y), **options) for rows in (x, x.astype(np.float32))
    )
    np.testing.assert_array_equal(wide.predict_proba(x), narrow.predict_proba(x.astype(np.float32)))
    mixed = Ensemble.train([lambda: MLP(4, [8], 2), GaussianNB()], (x, y), optimization=FEW)
    assert mixed.predict_proba(x).shape == (200, 2)
    x, y = fine_table()
    with pytest.warns(
        UserWarning,
        match=r"in float32, which modules are trained on, different values of the features \[0\] are equal",
    ):
        Ensemble.train(lambda: MLP(2, [8], 2), (x / 1e6, y), **options)


def test_classes_without_a_row_have_probability_0_and_the_others_their_own_columns():
    x, y = table()
    labels = np.array([3, 1])[y]
    factories = [
        GaussianNB(),
        XGBClassifier(n_estimators=5, n_jobs=1),
        LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1),
        CatBoostClassifier(iterations=5, verbose=0, thread_count=1),
        make_pipeline(SimpleImputer(), XGBClassifier(n_estimators=5, n_jobs=1)),
        Ridge(),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ensemble = Ensemble.train(factories, (x, labels), classes=("0", "one", "2", "three"))
    told = [str(w.message) for w in caught if "probability 0" in str(w.message)]
    assert told == [
        "classes: there are no rows of ['0', '2']: gaussiannb-1 to ridge-6 give them probability 0"
    ]
    for member in ensemble.members:
        z = member.predict_logits(x)
        assert z.shape == (200, 4)
        assert (z.argmax(1) == labels).mean() > 0.9, member.name
        if member.name != "ridge-6":  # fitted to a column of -1
            assert softmax(z, 1)[:, [0, 2]].max() < 1e-5


@pytest.mark.parametrize("kind", [np.asarray, list, torch.from_numpy, pd.Series])
def test_weights_reach_every_estimator(kind):
    """Weights of 0 and 1 are the rows that are left."""
    x, y = table()
    y[::3] = 1 - y[::3]  # wrong labels, which the weights leave out
    weights = (np.arange(200) % 3 != 0).astype(float)
    kept = np.flatnonzero(weights)
    factories = [DecisionTreeClassifier(random_state=0), GaussianNB(), LogisticRegression(C=1e3)]
    ensemble = Ensemble.train(factories, (x, y), sample_weight=kind(weights))
    for member, factory in zip(ensemble.members, factories, strict=True):
        expected = factory.fit(x[kept], y[kept]).predict_proba(x)
        np.testing.assert_allclose(np.exp(member.predict_logits(x)), expected, atol=2e-3)
    boosters = [
        XGBClassifier(n_estimators=5, n_jobs=1, random_state=0),
        LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1, random_state=0),
        CatBoostClassifier(iterations=5, verbose=0, thread_count=1, random_seed=0, allow_writing_files=False),
    ]
    ensemble = Ensemble.train(boosters, (x, y), sample_weight=kind(weights))
    for member, booster in zip(ensemble.members, boosters, strict=True):
        expected = booster.fit(x, y, sample_weight=weights).predict_proba(x)
        np.testing.assert_allclose(softmax(member.predict_logits(x), 1), expected, atol=1e-5)


@pytest.mark.parametrize("way", ["stacked", "one_by_one", "side_by_side"])
def test_weights_reach_every_module(way):
    x, y = table()
    x = x.astype(np.float32)
    options = {
        "classes": 2,
        "seeds": [1, 2, 3, 4],
        "optimization": Optimization(steps=150, batch_size=32, learning_rate=0.01),
        "way": way,
    }
    rows = [np.arange(200), np.arange(100), np.arange(100, 200), np.arange(200)]

    def trained(labels, weights):
        models = train_stack(lambda: MLP(4, [8], 2), x, labels, weights=weights, rows=rows, **options)
        return [model(torch.from_numpy(x)).detach().numpy() for model in models]

    for even, plain in zip(trained(y, np.full(200, 0.1)), trained(y, None), strict=True):
        np.testing.assert_array_equal(even, plain)
    wrong = np.where(np.arange(200) % 2, y, 1 - y)
    weighted = trained(wrong, np.where(np.arange(200) % 2, 5.0, 0.0))
    for z, use in zip(weighted, rows, strict=True):
        assert (z[use].argmax(1) == y[use]).mean() > 0.9  # half of the labels are the opposite


def test_weights_are_those_of_the_members_rows_and_of_snapshots():
    x, y = table()
    weights = np.where(np.arange(200) % 2, 5.0, 0.0)
    wrong = np.where(np.arange(200) % 2, y, 1 - y)
    fast = Optimization(steps=200, batch_size=32, learning_rate=0.01)
    for method in ("bagging", "snapshot"):
        ensemble = Ensemble.train(
            lambda: MLP(4, [8], 2),
            (x, wrong),
            members=2,
            method=method,
            sample_weight=weights,
            optimization=fast,
        )
        assert (ensemble.predict_proba(x).argmax(1) == y).mean() > 0.9


def test_weights_that_are_refused(tmp_path):
    x, y = table()
    cases = [
        (GaussianNB(), np.ones(3), r"sample_weight: expected \[200\], one for each row; got \[3\]"),
        (
            GaussianNB(),
            np.where(np.arange(200) == 4, -1.0, 1.0),
            r"finite numbers of at least 0; row 4 has -1\.0 \(1 such rows\)",
        ),
        (
            GaussianNB(),
            np.where(np.arange(200) == 5, np.nan, 1.0),
            r"finite numbers of at least 0; row 5 has nan",
        ),
        (GaussianNB(), ["a"] * 200, "sample_weight: expected 200 numbers; row 0 has 'a'"),
        (
            GaussianNB(),
            np.zeros(200),
            "sample_weight: gaussiannb-1: expected a weight above 0 among its 200 rows; got none",
        ),
        (
            KNeighborsClassifier(),
            np.ones(200),
            "kneighborsclassifier-1: the fit of KNeighborsClassifier takes no sample_weight",
        ),
        (
            [GaussianNB(), make_pipeline(KNeighborsClassifier())],
            np.ones(200),
            r"pipeline-2: the fit of Pipeline \(of KNeighborsClassifier\) takes no sample_weight; choose",
        ),
    ]
    for factory, weights, words in cases:
        with pytest.raises(ValueError, match=words):
            Ensemble.train(
                factory, (x, y), members=2 if isinstance(factory, list) else 1, sample_weight=weights
            )
    # Another training in the same folder.
    rows = Rows(x, np.arange(200), y)
    plain = Ensemble.train(RandomForestClassifier(3), rows, members=1, folder=tmp_path / "e")
    weighted = Ensemble.train(
        RandomForestClassifier(3), rows, members=1, folder=tmp_path / "e", sample_weight=1.0 + (x[:, 0] > 1)
    )
    assert plain.fingerprint() != weighted.fingerprint()


def _ordered(kind):
    names, order = ["mid", "high", "low", "mid"], ["low", "mid", "never", "high"]
    if kind == "pandas":
        pd = pytest.importorskip("pandas")
        return pd.Series(pd.Categorical(names, categories=order, ordered=True), index=[3, 1, 7, 5])
    if kind == "pandas booleans":
        pd = pytest.importorskip("pandas")
        return pd.Categorical([True, False, True], categories=[True, False], ordered=True)
    if kind == "polars":
        pl = pytest.importorskip("polars")
        return pl.Series(names, dtype=pl.Enum(order))
    pa = pytest.importorskip("pyarrow")
    column = pa.DictionaryArray.from_arrays(pa.array([1, 3, 0, 1]), pa.array(order), ordered=True)
    return column if kind == "pyarrow" else pa.chunked_array([column.slice(0, 2), column.slice(2)])


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow", "pyarrow chunks"])
def test_ordered_categories_keep_their_order(kind):
    labels, names = as_labels(_ordered(kind))
    assert names == ("low", "mid", "high")
    assert labels.tolist() == [1, 2, 0, 1]
    labels, names = as_labels(_ordered(kind), ("high", "low", "mid"))
    assert (labels.tolist(), names) == ([2, 0, 1, 2], ("high", "low", "mid"))


def test_categories_without_an_order_are_sorted_by_name():
    pd, pl, pa = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    names, order = ["b", "a", "c"], ["c", "b", "a"]
    for column in (
        pd.Series(pd.Categorical(names, categories=order)),
        pl.Series(names, dtype=pl.Categorical),
        pa.array(names).dictionary_encode(),
        pd.Series(names),
    ):
        assert as_labels(column)[1] == ("a", "b", "c")
    assert as_labels(_ordered("pandas booleans"))[1] == ("True", "False")


def test_the_classes_of_an_ensemble_have_the_order_of_the_categories():
    pd = pytest.importorskip("pandas")
    x = np.random.default_rng(0).normal(size=(60, 3))
    order = ["low", "mid", "high"]
    names = np.array(order)[np.digitize(x[:, 0], [-0.4, 0.4])]
    column = pd.Series(pd.Categorical(names, categories=order, ordered=True))
    ensemble = Ensemble.train(LogisticRegression(), (x, column), members=1)
    assert ensemble.classes == ("low", "mid", "high")
    found = np.array(order)[ensemble.predict_proba(x).argmax(1)]
    assert (found == names).mean() > 0.8
