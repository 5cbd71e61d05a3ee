"""Whole jobs on tables of several labels and of numbers: run, killed, stale, wrong combinations."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from job_helpers import OPTIMIZATION, fingerprints, flat, run, succeed
from safetensors.numpy import load_file

from ensdistill import load_student
from ensdistill.cache import TargetCache
from ensdistill.job.predictions import expected_thresholds
from ensdistill.report.multilabel_metrics import tuned_thresholds
from ensdistill.teachers import Ensemble

ROWS = 160
RECIPES = "ensdistill.teachers.recipes."
SMALL = "distill__students__small"
TARGETS = {"multilabel": ["red", "green", "blue"], "regression": ["price", "size"]}


def write_table(folder: Path) -> Path:
    """A table with three labels, of which some are unknown, and with two numbers of unlike units."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(ROWS, 3))
    kind = generator.choice(["a", "b"], ROWS)
    odds = 3 * x + (kind == "a")[:, None]
    labels = (odds + generator.logistic(size=odds.shape) > 0).astype(float)
    labels[:10, 2] = np.nan
    price = 5000 + 800 * x[:, 0] + 300 * (kind == "a") + 100 * generator.normal(size=ROWS)
    size = 1e-3 * (x[:, 1] + 0.2 * generator.normal(size=ROWS))
    frame = pd.DataFrame({"x1": x[:, 0], "x2": x[:, 1], "x3": x[:, 2], "kind": kind})
    for name, column in zip(TARGETS["multilabel"], labels.T, strict=True):
        frame[name] = column
    frame["price"], frame["size"] = price, size
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def settings(folder: Path, task: str, **more: Any) -> Path:
    """The YAML of a tiny job on that table."""
    others = [name for own in TARGETS.values() for name in own if name not in TARGETS[task]]
    multilabel = task == "multilabel"
    estimator = (
        {"class_path": "sklearn.ensemble.RandomForestClassifier", "init_args": {"n_estimators": 5}}
        if multilabel
        else {"class_path": "sklearn.linear_model.Ridge"}
    )
    if multilabel:  # a forest takes no unknown labels
        inner = {"class_path": "sklearn.linear_model.LogisticRegression"}
        estimator = {
            "class_path": "sklearn.multioutput.MultiOutputClassifier",
            "init_args": {"estimator": inner},
        }
    network = {"class_path": "ensdistill.models.MLP", "init_args": {"hidden": [8]}}
    job = {
        "name": "tiny",
        "folder": str(folder / "runs"),
        "seeds": 1,
        "workers": 1,
        "data": {
            "class_path": "Table",
            "init_args": {
                "path": str(folder / "table.csv"),
                "target": TARGETS[task],
                "task": task,
                "ignore": others,
                "parts": {"test": 0.25, "pool": 0.2},
            },
        },
        "teachers": {
            "folds": 2,
            "members": [
                {
                    "class_path": RECIPES + "TorchMembers",
                    "init_args": {"count": 2, "model": network, "optimization": OPTIMIZATION},
                },
                {"class_path": RECIPES + "SklearnMembers", "init_args": {"estimator": estimator}},
            ],
        },
        "distill": {
            "folds": 2,
            "students": {"small": {"model": network, "optimization": OPTIMIZATION}},
        },
    }
    job = json.loads(json.dumps(job))  # nothing of it is shared
    for path, value in more.items():
        *parents, last = path.split("__")
        at: Any = job
        for key in parents:
            at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
        at[last] = value
    file = folder / f"{task}.yaml"
    file.write_text(json.dumps(job))
    return file


def finished(folder: Path, task: str) -> Path:
    """The folder of a finished run of a task; its students are a network and a forest."""
    write_table(folder)
    name = "RandomForestClassifier" if task == "multilabel" else "ExtraTreesRegressor"
    estimator = {"class_path": f"sklearn.ensemble.{name}", "init_args": {"n_estimators": 10}}
    trees = {"estimator": estimator}
    own = {"distill__students__trees": trees, "distill__students__small__optimization__steps": 300}
    succeed("run", settings(folder, task, **own))
    return folder / "runs" / "tiny"


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A finished run on several labels; to be read only."""
    return finished(tmp_path_factory.mktemp("multilabel"), "multilabel")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A finished run on numbers; to be read only."""
    return finished(tmp_path_factory.mktemp("regression"), "regression")


