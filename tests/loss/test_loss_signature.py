"""One list of settings, arguments and names: Python's, the library's and the type checkers' are the same."""

import inspect
import re
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest
import torch

from ensdistill.common.combiners import COMBINERS
from ensdistill.functional import distillation_loss
from ensdistill.loss import ops, reference
from ensdistill.loss.explain import kernel_plan
from ensdistill.loss.linear import LinearCall
from ensdistill.loss.settings import (
    DEFAULTS,
    DIVERGENCES,
    Divergence,
    LossKeywords,
    LossSettings,
    Reduction,
    Tail,
)
from ensdistill.loss.signature import TENSORS, Call, OpSettings, OpTensors, op_call, op_settings

LIBRARY = ops.build_info()["loss"]
NAMES = [argument.name for argument in ops.distill_loss._schema.arguments]


def test_the_schema_is_the_librarys_signature():
    """The op's values are taken by position, so csrc/loss_arguments.def must list them as csrc/schema.cpp
    does."""
    assert LIBRARY["arguments"] == NAMES


def test_the_parts_of_a_call_make_up_the_schema():
    assert list(Call._fields) == NAMES
    assert [
        "student",
        "targets",
        *OpTensors._fields,
        *OpSettings._fields,
        "with_gradient",
        "with_statistics",
    ] == NAMES
    types = [str(argument.type) for argument in ops.distill_loss._schema.arguments]
    assert all("Tensor" in x for x in types[:TENSORS])
    assert not any("Tensor" in x for x in types[TENSORS:])
    values = iter(range(len(NAMES)))
    student, targets = next(values), next(values)
    tensors, settings = (kind(*(next(values) for _ in kind._fields)) for kind in (OpTensors, OpSettings))
    call = op_call(
        student, targets, tensors, settings, with_gradient=next(values), with_statistics=next(values)
    )
    assert call._asdict() == dict(zip(NAMES, range(len(NAMES)), strict=True))


def test_the_last_layers_op_has_the_same_arguments():
    schema = [
        argument.name for argument in torch.ops.ensdistill.linear_distill_loss.default._schema.arguments
    ]
    assert list(LinearCall._fields) == schema
    assert [name for name in schema if name in NAMES[1:-2]] == NAMES[1:-2]


def test_the_specification_has_every_argument():
    assert set(inspect.signature(reference.distill_loss).parameters) == {*NAMES} - {"with_gradient"}


def test_names_are_the_librarys():
    assert LIBRARY["divergence"] == [*DIVERGENCES] == [*get_args(Divergence)] == [*reference.DIVERGENCES]
    assert LIBRARY["combiner"] == [*COMBINERS]
    assert LIBRARY["tail_mode"] == [*get_args(Tail)]
    assert [*LIBRARY["reduction"], "batchmean"] == sorted(
        get_args(Reduction), key=lambda x: [*LIBRARY["reduction"], "batchmean"].index(x)
    )
    assert len(LIBRARY["element"]) == len(set(LIBRARY["element"])) == 5


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_plan_is_of_a_divergence_by_name(divergence):
    assert kernel_plan(8, 100, members=2, divergence=divergence).layout == "tile"


def test_keywords_for_type_checkers_are_the_fields():
    hints = get_type_hints(LossSettings)
    assert get_type_hints(LossKeywords) == hints
    assert [*hints] == [field.name for field in fields(LossSettings)]


def test_every_setting_is_described():
    documented = re.findall(r"^    (\w+) : ", LossSettings.__doc__, re.MULTILINE)
    assert documented == [field.name for field in fields(LossSettings)]


def test_settings_reach_the_op_by_name():
    given = LossSettings(
        temperature=2,
        alpha=0.25,
        beta=0.125,
        ignore_index=7,
        label_smoothing=0.5,
        z_loss=0.75,
        divergence="jsd",
    )
    decided = {"kind": "probs", "combiner": "logit", "tail_mode": "zero", "reduction": "sum", "divisor": 3.0}
    found = op_settings(given, **decided)._asdict()
    assert {n: found[n] for n in decided} == decided
    assert {n: value for n, value in found.items() if n not in decided} == {
        n: getattr(given, n) for n in OpSettings._fields if n not in decided
    }
    assert all(
        type(found[n]) is float
        for n in ("temperature", "alpha", "beta", "label_smoothing", "z_loss", "divisor")
    )


def test_settings_are_checked_whenever_they_are_made():
    assert replace(DEFAULTS, alpha=0.5).alpha == 0.5
    with pytest.raises(ValueError, match="alpha: expected a number from 0 to 1; got 2"):
        replace(DEFAULTS, alpha=2)
    with pytest.raises(AttributeError):
        DEFAULTS.alpha = 0.5


def test_keywords_that_equal_earlier_ones_are_checked_by_their_own_type():
    student = torch.zeros(2, 3)
    assert distillation_loss(student, student, recompute=True) == 0
    with pytest.raises(TypeError, match="recompute: expected a bool; got 1"):
        distillation_loss(student, student, recompute=1)
    with pytest.raises(
        ValueError, match=r"temperature: expected a number from 0\.0001 to 10000; got \[2\.0\]"
    ):
        distillation_loss(student, student, temperature=[2.0])
