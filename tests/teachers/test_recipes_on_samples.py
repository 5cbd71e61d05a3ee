"""Recipes and ``Ensemble.train`` on raw samples: tables with categories and gaps, texts, images, mappings and
lazy data, each member with the preprocess that suits it."""

from functools import partial

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from catboost import CatBoostClassifier
from lightgbm import LGBMClassifier
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn
from torch.utils.data import Dataset
from xgboost import XGBClassifier

from ensdistill.cli.settings import load_config
from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.data.parquet import ParquetSamples
from ensdistill.data.preprocess import Categories, HashedNgrams, TableDefaults
from ensdistill.models import CNN, MLP
from ensdistill.teachers import Ensemble, train_ensemble
from ensdistill.teachers.members import Preprocessed, inner
from ensdistill.teachers.prepared import Prepared, prepare_recipes
from ensdistill.teachers.recipes import SklearnMembers, TorchMembers

CITIES = ["Rome", "Oslo", "Bonn", "Lima"]
QUICK = Optimization(steps=60, batch_size=32, learning_rate=0.02)


def table(rows=150, seed=0):
    generator = np.random.default_rng(seed)
    city, age = generator.choice(CITIES, rows), generator.normal(40, 9, rows)
    labels = ((city == "Rome") | (age > 48)).astype(np.int64)
    age[generator.random(rows) < 0.1] = np.nan
    member = generator.integers(0, 2, rows).astype(bool)
    city = np.where(generator.random(rows) < 0.05, None, city)
    return pd.DataFrame({"city": city, "age": age, "member": member}), labels


def as_rows(inputs, labels, weights=None):
    return Rows(inputs, np.arange(len(labels)), labels, weights)


class Bag(nn.Module):
    """A mean of embeddings."""

    def __init__(self, buckets, outputs, width=8):
        super().__init__()
        self.embedding = nn.EmbeddingBag(buckets + 1, width, padding_idx=0)
        self.head = nn.Linear(width, outputs)

    def forward(self, ids):
        return self.head(self.embedding(ids))


class TwoInputs(nn.Module):
    """Token ids by name, and numbers."""

    def __init__(self, outputs=2):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 4), nn.Linear(6, outputs)

    def forward(self, ids, numbers):
        assert ids.dtype == torch.int64
        return self.head(torch.cat([self.embedding(ids).mean(-2), numbers], -1))


class Halved(TransformerMixin, BaseEstimator):
    """A transformer of another package."""

    def fit(self, x, y=None):
        self.fitted_ = True
        return self

    def transform(self, x):
        return np.asarray(x, float) / 2


class Lazily(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def mixed_recipes():
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["city"]))
    return [
        SklearnMembers(make_pipeline(columns, LogisticRegression()), name="columns"),
        SklearnMembers(LogisticRegression(), name="linear"),
        SklearnMembers(CatBoostClassifier(iterations=8, depth=3, verbose=0, thread_count=1), name="catboost"),
        SklearnMembers(XGBClassifier(n_estimators=8, max_depth=3, n_jobs=1), name="xgboost"),
        SklearnMembers(
            LGBMClassifier(n_estimators=8, min_child_samples=3, n_jobs=1, verbose=-1), name="lightgbm"
        ),
        SklearnMembers(HistGradientBoostingClassifier(max_iter=8), name="histogram"),
        TorchMembers(partial(MLP, hidden=[8]), count=2, name="net", optimization=QUICK),
    ]


