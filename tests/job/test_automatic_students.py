"""A job whose students' settings are ``auto``: their numbers are in its records and in its report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from job_helpers import mlp, succeed, write_job

from ensdistill.cli.settings import load_config
from ensdistill.common.files import read_json
from ensdistill.job.direct import train_baselines
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.unit import Unit
from ensdistill.student.automatic import Automatic
from ensdistill.student.trainer import StudentTrainer


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A finished run, whose student has its number of steps alone."""
    students = {"small": {"model": mlp(8), "optimization": {"steps": 30}}}
    file = write_job(tmp_path_factory.mktemp("auto"), {"distill.students": students})
    succeed("run", file)
    return file


def test_the_numbers_are_in_records_and_report(job):
    run = RunFolder(load_config(["--config", str(job)]))
    student = read_json(run.of(Unit("distill", 0, "small")) / "student" / "stage.json")["automatic"]
    baseline = run.record(Unit("direct", 0, "small"))
    found = Automatic.of_record(student)
    assert found.settings == {"steps": 30, "batch_size": 64, "learning_rate": 0.01}
    assert Automatic.of_record(baseline["automatic"]).batch_size == 24  # of the 100 labelled rows
    models = json.loads((run.path / "report.json").read_text())["students"]["small"]["models"]
    assert models["student"]["note"] == "auto: steps: 30, batch_size: 64, learning_rate: 0.01"
    assert models["direct"]["note"].endswith("auto: steps: 30, batch_size: 24, learning_rate: 0.01")


def test_a_finished_run_is_not_stale_and_a_set_number_makes_it_so(job):
    run = RunFolder(load_config(["--config", str(job)]))
    unit = Unit("distill", 0, "small")
    assert run.is_finished(unit)
    changed = load_config(["--config", str(job), "--distill.students.small.optimization.batch_size", "64"])
    assert not RunFolder(changed).is_finished(unit)


def test_a_stopped_baseline_finds_its_numbers_in_its_folder(job, tmp_path, monkeypatch):
    config = load_config(["--config", str(job)])
    student, split = config.distill.students["small"], config.split(0)
    settings = replace(config.distill, students={"small": student})
    arguments = (student, settings, split, 0, tmp_path, lambda *_, **__: None)
    first = train_baselines(*arguments)
    monkeypatch.setattr(StudentTrainer, "numbers", None)
    assert train_baselines(*arguments) == first


def test_steps_that_are_set_for_one_of_two_are_refused(job):
    words = ["--config", str(job), "--distill.students.small.direct.steps", "20"]
    with pytest.raises(ValueError, match=r"direct.steps: expected the student's, 30, .* got 20"):
        load_config(words)
