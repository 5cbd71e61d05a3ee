"""Dtypes that a module does not take: the message names the argument, both dtypes and the remedy, before
anything is trained."""

import functools
import re

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.student.preconditions import build_student
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import TorchMember, as_member
from ensdistill.teachers.stack import train_trajectory

X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
FEW = Optimization(steps=4, batch_size=8)


def mixed():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2, dtype=torch.float64))


class Casting(nn.Module):
    """A module in bfloat16 that casts its inputs itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2, dtype=torch.bfloat16)

    def forward(self, x):
        return self.layer(x.bfloat16()).float()


def tokens():
    return nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(12, 2))


FACTORIES = {
    "float64": functools.partial(nn.Linear, 4, 2, dtype=torch.float64),
    "bfloat16": functools.partial(nn.Linear, 4, 2, dtype=torch.bfloat16),
    "mixed": mixed,
}


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize("method", ["seeds", "snapshot"])
def test_training_names_the_dtype_of_a_factory_s_module(kind, method):
    dtype = "float64" if kind == "mixed" else kind
    words = (
        rf"factory: .*: expected float32 parameters for inputs of float32 \[2, 4\]; .* is {dtype}\. "
        rf"module\.float\(\)"
    )
    with pytest.raises(ValueError, match=words):
        Ensemble.train(FACTORIES[kind], (X, Y), members=2, method=method, optimization=FEW)
    with pytest.raises(ValueError, match=words):
        train_trajectory(FACTORIES[kind], X, Y, classes=2, seed=0, optimization=FEW, captures=[1])


def test_students_name_the_dtype_too_and_a_module_that_casts_its_inputs_is_trained():
    words = r"expected float32 parameters for inputs of float32 \[2, 4\]; .* is float64\. module\.float\(\)"
    factory = functools.partial(nn.Linear, in_features=4, out_features=2, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"factory: the student's Linear: {words}"):
        build_student(factory, Rows(X, np.arange(40), Y), 2)
    assert Ensemble.train(Casting, (X, Y), members=1, optimization=FEW).predict_logits(X).shape == (1, 40, 2)
    build_student(Casting, Rows(X, np.arange(40), Y), 2)


def test_training_on_numbers_names_an_embedding():
    words = (
        r"inputs: .*: expected integers \(int64\), because 0 is an Embedding of token ids; got float32 \[2, "
        r"4\]"
    )
    with pytest.raises(ValueError, match=words):
        Ensemble.train(tokens, (X, Y), members=1, optimization=FEW)
    with pytest.raises(ValueError, match=words):
        build_student(tokens, Rows(X, np.arange(40), Y), 2)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_token_ids_of_every_integer_dtype_have_the_same_logits(dtype):
    ids = np.random.default_rng(0).integers(9, size=(7, 4))
    module = tokens()
    with torch.no_grad():
        expected = module(torch.from_numpy(ids)).numpy()
    np.testing.assert_array_equal(TorchMember(module).predict_logits(ids.astype(dtype)), expected)


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        (
            tokens,
            X,
            r"inputs: m: expected integers \(int64\), because 0 is an Embedding of token ids; got float32 "
            r"\[40, 4\]",
        ),
        (
            tokens,
            np.full((2, 4), 9),
            r"inputs: m: expected token ids below .*\(0 has 9 rows\); got ids from 9 to 9",
        ),
        (tokens, np.full((2, 4), -1), r"got ids from -1 to -1"),
        (
            tokens,
            np.full((2, 4), 2**63, np.uint64),
            "m expects token ids that int64 can hold; got 9223372036854775808",
        ),
        (
            lambda: nn.Linear(4, 2),
            np.ones((2, 4), np.int32),
            r"inputs: m: expected float32, .*; got int32 \[2, 4\]",
        ),
        (
            lambda: nn.Linear(4, 2),
            np.ones((2, 4), bool),
            r"inputs: m expects float32, or integers for .*; got bool \[2, 4\]",
        ),
        (
            lambda: nn.Linear(4, 2).double(),
            X.astype(np.float16),
            r"inputs: m expects float32 or float64, .*; got float16",
        ),
        (
            Casting,
            X.astype(np.float64),
            r"inputs: m expects float32, or integers for a model of tokens; got float64 \[40, 4\]",
        ),
        (
            mixed,
            X.astype(np.float64),
            r"inputs: m expects float32, or integers for a model of tokens; got float64 \[40, 4\]",
        ),
        (
            mixed,
            X,
            r"module: m: expected float32 parameters for inputs of float32 \[40, 4\]; 1\.bias is float64\. "
            r"module\.float",
        ),
    ],
)
def test_inputs_that_a_module_does_not_take(module, inputs, words):
    with pytest.raises(ValueError, match=words):
        TorchMember(module(), name="m").predict_logits(inputs)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (lambda: nn.Linear(5, 2), [40, 4]),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)), [3, 3, 8, 8]),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)), [3, 8]),
        (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), [40, 4]),
    ],
)
def test_inputs_of_another_shape_are_refused_with_the_members_name_and_their_shape(module, shape):
    inputs = np.ones(shape, np.float32)
    with pytest.raises(ValueError, match=rf"inputs: m: .* no inputs of shape {re.escape(str(shape))} \("):
        Ensemble.from_members([TorchMember(module(), name="m")]).predict_logits(inputs)


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("the file of the network is gone")


def test_another_fault_keeps_its_own_error():
    with pytest.raises(RuntimeError, match=r"^the file of the network is gone$"):
        TorchMember(Broken()).predict_logits(X)


def test_a_program_of_torch_export_is_refused_with_the_remedy():
    program = torch.export.export(nn.Linear(4, 2).eval(), (torch.zeros(2, 4),))
    for value in (program, program.module()):
        with pytest.raises(
            TypeError,
            match=r"members: .*: expected a module; got a program of torch\.export, .* torch\.onnx\.export",
        ):
            as_member(value)
    with pytest.raises(TypeError, match="members: module: expected a module; got a program"):
        TorchMember(program.module())
