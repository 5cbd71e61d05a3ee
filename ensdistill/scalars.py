"""NumPy scalars as settings: a search over settings often draws them, and they stand for the Python numbers they hold."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np


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


def plain_fields(settings: Any) -> None:
    """Replace NumPy scalars among the fields of a frozen dataclass, so that they compare, compute and are written as Python's numbers."""
    for field in fields(settings):
        if isinstance(value := getattr(settings, field.name), np.generic):
            object.__setattr__(settings, field.name, value.item())
