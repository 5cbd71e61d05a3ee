"""``teachers: auto`` in a job: its plan in the run's folder, the members that the cache asks, and the report."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from job_helpers import OPTIMIZATION, flat, run, succeed, write_job
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

from ensdistill.cache import TargetCache
from ensdistill.cli.settings import load_config
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.unit import Unit
from ensdistill.teachers import Ensemble, estimators
from ensdistill.teachers.auto import plan
from ensdistill.teachers.auto.portfolio import Entry
from ensdistill.teachers.recipes import SklearnMembers

SIZE = {"trees": 1}


def entry(name, estimator, seconds=1.0, package=""):
    def make(name, facts, size):
        if package == "gone":
            raise ImportError(package)
        return SklearnMembers(estimator, name=name)

    return Entry(name, (SIZE,), make, lambda facts, size: seconds, package)


FEW = (
    entry("logistic", LogisticRegression()),
    entry("constant", DummyClassifier()),
    entry("bayes", GaussianNB(), package="lightgbm"),
    entry("dear", GaussianNB(var_smoothing=1e-3), seconds=1e6),
)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The settings of a job with a table of two classes, and a portfolio of four members."""
    monkeypatch.setattr(plan, "PORTFOLIO", FEW)
    random = np.random.default_rng(0)
    x = random.normal(size=(240, 3))
    y = np.where(x[:, 0] + 0.7 * random.normal(size=240) > 0, "yes", "no")
    pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y}).to_csv(tmp_path / "t.csv", index=False)
    data = {"class_path": "Table", "init_args": {"path": str(tmp_path / "t.csv"), "target": "y"}}
    students = {
        "small": {"model": {"class_path": "MLP", "init_args": {"hidden": [4]}}, "optimization": OPTIMIZATION}
    }
    changes = {"name": "auto", "data": data, "teachers": "auto", "cache": {}, "distill.students": students}
    return write_job(tmp_path, changes)


def folder_of(job):
    return job.parent / "runs" / "auto"


def written(job):
    return yaml.safe_load((folder_of(job) / "teachers.yaml").read_text())


def test_the_members_without_weight_are_trained_and_reported_and_not_asked(job):
    out = flat(succeed("run", job, "--teachers.folds", "2"))
    ensemble = Ensemble.load(folder_of(job) / "seed-0" / "teachers" / "ensemble")
    assert ensemble.names == ("logistic", "constant", "bayes")
    weights = dict(zip(ensemble.names, ensemble.weights, strict=True))
    assert weights["constant"] == 0 < weights["logistic"]
    cache = TargetCache.open(folder_of(job) / "seed-0" / "cache" / "targets")
    assert cache.names == ensemble.weighted().names
    assert "constant" not in cache.names
    report = json.loads((folder_of(job) / "report.json").read_text())
    assert [one["name"] for one in report["members"]] == list(ensemble.names)
    scores = {one["name"]: one["held_out_nll"]["mean"] for one in report["members"]}
    assert scores["logistic"] < scores["constant"] == pytest.approx(np.log(2), abs=0.02)
    assert report["auto"]["left_out"].keys() == {"dear"}
    assert f"constant {scores['constant']:.4f} (weight 0.00)" in out
    assert "Not trained: dear (takes 2000000.0 s or more; it may take 60.0 s)." in out
    assert f"{scores['constant']:.4f}" in (folder_of(job) / "report.html").read_text()
    targets = folder_of(job) / "seed-0" / "cache" / "targets"
    succeed("cache", "verify", targets, "--against-teachers", "1", "--config", job)


