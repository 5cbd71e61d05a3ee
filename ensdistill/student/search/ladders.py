"""The candidates of a search that are within its budgets, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from ensdistill.student.search.build import Builder, Built
from ensdistill.student.search.families import Candidate, Family
from ensdistill.student.search.journal import Journal
from ensdistill.student.search.latency import Latency, latency_of
from ensdistill.student.search.rows import Lessons, some_samples
from ensdistill.student.search.settings import SearchSettings
from ensdistill.student.units import units_of
from ensdistill.teachers.members import Preprocessed, TorchMember

LABELS = {"seconds": "max_latency", "bytes": "max_bytes", "parameters": "max_parameters"}


class Ladders:
    """The candidates within the budgets, built for some data.

    Parameters
    ----------
    lessons : Lessons
    settings : SearchSettings
    families : sequence of Family
    journal : Journal
        Has the latencies that the first process of the search measured.
    most : float
        Seconds of one fit at most; candidates that need more have no place.
    seed : int

    Attributes
    ----------
    built : dict of str to Built
    keys : dict of str to tuple of str
        By family the keys of its candidates, from the smallest to the largest.

    Raises
    ------
    ValueError
        A budget below every candidate's size; names the smallest. Or too few minutes for any fit.
    """

    def __init__(
        self,
        lessons: Lessons,
        settings: SearchSettings,
        families: Sequence[Family],
        journal: Journal,
        most: float,
        seed: int,
    ) -> None:
        self.lessons, self.journal = lessons, journal
        self.built: dict[str, Built] = {}
        self.keys: dict[str, tuple[str, ...]] = {}
        builder, limits = Builder(lessons, seed), settings.limits
        smallest: dict[str, float] = {}
        for family in families:
            ladder = []
            for candidate in family.candidates(lessons.about):
                if candidate.seconds > most:
                    continue
                one = builder(candidate)
                sizes = self._sizes(one, limits)
                for name, size in sizes.items():
                    smallest[name] = min(size, smallest.get(name, size))
                if all(size <= limits[name] for name, size in sizes.items()):
                    self.built[candidate.key] = one
                    ladder.append(candidate.key)
            if ladder:
                ordered = sorted(ladder, key=lambda key: self.built[key].parameters or 0)
                self.keys[family.name] = tuple(ordered)
        if not self.built:
            raise ValueError(_refusal(settings, [family.name for family in families], smallest))

    def latency(self, key: str) -> Latency | None:
        """Of a network, measured untrained, because its weights have no part in it, by the first process of
        the search. None of other students."""
        return self._latency(self.built[key])

    def candidate(self, key: str) -> Candidate:
        return self.built[key].candidate

    def _latency(self, built: Built) -> Latency | None:
        if built.model is None:
            return None
        name = f"latency of {built.candidate.key}"
        return Latency(**self.journal.setting(name, partial(self._measured, built)))

    def _measured(self, built: Built) -> dict[str, Any]:
        assert built.model is not None
        cache, module = self.lessons.first[1], built.model()
        units = units_of(self.lessons.judged.task, cache)
        if units is None:
            member: Any = TorchMember(module.eval(), output="logits", task=self.lessons.judged.task)
        else:
            output: Any = "mean_and_variance" if self.lessons.variances else "mean"
            member = TorchMember(units.restored(module), output=output, task="regression")
        if built.preprocess is not None:
            member = Preprocessed(member, built.preprocess)
        classes = tuple(map(str, cache.classes))
        return asdict(latency_of(member, some_samples(self.lessons.judged.rows, 8), classes))

    def _sizes(self, one: Built, limits: Mapping[str, float]) -> dict[str, float]:
        """A network's sizes for which there is a limit; those of a booster are known after its fit."""
        if one.model is None:
            return {}
        found = {"parameters": float(one.parameters or 0), "bytes": float(one.bytes or 0)}
        if "seconds" in limits and (latency := self._latency(one)) is not None:
            found["seconds"] = latency.seconds
        return {name: size for name, size in found.items() if name in limits}


def _refusal(settings: SearchSettings, families: Sequence[str], smallest: Mapping[str, float]) -> str:
    """The error where no candidate is left; ``smallest`` has the least sizes of those that were built."""
    names = ", ".join(families)
    if not smallest:
        return (
            f"minutes: expected time for several fits of {names}; got {settings.minutes:g}: give more, or "
            "name other families"
        )
    limits = settings.limits
    name = next(name for name in limits if smallest.get(name, 0) > limits[name])
    return (
        f"{LABELS[name]}: expected at least {smallest[name]:g}, that of the smallest candidate of {names}; "
        f"got {limits[name]:g}"
    )
