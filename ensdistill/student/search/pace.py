"""The pace of trainings, from the trials so far: how long a training takes, and how long it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ensdistill.student.search.journal import Record
from ensdistill.student.search.space import Role

SLOWER = 0.8  # exponent of the parameters in the time of a step, where a candidate has not been trained yet
OVERHEAD = 1.5e-3  # seconds of a step that do not depend on the parameters
RATE = 1e10  # multiplications and additions in a second; a step has six for each parameter and row
WIDER = 0.5  # that of the batch
SPARE = 1.25  # a training may take longer than those before it
ORDINARY = 1.0


@dataclass(frozen=True)
class Pace:
    """The seconds of trainings of one role.

    Parameters
    ----------
    records : sequence of Record
    role : {"student", "direct"}
    parameters : dict of str to int or None
        By candidate; None of estimators.
    ordinary : int
        Steps of an ordinary training.
    """

    records: Sequence[Record]
    role: Role
    parameters: Mapping[str, int | None]
    ordinary: int

    def seconds(self, candidate: str, values: Mapping[str, Any]) -> float | None:
        """The expected seconds of a training; None where nothing comparable was trained. Without a ``batch``,
        which is drawn then, that of the training it is compared with."""
        judged = [one for one in self.records if one.role == self.role and one.state == "done" and one.steps]
        own = [one for one in judged if one.candidate == candidate]
        if self.parameters[candidate] is None:
            return SPARE * max(one.seconds for one in own) if own else None
        known = own or [one for one in judged if self.parameters.get(one.candidate) is not None]
        if not known:
            return None
        size, steps = self.parameters[candidate] or 1, float(values["steps"]) * self.ordinary

        def each(one: Record) -> float:
            smaller, batch = self.parameters[one.candidate] or 1, float(one.values["batch"])
            own = one.seconds / one.steps
            fixed = min(own, OVERHEAD)
            larger = fixed + (own - fixed) * max(1.0, size / smaller) ** SLOWER
            larger = max(larger, own + 6 * batch * (size - smaller) / RATE)
            wider = max(1.0, float(values.get("batch", batch)) / batch) ** WIDER
            return larger * wider

        nearest = min(known, key=lambda one: (abs(one.parameters - size), -one.steps))
        alike = [one for one in known if one.candidate == nearest.candidate]
        longest = max(alike, key=lambda one: one.steps)  # the start of a training counts least
        return SPARE * steps * each(longest)

    def within(self, candidate: str, values: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The values with a training cut to about so many seconds."""
        expected = self.seconds(candidate, values)
        if expected is None or expected <= seconds or "steps" not in values:
            return dict(values)
        return {**values, "steps": float(values["steps"]) * max(seconds, 0.0) / expected}
