"""A job's students that are made from a member."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_helpers import OPTIMIZATION, succeed, write_job
from safetensors.numpy import load_file
from sklearn.naive_bayes import GaussianNB

from ensdistill.cli.settings import load_config
from ensdistill.data.preprocess import as_preprocess
from ensdistill.job.prepared import prepare_student
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.shrinking import check_shrink, chosen_member, shrink_member, shrunk_student
from ensdistill.job.student_config import StudentConfig
from ensdistill.job.unit import Unit
from ensdistill.models import MLP
from ensdistill.student.preconditions import build_student
from ensdistill.student.serving import Student
from ensdistill.student.shrink import Shrink
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import ArrayMember, Preprocessed, TorchMember
from ensdistill.teachers.recipes import SklearnMembers, TorchMembers

STUDENTS = {"sparse": {"shrink": {"prune": 0.7}, "optimization": OPTIMIZATION}}
EIGHT = {"shrink": {"quantise": "int8", "member": "mlp"}, "optimization": OPTIMIZATION}
WEIGHTS, BIASES = 64 * 32 + 32 * 10, 42
KEPT = round(0.3 * WEIGHTS)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    file = write_job(tmp_path_factory.mktemp("shrunk"), {"distill.students": STUDENTS})
    return file, succeed("run", file)


def folder_of(file: Path) -> RunFolder:
    return RunFolder(load_config(["--config", str(file)]))


@pytest.mark.slow
def test_students_begin_with_the_members_weights_and_have_its_preprocess(job):
    run_folder = folder_of(job[0])
    member = Ensemble.load(run_folder.of(Unit("teachers", 0)) / "ensemble").members[0]
    state = getattr(member, "member", member).module.state_dict()
    weights = load_file(run_folder.of(Unit("shrink", 0, "sparse")) / "weights.safetensors")
    first, mask = (weights[f"model.1.parametrizations.weight.{n}"] for n in ("original", "0.mask"))
    np.testing.assert_array_equal(first, state["1.weight"].numpy())
    other = weights["model.4.parametrizations.weight.0.mask"]
    # The 70 % of least magnitude of both layers together.
    values = np.abs(np.concatenate([state["1.weight"].numpy().ravel(), state["4.weight"].numpy().ravel()]))
    kept = np.concatenate([mask.ravel(), other.ravel()])
    assert kept.sum() == round(0.3 * len(values))
    assert values[kept].min() >= values[~kept].max()


@pytest.mark.slow
def test_the_report_has_the_bytes_of_the_stored_weights(job):
    file, shown = job
    report = json.loads((file.parent / "runs" / "tiny" / "report.json").read_text())
    found = report["students"]["sparse"]["models"]["student"]
    assert found["parameters"] == KEPT + BIASES
    assert found["bytes"] == 4 * (KEPT + BIASES) + WEIGHTS // 8  # a bit for each weight
    assert "sparse" in shown
    assert set(report["timings_s"]) >= {"shrink", "direct", "distill"}


@pytest.mark.slow
def test_trained_students_are_saved_and_loaded(job, tmp_path):
    run_folder = folder_of(job[0])
    student = Student.load(run_folder.of(Unit("distill", 0, "sparse")) / "student")
    x = run_folder.config.split(0).test.inputs[:50]
    student.save(tmp_path / "saved")
    np.testing.assert_array_equal(Student.load(tmp_path / "saved").predict_proba(x), student.predict_proba(x))


@pytest.mark.slow
def test_a_student_of_eight_bits_is_exported_with_its_codes(tmp_path):
    file = write_job(tmp_path, {"distill.students": {"eight": EIGHT}})
    succeed("run", file)
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    found = report["students"]["eight"]["models"]["student"]
    assert found["parameters"] == WEIGHTS + BIASES
    assert found["bytes"] == WEIGHTS + 4 * BIASES + 4 * 42  # and a scale for each row
    succeed("export", tmp_path / "runs" / "tiny", "--to", "onnx")
    figures = json.loads(next((tmp_path / "runs" / "tiny" / "export").rglob("*.onnx.json")).read_text())
    trained, exported = figures["variants"]
    assert exported["bytes"] < 3 * WEIGHTS  # codes and the graph; floats alone have 4 bytes each
    assert exported["largest_difference"] < 0.05
    assert abs(exported["accuracy"] - trained["accuracy"]) < 0.02


@pytest.mark.slow
def test_a_second_run_does_nothing_and_another_share_makes_the_student_again(job):
    file, _ = job
    run_folder = folder_of(file)
    assert all(run_folder.is_finished(unit) for unit in run_folder.units("report"))
    config = load_config(["--config", str(file), "--distill.students.sparse.shrink.prune", "0.6"])
    other = RunFolder(config)
    assert not other.is_finished(Unit("shrink", 0, "sparse"))
    assert not other.is_finished(Unit("distill", 0, "sparse"))
    assert other.is_finished(Unit("cache", 0))


def test_a_stage_makes_a_student_with_the_members_weights_and_preprocess(tmp_path, digits) -> None:
    factory = partial(MLP, inputs=64, hidden=[8], outputs=10)
    halved = as_preprocess(in_halves)
    members = [TorchMember(factory(), name="net", factory=factory)]
    ensemble = Ensemble.from_members([Preprocessed(members[0], halved)])
    given = StudentConfig(shrink=Shrink(prune=0.5, quantise="int8"))
    assert given.shrink is not None
    record = shrink_member(given.shrink, ensemble, {"net": 0.3}, digits, tmp_path)
    again = json.loads(json.dumps(record))  # as stage.json holds it
    student = shrunk_student(given, again, tmp_path, [f"{in_halves.__module__}.in_halves"])
    assert (student.shrink, student.variance) == (None, False)
    assert student.description == "net: prune 0.5, quantise int8"
    prepared = prepare_student(student, digits, 0)
    x = digits.labelled.inputs[:5]
    np.testing.assert_array_equal(prepared.preprocess(x), x / 2)
    module = build_student(
        prepared.factory, digits.labelled, 10, prepared.preprocess, student.weights, "classification"
    )
    weight = members[0].module[1].weight.detach()
    kept = module.model[1].parametrizations.weight[0].mask
    assert torch.equal(module.model[1].parametrizations.weight.original, weight)
    assert 0.4 < kept.float().mean() < 0.6


def in_halves(batch: np.ndarray) -> np.ndarray:
    """Half of each number."""
    return batch / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shrink": {"prune": 1.5}}, "shrink.prune: expected a share between 0 and 1; got 1.5"),
        ({"shrink": {"quantise": "int2"}}, "shrink.quantise: expected int8 or int4; got 'int2'"),
        ({"shrink": {"rank": 0.5, "energy": 0.9}}, "shrink.energy: expected none beside rank"),
        ({"shrink": {"member": "mlp"}}, "shrink: expected at least one of prune"),
        (
            {"shrink": {"prune": 0.5}, "weights": Path("x.safetensors")},
            "weights: expected none beside shrink",
        ),
        ({"shrink": {"prune": 0.5}, "preprocess": None}, "preprocess: expected auto beside shrink"),
        ({"shrink": {"prune": 0.5}, "keep": 0.9}, "shrink: expected none beside keep"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        StudentConfig(**{**settings, "shrink": Shrink(**settings["shrink"])})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prune": 0.5, "member": "gaussiannb"},
            "small.shrink: expected a member that is a torch.*gaussiannb",
        ),
        ({"prune": 0.5, "member": "nobody"}, "expected one of mlp, gaussiannb; got 'nobody'"),
        ({"rank": 0.99}, "distill.students.small.shrink: rank 0.99: expected a layer that becomes smaller"),
    ],
)
def test_members_that_do_not_fit_are_refused_before_the_teachers_are_trained(
    settings, message, digits
) -> None:
    recipes = [TorchMembers(partial(MLP, hidden=[32]), 1, "mlp"), SklearnMembers(GaussianNB())]
    with pytest.raises(ValueError, match=message):
        check_shrink("small", Shrink(**settings), recipes, digits, "classification")
    check_shrink("small", Shrink(prune=0.5, member="mlp"), recipes, digits, "classification")
    # Whether a trained member has weights left in each layer can't be told from a new one.
    check_shrink("small", Shrink(prune=0.9999, member="mlp"), recipes, digits, "classification")


def test_the_best_network_is_shrunk_by_default() -> None:
    factory = partial(MLP, inputs=2, hidden=[4], outputs=2)
    members: list[Any] = [TorchMember(factory(), name=name, factory=factory) for name in "abc"]
    table = ArrayMember(probabilities=np.eye(2), name="table")
    ensemble = Ensemble.from_members([*members, table], weights=[0.0, 0.3, 0.2, 0.5])
    losses = {"a": 0.1, "b": 0.4, "c": 0.3, "table": 0.05}
    assert chosen_member(Shrink(prune=0.5), ensemble, losses) == "c"  # a has no weight
    assert chosen_member(Shrink(prune=0.5, member="a"), ensemble, losses) == "a"
    assert chosen_member(Shrink(prune=0.5), ensemble, {}) == "b"  # by weight
    with pytest.raises(ValueError, match="expected a member that is a torch network; the ensemble has table"):
        chosen_member(Shrink(prune=0.5), Ensemble.from_members([table]), {})