def test_each_recipe_gets_the_preprocess_that_suits_it():
    frame, _ = table()
    made = dict(
        zip(
            ["pipe", "linear", "cat", "xgb", "lgbm", "hist", "net"],
            prepare_recipes(mixed_recipes(), as_rows(frame, np.zeros(150, np.int64)).inputs, 2, 0),
            strict=True,
        )
    )
    assert not isinstance(made["pipe"], Prepared)
    kinds = {name: type(made[name].preprocess).__name__ for name in made if name != "pipe"}
    assert kinds == dict.fromkeys(("linear", "net"), "Transformer") | dict.fromkeys(
        ("cat", "xgb", "lgbm", "hist"), "Categorical"
    )
    assert made["cat"].recipe.estimator.get_params()["cat_features"] == ["city"]
    assert made["xgb"].recipe.estimator.enable_categorical
    assert made["linear"].preprocess is made["net"].preprocess
    assert made["net"].recipe.model.keywords["inputs"] == made["net"].preprocess(frame).shape[1]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_mixed_ensemble_learns_a_raw_table_and_is_kept(library, tmp_path):
    frame, labels = table()
    given = frame if library == "pandas" else pl.from_pandas(frame)
    recipes = mixed_recipes()
    if library == "polars":
        recipes = recipes[1:]  # scikit-learn's encoder takes no missing text of polars
    ensemble, held_out = train_ensemble(
        recipes, as_rows(given, labels), ("no", "yes"), folds=2, folder=tmp_path / "t"
    )
    assert np.isfinite(held_out).all()
    assert (held_out.argmax(2) == labels).mean(1).min() > 0.7
    asked, truth = table(60, seed=1)
    asked = asked if library == "pandas" else pl.from_pandas(asked)
    expected = ensemble.predict_proba(asked)
    assert (expected.argmax(1) == truth).mean() > 0.85
    ensemble.save(tmp_path / "e")
    loaded = Ensemble.load(tmp_path / "e", trusted=[path for recipe in recipes for path in recipe.trusted])
    np.testing.assert_array_equal(loaded.predict_proba(asked), expected)
    assert loaded.fingerprint() == ensemble.fingerprint()


def test_members_are_their_libraries_own_on_the_preprocessed_table():
    frame, labels = table()
    recipes = [
        SklearnMembers(LogisticRegression(), name="linear", preprocess=TableDefaults("standard", rare=1))
    ]
    ensemble, _ = train_ensemble(recipes, as_rows(frame, labels), ("no", "yes"), folds=2)
    preprocess = TableDefaults("standard", rare=1).fit(frame)
    x = preprocess(frame).astype(np.float64)
    expected = LogisticRegression().fit(x, labels).predict_proba(preprocess(frame))
    found = np.exp(ensemble.raw_logits(frame)[0])
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), expected, rtol=0, atol=4e-6)


def test_no_label_decides_the_preprocess():
    frame, labels = table()
    made = [
        train_ensemble([SklearnMembers(LogisticRegression())], as_rows(frame, y), ("no", "yes"), folds=2)[0]
        for y in (labels, 1 - labels)
    ]
    prints = {ensemble.members[0].preprocess.fingerprint() for ensemble in made}
    assert len(prints) == 1


def test_arrays_stay_as_they_are():
    frame, labels = table()
    x = frame[["age"]].fillna(0).to_numpy()
    ensemble, _ = train_ensemble(
        [SklearnMembers(LogisticRegression())], as_rows(x, labels), ("a", "b"), folds=2
    )
    assert not isinstance(ensemble.members[0], Preprocessed)
    scaled, _ = train_ensemble(
        [SklearnMembers(LogisticRegression(), preprocess=StandardScaler())],
        as_rows(x, labels),
        ("a", "b"),
        folds=2,
    )
    assert isinstance(scaled.members[0], Preprocessed)
    assert abs(scaled.members[0].preprocess(x).mean()) < 1e-6


TEXTS = ["a red fox", "a blue car", "the red car", "no fox at all", "blue sky", "red sky"] * 8
COLOURS = np.array([1, 0, 1, 0, 0, 1] * 8)


