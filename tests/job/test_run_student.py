"""The student of a run is loaded from its folder; a missing stage, or a folder of another kind, is named."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from job_helpers import job_file, succeed

import ensdistill
from ensdistill.data.datasets import Digits
from ensdistill.teachers.members import load_member


def without_settings(copy):
    """As an earlier version left it."""
    (copy / "run.yaml").unlink()
    return copy


def test_the_first_student_of_a_run_is_loaded_by_default(copy):
    test = Digits(labelled=100, pool=100).split(0).test
    for settings in (True, False):  # the order of the students is in the report, too
        run = copy if settings else without_settings(copy)
        for name, expected in ((None, "small"), ("wide", "wide")):
            student = ensdistill.load_student(run, student=name)
            member = load_member(run / "seed-0/distill" / expected / "student")
            np.testing.assert_array_equal(
                student.predict_logits(test.inputs), member.predict_logits(test.inputs)
            )
            assert student.about["student"] == expected
    assert (student.predict(test.inputs) == test.labels.astype(str)).mean() > 0.3
    assert student.labels == tuple("0123456789")
    assert student.about["rows"] == {"labelled": 100, "pool": 100, "test": 1597}


def test_every_trained_model_of_a_run_can_be_served(copy):
    found = sorted(str(file.parent.relative_to(copy)) for file in copy.rglob("student.json"))
    kinds = [
        "direct/{}/direct",
        "direct/{}/direct_label_smoothing",
        "distill/{}/distilled_from_best_member",
        "distill/{}/student",
    ]
    assert found == sorted(f"seed-0/{kind.format(name)}" for kind in kinds for name in ("small", "wide"))
    assert ensdistill.load_student(copy / "seed-0/direct/small/direct").about["kind"] == "direct"


def test_wrong_students_and_seeds_are_refused(copy):
    run = copy
    with pytest.raises(
        ValueError, match="student: expected one of small, wide; got 'smal'; did you mean 'small'"
    ):
        ensdistill.load_student(run, student="smal")
    with pytest.raises(ValueError, match=r"seed: expected 0, the only one of .*; got 1"):
        ensdistill.load_student(run, seed=1)
    with pytest.raises(
        ValueError, match=r"student: expected none, because .* is no run's folder; got 'wide'"
    ):
        ensdistill.load_student(run / "seed-0/distill/small/student", student="wide")


def test_an_unfinished_run_names_the_missing_part_and_the_command(copy):
    (copy / "seed-0/distill/small/stage.json").unlink()
    with pytest.raises(
        ValueError,
        match=r"has not finished: seed 0 · distill small is missing\. `ensdistill run .*run\.yaml` goes on",
    ):
        ensdistill.load_student(copy)
    run = without_settings(copy)
    shutil.rmtree(run / "seed-0/cache")
    shutil.rmtree(run / "seed-0/distill")
    with pytest.raises(
        ValueError,
        match=r"seed 0 · cache, seed 0 · distill small are missing\. `ensdistill run CONFIG` goes on",
    ):
        ensdistill.load_student(run)


def test_a_run_of_an_earlier_version_gets_its_files_by_the_same_command(copy):
    """Nothing is trained again, and nothing becomes stale."""
    for file in copy.rglob("student.json"):
        file.unlink()
    for file in copy.rglob("stage.json"):  # as an earlier version wrote them
        record = json.loads(file.read_text())
        record["files"] = {name: size for name, size in record["files"].items() if "student.json" not in name}
        file.write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"earlier version, which wrote no student\.json: `ensdistill run .*` adds it"
    ):
        ensdistill.load_student(copy)
    assert "(unchanged)" in succeed("run", job_file(copy))
    assert ensdistill.load_student(copy).about["student"] == "small"


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file or folder"):
        ensdistill.load_student(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no student"):
        ensdistill.load_student(tmp_path)
