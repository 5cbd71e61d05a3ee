"""Estimators as a job's YAML names them: made, checked before they train, trusted, and given back as they
were."""

import functools
import re

import numpy as np
import pytest
import yaml
from job_helpers import JOB, run, succeed, write_job
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from xgboost import XGBClassifier, XGBRegressor

from ensdistill.cli.settings import load_config
from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.models import CNN
from ensdistill.models import MLP as MLP_MODULE
from ensdistill.teachers import Ensemble, train_ensemble
from ensdistill.teachers.jobs import Job, TrainingRows
from ensdistill.teachers.members import BoostedMember, SklearnMember, load_member
from ensdistill.teachers.recipes import Recipe, SklearnMembers, TorchMembers


def named(path, **arguments):
    return {"class_path": path, "init_args": arguments}


XGB = named("xgboost.XGBClassifier", n_estimators=20, n_jobs=1)
LGBM = named(
    "lightgbm.LGBMClassifier",
    n_estimators=20,
    n_jobs=1,
    min_child_samples=3,
    min_data_per_group=1,
    cat_smooth=1,
    verbose=-1,
)
CATBOOST = named("catboost.CatBoostClassifier", iterations=40, thread_count=1, verbose=False)
HGB = named("sklearn.ensemble.HistGradientBoostingClassifier", max_iter=20, min_samples_leaf=3)

ESTIMATORS = {
    "xgboost": (XGB, BoostedMember),
    "xgboost of categories": (
        named(XGB["class_path"], **XGB["init_args"], feature_types=["q", "q", "c"]),
        BoostedMember,
    ),
    "lightgbm": (LGBM, BoostedMember),
    "lightgbm of categories": (
        named(LGBM["class_path"], **LGBM["init_args"], cat_feature=[2]),
        BoostedMember,
    ),
    "catboost": (CATBOOST, BoostedMember),
    "histogram": (HGB, SklearnMember),
    "histogram of categories": (
        named(HGB["class_path"], **HGB["init_args"], categorical_features=[2]),
        SklearnMember,
    ),
    "vote": (
        named(
            "sklearn.ensemble.VotingClassifier",
            voting="soft",
            estimators=[["x", XGB], ["l", LGBM], ["c", CATBOOST]],
        ),
        SklearnMember,
    ),
    "pipeline": (
        named(
            "sklearn.pipeline.Pipeline",
            steps=[["s", named("sklearn.preprocessing.StandardScaler")], ["h", HGB]],
        ),
        SklearnMember,
    ),
}


