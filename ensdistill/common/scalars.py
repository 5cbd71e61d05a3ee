"""Single numbers as settings, without torch. NumPy scalars stand for the Python numbers they hold: a search
over settings draws them."""

from __future__ import annotations

from dataclasses import fields
from numbers import Real
from typing import Any

import numpy as np

# Values outside are slips: 1/T or T² would cost the remaining precision.
TEMPERATURES = (1e-4, 1e4)


def plain(value: Any) -> Any:
    """The Python number of a NumPy scalar; anything else as it is.

    >>> plain(np.float32(0.5)), plain(np.int64(3)), plain("3")
    (0.5, 3, '3')
    """
    return value.item() if isinstance(value, np.generic) else value


def whole(value: Any) -> bool:
    """Whether ``value`` is an integer, Python's or NumPy's; a bool is none.

    >>> [whole(v) for v in (3, np.int32(3), 3.0, True, np.True_)]
    [True, True, False, False, False]
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def real(value: Any) -> bool:
    """Whether ``value`` is a real number, Python's or NumPy's."""
    # Whether an abstract class has an instance takes 0.5 µs to find out; nearly all are one of these.
    return type(value) is float or type(value) is int or isinstance(value, Real)


def check_temperature(name: str, value: Any) -> None:
    """Raise ValueError where ``value`` is no temperature; ``name`` is the argument's."""
    low, high = TEMPERATURES
    if not (real(value) and low <= float(value) <= high):
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}; got {value!r}")


def plain_fields(settings: Any) -> None:
    """Replace NumPy scalars among the fields of a frozen dataclass, so that they compare, compute and are
    written as Python's numbers."""
    for field in fields(settings):
        if isinstance(value := getattr(settings, field.name), np.generic):
            object.__setattr__(settings, field.name, value.item())
