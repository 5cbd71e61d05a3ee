"""The time that a training spent on its targets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter


@dataclass
class StepCost:
    """The time of a training's steps, and the share of it that is the targets'.

    Parameters
    ----------
    steps : int
        Steps of this run of the training; those before a resume are not counted.
    seconds : float
        From the first batch to the end.
    making : float
        Seconds that the source of targets worked, most of them on another thread while the student trained.
    waited : float
        Seconds that the student waited for targets, and for inputs that are read together with them, which
        can make it longer than the members' work.
    online : bool
        Whether members predicted.
    asked : int
        Rows of the batches for which they did: the student's batches of this run, and one block ahead.

    Examples
    --------
    >>> print(StepCost(steps=100, seconds=0.5, making=0.4, waited=0.3, online=True))
    a step took 5.000 ms: the members worked for 4.000 ms, and the student waited for targets and inputs for
    3.000 ms; with targets from a cache it would take 2.000 ms or less
    """

    steps: int = 0
    seconds: float = 0.0
    making: float = 0.0
    waited: float = 0.0
    online: bool = False
    asked: int = 0
    _begun: float = field(default_factory=perf_counter, repr=False)

    def __str__(self) -> str:
        whole, making, waited = (
            1000 * part / max(1, self.steps) for part in (self.seconds, self.making, self.waited)
        )
        if not self.online:
            return f"a step took {whole:.3f} ms, {waited:.3f} ms of which the student waited for its targets"
        return (
            f"a step took {whole:.3f} ms: the members worked for {making:.3f} ms, and the student waited for "
            f"targets and inputs for {waited:.3f} ms; with targets from a cache it would take "
            f"{whole - min(waited, making):.3f} ms or less"
            f"{f'; they predicted {self.asked} rows' if self.asked else ''}"
        )

    @contextmanager
    def counted(self, part: str) -> Iterator[None]:
        """Add the time in here to ``making`` or ``waited``."""
        begun = perf_counter()
        try:
            yield
        finally:
            setattr(self, part, getattr(self, part) + perf_counter() - begun)

    def add(self, steps: int) -> None:
        """Count steps that are done."""
        self.steps += steps
        self.seconds = perf_counter() - self._begun