def table():
    """The third column holds the codes of five categories."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 3)).astype(np.float32)
    x[:, 2] = rng.integers(0, 5, 240)
    y = ((x[:, 0] > 0) ^ np.isin(x[:, 2], [1, 3])).astype(np.int64)
    return Rows(x, np.arange(240), y)


def recipes_of(tmp_path, *estimators, **more):
    members = [
        {
            "class_path": "ensdistill.teachers.recipes.SklearnMembers",
            "init_args": {"name": f"m{i}", "estimator": e, **more},
        }
        for i, e in enumerate(estimators)
    ]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**JOB, "teachers": {"members": members}}))
    return load_config(["--config", str(tmp_path / "job.yaml")]).teachers.members


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_estimators_of_a_config_are_trained_saved_and_loaded_without_words_of_trust(tmp_path, kind):
    estimator, adapter = ESTIMATORS[kind]
    (recipe,) = recipes_of(tmp_path, estimator)
    rows = table()
    recipe.check(rows, ("0", "1"))
    ((_, member),) = recipe.fit(
        TrainingRows(rows.inputs, rows.labels, ("0", "1")), [Job("m", 3, np.arange(160))]
    )
    assert isinstance(member, adapter)
    answers = member.predict_logits(rows.inputs)
    assert (answers[160:].argmax(1) == rows.labels[160:]).mean() > 0.8
    member.save(tmp_path / "m")
    np.testing.assert_array_equal(
        load_member(tmp_path / "m", recipe.trusted).predict_logits(rows.inputs), answers
    )
    if adapter is BoostedMember:
        load_member(tmp_path / "m")  # its library's own format


def test_an_import_path_is_short_for_an_estimator_and_numbers_are_read_as_such(tmp_path):
    plain, rate = recipes_of(
        tmp_path, "sklearn.naive_bayes.GaussianNB", named(HGB["class_path"], learning_rate=1e-3)
    )
    assert type(plain.estimator).__name__ == "GaussianNB"
    assert rate.estimator.learning_rate == 0.001


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (
            named("sklearn.nope.Any"),
            "estimator.class_path: sklearn.nope.Any can't be imported: No module named 'sklearn.nope'",
        ),
        (
            named("xgboost.XGBClasifier"),
            "estimator.class_path: xgboost has no 'XGBClasifier'. Did you mean 'XGBClassifier'?",
        ),
        (
            named("sklearn.model_selection.KFold"),
            "estimator: expected one of scikit-learn, XGBoost, LightGBM or CatBoost that is to be fitted",
        ),
        (
            named(HGB["class_path"], max_iters=3),
            "estimator.init_args.max_iters: there is no such setting; known: loss, ",
        ),
        (
            named(
                "sklearn.pipeline.Pipeline",
                steps=[["x", named("xgboost.XGBClassifier", early_stopping_rounds=3)]],
            ),
            "x__early_stopping_rounds: ",
        ),
        (
            named("sklearn.pipeline.Pipeline", steps=[["x", named("xgboost.Nothing")]]),
            "estimator.init_args.steps.0.1.class_path: xgboost has no 'Nothing'",
        ),
    ],
)
def test_a_value_that_is_no_estimator_is_refused_when_the_config_is_read(tmp_path, estimator, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        recipes_of(tmp_path, estimator)


def some(x):
    return x


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (
            HistGradientBoostingClassifier(max_iter=-5),
            "it can't be used: InvalidParameterError: The 'max_iter' parameter",
        ),
        (XGBRegressor(n_estimators=3), "it can't be used: .*classifier"),
        (XGBClassifier(objective="nope"), "it can't be used: XGBoostError"),
        (
            make_pipeline(FunctionTransformer(some), KNeighborsClassifier()),
            r"it can't be used: .*not trusted.*some.*trusted=",
        ),
        (make_pipeline(FunctionTransformer(lambda x: x), KNeighborsClassifier()), "it can't be used: "),
        (KNeighborsClassifier(300), "it can't be used: ValueError: .*n_neighbors"),
    ],
)
def test_an_estimator_that_can_not_be_used_is_refused_before_it_is_trained(estimator, words):
    with pytest.raises(ValueError, match=f"^estimator: m: {words}"):
        SklearnMembers(estimator, name="m").check(table(), ("0", "1"))


def test_few_rows_are_enough_for_the_check_and_where_they_are_not_all_are_tried():
    fitted = []

    class Counting(KNeighborsClassifier):
        def fit(self, x, y):
            fitted.append(len(x))
            return super().fit(x, y)

    Counting.__qualname__ = "Counting"
    globals()["Counting"] = Counting
    trusted = ("test_recipes.Counting", "tests.teachers.test_recipes.Counting", f"{__name__}.Counting")
    SklearnMembers(Counting(3), name="m", trusted=trusted).check(table(), ("0", "1"))
    assert fitted == [16]
    SklearnMembers(Counting(100), name="m", trusted=trusted).check(table(), ("0", "1"))
    assert fitted == [16, 16, 240]


def test_a_job_of_boosters_ends_with_an_ensemble_and_a_wrong_one_before_any_work(tmp_path):
    members = [
        {
            "class_path": "ensdistill.teachers.recipes.SklearnMembers",
            "init_args": {"estimator": named(e["class_path"], **e["init_args"]), "count": n},
        }
        for e, n in ((XGB, 1), (LGBM, 1), (CATBOOST, 2))
    ]
    file = write_job(tmp_path, {"teachers.members": members})
    succeed("teachers", file)
    ensemble = Ensemble.load(tmp_path / "runs" / "tiny" / "seed-0" / "teachers" / "ensemble")
    assert ensemble.names == (
        "xgbclassifier",
        "lgbmclassifier",
        "catboostclassifier-1",
        "catboostclassifier-2",
    )
    members[2]["init_args"]["estimator"]["init_args"]["cat_features"] = [3]  # a column of fractions
    file = write_job(tmp_path, {"teachers.members": members, "name": "other"})
    status, _, err = run("teachers", file)
    assert status == 2
    assert (
        "teachers.members.2.init_args.estimator: catboostclassifier: it can't be used: BadRows: cat_features"
        in err.replace("\n", " ")
    )
    assert "cat_features" in err
    assert not list((tmp_path / "runs" / "other").rglob("*.json"))


MLP = {"class_path": "ensdistill.models.MLP", "init_args": {"inputs": 64, "hidden": [8]}}


@pytest.mark.parametrize(
    "method",
    [
        "seeds",
        "bagging",
        "subsample",
        "snapshot",
        "fast_geometric",
        named("ensdistill.teachers.methods.Bagging", share=0.5, replace=False),
    ],
    ids=str,
)
def test_every_method_trains_from_a_config_with_folds_and_is_resumed(tmp_path, method):
    members = [
        {
            "class_path": "ensdistill.teachers.recipes.TorchMembers",
            "init_args": {
                "model": MLP,
                "count": 2,
                "name": "mlp",
                "method": method,
                "optimization": {"steps": 40, "batch_size": 32},
            },
        }
    ]
    file = write_job(tmp_path, {"teachers.members": members})
    succeed("teachers", file)
    folder = tmp_path / "runs" / "tiny" / "seed-0" / "teachers"
    ensemble = Ensemble.load(folder / "ensemble")
    assert ensemble.names == ("mlp-1", "mlp-2")
    prints = ensemble.fingerprint()["members"]
    assert len(set(prints.values())) == 2
    held_out = (folder / "held_out.safetensors").read_bytes()
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("trained.json")}
    assert len(written) == 2 + 2 * JOB["teachers"]["folds"]
    (folder / "stage.json").unlink()
    succeed("teachers", file)
    assert {path: path.stat().st_mtime_ns for path in written} == written  # nothing was trained again
    assert Ensemble.load(folder / "ensemble").fingerprint()["members"] == prints
    assert (folder / "held_out.safetensors").read_bytes() == held_out


def test_members_of_the_api_and_of_a_recipe_are_the_same():
    rows = table()
    model, quick = functools.partial(MLP_MODULE, 3, [8], 2), Optimization(steps=30)
    recipe = TorchMembers(model, count=3, name="mlp", method="bagging", optimization=quick)
    api = Ensemble.train(model, rows, members=3, name="mlp", method="bagging", seed=5, optimization=quick)
    folds, _ = train_ensemble([recipe], rows, ("0", "1"), folds=2, seed=5)
    for one, other in zip(api.members, folds.members, strict=True):
        assert one.name == other.name
        # Three models are trained one by one, nine (with those of the folds) as a stack, which rounds in
        # another way.
        np.testing.assert_allclose(
            one.predict_logits(rows.inputs), other.predict_logits(rows.inputs), atol=1e-3
        )


def test_a_recipe_from_outside_needs_fit_alone(tmp_path):
    rows = table()

    class Nearest(Recipe):
        name = "nearest"

        def fit(self, data, jobs, *, checkpoint=None, watch=None, finished=()):
            for job in jobs:
                part = data.take(job.rows)
                fitted = KNeighborsClassifier(5).fit(part.inputs, part.labels)
                yield job, SklearnMember(fitted, name=job.name, classes=data.classes)

        def fingerprint(self):
            return "nearest of 5"

    ensemble, held_out = train_ensemble([Nearest()], rows, ("0", "1"), folds=3, folder=tmp_path)
    assert ensemble.names == ("nearest",)
    assert (held_out[0].argmax(1) == rows.labels).mean() > 0.7
    again, _ = train_ensemble([Nearest()], rows, ("0", "1"), folds=3, folder=tmp_path)
    assert again.fingerprint() == ensemble.fingerprint()


def test_lists_of_a_config_are_tuples_where_an_estimator_has_one_by_default():
    vectorizer = named(
        "sklearn.feature_extraction.text.TfidfVectorizer", ngram_range=[1, 2], stop_words=["a"]
    )
    steps = [["tfidf", vectorizer], ["bayes", "passthrough"]]
    made = SklearnMembers(named("sklearn.pipeline.Pipeline", steps=steps), name="text").estimator
    assert made["tfidf"].get_params()["ngram_range"] == (1, 2)
    assert made["tfidf"].get_params()["stop_words"] == ["a"]
    assert made["tfidf"].fit_transform(["one two"]).shape == (1, 3)


def test_members_without_a_name_are_called_after_their_models_class():
    wide = functools.partial(functools.partial(CNN, channels=[4]), outputs=3)
    assert TorchMembers(MLP_MODULE, count=2).names() == ["mlp-1", "mlp-2"]
    assert TorchMembers(wide, count=1).names() == ["cnn"]
    assert TorchMembers(lambda: MLP_MODULE(4, [8], 2), count=1).names() == ["net"]
    assert TorchMembers(MLP_MODULE, count=1, name="mine").names() == ["mine"]
