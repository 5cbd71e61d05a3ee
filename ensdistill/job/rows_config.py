"""The settings of a student's part of the transfer set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ensdistill.common.scalars import plain_fields


@dataclass(frozen=True)
class StudentRows:
    """A student's part of the transfer set, from the same cache as the other students'.

    Parameters
    ----------
    synthetic : float
        The weight of a synthetic row in the loss, beside 1 of the others; 0 leaves synthetic rows out.
    labelled : {"in_sample", "out_of_fold", "mixed"}, optional
        The targets of labelled rows, in place of ``cache.labelled``, which has to be in_sample then.
    """

    synthetic: float = 1.0
    labelled: Literal["in_sample", "out_of_fold", "mixed"] | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        if not 0 <= self.synthetic <= 1:
            raise ValueError(f"rows.synthetic: expected a weight in [0, 1]; got {self.synthetic}")