def test_texts_are_learnt_by_pipelines_and_by_networks_of_ids(tmp_path):
    recipes = [
        SklearnMembers(make_pipeline(TfidfVectorizer(), LogisticRegression(C=100)), name="words"),
        TorchMembers(
            Bag, count=2, name="bag", optimization=QUICK, preprocess=HashedNgrams(buckets=200, length=8)
        ),
    ]
    ensemble, held_out = train_ensemble(
        recipes, as_rows(TEXTS, COLOURS), ("other", "red"), folds=2, folder=tmp_path / "t"
    )
    assert np.isfinite(held_out).all()
    assert (ensemble.raw_logits(TEXTS).argmax(2) == COLOURS).all()
    member = ensemble.members[1]
    assert isinstance(inner(member).module, Bag)
    ids = torch.from_numpy(member.preprocess(["a red hat"]))
    with torch.no_grad():
        np.testing.assert_allclose(
            member.predict_logits(["a red hat"]), inner(member).module(ids).numpy(), rtol=0, atol=1e-6
        )
    with pytest.raises(
        TypeError, match=r"preprocess: linear: expected an estimator of texts; got a Logistic"
    ):
        train_ensemble(
            [SklearnMembers(LogisticRegression(), name="linear")],
            as_rows(TEXTS, COLOURS),
            ("a", "b"),
            folds=2,
        )


def test_a_mapping_is_learnt_by_its_names():
    generator = np.random.default_rng(0)
    ids, numbers = generator.integers(0, 20, (80, 3)), generator.normal(size=(80, 2)).astype(np.float32)
    labels = (numbers[:, 0] > 0).astype(np.int64)
    inputs = {"ids": ids, "numbers": numbers}
    recipe = TorchMembers(TwoInputs, count=2, name="two", optimization=QUICK)
    ensemble, held_out = train_ensemble([recipe], as_rows(inputs, labels), ("a", "b"), folds=2)
    assert (held_out.argmax(2) == labels).mean() > 0.8
    assert isinstance(ensemble.members[0].module, TwoInputs)
    assert (ensemble.predict_proba(inputs).argmax(1) == labels).mean() > 0.9


@pytest.mark.parametrize("lazily", [False, True])
def test_images_are_learnt_whether_they_are_read_or_held(lazily):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 60)
    images = [(generator.integers(0, 60, (8, 8)) + 120 * label).astype(np.uint8) for label in labels]
    recipe = TorchMembers(partial(CNN, channels=[4]), count=1, name="cnn", optimization=QUICK)
    given = Lazily(images) if lazily else images
    ensemble, held_out = train_ensemble([recipe], as_rows(given, labels), ("dark", "light"), folds=2)
    assert (held_out.argmax(2) == labels).mean() > 0.9
    assert (ensemble.predict_proba(given).argmax(1) == labels).mean() > 0.9


def test_parquet_is_learnt_as_the_frame_that_it_holds(tmp_path):
    frame, labels = table()
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=40)
    recipes = [recipe for recipe in mixed_recipes() if recipe.name in ("columns", "linear", "xgboost")]
    results = [
        train_ensemble(recipes, as_rows(samples, labels), ("no", "yes"), folds=2)
        for samples in (frame, ParquetSamples(tmp_path / "rows.parquet"))
    ]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    asked = ParquetSamples(tmp_path / "rows.parquet")
    np.testing.assert_array_equal(results[1][0].predict_proba(asked), results[0][0].predict_proba(frame))


def test_ensemble_train_takes_frames_texts_and_weights():
    frame, labels = table()
    ensemble = Ensemble.train([LogisticRegression(), RandomForestClassifier(9)], (frame, labels), seed=3)
    assert (ensemble.predict_proba(frame).argmax(1) == labels).mean() > 0.85
    weights = (np.arange(150) % 3 > 0).astype(float)
    kept = np.flatnonzero(weights)
    setting = TableDefaults(rare=1)
    one = Ensemble.train(LogisticRegression(), as_rows(frame, labels, weights), members=1, preprocess=setting)
    preprocess = one.members[0].preprocess
    expected = LogisticRegression().fit(preprocess(frame)[kept].astype(np.float64), labels[kept])
    found = np.exp(one.raw_logits(frame)[0])
    np.testing.assert_allclose(found, expected.predict_proba(preprocess(frame)), rtol=0, atol=1e-3)
    words = make_pipeline(TfidfVectorizer(), LogisticRegression(C=100))
    texts = Ensemble.train(words, (TEXTS, COLOURS), members=2, method="bagging")
    assert (texts.predict_proba(TEXTS).argmax(1) == COLOURS).all()


