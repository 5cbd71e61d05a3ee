"""The arguments of the native op ``ensdistill::distill_loss`` by name. csrc/schema.cpp alone decides their
order.

``OpTensors`` are the tensors behind student and targets, ``OpSettings`` the settings, ``Call`` all arguments.
They are named tuples, so ``distill_loss(*call)`` calls the op, and ``call.alpha`` or
``settings._replace(divisor=2.0)`` need no positions.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ensdistill.loss import _native  # noqa: F401  defines the op
from ensdistill.loss.settings import LossSettings

_SCHEMA = str(torch.ops.ensdistill.distill_loss.default._schema)
# Such as "Tensor? scale" and "float beta". The op begins with student and targets and ends with two flags.
PARAMETERS = tuple(_SCHEMA.partition("(")[2].partition(")")[0].split(", "))
_NAMES = tuple(parameter.split()[1] for parameter in PARAMETERS)
# How many tensors the op begins with.
TENSORS = sum(parameter.startswith("Tensor") for parameter in PARAMETERS)


def record(name: str, names: Sequence[str]) -> Any:
    """A class of named tuples. Its fields come from a schema, so type checkers don't know them."""
    make: Any = namedtuple  # for mypy, which wants literal names
    return make(name, names)


Call = record("Call", _NAMES)
OpTensors = record("OpTensors", _NAMES[2:TENSORS])
OpSettings = record("OpSettings", _NAMES[TENSORS:-2])


def op_settings(settings: LossSettings, **decided: Any) -> Any:
    """OpSettings from a loss's settings; ``decided`` are those that also depend on the targets and the
    shape."""
    values = {**vars(settings), **decided}
    return OpSettings(*[values[name] for name in OpSettings._fields])


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
