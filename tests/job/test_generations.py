"""Students of several generations (born-again networks) in a job."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from job_helpers import job_file, write_job
from safetensors.numpy import load_file

from ensdistill import Ensemble
from ensdistill.cache import TargetCache
from ensdistill.cli.settings import load_config
from ensdistill.common.random import derive_seed
from ensdistill.job.evaluate import evaluate
from ensdistill.job.generations import places
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.stages import run_unit
from ensdistill.job.student_config import StudentConfig
from ensdistill.job.unit import Unit
from ensdistill.models import MLP
from ensdistill.report.judge import judge
from ensdistill.student import OnlineTeachers, StudentTrainer
from ensdistill.teachers.members import load_member

UNIT = Unit("distill", 0, "small")
FACTORY = partial(MLP, inputs=64, hidden=[8], outputs=10)


def folder_of(copy, generations, **more):
    change = {"distill.students.small.generations": generations}
    change |= {f"distill.students.small.{name}": value for name, value in more.items()}
    return RunFolder(load_config(["--config", str(write_job(copy.parents[1], change))]))


@pytest.mark.usefixtures("one_thread")
def test_each_generation_learns_from_the_one_before_it_and_the_report_has_all(copy):
    run = folder_of(copy, 3)
    assert not run.is_finished(UNIT)
    assert run.is_finished(Unit("direct", 0, "small"))
    run_unit(run, UNIT)
    assert run.is_finished(UNIT)
    cache, rows = TargetCache.open(run.of(Unit("cache", 0)) / "targets"), run.transfer(0)
    trainer = StudentTrainer(run.config.distill.students["small"].optimization)
    source = cache
    for number, place in enumerate(places(run.of(UNIT), "student", 3), 1):
        seed = 0 if number == 1 else derive_seed("generation", number, 0)
        trained = trainer.distill(FACTORY, rows, source, seed=seed)
        found = load_member(place).module
        assert all(
            torch.equal(a, b) for a, b in zip(found.parameters(), trained.module.parameters(), strict=True)
        )
        source = OnlineTeachers(Ensemble.from_members([trained.member("one")]))
    assert place == run.of(UNIT) / "student"
    best = places(run.of(UNIT), "distilled_from_best_member", 3)
    assert all((one / "stage.json").is_file() for one in best)

    report = judge(evaluate(run, timed=False), resamples=2000)["students"]
    assert report["wide"]["generations"] == []
    shown = report["small"]["generations"]
    assert len(shown) == 3
    test = run.config.split(0).test
    first = load_member(places(run.of(UNIT), "student", 3)[0]).predict_logits(test.inputs)
    assert shown[0]["accuracy"]["mean"] == pytest.approx((first.argmax(1) == test.labels).mean())
    assert shown[2]["nll"] == report["small"]["models"]["student"]["nll"]


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_job_goes_on_with_the_generation_that_it_was_at(copy, monkeypatch):
    run = folder_of(copy, 2)
    first, last = places(run.of(UNIT), "student", 2)
    monkeypatch.setattr("ensdistill.job.stages.taught_by", _killed)
    with pytest.raises(KeyboardInterrupt):
        run_unit(run, UNIT)
    before = (first / "stage.json").stat().st_mtime_ns
    weights = load_file(first / "weights.safetensors") if (first / "weights.safetensors").exists() else {}
    monkeypatch.undo()
    run_unit(run, UNIT)
    assert (first / "stage.json").stat().st_mtime_ns == before
    for name, value in weights.items():
        np.testing.assert_array_equal(load_file(first / "weights.safetensors")[name], value)
    assert json.loads((last / "stage.json").read_text())["fingerprint"] == run.digest(UNIT)


def _killed(*_):
    raise KeyboardInterrupt


def test_another_number_makes_the_student_alone_stale(copy):
    own = RunFolder(load_config(["--config", str(job_file(copy))]))
    assert folder_of(copy, 1).digest(UNIT) == own.digest(UNIT)
    digests = {folder_of(copy, count).digest(UNIT) for count in (1, 2, 3)}
    assert len(digests) == 3
    changed = folder_of(copy, 2)
    assert changed.digest(Unit("direct", 0, "small")) == own.digest(Unit("direct", 0, "small"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": FACTORY, "generations": 0}, "^generations: expected an integer of at least 1; got 0"),
        (
            {"model": FACTORY, "generations": True},
            "^generations: expected an integer of at least 1; got True",
        ),
        ({"keep": 0.9, "generations": 2}, "^generations: expected none beside keep"),
        (
            {"estimator": {"class_path": "lightgbm.LGBMClassifier"}, "generations": 2},
            "^generations: expected none for an estimator",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StudentConfig(**settings)


def test_a_method_of_several_members_has_one_generation(tmp_path):
    change = {"distill.students.small.generations": 2, "distill.method": "hydra"}
    with pytest.raises(
        ValueError, match=r"small\.generations: expected 1 with distill\.method, which keeps how"
    ):
        load_config(["--config", str(write_job(tmp_path, change))])
