"""Jobs on several labels and on numbers that choose members and student themselves, and their preflight."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import yaml
from job_helpers import OPTIMIZATION, flat, succeed

from ensdistill.cli.settings import load_config
from ensdistill.data import Rows
from ensdistill.data.splits import Split
from ensdistill.data.transfer import TransferSet
from ensdistill.job.rows_config import StudentRows
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.search_config import held_back, too_few
from ensdistill.job.searching import judgeable
from ensdistill.student.search.latency import Latency
from tests.job.test_task_jobs import TARGETS, settings

ROWS = 1500
SEARCH = "ensdistill.student.search"


def write_job(folder: Path, task: str) -> Path:
    """A table of three labels and of a number that follow two columns, and a job of one search."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(ROWS, 3))
    hidden = np.stack([x[:, 0] + x[:, 1], x[:, 1] - x[:, 2], np.abs(x[:, 0])], 1)
    labels = (hidden + generator.logistic(size=hidden.shape) > 0.5).astype(float)
    labels[:10, 2] = np.nan
    frame = pd.DataFrame(x, columns=["x1", "x2", "x3"]).assign(kind=generator.choice(["a", "b"], ROWS))
    for name, column in zip(TARGETS["multilabel"], labels.T, strict=True):
        frame[name] = column
    frame["price"] = 5000 + 800 * hidden.sum(1) + 400 * generator.normal(size=ROWS)
    frame["size"] = 1e-3 * hidden[:, 0]
    frame.to_csv(folder / "table.csv", index=False)
    students = {"found": {"keep": 0.5, "families": ["mlp"], "max_parameters": 2000}}
    students["small"] = {
        "model": {"class_path": "ensdistill.models.MLP", "init_args": {"hidden": [8]}},
        "optimization": OPTIMIZATION,
    }
    return settings(
        folder,
        task,
        trials=2,
        teachers={"members": "auto", "minutes": 0.02, "folds": 2},
        data__init_args__parts={"test": 0.15, "pool": 0.6},
        distill__students=students,
    )


@pytest.fixture(scope="module", params=TARGETS)
def job(request, tmp_path_factory):
    """A job of a task up to its search, with the text of it, and its preflight; to be read only."""
    folder = tmp_path_factory.mktemp(request.param)
    file = write_job(folder, request.param)
    with (
        mock.patch(f"{SEARCH}.ordinary.ordinary_steps", return_value=96),
        mock.patch(f"{SEARCH}.ladders.latency_of", return_value=Latency(2e-5, "none")),
        mock.patch("ensdistill.teachers.auto.portfolio.LEAST_STEPS", 30),
    ):
        shown = succeed("tune", file)
        yield request.param, file, shown, succeed("preflight", file)


@pytest.mark.slow
def test_members_and_student_are_chosen(job):
    task, file, shown, _ = job
    first, second = {"multilabel": ("BCE", "mAP"), "regression": ("NLL", "RMSE")}[task]
    assert f"kept {first}" in shown
    assert f"kept {second}" in shown
    assert f"of the gain in {first} and" in flat(shown)
    folder = file.parent / "runs" / "tiny"
    plan = yaml.safe_load((folder / "teachers.yaml").read_text())
    assert plan["rows"]["task"] == task
    assert len(plan["members"]) >= 2
    found = json.loads((folder / "seed-0" / "search" / "found" / "result.json").read_text())
    assert found["task"] == task
    section = yaml.safe_load((folder / "seed-0" / "search" / "found" / "student.yaml").read_text())
    run = RunFolder(load_config(["--config", str(file)]))
    student, own = run.student("found", 0), section["distill"]["students"]["found"]
    assert student.variance == own.get("variance", False)
    assert student.optimization.steps == own["optimization"]["steps"]


@pytest.mark.slow
def test_the_preflight_has_the_tasks_metrics_and_no_rule(job):
    task, file, _, text = job
    made = json.loads(succeed("preflight", file, "--json"))["preflight"]
    goals = {"multilabel": ["map", "bce"], "regression": ["rmse", "nll"]}[task]
    assert list(made["over_best_member"]) == goals
    assert set(made["over_direct"]) == {"small"}
    assert set(made["spreads"]) == {"labelled", "pool", "labelled, held out"}
    assert made["expected"] == {}
    assert f"no rule for the task {task} yet" in flat(text)


@pytest.mark.parametrize(
    ("pool", "validation", "without"), [(100, None, False), (900, None, True), (100, 1, True)]
)
def test_synthetic_rows_stay_where_they_have_to_judge(pool, validation, without):
    known = {"given": None, "part": StudentRows(synthetic=0.25), "none": StudentRows(synthetic=0.0)}
    config = SimpleNamespace(
        validation=lambda seed: validation, split=lambda seed: SimpleNamespace(pool=range(pool))
    )
    with mock.patch("ensdistill.job.searching.choices", return_value=known):
        found = judgeable(SimpleNamespace(config=config), 0)
    assert list(found) == ["given", "part", *["none"] * without]


@pytest.mark.parametrize("task", TARGETS)
def test_a_fifth_of_the_labelled_rows_of_either_task_judges(task):
    x = np.random.default_rng(0).normal(size=(1200, 2))
    labels = (x > 0).astype(np.int8) if task == "multilabel" else x * 3.0
    rows = Rows(x, np.arange(1200), labels)
    split = Split(
        rows,
        rows.take(np.arange(0)).without_labels(),
        Rows(x[:5], 9000 + np.arange(5), labels[:5]),
        ("a", "b"),
    )
    rest, held = held_back(split, 0)
    assert (len(rest.labelled), len(held)) == (960, 240)
    assert not set(held.uids) & set(rest.labelled.uids)
    few, none = held_back(replace(split, labelled=rows.take(np.arange(1000))), 0)
    assert none is None
    assert "a search needs 203 rows" in too_few(few, none, TransferSet())
