"""Codes that a machine can't compute: the machine's operations are taken away here, one by one."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from job_helpers import flat, run, write_job

from ensdistill import Optimization, Rows, StudentTrainer
from ensdistill.models import MLP
from ensdistill.student.shrink import machine, shrink
from ensdistill.student.shrink.machine import check_machine
from ensdistill.teachers.members import TorchMember

FACTORY = partial(MLP, inputs=6, hidden=[8], outputs=3)
X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
LACKING = "Could not run 'aten::fake_quantize' with arguments from the 'CPU' backend.\nIt has others."


@pytest.fixture
def no_fake_quantisation(monkeypatch):
    def absent(*_):
        raise NotImplementedError(LACKING)

    monkeypatch.setattr(torch, "fake_quantize_per_tensor_affine", absent)


@pytest.fixture
def no_codes(monkeypatch):
    monkeypatch.setattr(machine, "unpacked", lambda stored, count, bits: torch.zeros(count, dtype=torch.int8))


def member():
    return TorchMember(FACTORY(), name="net", factory=FACTORY)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_this_machine_has_all_codes(bits, aware, precision):
    check_machine(bits, aware, "cpu", precision)


@pytest.mark.usefixtures("no_fake_quantisation")
def test_a_machine_without_rounded_inputs_is_named_before_the_member_is_shrunk():
    with pytest.raises(
        ValueError, match=r"^shrink\.quantise: int8: expected a machine with fake quant"
    ) as found:
        shrink(member(), {"quantise": "int8"}, X)
    text = str(found.value)
    assert f"torch {torch.__version__} has none on cpu (Could not run 'aten::fake_quantize' with" in text
    assert "It has others" not in text
    assert "take post_training: int8, which rounds the weights after the training, or quantise: int4" in text
    # The other ways do not round inputs.
    for settings in ({"quantise": "int4"}, {"post_training": "int8"}, {"prune": 0.5}):
        assert shrink(member(), settings, X).weights


@pytest.mark.usefixtures("no_codes")
@pytest.mark.parametrize("way", ["quantise", "post_training"])
def test_codes_that_come_back_as_others_are_refused(way):
    with pytest.raises(ValueError, match=rf"^shrink\.{way}: int4: expected a machine with codes of 4 bits"):
        shrink(member(), {way: "int4"}, X)
    assert shrink(member(), {"rank": 0.2}, X).weights


def test_a_training_asks_the_machine_for_its_own_precision(monkeypatch):
    student = shrink(member(), {"quantise": "int8"}, X)
    whole = torch.fake_quantize_per_tensor_affine

    def only_float32(inputs, *rest):
        if inputs.dtype != torch.float32:
            raise RuntimeError(f"not implemented for {inputs.dtype}")
        return whole(inputs, *rest)

    monkeypatch.setattr(torch, "fake_quantize_per_tensor_affine", only_float32)
    rows, steps = Rows(X, np.arange(40), np.arange(40) % 3), Optimization(2, 8, 0.01)
    with pytest.raises(ValueError, match=r"fake quantisation of torch\.bfloat16.*, or mixed_precision: no"):
        StudentTrainer(steps, mixed_precision="bf16").direct(
            student.factory, rows, classes=3, **student.arguments
        )
    StudentTrainer(steps).direct(student.factory, rows, classes=3, **student.arguments)


@pytest.mark.usefixtures("no_fake_quantisation")
def test_a_job_is_refused_before_its_teachers_are_trained(tmp_path):
    students = {"eight": {"shrink": {"quantise": "int8", "member": "mlp"}}}
    status, out, err = run("run", write_job(tmp_path, {"distill.students": students}))
    assert (status, out) == (2, "")
    assert "distill.students.eight.shrink.quantise: int8: expected a machine with fake quantisation" in flat(
        err
    )
    assert not list(tmp_path.glob("runs/tiny/seed-*"))