def test_the_same_call_resumes_and_another_preprocess_does_not(tmp_path):
    frame, labels = table()
    calls = []

    class Counting(SklearnMembers):
        def fit(self, data, jobs, **more):
            finished = more.get("finished", ())
            calls.extend(job.key for job in jobs if job.key not in finished)
            return super().fit(data, jobs, **more)

    def trained(setting):
        calls.clear()
        recipe = Counting(LogisticRegression(), name="linear", preprocess=setting)
        found = train_ensemble([recipe], as_rows(frame, labels), ("no", "yes"), folds=2, folder=tmp_path)
        return found[1], len(calls)

    first, count = trained("auto")
    assert count == 3
    again, count = trained("auto")
    assert count == 0
    np.testing.assert_array_equal(first, again)
    other, count = trained(TableDefaults("standard"))
    assert count == 3
    assert not np.array_equal(first, other)


def test_a_preprocess_that_cannot_be_kept_is_refused_before_training():
    x = np.random.default_rng(0).normal(size=(40, 3))
    labels = np.arange(40) % 2
    rows = as_rows(x, labels)

    def checked(recipe, rows=rows):
        (own,) = prepare_recipes([recipe], rows.inputs, 2, 0)
        own.check(rows, ("a", "b"))
        return own

    with pytest.raises(ValueError, match=r"preprocess: linear: it can't be kept: .*without a factory"):
        checked(SklearnMembers(LogisticRegression(), name="linear", preprocess=nn.BatchNorm1d(3).double()))
    own = checked(SklearnMembers(LogisticRegression(), preprocess=Halved()))
    assert f"{__name__}.Halved" in own.trusted
    with pytest.raises(ValueError, match="expected the import path of a function"):
        SklearnMembers(LogisticRegression(), preprocess="no.such.function")
    with pytest.raises(TypeError, match="preprocess: linear: inputs: expected a table"):
        checked(SklearnMembers(LogisticRegression(), name="linear", preprocess=Categories()))
    frame, labels = table()
    checked(SklearnMembers(RandomForestClassifier(3)), as_rows(frame, labels))
    with pytest.raises(ValueError, match="estimator: pipeline: it can't be used"):
        checked(SklearnMembers(make_pipeline(StandardScaler(), LogisticRegression())), as_rows(frame, labels))


YAML = """
name: tiny
data: {class_path: ensdistill.data.Digits}
teachers:
  members:
    - class_path: ensdistill.teachers.recipes.TorchMembers
      init_args:
        name: bag
        preprocess: {class_path: ensdistill.data.preprocess.HashedNgrams, init_args: {buckets: 90, length: 8}}
        model: {class_path: BAG}
        optimization: {steps: 20}
    - class_path: ensdistill.teachers.recipes.SklearnMembers
      init_args:
        estimator: {class_path: sklearn.linear_model.LogisticRegression}
        preprocess: {class_path: sklearn.feature_extraction.text.TfidfVectorizer, init_args: {max_features: 5}}
distill:
  students: {small: {model: {class_path: ensdistill.models.MLP, init_args: {hidden: [8]}}}}
"""


def test_a_config_names_the_preprocess_and_leaves_sizes_to_the_data(tmp_path):
    (tmp_path / "job.yaml").write_text(YAML.replace("BAG", f"{__name__}.Bag"))
    config = load_config(["--config", str(tmp_path / "job.yaml")])
    bag, linear = prepare_recipes(config.teachers.members, as_rows(TEXTS, COLOURS).inputs, 2, 0)
    assert bag.recipe.model.keywords == {"width": 8, "outputs": 2, "buckets": 90}
    assert linear.preprocess(TEXTS).shape == (48, 5)
    assert "inputs" not in config.distill.students["small"].model.keywords
