"""Methods in a job's settings: which student learns by which, and the refusals before any work."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from job_helpers import job_file, write_job

from ensdistill.cache import TargetCache
from ensdistill.cli.settings import load_config
from ensdistill.job.method_config import check_members_and_task, loss_of, temperatures
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.stages import run_unit
from ensdistill.job.unit import Unit
from ensdistill.loss.settings import LossSettings
from ensdistill.models import MLP
from ensdistill.student import StudentTrainer
from ensdistill.student.methods import Decoupled, Mix
from ensdistill.teachers.members import load_member


def config_of(folder, change):
    return load_config(["--config", str(write_job(folder, change))])


def test_each_student_learns_by_its_own_method_or_by_that_of_all(tmp_path):
    change = {"distill.method": {"labels": 1, "dkd": 0.5}, "distill.students.wide.method": "dist"}
    distill = config_of(tmp_path, change).distill
    of = {name: loss_of(student, distill) for name, student in distill.students.items()}
    assert isinstance(of["small"], Mix)
    assert of["small"].weights == (1.0, 0.5)
    assert of["small"].parts[1] == Decoupled()
    assert type(of["wide"]).__name__ == "Correlation"
    assert temperatures(distill.students["small"], distill) == (1.0, 4.0)
    plain = config_of(tmp_path, {"distill.students.wide.loss": {"temperature": 3.0}}).distill
    assert loss_of(plain.students["wide"], plain) == LossSettings(temperature=3.0)


def test_a_method_of_higher_temperature_has_a_cache_made_for_it(tmp_path):
    settings = {"distill.method": {"dkd": {"temperature": 30.0}}}
    assert config_of(tmp_path, settings).distill.max_temperature == 30


def test_another_method_makes_a_finished_student_stale(copy):
    unit = Unit("distill", 0, "small")
    own = RunFolder(load_config(["--config", str(job_file(copy))]))
    assert own.is_finished(unit)
    digests = set()
    for method in ("kd", "dkd", {"dkd": {"beta": 2.0}}):
        file = write_job(copy.parents[1], {"distill.students.small.method": method})
        changed = RunFolder(load_config(["--config", str(file)]))
        digests.add(changed.digest(unit))
        assert not changed.is_finished(unit)
        assert changed.is_finished(Unit("distill", 0, "wide"))
    assert len(digests) == 3


@pytest.mark.usefixtures("one_thread")
def test_a_job_trains_by_the_method_that_its_settings_name(copy):
    method = {"labels": 0.5, "dkd": {"weight": 0.1, "beta": 2.0}}
    file = write_job(copy.parents[1], {"distill.students.small.method": method})
    folder = RunFolder(load_config(["--config", str(file)]))
    unit = Unit("distill", 0, "small")
    run_unit(folder, unit)
    cache = TargetCache.open(folder.of(Unit("cache", 0)) / "targets")
    rows = folder.transfer(0)
    optimization = folder.config.distill.students["small"].optimization
    best = folder.record(Unit("teachers", 0))["best_member"]
    for kind, member in (("student", None), ("distilled_from_best_member", best)):
        trained = StudentTrainer(optimization, method=method).distill(
            partial(MLP, inputs=64, hidden=[8], outputs=10), rows, cache, member=member
        )
        found = load_member(folder.of(unit) / kind).module
        assert all(
            torch.equal(a, b) for a, b in zip(found.parameters(), trained.module.parameters(), strict=True)
        )


REFUSED = [
    ({"distill.method": "dkdd"}, "distill.method: expected one of kd, .*; did you mean dkd"),
    ({"distill.method": {"dkd": {"beta": -1}}}, r"distill.method.dkd.beta: expected a finite number"),
    ({"distill.students.small.method": {"dkd": {"b": 1}}}, r"method.dkd.b: expected one of weight, alpha"),
    (
        {"distill.method": "dkd", "distill.loss": {"temperature": 2.0}},
        "distill.method: expected none beside distill.loss, the settings of kd",
    ),
    (
        {"distill.method": "mse", "cache.mixture_at": 1.0},
        "cache.mixture_at: expected none with distill.method, which needs the members; got 1.0",
    ),
    (
        {"distill.method": "dkd", "cache.mixture_at": 1.0},
        "cache.mixture_at: expected the temperature of distill.method, 4, because .*; got 1:",
    ),
    (
        {"distill.students.small.method": "hydra", "distill.students.small.compile": True},
        r"distill.students.small.compile: expected False with distill.students.small.method, which reads the",
    ),
    *(
        (
            {"distill.method": method, "distill.students.wide.compile": True},
            "distill.students.wide.compile: expected False with distill.method, which has a module that trains "
            "along; got True: leave it out",
        )
        for method in ("mutual", "endd", {"kd": 1, "weighted": {"by": "learned"}})
    ),
]


def test_a_method_without_a_module_of_its_own_is_compiled(tmp_path):
    change = {"distill.method": {"weighted": {"by": "confidence"}}, "distill.students.small.compile": True}
    assert config_of(tmp_path, change).distill.students["small"].compile is True


def test_weights_for_other_members_are_refused_before_the_teachers_are_trained(tmp_path):
    given = {"weighted": {"by": "given", "weights": [2, 1]}}
    for method in (given, {"kd": 1, **given}, {"mutual": {"of": given}}):
        distill = config_of(tmp_path, {"distill.method": method}).distill
        check_members_and_task(distill, 2, "classification")
        check_members_and_task(distill, 0, "classification")  # members that are yet to be planned
        check_members_and_task(distill, 3, "classification", selected=True)
        for members, selected in ((3, False), (1, True)):
            with pytest.raises(
                ValueError, match=rf"^distill\.method: expected a weight for each of the {members} mem.*got 2"
            ):
                check_members_and_task(distill, members, "classification", selected)


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_wrong_methods_are_refused_with_the_settings(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        config_of(tmp_path, change)
