"""The job's commands: the report, the stages, users' own classes and arrays, errors in the work."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from job_helpers import fingerprints, flat, numbers, run, stamps, succeed, trained, write_job

import ensdistill
from ensdistill.cli.main import main

METRICS = ("accuracy", "nll", "brier", "ece")


KINDS = (
    "ensemble",
    "best_member",
    "direct",
    "direct_label_smoothing",
    "direct_temperature_scaled",
    "direct_label_smoothing_temperature_scaled",
    "distilled_from_best_member",
    "student",
    # After temperature scaling, beside direct's own.
    "student_temperature_scaled",
    "distilled_from_best_member_temperature_scaled",
)


def test_the_report_has_the_documented_keys(finished_job):
    report = json.loads((finished_job / "report.json").read_text())
    assert (report["schema_version"], report["task"]) == (4, "classification")
    assert report["dataset"] == {
        "name": "Digits",
        "labelled": 100,
        "pool": 100,
        "transfer": 260,
        "asked": 260,
        "test": 1597,
        "classes": 10,
    }
    assert report["seeds"] == [0]
    assert list(report["students"]) == ["small", "wide"]
    for block in (report, *report["students"].values()):
        assert set(block["models"]) == set(KINDS)
        for model in block["models"].values():
            for metric in METRICS:
                assert len(model[metric]["per_seed"]) == 1
                assert model[metric]["mean"] == pytest.approx(model[metric]["per_seed"][0])
            assert model["parameters"] > 0
            assert model["bytes"] > 0
            assert all(
                0 < model["latency_ms"][b]["p50"] <= model["latency_ms"][b]["p95"]
                for b in ("batch_1", "batch_256")
            )
        for metric in ("accuracy", "nll", "brier"):
            assert {"mean", "ci95"} <= set(block["retained_gain"][metric])
        assert block["verdict"]
        assert block["verdict"].endswith(" This is one seed: the intervals leave out how much seeds differ.")
    assert report["students"]["small"]["description"] == "ensdistill.models.MLP"  # by default
    assert report["models"] == report["students"]["small"]["models"]
    assert report["models"]["student"]["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert [member["name"] for member in report["members"]] == ["mlp", "gaussiannb"]
    assert sum(member["weight"]["mean"] for member in report["members"]) == pytest.approx(1)
    assert {"teachers", "cache", "direct", "distill"} <= set(report["timings_s"])
    assert set(report["storage_bytes"]) == set(report["timings_s"])
    assert min(report["storage_bytes"].values()) > 1000
    assert set(report["forecast"]["expected"]) == {"small", "wide"}
    assert all(set(member["contribution"]) == {"accuracy", "nll"} for member in report["members"])
    for block in report["students"].values():
        assert sum(map(sum, block["agreement"]["matrix"])) == 1597
        assert len(block["furthest_rows"]) == 8
        assert all("png" in one["sample"] for one in block["furthest_rows"])
    page = html.unescape((finished_job / "report.html").read_text())
    assert report["verdict"].split(". ")[0] in page
    assert "<svg" in page
    assert "Forecast and outcome</h3>" in page
    assert {file.suffix for file in (finished_job / "figures").iterdir()} == {".png"}


def test_each_stage_is_a_command(tmp_path, finished_job):
    file, folder = write_job(tmp_path), tmp_path / "runs" / "tiny"
    seed = folder / "seed-0"
    assert "teachers" in succeed("teachers", file)
    assert sorted(p.name for p in seed.iterdir()) == ["teachers"]
    assert "cache build" in succeed("cache", "build", file)
    assert sorted(p.name for p in seed.iterdir()) == ["cache", "teachers"]
    teachers = stamps(seed / "teachers")
    succeed("distill", file)
    assert sorted(p.name for p in seed.iterdir()) == ["cache", "direct", "distill", "teachers"]
    assert not (folder / "report.json").exists()
    assert stamps(seed / "teachers") == teachers
    out = succeed("report", file)
    assert "Retained gain" in out
    assert str(folder / "report.html") in out.replace("\n", "")
    assert numbers(folder) == numbers(finished_job)
    assert trained(folder) == trained(finished_job)


OWN = '''
import multiprocessing
import warnings
from dataclasses import dataclass

from torch import nn

from ensdistill.data import Digits, Split
from ensdistill.models import MLP


class Net(nn.Module):
    """The same layers, and the same random numbers for them, by another name."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = MLP(64, [width], 10)

    def forward(self, x):
        if multiprocessing.parent_process() is not None:
            warnings.warn("this network\\nis wide")
        return self.layers(x)


