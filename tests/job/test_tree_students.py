"""Students of a job that are no networks: a booster, and a tree of scikit-learn."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from pathlib import Path

import lightgbm
import numpy as np
import pytest
import yaml
from job_helpers import fingerprints, flat, job_file, mlp, run, stamps, succeed, write_job
from scipy.special import softmax
from sklearn.tree import DecisionTreeClassifier

import ensdistill
from ensdistill.cache import TargetCache
from ensdistill.cli.classes import parse
from ensdistill.cli.settings import load_config
from ensdistill.common.files import read_json, write_json
from ensdistill.job import evaluate
from ensdistill.job.config import DistillConfig
from ensdistill.job.estimators import train_estimator_baselines
from ensdistill.job.run_folder import RunFolder
from ensdistill.student.trees import TreeStudent
from ensdistill.student.trees.direct import Direct
from ensdistill.student.validation import Validation
from ensdistill.teachers.members import load_member

ROOT = Path(__file__).parents[2]
BOOSTER = {
    "class_path": "lightgbm.LGBMClassifier",
    "init_args": {"n_estimators": 8, "num_leaves": 4, "min_child_samples": 2, "n_jobs": 1, "verbose": -1},
}
TREE = {"class_path": "sklearn.tree.DecisionTreeClassifier", "init_args": {"min_samples_leaf": 2}}
TRAINED = {f"seed-0/{stage}/{name}" for stage in ("direct", "distill") for name in ("booster", "tree")}


def students():
    """The settings of both, anew, because a test changes them."""
    booster = {"estimator": copy.deepcopy(BOOSTER), "validation": {"patience": 3}}
    return {"booster": booster, "tree": {"estimator": copy.deepcopy(TREE)}}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The run folder of the smallest job with these two students; to be read only."""
    folder = tmp_path_factory.mktemp("trees")
    succeed("distill", write_job(folder, {"distill.students": students()}))
    return folder / "runs" / "tiny"


@pytest.fixture
def own(done, tmp_path):
    """A copy that a test may change."""
    write_job(tmp_path, {"distill.students": students()})
    shutil.copytree(done, tmp_path / "runs" / "tiny")
    return tmp_path / "runs" / "tiny"


def test_students_are_those_of_the_trainer_in_their_librarys_format(done):
    config = load_config(["--config", str(job_file(done))])
    cache, rows = TargetCache.open(done / "seed-0/cache/targets"), RunFolder(config).transfer(0)
    test = config.split(0).test.inputs[:50]
    estimators = {
        "booster": lightgbm.LGBMClassifier(**BOOSTER["init_args"]),
        "tree": DecisionTreeClassifier(min_samples_leaf=2),
    }
    best = read_json(done / "seed-0/teachers/stage.json")["best_member"]
    for name, estimator in estimators.items():
        validation = Validation(rows=0.1, patience=3 if name == "booster" else 50)
        for kind, member in (("student", None), ("distilled_from_best_member", best)):
            found = TreeStudent(estimator).fit(rows, cache, validation=validation, seed=0, member=member)
            folder = done / "seed-0/distill" / name / kind
            kept = load_member(folder)
            np.testing.assert_array_equal(kept.predict_logits(test), found.member.predict_logits(test))
            assert read_json(folder / "stage.json")["way"] == found.way
    served = ensdistill.load_student(done, student="booster")
    library = lightgbm.Booster(model_file=done / "seed-0/distill/booster/student/model.txt")
    np.testing.assert_allclose(served.predict_proba(test), library.predict(test.reshape(50, -1)), atol=1e-6)


