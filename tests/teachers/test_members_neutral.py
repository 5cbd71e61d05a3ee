"""Settings that never change a prediction leave a member's fingerprint as it is, and a stale cache names the
part that differs."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from torch import nn
from torch.nn import functional as F

from ensdistill.cache import CacheMismatch, cache_targets
from ensdistill.data import Rows
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import ArrayMember, BoostedMember, SklearnMember, TorchMember, load_member

X, Y = make_classification(150, 6, n_informative=5, n_redundant=0, n_classes=3, random_state=0)


def booster(library, **settings):
    if library == "xgboost":
        return pytest.importorskip("xgboost").XGBClassifier(
            n_estimators=3, max_depth=2, **{"n_jobs": 1, **settings}
        )
    if library == "lightgbm":
        return pytest.importorskip("lightgbm").LGBMClassifier(
            n_estimators=3,
            deterministic=True,
            force_col_wise=True,
            **{"n_jobs": 1, "verbose": -1, **settings},
        )
    given = {"thread_count": 1, "verbose": False, "allow_writing_files": False, **settings}
    return pytest.importorskip("catboost").CatBoostClassifier(iterations=3, depth=2, random_seed=0, **given)


OTHER = {
    "xgboost": {"n_jobs": 2, "verbosity": 0},
    "lightgbm": {"n_jobs": 2, "verbose": -2},
    "catboost": {"thread_count": 2, "metric_period": 2},
}


def differing(one, other):
    parts = one.fingerprint_parts(), other.fingerprint_parts()
    assert (one.fingerprint() == other.fingerprint()) == (parts[0] == parts[1])
    return sorted(name for name in {**parts[0], **parts[1]} if parts[0].get(name) != parts[1].get(name))


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        (RandomForestClassifier(3, random_state=0), {"n_jobs": 2, "verbose": 1, "warm_start": True}),
        (KNeighborsClassifier(), {"n_jobs": 2}),
        (
            make_pipeline(StandardScaler(), LogisticRegression()),
            {"logisticregression__verbose": 1, "verbose": True},
        ),
        (
            VotingClassifier(
                [("a", RandomForestClassifier(2, random_state=0)), ("b", LogisticRegression())], voting="soft"
            ),
            {"n_jobs": 2, "a__n_jobs": 2, "verbose": True},
        ),
        (
            BaggingClassifier(LogisticRegression(), 2, random_state=0),
            {"n_jobs": 2, "estimator__warm_start": True},
        ),
    ],
)
def test_threads_and_verbosity_are_no_part_of_an_estimator_s_fingerprint(tmp_path, estimator, settings):
    estimator.fit(X, Y)
    before = SklearnMember(copy.deepcopy(estimator))
    after = SklearnMember(copy.deepcopy(estimator).set_params(**settings))
    assert differing(before, after) == []
    after.save(tmp_path)
    assert load_member(tmp_path).fingerprint() == before.fingerprint()


@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
def test_threads_and_verbosity_are_no_part_of_a_booster_s_fingerprint(tmp_path, library):
    models = [booster(library, **settings).fit(X, Y) for settings in ({}, OTHER[library])]
    one, other = map(BoostedMember, models)
    np.testing.assert_array_equal(one.predict_logits(X), other.predict_logits(X))
    assert differing(one, other) == []
    other.save(tmp_path)
    assert load_member(tmp_path).fingerprint() == one.fingerprint()
    third = BoostedMember(booster(library, learning_rate=0.9).fit(X, Y))
    assert differing(one, third) == ["trees"]
    assert differing(one, BoostedMember(models[0], smoothing=0.1)) == ["settings"]
    assert differing(one, BoostedMember(models[0], classes=["a", "b", "c"])) == ["classes"]


@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
def test_threads_and_verbosity_of_a_booster_in_a_pipeline_are_no_part_of_its_fingerprint(library):
    pipelines = [
        make_pipeline(StandardScaler(), booster(library, **settings)).fit(X, Y)
        for settings in ({}, OTHER[library])
    ]
    one, other = map(SklearnMember, pipelines)
    assert differing(one, other) == []
    third = SklearnMember(make_pipeline(StandardScaler(), booster(library, learning_rate=0.9)).fit(X, Y))
    assert [name for name in differing(one, third) if "fitted state" in name]


def shifted(x):
    return x + 1


def doubled(x):
    return 2 * x


@pytest.mark.parametrize(
    ("one", "other", "parts"),
    [
        (
            [StandardScaler(), LogisticRegression()],
            [MinMaxScaler(), LogisticRegression()],
            ("step standardscaler", "step minmaxscaler"),
        ),
        (
            [StandardScaler(), LogisticRegression()],
            [StandardScaler(), LogisticRegression(C=9.0)],
            ("step logisticregression",),
        ),
        (
            [FunctionTransformer(shifted), LogisticRegression()],
            [FunctionTransformer(doubled), LogisticRegression()],
            ("source of",),
        ),
    ],
)
def test_the_parts_of_an_estimator_name_the_step_and_the_code_that_differ(one, other, parts):
    found = differing(*(SklearnMember(make_pipeline(*steps).fit(X, Y)) for steps in (one, other)))
    for part in parts:
        assert [name for name in found if name.startswith(part)], found
    assert not [name for name in found if name.startswith("version")]


def module(dropout=0.5, **more):
    torch.manual_seed(0)
    layer = nn.LSTM(6, 6, num_layers=2, batch_first=True, dropout=more.pop("lstm", 0.0))
    return nn.Sequential(
        nn.Dropout(dropout), First(layer), nn.Linear(6, more.pop("classes", 3)), nn.Dropout1d(dropout / 2)
    )


class First(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def test_the_rate_of_dropout_is_no_part_of_a_module_s_fingerprint():
    members = [
        TorchMember(module(**settings)) for settings in ({}, {"dropout": 0.1}, {"lstm": 0.2}, {"classes": 4})
    ]
    x = X.astype(np.float32)
    for other in members[1:3]:
        np.testing.assert_array_equal(other.predict_logits(x), members[0].predict_logits(x))
        assert differing(members[0], other) == []
    assert "weights" in differing(members[0], members[3])


class Sampling(nn.Module):
    """Its own code applies the rate in eval mode too."""

    def __init__(self, rate=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.drop, self.linear = nn.Dropout(rate), nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(F.dropout(x, self.drop.p, training=True))


class OwnDropout(nn.Dropout):
    def forward(self, x):
        return x * self.p


def test_a_rate_of_dropout_that_the_module_s_own_code_reads_counts():
    members = [TorchMember(Sampling(rate)) for rate in (0.5, 0.1)]
    assert differing(*members) == ["attributes that the module's code reads"]
    members = [TorchMember(nn.Sequential(OwnDropout(rate), nn.ReLU())) for rate in (0.5, 0.1)]
    assert [name for name in differing(*members) if "OwnDropout" in name]


def test_rates_of_dropout_in_a_hugging_face_config_are_no_part_of_the_fingerprint(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }

    def member(**more):
        torch.manual_seed(0)
        return TorchMember(
            transformers.BertForSequenceClassification(transformers.BertConfig(**settings, **more))
        )

    one = member()
    assert (
        differing(
            one, member(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.0, classifier_dropout=0.5)
        )
        == []
    )
    assert "config" in differing(one, member(layer_norm_eps=1e-3))
    one.save(tmp_path)
    assert load_member(tmp_path).fingerprint() == one.fingerprint()


def test_a_stale_cache_names_the_part_of_an_estimator_and_of_a_booster(tmp_path):
    rows = Rows(X, np.arange(len(X)), Y)
    steps = [StandardScaler(), LogisticRegression()]
    tree = BoostedMember(booster("lightgbm").fit(X, Y), name="trees")
    line = SklearnMember(make_pipeline(*steps).fit(X, Y), name="line")
    cache_targets(Ensemble.from_members([tree, line]), rows, tmp_path / "c")
    threads = BoostedMember(booster("lightgbm", n_jobs=2).fit(X, Y), name="trees")
    cache_targets(Ensemble.from_members([threads, line]), rows, tmp_path / "c")
    other = BoostedMember(booster("lightgbm", learning_rate=0.7).fit(X, Y), name="trees")
    refitted = SklearnMember(make_pipeline(MinMaxScaler(), LogisticRegression()).fit(X, Y), name="line")
    with pytest.raises(CacheMismatch) as error:
        cache_targets(Ensemble.from_members([other, refitted]), rows, tmp_path / "c")
    assert "members.trees: trees differs" in str(error.value)
    assert "members.line: step minmaxscaler: settings of MinMaxScaler is not in the cache" in str(error.value)


def test_a_renamed_member_is_named_without_a_hash(tmp_path):
    rows = Rows(X, np.arange(len(X)), Y)
    model = LogisticRegression().fit(X, Y)
    cache_targets(Ensemble.from_members([SklearnMember(model, name="old")]), rows, tmp_path / "c")
    with pytest.raises(CacheMismatch, match=r"members: 'old' of the cache is called 'new' now") as error:
        cache_targets(Ensemble.from_members([SklearnMember(model, name="new")]), rows, tmp_path / "c")
    assert SklearnMember(model).fingerprint() not in str(error.value)
    stranger = ArrayMember(X, logits=np.eye(3)[Y], name="other", classes=["0", "1", "2"])
    with pytest.raises(CacheMismatch, match=r"members\.other: the cache has no such member") as error:
        cache_targets(Ensemble.from_members([stranger]), rows, tmp_path / "c")
    assert stranger.fingerprint() not in str(error.value)
    assert "members.old: is in the cache alone" in str(error.value)