@pytest.mark.slow
def test_a_run_of_several_labels_has_a_report_with_its_metrics(labels):
    report = json.loads((labels / "report.json").read_text())
    assert report["task"] == "multilabel"
    models = report["students"]["small"]["models"] | report["models"]
    for name in ("student", "direct", "ensemble", "best_member", "student_temperature_scaled"):
        assert 0.5 < models[name]["map"]["mean"] <= 1
        assert models[name]["bce"]["mean"] < 0.7
    ensemble = Ensemble.load(labels / "seed-0" / "teachers" / "ensemble")
    assert (ensemble.task, ensemble.classes) == ("multilabel", ("red", "green", "blue"))
    cache = TargetCache.open(labels / "seed-0" / "cache" / "targets")
    assert cache.task == "multilabel"


@pytest.mark.slow
def test_a_report_shows_rows_unless_it_is_told_not_to(numbers, tmp_path):
    shutil.copytree(numbers.parents[1], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "runs" / "tiny"
    (row, *_) = json.loads((folder / "report.json").read_text())["students"]["small"]["furthest_rows"]
    assert [name for name, _ in row["sample"]["fields"]] == ["x1", "x2", "x3", "kind"]
    settings = tmp_path / "regression.yaml"
    succeed("report", settings, "--folder", tmp_path / "runs", "--show_rows", "false")
    report = json.loads((folder / "report.json").read_text())
    assert {one["sample"] for one in report["students"]["small"]["furthest_rows"]} == {None}
    assert '"fields"' not in (folder / "report.html").read_text()
    assert set(report["forecast"]["over_best_member"]) <= {"rmse", "nll"}
    assert report["forecast"]["expected"] == {}


@pytest.mark.slow
def test_a_run_of_numbers_has_a_report_in_the_data_s_units(numbers):
    folder = numbers
    report = json.loads((folder / "report.json").read_text())
    assert report["task"] == "regression"
    models = report["students"]["small"]["models"] | report["models"]
    assert models["ensemble"]["rmse"]["mean"] < 0.6
    assert models["student"]["rmse"]["mean"] < 1
    assert "direct_label_smoothing" not in models
    # A student of means alone has a variance where one was fitted.
    assert models["student"].get("nll") is None
    assert models["student_temperature_scaled"]["nll"]["mean"] < 10
    held_out = load_file(folder / "seed-0" / "teachers" / "held_out.safetensors")
    assert held_out["mean"].shape == (3, 96, 2) or held_out["mean"].shape[0] == 3
    record = json.loads((folder / "seed-0" / "teachers" / "stage.json").read_text())
    shown = {one["name"]: one["held_out_rmse"]["per_seed"][0] for one in report["members"]}
    assert shown == record["held_out_rmse"]
    best = min(record["held_out_rmse"], key=record["held_out_rmse"].get)
    assert record["best_member"] == best


@pytest.mark.slow
@pytest.mark.parametrize("student", ["small", "trees"])
def test_students_of_several_labels_answer_new_rows_and_are_exported(labels, tmp_path, student):
    new, out = labels.parents[1] / "table.csv", tmp_path / "out.csv"
    succeed("predict", labels, new, "-o", out, "--student", student)
    answers = pd.read_csv(out, keep_default_na=False)
    names = TARGETS["multilabel"]
    assert list(answers) == ["labels", *(f"p_{name}" for name in names), "entropy"]
    p = answers[[f"p_{name}" for name in names]].to_numpy()
    served = json.loads((labels / "seed-0" / "distill" / student / "student" / "student.json").read_text())
    # The thresholds are those of rows that the student has learned no label of.
    thresholds = served["thresholds"]
    assert len(thresholds) == 3
    assert thresholds != [0.5] * 3
    expected = [", ".join(np.array(names)[row]) for row in p >= np.float32(thresholds)]
    assert list(answers["labels"]) == expected
    assert len(set(expected)) > 2
    truth = pd.read_csv(new)[names].to_numpy()
    assert ((p > 0.5) == truth)[~np.isnan(truth)].mean() > 0.75
    folder = tmp_path / "exported"
    succeed("export", labels, "--to", "safetensors", "--student", student, "--calibrated", "-o", folder)
    loaded = load_student(folder)
    assert (loaded.task, loaded.classes) == ("multilabel", tuple(names))
    assert loaded.thresholds is not None
    plain = tmp_path / "student.onnx"
    succeed("export", labels, "--to", "onnx", "--student", student, "-o", plain)
    loaded = load_student(plain)
    assert (list(loaded.thresholds), loaded.temperature) == (thresholds, 1)
    frame = pd.read_csv(new)[["x1", "x2", "x3", "kind"]]
    np.testing.assert_allclose(loaded.predict_proba(frame), p, rtol=0, atol=1e-4)
    about = json.loads((tmp_path / "student.onnx.json").read_text())
    assert about["variants"][1]["largest_difference"] < 1e-4
    assert "mAP" in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("student", ["small", "trees"])
def test_students_of_numbers_answer_new_rows_and_are_exported(numbers, tmp_path, student):
    new, out = numbers.parents[1] / "table.csv", tmp_path / "out.csv"
    succeed("predict", numbers, new, "-o", out, "--student", student)
    answers, truth = pd.read_csv(out), pd.read_csv(new)
    for name in TARGETS["regression"]:  # each in its own unit
        deviation = truth[name].std()
        assert np.sqrt(np.mean((answers[name] - truth[name]) ** 2)) < 0.7 * deviation
    folder = tmp_path / "exported"
    succeed("export", numbers, "--to", "safetensors", "--student", student, "--calibrated", "-o", folder)
    loaded = load_student(folder)
    assert (loaded.task, loaded.classes) == ("regression", ("price", "size"))
    mean, variance = loaded.predict_distribution(truth[["x1", "x2", "x3", "kind"]])
    np.testing.assert_allclose(mean, answers[["price", "size"]], rtol=1e-4)
    assert (variance > 0).all()
    assert "RMSE" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_what_a_change_makes_out_of_date_is_redone(numbers, tmp_path):
    copied = tmp_path / "runs" / "tiny"
    shutil.copytree(numbers, copied)
    table = write_table(tmp_path)
    job = numbers.parents[1] / "regression.yaml"
    trees = json.loads(job.read_text())["distill"]["students"]["trees"]
    own = {"distill__students__trees": trees, "distill__students__small__optimization__steps": 300}
    before = fingerprints(copied)
    (copied / "seed-0" / "distill" / "trees" / "stage.json").unlink()  # killed in that stage
    succeed("run", settings(tmp_path, "regression", **own))
    assert fingerprints(copied) == before
    # A variance of its own is another student, from the same targets.
    succeed("run", settings(tmp_path, "regression", **own, distill__students__small__variance=True))
    after = fingerprints(copied)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"seed-0/direct/small", "seed-0/distill/small"}
    report = json.loads((copied / "report.json").read_text())
    assert report["students"]["small"]["models"]["student"]["nll"]["mean"] < 10
    # Another price of a row of which all parts learn.
    frame = pd.read_csv(table)
    frame["price"] += 1
    frame.to_csv(table, index=False)
    status, _, err = run("export", copied, "--to", "safetensors")
    assert status == 1
    assert "the data or the settings have changed" in flat(err)