def test_direct_is_the_estimator_on_labels_with_the_rounds_of_the_folds(done):
    split = load_config(["--config", str(job_file(done))]).split(0)
    record = read_json(done / "seed-0/direct/booster/stage.json")
    losses = record["held_out_nll"]
    tried = {name: loss for name, loss in losses.items() if "smoothing" not in name}
    assert list(tried) == ["n_estimators=8", "n_estimators=2", "n_estimators=1"]
    assert record["recipe"] == min(tried, key=tried.get)
    assert record["temperature"] > 0
    rounds = int(record["recipe"].partition("=")[2])
    settings = BOOSTER["init_args"] | {"n_estimators": rounds}
    x, test = (part.reshape(len(part), -1) for part in (split.labelled.inputs, split.test.inputs[:50]))
    fitted = lightgbm.LGBMClassifier(**settings).fit(x, split.labelled.labels)
    kept = load_member(done / "seed-0/direct/booster/direct")
    p = softmax(kept.predict_logits(split.test.inputs[:50]), axis=1)
    np.testing.assert_allclose(p, fitted.predict_proba(test), atol=1e-6)


def test_a_killed_search_of_direct_goes_on(done, tmp_path, monkeypatch):
    config = load_config(["--config", str(job_file(done))])
    stage, fits = done / "seed-0/direct/booster", []

    def counted(self, estimator, rows, seed, name="direct"):
        fits.append(len(rows))
        return on_labels(self, estimator, rows, seed, name)

    on_labels = Direct.on_labels
    monkeypatch.setattr(Direct, "on_labels", counted)
    found = read_json(stage / "choice.json")
    found["tried"].popitem()  # killed before the last choice, that of smoothed labels
    found["tried"].pop("n_estimators=1")
    write_json(tmp_path / "choice.json", found)
    student, split = config.distill.students["booster"], config.split(0)
    seen = []

    def trained():
        fits.clear()
        return train_estimator_baselines(
            student, config.distill, split, 0, tmp_path, lambda *now, **_: seen.append(now)
        )

    record = read_json(stage / "stage.json")
    assert trained().items() <= record.items()
    folds, rows = config.distill.folds, len(split.labelled)
    assert len(fits) == folds + 1
    assert (max(fits), fits.count(rows)) == (rows, 1)
    done_folds = [now[1] for now in seen if now[0] == "folds"]
    assert done_folds == [*range(2 * folds + 1, 4 * folds + 1)]
    files = stamps(tmp_path)
    assert trained().items() <= record.items()
    assert (fits, stamps(tmp_path)) == ([], files)
    model = "direct/model.txt"
    assert (tmp_path / model).read_bytes() == (stage / model).read_bytes()


def test_the_report_judges_them_and_names_their_ways(done, monkeypatch):
    monkeypatch.setattr(evaluate, "LATENCY_SECONDS", 0.0)
    run = RunFolder(load_config(["--config", str(job_file(done))]))
    untimed = evaluate.evaluate(run, timed=False)
    shared = [untimed.ensemble, untimed.best_member, *untimed.members]
    own = [model for student in untimed.students for model in student.models.values()]
    assert all(one.latency_ms == evaluate.NOT_MEASURED for one in (*shared, *own))
    results = evaluate.evaluate(run)
    assert results.ensemble.latency_ms["batch_1"]["p50"] > 0
    booster, tree = results.students
    assert (booster.name, tree.name) == ("booster", "tree")
    assert booster.models["student"].note.startswith("KL objective, ")
    assert tree.models["student"].note in ("weighted expansion", "regression on log-odds")
    assert booster.models["direct"].note.startswith("n_estimators=")
    right = booster.models["student"].probabilities[0].argmax(1) == results.labels[0]
    assert right.mean() > 0.5
    assert booster.models["student"].bytes > 1000
    assert (booster.description, tree.description) == ("LGBMClassifier", "DecisionTreeClassifier")
    assert "Direct of booster, tree: the same estimator on labels" in results.baselines
    assert (booster.curves, tree.curves) == ({}, {})


