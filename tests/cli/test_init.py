"""``ensdistill init DATA`` and ``ensdistill run DATA``: from data to settings and to a run."""

from __future__ import annotations

import json
import sys

import pytest
import yaml
from job_helpers import flat, run, succeed
from sklearn.datasets import load_iris

from ensdistill.cli.settings import load_config
from ensdistill.common.describe import describe
from ensdistill.job.settings_file import read_settings, sources_of

QUICK = {
    "class_path": "SklearnMembers",
    "init_args": {"estimator": {"class_path": "sklearn.naive_bayes.GaussianNB"}},
}
STUDENT = "distill.students.student"
FEW = ["--seeds", "1", "--workers", "1", "--teachers.folds", "2", "--distill.folds", "2", "--cache.transfer.synthetic", "[]",
       f"--teachers.members=[{json.dumps(QUICK)}]", f"--{STUDENT}.optimization.steps", "20", f"--{STUDENT}.direct.steps", "20"]  # fmt: skip


@pytest.fixture
def iris(tmp_path, monkeypatch):
    """The folder in which a user works, with iris.csv."""
    monkeypatch.chdir(tmp_path)
    data = load_iris(as_frame=True)
    frame = data.frame.drop(columns="target").assign(species=data.target_names[data.target])
    frame.to_csv("iris.csv", index=False)
    return tmp_path


def test_a_table_is_run_without_any_settings(iris):
    status, out, err = run("run", "iris.csv", *FEW)
    assert status == 0, err
    assert "Retained gain" in out
    assert "next: ensdistill runs/iris" in flat(out)
    found = flat(err)
    for fact in ("classes 3: setosa (50), versicolor (50)", "target column 'species'", "inputs 4 columns of numbers",
                 "rows 112 to learn from, 38 for testing", "settings runs/iris/run.yaml"):  # fmt: skip
        assert fact in found
    folder = iris / "runs" / "iris"
    assert sources_of(folder) == ["../../iris.csv"]
    assert "# target: column 'species'" in (folder / "run.yaml").read_text()
    assert read_settings(folder)["data"]["init_args"]["path"] == "iris.csv"
    # The same again, by the data, by the settings and by the folder.
    for word in ("iris.csv", "runs/iris/run.yaml", "runs/iris"):
        own = FEW if word == "iris.csv" else []
        status, out, err = run("run", word, *own)
        assert (status, "(unchanged)" in out) == (0, True), err
    # The settings that init writes are those.
    succeed("init", "iris.csv")
    assert "(unchanged)" in succeed("run", "iris.yaml", *FEW)
    # Another table of that name has other settings.
    (iris / "other").mkdir()
    (iris / "other" / "iris.csv").write_text((iris / "iris.csv").read_text())
    status, out, err = run("run", "other/iris.csv", *FEW)
    assert (status, out) == (2, "")
    assert "runs/iris holds the run of iris.yaml, whose settings differ (data)" in flat(err)


