"""Settings of a search for a student: what it has to keep, what it may cost, and how long it is sought."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ensdistill.common.scalars import plain_fields, real, whole

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_BYTES = {"b": 1, "kb": 1_000, "mb": 1_000_000, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MINUTES = 10.0
_NUMBER = re.compile(r"\s*([0-9.]+(?:[eE][-+]?\d+)?)\s*([^\s\d]*)\s*")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """The goal and the budget of a search; see :func:`ensdistill.student.search.search_student`.

    Parameters
    ----------
    keep : float, optional
        The share of the ensemble's gain over a direct student, in NLL and in accuracy, that the chosen
        student keeps on the validation rows: the smallest student that does is chosen. Without it the student
        that keeps the most within the budgets is.
    max_latency : float or str, optional
        Of one row, p50 in one thread: seconds, or a text such as ``"50us"`` or ``"2 ms"``.
    max_bytes : int or str, optional
        Of the student's numbers: bytes, or a text such as ``"200kB"``.
    max_parameters : int, optional
    minutes : float
        Of the whole search. Half of it is the direct student's.
    trials : int, optional
        So many trials of the student and as many of the direct one, in place of ``minutes``: a search that is
        the same on every machine.
    families : sequence of str or Family
        Names of ensdistill.student.search.families.FAMILIES, or import paths of your own. Empty: all that
        fit the samples.
    steps : int, optional
        The steps of an ordinary training; long ones have multiples of it. By default they depend on the
        number of rows, and on the minutes.

    Raises
    ------
    ValueError, TypeError
        A value outside the ranges above.

    Examples
    --------
    >>> SearchSettings(max_latency="50us", max_bytes="200kB").limits
    {'seconds': 5e-05, 'bytes': 200000.0}
    """

    keep: float | None = None
    max_latency: float | str | None = None
    max_bytes: int | str | None = None
    max_parameters: int | None = None
    minutes: float = MINUTES
    trials: int | None = None
    families: tuple[Any, ...] = ()
    steps: int | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        if isinstance(self.families, str):
            raise TypeError(f"families: expected a list of names; got the text {self.families!r}")
        object.__setattr__(self, "families", tuple(self.families))
        check_goal(self.keep, self.max_latency, self.max_bytes, self.max_parameters)
        check_budget(self.minutes, self.trials)
        if self.steps is not None and not (whole(self.steps) and self.steps >= 64):
            raise ValueError(f"steps: expected an integer of at least 64; got {self.steps!r}")

    @property
    def limits(self) -> dict[str, float]:
        """The largest ``seconds``, ``bytes`` and ``parameters``, where there are limits."""
        found = {
            "seconds": quantity("max_latency", self.max_latency, _SECONDS, "a time such as 50us"),
            "bytes": quantity("max_bytes", self.max_bytes, _BYTES, "a size such as 200kB"),
            "parameters": None if self.max_parameters is None else float(self.max_parameters),
        }
        return {name: value for name, value in found.items() if value is not None}


def in_words(name: str, value: float) -> str:
    """A size with its unit.

    Parameters
    ----------
    name : {"seconds", "bytes", "parameters"}
    value : float

    Examples
    --------
    >>> in_words("seconds", 1.2e-05), in_words("bytes", 7592.0)
    ('12 us', '7,592 bytes')
    """
    if name != "seconds":
        return f"{value:,.0f} {name}"
    unit = next((unit for unit in ("s", "ms", "us") if value >= _SECONDS[unit]), "ns")
    return f"{value / _SECONDS[unit]:.4g} {unit}"


def check_goal(keep: Any, max_latency: Any, max_bytes: Any, max_parameters: Any) -> None:
    """Raise ValueError or TypeError for a goal that is none."""
    if keep is not None and not (real(keep) and not isinstance(keep, bool) and 0 < keep <= 1):
        raise ValueError(f"keep: expected a share in (0, 1], such as 0.95; got {keep!r}")
    if max_parameters is not None and not (whole(max_parameters) and max_parameters >= 1):
        raise ValueError(f"max_parameters: expected an integer of at least 1; got {max_parameters!r}")
    quantity("max_latency", max_latency, _SECONDS, "a time such as 50us")
    quantity("max_bytes", max_bytes, _BYTES, "a size such as 200kB")


def check_budget(minutes: Any, trials: Any) -> None:
    """Raise ValueError for a budget that is none."""
    if not (real(minutes) and not isinstance(minutes, bool) and 0 < minutes < math.inf):
        raise ValueError(f"minutes: expected a positive number; got {minutes!r}")
    if trials is not None and not (whole(trials) and trials >= 1):
        raise ValueError(f"trials: expected an integer of at least 1; got {trials!r}")


def quantity(name: str, value: Any, units: dict[str, Any], expected: str) -> float | None:
    """A number, or a text of a number with a unit, in the base unit.

    Examples
    --------
    >>> quantity("max_bytes", "1.5 kB", _BYTES, "a size")
    1500.0
    """
    if value is None:
        return None
    number, unit = value, ""
    if isinstance(value, str):
        found = _NUMBER.fullmatch(value)
        unit = found.group(2).lower() if found else "?"
        try:
            number = float(found.group(1)) if found else None
        except ValueError:
            number = None
        if unit and unit not in units:
            number = None
    if not real(number) or isinstance(number, bool) or not 0 < float(number) < math.inf:
        raise ValueError(
            f"{name}: expected a positive number, or {expected} ({', '.join(units)}); got {value!r}"
        )
    return float(Decimal(str(number)) * Decimal(str(units.get(unit, 1))))  # as written: 50us are 5e-05 s
