"""A job's students that learn a layer of a member."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from job_helpers import write_job
from sklearn.naive_bayes import GaussianNB

from ensdistill import Ensemble
from ensdistill.cache import TargetCache
from ensdistill.cli.settings import load_config
from ensdistill.data.preprocess import as_preprocess
from ensdistill.job.check import check_job
from ensdistill.job.config import DistillConfig
from ensdistill.job.hinted import check_hints, hinted_student, hinting_member
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.stages import run_unit
from ensdistill.job.student_config import StudentConfig
from ensdistill.job.unit import Unit
from ensdistill.models import MLP
from ensdistill.student import StudentTrainer
from ensdistill.student.methods import Mix, SoftTargets
from ensdistill.student.methods.hints import Hints
from ensdistill.teachers.members import Preprocessed, TorchMember, load_member
from ensdistill.teachers.recipes import SklearnMembers, TorchMembers

UNIT = Unit("distill", 0, "small")
FACTORY = partial(MLP, inputs=64, hidden=[8], outputs=10)
HINTS = {"weight": 2.0, "student_layer": "1", "teacher_layer": "1"}


def run_of(copy, hints):
    method = {"kd": 1.0, "hints": hints}
    return RunFolder(
        load_config(["--config", str(write_job(copy.parents[1], {"distill.students.small.method": method}))])
    )


@pytest.mark.usefixtures("one_thread")
def test_a_job_s_student_learns_the_layer_of_the_ensemble_s_network(copy):
    run = run_of(copy, HINTS)
    check_job(run)
    run_unit(run, UNIT)
    ensemble = Ensemble.load(run.of(Unit("teachers", 0)) / "ensemble")
    assert hinting_member(run, UNIT).name == ensemble.names[0] == "mlp"
    method = Mix((SoftTargets(), Hints("1", "1", teacher=ensemble.members[0].module)), (1.0, 2.0))
    cache, rows = TargetCache.open(run.of(Unit("cache", 0)) / "targets"), run.transfer(0)
    best = run.record(Unit("teachers", 0))["best_member"]
    for kind, member in (("student", None), ("distilled_from_best_member", best)):
        trained = StudentTrainer(run.config.distill.students["small"].optimization, method).distill(
            FACTORY, rows, cache, member=member
        )
        found = load_member(run.of(UNIT) / kind).module
        for a, b in zip(found.parameters(), trained.module.parameters(), strict=True):
            assert torch.equal(a, b)
    run = run_of(copy, {**HINTS, "member": "gaussiannb"})
    with pytest.raises(
        ValueError, match=r"small\.method\.hints\.member: expected a member that is a torch mod"
    ):
        hinting_member(run, UNIT)


def in_halves(batch: np.ndarray) -> np.ndarray:
    """Half of each number."""
    return batch / 2


def in_thirds(batch: np.ndarray) -> np.ndarray:
    """A third of each number."""
    return batch / 3


def test_a_student_has_the_preprocess_of_the_member_that_gives_it_hints():
    halves = as_preprocess(in_halves)
    member = Preprocessed(TorchMember(FACTORY(), name="net", factory=FACTORY), halves)
    student = StudentConfig(FACTORY)
    assert hinted_student(student, member).preprocess is halves
    assert hinted_student(student, member.member).preprocess is None
    assert hinted_student(student, None) is student
    shrunk = replace(student, preprocess=as_preprocess(in_thirds))
    with pytest.raises(ValueError, match=r"^method\.hints\.member: expected a member with the preprocess"):
        hinted_student(shrunk, member)
    assert hinted_student(replace(student, preprocess=halves), member).preprocess is halves


@pytest.mark.parametrize(
    ("hints", "more", "message"),
    [
        (
            {"teacher_layer": "9"},
            {},
            r"hints\.teacher_layer: expected modules of MLP, .*; got '9' \(member mlp\)",
        ),
        ({"student_layer": "0", "teacher_layer": "1"}, {}, None),
        (
            {"student_layer": "reshape", "teacher_layer": "1"},
            {},
            r"hints\.student_layer: expected modules of MLP",
        ),
        ({"member": "gaussiannb"}, {}, "small.method.hints.member: expected a member that is a torch module"),
        (
            {"member": "nobody"},
            {},
            "expected a member that is a torch module.*got 'nobody' of mlp, gaussiannb: name one of mlp$",
        ),
        ({}, {"preprocess": None}, r"small\.preprocess: expected auto with hints"),
    ],
)
def test_hints_that_do_not_fit_are_refused_before_the_teachers_are_trained(hints, more, message, digits):
    recipes = [TorchMembers(partial(MLP, hidden=[32]), 1, "mlp"), SklearnMembers(GaussianNB())]
    student = StudentConfig(FACTORY, method={"kd": 1, "hints": HINTS | hints}, **more)
    if message is None:
        return check_hints("small", DistillConfig({"small": student}), recipes, digits)
    with pytest.raises(ValueError, match=message):
        check_hints("small", DistillConfig({"small": student}), recipes, digits)


def test_layers_of_other_sides_are_refused_with_the_setting(digits):
    recipes = [TorchMembers(partial(MLP, hidden=[32]), 1, "mlp")]
    student = StudentConfig(Stacked, method={"kd": 1, "hints": {**HINTS, "student_layer": "maps"}})
    with pytest.raises(
        ValueError, match=r"small\.method\.hints\.student_layer, teacher_layer: expected outputs"
    ):
        check_hints("small", DistillConfig({"small": student}), recipes, digits)


class Stacked(torch.nn.Module):
    """A network with a layer of feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = torch.nn.Conv2d(1, 2, 3)
        self.last = torch.nn.Linear(72, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.maps(x.reshape(-1, 1, 8, 8)).flatten(1))