@dataclass(frozen=True)
class Data:
    """Digits, from somewhere else."""

    rows: int = 100

    def split(self, seed: int) -> Split:
        return Digits(labelled=self.rows, pool=self.rows).split(seed)
'''


def test_own_classes_from_the_current_folder_on_two_workers(tmp_path, finished_job):
    # As a user does it: another process, in a folder with a module of the user's own. The numbers are those
    # of one worker.
    (tmp_path / "own_things.py").write_text(OWN)
    net = {"class_path": "own_things.Net", "init_args": {"width": 16}}
    change = {"data": {"class_path": "own_things.Data"}, "distill.students.wide.model": net}
    write_job(tmp_path, change | {"folder": "runs", "workers": 2})
    environment = os.environ | {"PYTHONPATH": str(Path(ensdistill.__file__).parents[1])}
    command = [sys.executable, "-m", "ensdistill", "run", "job.yaml", "--name", "own"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Retained gain" in done.stdout
    assert all(
        f"✓ seed 0 · {unit}" in done.stderr for unit in ("teachers", "cache", "direct small", "distill wide")
    )
    # The workers' warnings come through the parent: each is one line, however many workers raise it.
    assert done.stderr.splitlines().count("ensdistill: warning: this network is wide") == 1
    assert "warnings.warn" not in done.stderr
    one, two = numbers(finished_job), numbers(tmp_path / "runs" / "own")
    assert two["dataset"]["name"] == "Data"
    two["dataset"]["name"] = "Digits"
    assert {key: two[key] for key in two if key != "students"} == {
        key: one[key] for key in one if key != "students"
    }
    for name in ("small", "wide"):
        for key in ("models", "gains", "retained_gain"):
            assert two["students"][name][key] == one["students"][name][key]


def test_own_arrays(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 3
    np.save(
        tmp_path / "x.npy",
        (np.eye(3)[labels].repeat(4, 1) + generator.normal(0, 0.3, (240, 12))).astype(np.float32),
    )
    np.save(tmp_path / "y.npy", labels)
    arrays = {
        "inputs": str(tmp_path / "x.npy"),
        "labels": str(tmp_path / "y.npy"),
        "labelled": 60,
        "pool": 60,
    }
    net = {"class_path": "ensdistill.models.MLP", "init_args": {"inputs": 12, "hidden": [8], "outputs": 3}}
    change = {
        "data": {"class_path": "ensdistill.data.ArrayDataset", "init_args": arrays},
        "teachers.members.0.init_args.model": net,
    }
    change |= {f"distill.students.{name}.model": net for name in ("small", "wide")}
    file = write_job(tmp_path, change)
    out = succeed("run", file)
    assert "ArrayDataset: 60 labelled rows, 60 in the pool" in flat(out)
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    assert report["dataset"]["test"] == 120
    assert report["models"]["ensemble"]["accuracy"]["mean"] > 0.9  # three clusters, far apart


def test_a_traceback_by_request(tmp_path):
    file = write_job(tmp_path, {"distill.students.small.optimization.learning_rate": 1e30})
    status, _, err = run("distill", file, "--debug")
    assert status == 1
    assert "Traceback (most recent call last)" in err
    assert "student/trainer.py" in err  # where the worker raised it, not where its message arrived
    assert "seed-0/teachers" in fingerprints(tmp_path / "runs" / "tiny")  # finished stages are kept


def test_an_errors_notes_are_shown(monkeypatch, capsys):
    def fail():
        error = ArithmeticError("it broke")
        error.add_note("in the training of b")
        raise error

    monkeypatch.setattr("ensdistill.cli.main._info", fail)
    assert main(["info"]) == 1
    assert capsys.readouterr().err.startswith("ensdistill: it broke\nin the training of b\n")


def test_a_warning_is_one_line(tmp_path):
    file = write_job(tmp_path, {"cache.codec": "topk-1", "cache.mixture_at": 1.0})
    status, _, err = run("cache", "build", file)
    assert status == 0
    first, *found = [line for line in err.splitlines() if "✓" not in line]
    assert first == "2 pieces of work to do."
    assert len(found) == 2  # the cache of the ensemble and that of the best member
    for line in found:
        assert line.startswith(f"ensdistill: warning: {tmp_path}")
        assert "storing with codec 'topk-1' cost a row a KL of" in line


def test_ctrl_c_offers_to_go_on_where_the_command_can(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    for name, words, text in (
        (
            "job",
            ["run", "job.yaml"],
            "\nStopped. Everything finished is kept; the same command goes on from there.\n",
        ),
        ("_info", ["info"], "\nStopped.\n"),
    ):
        monkeypatch.setattr(f"ensdistill.cli.main.{name}", stop)
        assert main(words) == 130
        assert capsys.readouterr().err == text