def test_a_plan_stands_in_the_folder_and_a_resumed_run_goes_by_it(job, monkeypatch):
    succeed("teachers", job)
    found = written(job)
    assert [one["name"] for one in found["members"]] == ["logistic", "constant", "bayes"]
    assert found["minutes"] == 4
    assert found["folds"] == 5
    assert found["rows"]["numbers"] == 3
    # The package of bayes is gone: a new plan would be without it.
    real = importlib.util.find_spec
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name == "lightgbm" else real(name))
    kept = RunFolder(load_config(["--config", str(job)]))
    assert kept.is_finished(Unit("teachers", 0))
    assert [r.name for r in kept.teachers.recipes][-1] == "bayes"
    (folder_of(job) / "teachers.yaml").unlink()
    anew = RunFolder(load_config(["--config", str(job)]))
    assert not anew.is_finished(Unit("teachers", 0))
    assert [r.name for r in anew.teachers.recipes] == ["logistic", "constant"]
    assert anew.plan.left_out["bayes"] == "needs the package lightgbm: pip install 'ensdistill[trees]'"


def test_a_killed_run_does_not_train_finished_members_again(job, monkeypatch):
    fit, fitted = estimators._fit, []

    def counted(estimator, one, *rest):
        fitted.append(one.key)
        if len(fitted) == 8:
            raise OSError("the disk is full")
        return fit(estimator, one, *rest)

    monkeypatch.setattr(estimators, "_fit", counted)
    status, _, err = run("teachers", job, "--teachers.folds", "2")
    assert status == 1
    assert "the disk is full" in err
    monkeypatch.setattr(estimators, "_fit", fit)
    before = written(job)
    monkeypatch.setattr(
        estimators, "_fit", lambda e, one, *rest: fitted.append(one.key) or fit(e, one, *rest)
    )
    succeed("teachers", job, "--teachers.folds", "2")
    assert written(job) == before
    assert len(fitted) == 9 + 1
    assert len(set(fitted)) == 9


def test_the_settings_in_the_plan_make_the_same_members(job, tmp_path):
    succeed("teachers", job)
    settings = yaml.safe_load(job.read_text()) | {"teachers": written(job)["settings"]}
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(settings))
    named = load_config(["--config", str(tmp_path / "named.yaml")]).teachers
    planned = RunFolder(load_config(["--config", str(job)])).teachers
    assert [r.fingerprint() for r in named.members] == [r.fingerprint() for r in planned.members]
    assert named.select


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teachers.minutes", "0"], "teachers.minutes: expected a finite number above 0; got 0"),
        (["--teachers.minutes", "0.001"], "teachers.minutes: expected at least 0.084, the time of the cheapest"),
        (["--teachers", "otto"], "teachers.members: expected"),
        (["--teachers.folds", "200"], "teachers.folds: expected at most"),
        (
            ["--teachers", '{"members": [{"class_path": "SklearnMembers", "init_args": {"estimator": '
             '{"class_path": "sklearn.naive_bayes.GaussianNB"}}}], "minutes": 3}'],
            "minutes: expected none beside a list of members",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_before_any_work(job, words, message):
    status, _, err = run("teachers", job, *words)
    assert status != 0
    assert message in flat(err)
    assert not (folder_of(job) / "seed-0").exists()


def test_other_samples_than_tables_are_refused(job):
    images = {"class_path": "ensdistill.data.Digits", "init_args": {"labelled": 100, "pool": 10}}
    job.write_text(yaml.safe_dump(yaml.safe_load(job.read_text()) | {"data": images}))
    status, _, err = run("teachers", job)
    assert status != 0
    assert "teachers: auto: expected a table, or an array [N, F] of numbers" in flat(err)


def test_auto_on_the_command_line_keeps_other_settings_of_the_teachers(tmp_path):
    words = ["--config", str(write_job(tmp_path)), "--teachers", "auto", "--teachers.minutes", "3"]
    teachers = load_config(words).teachers
    assert (teachers.members, teachers.minutes, teachers.folds, teachers.select) == ("auto", 3, 2, True)


def test_a_plan_that_was_changed_by_hand_is_refused(job):
    folder_of(job).mkdir(parents=True)
    (folder_of(job) / "teachers.yaml").write_text("members: 3")
    status, _, err = run("teachers", job)
    assert status != 0
    assert "teachers.yaml is no plan that this version can read" in flat(err)
