"""The settings of the pages on training and search are accepted, with the values that the pages give."""

from pathlib import Path

import yaml
from docs_blocks import blocks
from job_helpers import JOB, OPTIMIZATION

from ensdistill.cli.settings import load_config
from ensdistill.common.optimizers import StudentOptimization


def test_the_python_of_the_page_makes_an_optimization():
    code = blocks("training", "python")[0].partition("trained = ")[0]
    names = {}
    exec(code, names)
    assert isinstance(names["optimization"], StudentOptimization)
    assert list(names["optimization"].extras) == [
        "schedule",
        "optimizer",
        "groups",
        "clip_norm",
        "accumulate",
    ]


def test_the_students_of_other_tasks_are_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks("tasks", "python")[-1], names)
    assert names["mean"].shape == names["variance"].shape == (200, 1)
    assert names["member"].predict_moments(names["x"]).mean.shape == (200, 1)


def test_the_yaml_of_the_page_makes_the_same_student(tmp_path, monkeypatch):
    (text,) = (part for part in blocks("training", "yaml") if "optimizer:" in part)
    monkeypatch.chdir(tmp_path)
    Path("pretrained.safetensors").touch()
    small = yaml.safe_load(text)["distill"]["students"]["small"]
    Path("job.yaml").write_text(yaml.safe_dump({**JOB, "distill": {"students": {"small": small}}}))
    student = load_config(["--config", "job.yaml"]).distill.students["small"]
    assert student.optimization.optimizer.keywords == {"momentum": 0.9}
    assert student.optimization.accumulate == 4
    assert OPTIMIZATION["steps"] != student.optimization.steps == 20000


def test_the_rows_of_the_page_are_a_students(tmp_path, monkeypatch):
    (text,) = (part for part in blocks("search", "yaml") if "rows: {" in part)
    monkeypatch.chdir(tmp_path)
    small = yaml.safe_load(text)["distill"]["students"]["small"]
    Path("job.yaml").write_text(yaml.safe_dump({**JOB, "distill": {"students": {"small": small}}}))
    rows = load_config(["--config", "job.yaml"]).distill.students["small"].rows
    assert (rows.synthetic, rows.labelled) == (0.25, "out_of_fold")
