"""One rule for the exit status: 2 where a word or a setting has to change, 1 for data, files' content and work."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from job_helpers import run, write_job

NEW = "new.npy"
FAULTS = {
    "a file or folder that is not there": [
        ["run", "nowhere.yaml"],
        ["run", "nowhere.csv"],
        ["distill", "nowhere.yaml"],
        ["init", "nowhere.csv"],
        ["predict", "nowhere", NEW],
        ["predict", "nowhere.onnx", NEW],
        ["predict", "RUN", "nowhere.npy"],
        ["export", "nowhere", "--to", "onnx"],
        ["compare", "nowhere"],
        ["compare", "RUN", "nowhere"],
        ["runs/nowhere"],
        ["cache", "info", "nowhere"],
        ["cache", "push", "nowhere", "file:///nowhere"],
        ["cache", "add-member", "RUN/seed-0/cache/targets", "out", "--name", "n", "--logits", "no.npy",
         "--uids", "in-order", "--weight", "1"],
    ],
    "a folder of another kind": [
        ["init", "void"],
        ["run", "void"],
        ["predict", "void", NEW],
        ["export", "void", "--to", "onnx"],
        ["compare", "void"],
        ["void"],
    ],
    "a name that is not there": [
        ["predict", "RUN", NEW, "--student", "no"],
        ["export", "RUN", "--to", "onnx", "--student", "no"],
        ["export", "RUN", "--to", "onnx", "--seed", "7"],
        ["init", "table.csv", "--target", "no"],
        ["run", "table.csv", "--target", "no"],
        ["run", "table.csv", "--ignore", "no"],
        ["cache", "drop-member", "RUN/seed-0/cache/targets", "out", "--name", "no"],
    ],
}  # fmt: skip
CASES = [(fault, words) for fault, commands in FAULTS.items() for words in commands]


@pytest.fixture(scope="module")
def place(finished_job, tmp_path_factory):
    """A folder in which commands are typed, with an empty folder, an array, a table and an unfinished run."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "void").mkdir()
    np.save(folder / NEW, np.zeros((2, 1, 8, 8), np.float32))
    (folder / "table.csv").write_text("a,b,x\n" + "p,q,1\nr,s,2\n" * 10)
    shutil.copytree(finished_job, folder / "unfinished")
    shutil.rmtree(folder / "unfinished" / "seed-0" / "distill")
    (folder / "unfinished" / "stage.json").unlink()
    return folder


def typed(words, job, place, monkeypatch):
    monkeypatch.chdir(place)
    status, out, err = run(*[word.replace("RUN", str(job)) for word in words])
    assert out == ""
    assert "Traceback" not in err
    return status


@pytest.mark.parametrize(("fault", "words"), CASES, ids=[f"{' '.join(words[:4])}" for _, words in CASES])
def test_a_wrong_word_ends_with_2(fault, words, finished_job, place, monkeypatch):
    assert typed(words, finished_job, place, monkeypatch) == 2, fault


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "unfinished", NEW],
        ["export", "unfinished", "--to", "onnx"],
        ["compare", "unfinished"],
        ["predict", "RUN", "bad.npy"],
        ["init", "one.csv"],
        ["run", "one.csv"],
    ],
    ids=lambda words: " ".join(words),
)
def test_other_errors_end_with_1(words, finished_job, place, monkeypatch):
    np.save(place / "bad.npy", np.full((2, 1, 8, 8), np.nan, np.float32))
    (place / "one.csv").write_text("x,y\n" + "1,a\n2,a\n" * 10)
    assert typed(words, finished_job, place, monkeypatch) == 1


def test_a_setting_that_names_no_file_ends_with_2(tmp_path):
    change = {"data": {"class_path": "ensdistill.data.Table", "init_args": {"path": "no.csv", "target": "y"}}}
    status, out, err = run("teachers", write_job(tmp_path, change))
    assert (status, out) == (2, "")
    assert "path: there is no file 'no.csv'" in err