@pytest.mark.slow
def test_the_report_is_written(own):
    out = succeed("run", job_file(own))
    assert "booster, student (distilled): KL objective" in flat(out)
    assert json.loads((own / "report.json").read_text())["students"]["tree"]["outcome"]


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        pytest.param([], set(), id="nothing"),
        pytest.param(
            ["--distill.students.booster.validation.patience", "2"],
            {"seed-0/distill/booster"},
            id="patience",
        ),
        pytest.param(
            ["--distill.students.tree.estimator.min_samples_leaf", "3"],
            {"seed-0/distill/tree", "seed-0/direct/tree"},
            id="estimator",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--distill.loss.alpha", "0.9"],
            {"seed-0/distill/booster", "seed-0/distill/tree"},
            id="alpha",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--distill.label_smoothing", "0.2"],
            {"seed-0/direct/booster", "seed-0/direct/tree"},
            id="smoothing",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_setting_redoes_what_depends_on_it(own, override, redone):
    before, files = fingerprints(own), stamps(own)
    succeed("distill", job_file(own), *override)
    after, now = fingerprints(own), stamps(own)
    assert {name for name in TRAINED if after[name] != before[name]} == redone
    kept = {
        n: s for n, s in files.items() if n.startswith("seed-") and not any(n.startswith(r) for r in redone)
    }
    assert {name: now[name] for name in kept} == kept


def test_the_settings_are_written_down_and_read_again(done):
    again = load_config(["--config", str(done / "run.yaml")])
    student = again.distill.students["booster"]
    assert (student.estimator.n_estimators, student.validation.patience) == (8, 3)
    assert fingerprints(done) == {
        str(folder.of(unit).relative_to(done)): folder.digest(unit)
        for folder in [RunFolder(again)]
        for unit in folder.units("report")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tree.model": mlp(8)},
            "distill.students.tree.model: expected a model or an estimator, one of the two; got both",
        ),
        (
            {"tree": {}},
            "distill.students.tree.model: expected a model or an estimator, one of the two; got neither",
        ),
        (
            {"booster.optimization": {"steps": 7}},
            "distill.students.booster.optimization: expected none for an estimator",
        ),
        (
            {"booster.estimator.init_args.class_weight": "balanced"},
            "distill.students.booster.estimator: LGBMClassifier: class_weight: expected none for a student",
        ),
        ({"tree.estimator": "sklearn.svm.OneClassSVM"}, "distill.students.tree"),
        (
            {"tree.validation": {"share": 2.0}},
            "distill.students.tree.validation.share: expected a",
        ),
    ],
    ids=["both", "neither", "optimization", "class weight", "no student", "share"],
)
def test_wrong_settings_are_refused_with_their_names(tmp_path, change, message):
    file = write_job(
        tmp_path, {"distill.students": students()} | {f"distill.students.{k}": v for k, v in change.items()}
    )
    status, _, err = run("distill", file)
    assert status != 0
    assert message in flat(err)


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "catboost", None)
    file = write_job(tmp_path, {"distill.students": {"b": {"estimator": "catboost.CatBoostClassifier"}}})
    status, _, err = run("distill", file)
    assert status != 0
    assert "distill.students.b.estimator" in flat(err)
    assert "pip install 'ensdistill[trees]'" in flat(err)


def test_a_temperature_that_a_student_cannot_have_is_refused_before_any_work(tmp_path):
    file = write_job(tmp_path, {"distill.students": students(), "distill.loss": {"temperature": 3.0}})
    status, _, err = run("distill", file)
    assert status != 0
    assert "distill.loss.temperature: expected 1 for DecisionTreeClassifier" in flat(err)
    assert not (tmp_path / "runs").exists()


def test_the_example_and_the_page_name_students_that_can_be_made(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(["--config", "examples/trees.yaml"])
    own = {name: one.estimator for name, one in config.distill.students.items()}
    assert [type(one).__name__ for one in own.values()] == [
        "LGBMClassifier",
        "RandomForestClassifier",
        "NoneType",
    ]
    page = (ROOT / "docs" / "trees.md").read_text(encoding="utf-8")
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "estimator:" in block]
    found = parse(DistillConfig, yaml.safe_load(text)["distill"]).students
    assert (found["booster"].estimator.num_leaves, found["booster"].held_out.patience) == (15, 30)
    assert found["mlp"].estimator is None
