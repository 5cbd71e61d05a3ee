"""What the methods of this package have in common: their settings' checks, and what they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ensdistill.cache import TargetCache
from ensdistill.common.scalars import real
from ensdistill.common.tasks import task_of
from ensdistill.data import Rows
from ensdistill.student.methods.protocol import StudentLoss
from ensdistill.student.methods.soft_targets import check_temperature_of, name_of_source

if TYPE_CHECKING:
    from ensdistill.student.sources import TargetSource


class Method(StudentLoss):
    """A method for classification.

    Attributes
    ----------
    takes_mixture : bool
        Whether the mixture serves as well as the members.
    least_members : int
    compares_rows : bool
        Whether it compares the rows of a batch with each other, so that a row's weight has no meaning.
    temperatures : sequence of float
        At which it reads the targets.
    """

    takes_mixture = True
    least_members: ClassVar[int] = 1
    compares_rows: ClassVar[bool] = False

    @property
    def temperatures(self) -> Sequence[float]:
        return (getattr(self, "temperature", 1.0),)

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        """Raise ValueError for another task, for targets of another temperature or of too few members, and
        for weights of rows that the method cannot use."""
        name = type(self).__name__
        if cache is not None:
            if (task := task_of(cache)) != "classification":
                raise ValueError(
                    f"method: expected one for the task {task} of {name_of_source(cache)}; got {name}, which "
                    "is for classification: choose kd"
                )
            if len(cache.names) < self.least_members:
                raise ValueError(
                    f"method: expected at least {self.least_members} members for {name}, which keeps how "
                    f"they differ; {name_of_source(cache)} has {len(cache.names)}: choose kd"
                )
            for temperature in self.temperatures:
                check_temperature_of(temperature, cache)
        if self.compares_rows and rows.weights is not None:
            raise ValueError(
                f"rows.weights: expected none for {name}, which compares the rows of a batch with each "
                "other; got weights: leave them out, or choose a method that takes each row by itself"
            )


def check_number(name: str, value: object, *, above: float | None = None) -> float:
    """A setting as a float.

    Raises
    ------
    ValueError
        It is no finite number of at least 0, or of more than ``above``.
    """
    if real(value):
        number = float(value)  # type: ignore[arg-type]
        if (number > above if above is not None else number >= 0) and number < math.inf:
            return number
    wanted = "of at least 0" if above is None else f"above {above:g}"
    raise ValueError(f"{name}: expected a finite number {wanted}; got {value!r}")