def test_a_package_of_the_report_is_missed_before_any_work(iris, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run("run", "iris.csv", *FEW)
    assert status == 1
    assert "the report's figures need matplotlib: pip install 'ensdistill[report]'" in err
    assert not list((iris / "runs/iris").glob("seed-*"))


def test_init_writes_the_settings_that_run_finds(iris):
    status, out, err = run("init", "iris.csv")
    assert (status, out) == (0, "iris.yaml  Run it: ensdistill run iris.yaml\n")
    assert "target column 'species'" in flat(err)
    text = (iris / "iris.yaml").read_text()
    assert len(text.splitlines()) <= 60
    assert text.startswith("# Written by `ensdistill init iris.csv`.\n")
    assert "# The student." in text
    assert max(map(len, text.splitlines())) <= 115
    written = load_config(["--config", "iris.yaml"])
    (iris / "printed.yaml").write_text(succeed("run", "iris.csv", "--print_config"))
    printed = load_config(["--config", "printed.yaml"])
    assert written.name == printed.name == "iris"
    for part in ("data", "teachers", "cache", "distill"):
        assert describe(getattr(written, part)) == describe(getattr(printed, part))


def test_init_replaces_no_file_unasked(iris):
    (iris / "iris.yaml").write_text("mine")
    status, _, err = run("init", "iris.csv")
    assert status == 2
    assert (
        err
        == "ensdistill: --output: iris.yaml is there already: name another (-o FILE.yaml), or replace it (--force)\n"
    )
    succeed("init", "iris.csv", "--force")
    assert "mine" not in (iris / "iris.yaml").read_text()
    document = json.loads(succeed("init", "iris.csv", "-o", "b.yaml", "--json"))
    assert document["file"] == "b.yaml"
    assert document["settings"] == yaml.safe_load((iris / "b.yaml").read_text())


def test_overrides_reach_the_look_at_the_data(iris):
    frame = (iris / "iris.csv").read_text().replace("virginica", "NA")
    (iris / "gaps.csv").write_text(frame)
    shown = yaml.safe_load(succeed("run", "gaps.csv", "--print_config", "--data.unlabelled", "[]"))
    assert shown["data"]["init_args"]["unlabelled"] == []
    shown = yaml.safe_load(succeed("run", "gaps.csv", "--print_config", "--name", "other"))
    assert (shown["data"]["init_args"]["unlabelled"], shown["name"]) == (["NA"], "other")


def test_init_takes_the_settings_that_its_errors_name(iris):
    words = ["None", "some", "much"]
    (iris / "pain.csv").write_text("x,pain\n" + "".join(f"{i},{words[i % 3]}\n" for i in range(60)))
    status, _, err = run("init", "pain.csv", "--target", "pain")
    assert (status, "--data.unlabelled '[None]' on the command line" in err) == (1, True)
    # Columns of whole numbers alone call for another setting, a number by itself.
    for words, known in (("[None]", ["much", "some"]), ("[]", ["None", "much", "some"])):
        succeed("init", "pain.csv", "--target", "pain", "--force", "--data.unlabelled", words)
        assert list(load_config(["--config", "pain.yaml"]).split(0).classes) == known
    (iris / "rates.csv").write_text("x,rate\n" + "".join(f"{i},{i % 3 / 2}\n" for i in range(60)))
    status, _, err = run("init", "rates.csv", "--target", "rate")
    assert (status, "--data.labels '[0, 0.5, ...]' on the command line" in err) == (1, True)
    succeed("init", "rates.csv", "--target", "rate", "--data.labels", "[1.0, 0.5, 0]")
    assert load_config(["--config", "rates.yaml"]).split(0).classes == ("1", "0.5", "0")
    for words, message in (
        (["iris.csv", "--data.labels", "a"], "--data.labels: expected a list"),
        (["folder", "--data.labels", "[a, b]"], "--data.labels: expected with a table; folder is none"),
    ):
        for name in ("a", "b"):
            (iris / "folder" / name).mkdir(parents=True, exist_ok=True)
            for i in range(3):
                (iris / "folder" / name / f"{i}.txt").write_text(f"a text {name} {i}")
        status, _, err = run("init", *words, "--force")
        assert (status, message in err) == (2, True), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["species"], "CONFIG: expected --SETTING VALUE; got 'species'"),
        (["--label", "species"], "--label: there is no such setting; known: data, teachers,"),
        (
            ["--targets", "species"],
            "threads, max_test_copies, show_rows, ood, minutes, trials, refit. Did you mean '--target'?",
        ),
    ],
)
def test_a_wrong_word_is_named_before_a_missing_target(words, message, iris):
    (iris / "two.csv").write_text("a,b\n" + "0,1\n1,0\n" * 9)  # whose target has to be named
    status, _, err = run("run", "two.csv", *words)
    assert status == 2
    assert message in err


def test_odd_names_are_no_settings(iris):
    text = (iris / "iris.csv").read_text().replace("virginica", '"two\nlines: [x"')
    (iris / "a, b # c.csv").write_text(text)
    succeed("init", "a, b # c.csv")
    written = load_config(["--config", "a, b # c.yaml"])
    assert written.split(0).classes == ("setosa", "two\nlines: [x", "versicolor")
    succeed("teachers", "a, b # c.csv", *FEW)
    folder = iris / "runs" / "a, b # c"
    assert sources_of(folder) == ["../../a, b # c.csv"]
    assert read_settings(folder)["data"]["init_args"]["path"] == "a, b # c.csv"


@pytest.mark.parametrize("command", ["init", "run"])
@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (
            ["two.csv"],
            2,
            "--target: expected the column of the labels, because several columns of two.csv can be it: a (2",
        ),
        (["two.csv", "--target", "c"], 2, "--target: two.csv has no column 'c', but a, b, x"),
        (["two.csv", "--target"], 2, "--target: "),
        (
            ["one.csv"],
            1,
            "target: expected two classes or more; column 'y' holds 'a' alone: choose another column",
        ),
        (["void"], 2, "DATA: expected a table"),
        (["empty.csv"], 1, "path: empty.csv is empty; expected a header and rows"),
    ],
)
def test_an_error_in_the_data_is_one_line(command, words, status, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.csv").write_text("a,b,x\n" + "p,q,1\nr,s,2\n" * 10)
    (tmp_path / "one.csv").write_text("x,y\n" + "1,a\n2,a\n" * 10)
    (tmp_path / "empty.csv").touch()
    (tmp_path / "void").mkdir()
    got, out, err = run(command, *words)
    assert (got, out) == (status, "")
    assert message in err
    assert "--debug" not in err
    assert len(err.splitlines()) == 1 or words == ["two.csv", "--target"]  # the parser of init adds a line
    assert not list(tmp_path.glob("runs/*"))
