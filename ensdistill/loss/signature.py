"""The arguments of the native ops by name. csrc/schema.cpp alone decides their order.

Of ``ensdistill::distill_loss``, ``OpTensors`` are the tensors behind student and targets, ``OpSettings`` the
settings, ``Call`` all arguments. They are named tuples, so ``distill_loss(*call)`` calls the op, and
``call.alpha`` or ``settings._replace(divisor=2.0)`` need no positions.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ensdistill.loss import _native  # noqa: F401  defines the op
from ensdistill.loss.settings import LossSettings


def record(name: str, names: Sequence[str]) -> Any:
    """A class of named tuples. Its fields come from a schema, so type checkers don't know them."""
    make: Any = namedtuple  # for mypy, which wants literal names
    return make(name, names)


class Signature:
    """An op's arguments, from its schema: student, targets and other tensors, settings, and flags called
    ``with_...``.

    Attributes
    ----------
    parameters : tuple of str
        Such as "Tensor? scale" and "float beta".
    tensors : int
        How many tensors the op begins with.
    call, op_tensors, op_settings : type
        Named tuples of all arguments; of the tensors behind student and targets; of the settings.
    """

    def __init__(self, op: Any) -> None:
        self.parameters = tuple(str(op._schema).partition("(")[2].partition(")")[0].split(", "))
        names = [parameter.split()[1] for parameter in self.parameters]
        self.tensors = sum(parameter.startswith("Tensor") for parameter in self.parameters)
        flags = sum(name.startswith("with_") for name in names)
        self.call = record("Call", names)
        self.op_tensors = record("OpTensors", names[2 : self.tensors])
        self.op_settings = record("OpSettings", names[self.tensors : -flags])

    def settings(self, settings: LossSettings, **decided: Any) -> Any:
        """``op_settings`` from a loss's settings; ``decided`` are those that also depend on the targets and
        the shape."""
        values = {**vars(settings), **decided}
        return self.op_settings(*[values[name] for name in self.op_settings._fields])


SIGNATURE = Signature(torch.ops.ensdistill.distill_loss.default)
PARAMETERS, TENSORS = SIGNATURE.parameters, SIGNATURE.tensors
Call, OpTensors, OpSettings = SIGNATURE.call, SIGNATURE.op_tensors, SIGNATURE.op_settings
op_settings = SIGNATURE.settings


def op_call(
    student: Tensor,
    targets: Tensor,
    tensors: Any,
    settings: Any,
    *,
    with_gradient: bool = False,
    with_statistics: bool = False,
) -> Any:
    """A Call from its parts."""
    return Call(student, targets, *tensors, *settings, with_gradient, with_statistics)
