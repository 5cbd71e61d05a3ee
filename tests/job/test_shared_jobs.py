"""One student for several jobs, by one command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from job_helpers import OPTIMIZATION, run, succeed, write_job

from ensdistill.cache import TargetCache
from ensdistill.cli.share import load
from ensdistill.common.completion import completed
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.shared import check_sets, train_shared
from ensdistill.job.unit import Unit
from ensdistill.teachers.members import load_member

TRUNK = {"class_path": "ensdistill.models.MLP", "init_args": {"hidden": [8], "outputs": 6}}
GAUSSIAN = {
    "class_path": "ensdistill.teachers.recipes.SklearnMembers",
    "init_args": {"estimator": {"class_path": "sklearn.naive_bayes.GaussianNB"}},
}
TREE = {
    "class_path": "ensdistill.teachers.recipes.SklearnMembers",
    "init_args": {"estimator": {"class_path": "sklearn.tree.DecisionTreeClassifier"}},
}


def written(folder, **more):
    """Two jobs on digits, with other labelled rows each, and the file that shares them."""
    for name, labelled in (("few", 60), ("many", 120)):
        place = folder / name
        place.mkdir(exist_ok=True)
        change = {"teachers.members": [GAUSSIAN, TREE], "data.init_args": {"labelled": labelled, "pool": 60}}
        write_job(place, change)
    settings = {
        "sets": {"few": {"config": "few/job.yaml"}, "many": {"config": "many/job.yaml", "weight": 3}},
        "trunk": TRUNK,
        "features": 6,
        "optimization": {**OPTIMIZATION, "steps": 20},
        "folder": str(folder / "runs"),
        "seeds": 1,
        **more,
    }
    file = folder / "both.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_one_command_trains_all_and_reports_each_head(tmp_path, monkeypatch):
    file = written(tmp_path)
    out = succeed("share", file)
    place = tmp_path / "runs" / "both" / "shared"
    assert "report of many" in out
    members = {name: load_member(place / "seed-0" / name) for name in ("few", "many")}
    few, many = (members[name].module for name in ("few", "many"))
    for a, b in zip(few.trunk.parameters(), many.trunk.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(few.head.weight, many.head.weight)
    shared, jobs = load(file)
    for name, config in jobs.items():
        report = json.loads((place / name / "report.json").read_text())
        assert list(report["students"]) == ["shared", "alone"]
        test = config.split(0).test
        right = (members[name].predict_logits(test.inputs).argmax(1) == test.labels).mean()
        own = report["students"]["shared"]["models"]
        assert own["student"]["accuracy"]["mean"] == pytest.approx(right)
        alone = report["students"]["alone"]["models"]
        assert own["direct"] == alone["direct"]
        assert own["student"]["accuracy"] != alone["student"]["accuracy"]
        assert (place / name / "report.html").is_file()
        cache = TargetCache.open(RunFolder(config).of(Unit("cache", 0)) / "targets")
        assert tuple(cache.names) == ("gaussiannb", "decisiontreeclassifier")
    before = (place / "seed-0" / "stage.json").stat().st_mtime_ns
    train_shared(shared, jobs, 0)  # it is there
    assert (place / "seed-0" / "stage.json").stat().st_mtime_ns == before
    other, _ = load(written(tmp_path, optimization={**OPTIMIZATION, "steps": 24}))
    train_shared(other, jobs, 0)
    assert (place / "seed-0" / "stage.json").stat().st_mtime_ns > before
    # A killed training goes on from its checkpoint, and ends as one that was not.
    whole = load_member(place / "seed-0" / "few").module.state_dict()
    train_shared(shared, jobs, 0)
    monkeypatch.setattr("ensdistill.job.shared.EVERY", 8)
    with pytest.raises(KeyboardInterrupt):
        train_shared(other, jobs, 0, progress=stop_after(20))
    checkpoint = place / "seed-0" / "training" / "checkpoint.safetensors"
    assert checkpoint.is_file()
    steps = []
    train_shared(other, jobs, 0, progress=lambda done, total: steps.append(done))
    assert steps == list(range(17, 49))
    assert not checkpoint.exists()
    for name, value in load_member(place / "seed-0" / "few").module.state_dict().items():
        assert torch.equal(value, whole[name])


def stop_after(step):
    def progress(done, total):
        if done == step:
            raise KeyboardInterrupt

    return progress


REFUSED = [
    ({"features": 7}, r"trunk: expected features \[N, 7\] \(features\); got \[2, 6\]"),
    (
        {"trunk": {"class_path": "MLP", "init_args": {"hidden": [8]}}},
        r"trunk\.outputs: expected 6, the features; got none",
    ),
    ({"sets": {"few": {"config": "few/job.yaml"}}}, "sets: expected at least two; got few"),
    ({"optimization": {}}, "optimization: expected numbers for steps"),
    (
        {"sets": {"few": {"config": "few/job.yaml"}, "no": {"config": "no.yaml"}}},
        r"sets\.no\.config: expected a job's settings; there is no file",
    ),
    ({"trunc": 1}, "trunc"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_settings_that_do_not_fit_are_refused_before_any_work(tmp_path, more, message):
    status, _, error = run("share", written(tmp_path, **more))
    assert status == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(" ".join(error.split()))
    assert not (tmp_path / "runs").exists()


def test_sets_of_unlike_samples_and_of_several_versions_are_refused(tmp_path):
    shared, jobs = load(written(tmp_path))
    check_sets(shared, jobs)
    object.__setattr__(jobs["many"].cache, "views", 2)
    with pytest.raises(ValueError, match=r"^sets\.many\.cache: expected one version of each row"):
        check_sets(shared, jobs)


def test_a_trunk_within_a_network_gets_the_sizes_of_the_data():
    from functools import partial

    from torch import nn

    from ensdistill.models import MLP
    from ensdistill.student.shared import Headed

    made = partial(Headed, trunk=partial(MLP, hidden=[4], outputs=6), head=partial(nn.Linear, 6, 3))
    network = completed(made, np.zeros((2, 5), np.float32), 3)()
    assert network(torch.zeros(2, 5)).shape == (2, 3)
    assert network.trunk[1].in_features == 5