def look_at(folder, *words):
    from ensdistill.cli.starting import start

    return start([str(write_table(folder)), *words])[0]


def test_a_table_s_task_is_found_printed_and_overruled(tmp_path):
    others = ["--ignore", "red", "--ignore", "green", "--ignore", "blue"]
    found = look_at(tmp_path, "--target", "price", "--ignore", "size", *others)
    assert found.settings["data"]["init_args"]["task"] == "regression"
    facts = dict(found.facts)
    assert "fractions among them" in facts["task"]
    assert "--data.task" in facts["task"]
    assert facts["numbers"] == "1: price (160)"
    found = look_at(tmp_path, "--target", "red,green,blue", "--ignore", "price", "--ignore", "size")
    arguments = found.settings["data"]["init_args"]
    assert (arguments["task"], arguments["target"]) == ("multilabel", ["red", "green", "blue"])
    # Some labels are unknown, so no estimator is there that takes none of these.
    classes = [m["init_args"].get("estimator", {}).get("class_path", "") for m in members(found)]
    assert classes[0].endswith("MultiOutputClassifier")
    assert not any("ExtraTrees" in name for name in classes)
    found = look_at(tmp_path, "--target", "price,size", "--task", "regression", *others)
    assert found.settings["data"]["init_args"]["task"] == "regression"
    assert "MultiOutputRegressor" in str(members(found)[0])
    for words, message in (
        (["--target", "price,size", "--task", "classification"], "--task: expected multilabel or regression"),
        (["--target", "price", "--task", "numbers"], "--task: expected one of classification"),
        (
            ["--target", "kind", "--task", "multilabel"],
            "--separator: expected the characters between two tags",
        ),
        (["--target", "kind", "--task", "regression"], "target: kind: expected a number in each row"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            look_at(tmp_path, *words)


def members(found):
    return found.settings["teachers"]["members"]


def test_tags_of_one_column_are_labels(tmp_path):
    frame = pd.DataFrame({"x": np.arange(20.0), "tags": ["a, b", "b", "c", "a"] * 5})
    frame.to_csv(tmp_path / "tags.csv", index=False)
    from ensdistill.cli.starting import start

    found = start([str(tmp_path / "tags.csv"), "--target", "tags", "--separator", ","])[0]
    assert found.settings["data"]["init_args"]["separator"] == ","
    assert dict(found.facts)["labels"] == "3: a (10), b (10), c (5)"


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("regression", {"teachers__combiner": "logit"}, "teachers.combiner: expected prob for the task"),
        (
            "regression",
            {"distill__loss": {"temperature": 2.0}},
            "distill.loss.temperature: is of probabilities",
        ),
        ("regression", {SMALL: {"keep": 0.9}}, "distill.students.small: a search needs 203 rows"),
        pytest.param(
            "regression",
            {"cache__codec": "counts-8", "cache__mixture_at": 1.0},
            "cache.codec: .* for regression",
            marks=pytest.mark.slow,
        ),
        (
            "regression",
            {SMALL: {"keep": 0.9, "variance": True}},
            "variance: expected none beside keep or max_",
        ),
        ("multilabel", {f"{SMALL}__variance": True}, "distill.students.small.variance: .* task multilabel"),
        (
            "regression",
            {"teachers__members__1__init_args__estimator": {"class_path": "sklearn.naive_bayes.GaussianNB"}},
            "teachers.members.1.init_args.estimator: .*expected a regressor for labels of the task regression",
        ),
        (
            "multilabel",
            {"teachers__members__1__init_args__estimator": {"class_path": "sklearn.linear_model.Ridge"}},
            "teachers.members.1.init_args.estimator: .*expected a classifier for labels of the task multilabel",
        ),
    ],
)
def test_settings_of_another_task_are_refused_by_both_names(tmp_path, task, change, message):
    write_table(tmp_path)
    status, _, err = run("run", settings(tmp_path, task, **change))
    assert status != 0
    assert re.search(message, err.replace("\n", " ")), err


def test_thresholds_by_sure_probabilities_are_those_by_labels():
    generator = np.random.default_rng(0)
    labels = (generator.random((200, 4)) < [0.1, 0.5, 0.9, 0]).astype(np.int8)
    p = np.round(0.3 * labels + 0.7 * generator.random((200, 4)), 2)
    np.testing.assert_allclose(expected_thresholds(p, labels.astype(float)), tuned_thresholds(p, labels))
    # By probabilities a label that is nowhere likely still has predictions.
    assert expected_thresholds(p, np.full((200, 4), 0.3)).max() < 0.3
