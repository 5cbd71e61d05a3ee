"""The candidates of a search that are within its budgets, and their sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from ensdistill.data import Rows
from ensdistill.student.search.build import Builder, Built
from ensdistill.student.search.families import Candidate, Family, families_for
from ensdistill.student.search.journal import Journal
from ensdistill.student.search.latency import Latency, latency_of
from ensdistill.student.search.rows import Lessons, about_of, some_samples
from ensdistill.student.search.settings import SearchSettings, in_words
from ensdistill.student.units import units_of
from ensdistill.teachers.members import Preprocessed, TorchMember

LABELS = {"seconds": "max_latency", "bytes": "max_bytes", "parameters": "max_parameters"}


class Ladders:
    """The candidates within the budgets, built for some data. A budget of parameters leaves estimators out,
    because theirs are not counted.

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
        Budgets that no candidate meets together; names the nearest. Or too few minutes for any fit.
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
        limits = settings.limits
        rows, cache = lessons.first
        builder = Builder(rows.inputs, len(cache.classes), seed, lessons.variances)
        beyond: dict[str, dict[str, float]] = {}
        uncounted = False
        for family in families:
            ladder = []
            for candidate in family.candidates(lessons.about):
                if candidate.seconds > most:
                    continue
                if candidate.model is None and "parameters" in limits:
                    uncounted = True
                    continue
                one = builder(candidate)
                sizes = self._sizes(one, limits)
                if any(size > limits[name] for name, size in sizes.items()):
                    beyond[candidate.key] = sizes
                else:
                    self.built[candidate.key] = one
                    ladder.append(candidate.key)
            if ladder:
                ordered = sorted(ladder, key=lambda key: self.built[key].parameters or 0)
                self.keys[family.name] = tuple(ordered)
        if not self.built:
            names = ", ".join(family.name for family in families)
            raise ValueError(_refusal(settings, names, beyond, uncounted))

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
        found = _counted(one, limits)
        if "seconds" in limits and (latency := self._latency(one)) is not None:
            found["seconds"] = latency.seconds
        return found


def check_sizes(settings: SearchSettings, rows: Rows, classes: int, seed: int) -> None:
    """Refuse budgets of parameters and bytes that no candidate meets, from labelled rows alone.

    The transfer set holds these rows and more, and outputs for variances may follow, so a candidate of the
    search is no smaller than here. Latencies are left to the search.

    Raises
    ------
    ValueError
        No candidate meets the budgets; names the nearest. Or a named family does not fit the samples.
    """
    about = about_of(rows.inputs, len(rows), len(rows), classes, rows.task)
    families = families_for(settings.families, about)
    settings = replace(settings, max_latency=None)
    if not (limits := settings.limits):
        return
    builder = Builder(rows.inputs, classes, seed)
    beyond: dict[str, dict[str, float]] = {}
    uncounted = False
    for candidate in (one for family in families for one in family.candidates(about)):
        if candidate.model is None:
            if "parameters" not in limits:
                return  # a booster's bytes are known after its fit
            uncounted = True
            continue
        sizes = _counted(builder(candidate), limits)
        if all(size <= limits[name] for name, size in sizes.items()):
            return
        beyond[candidate.key] = sizes
    names = ", ".join(family.name for family in families)
    raise ValueError(_refusal(settings, names, beyond, uncounted))


def _counted(one: Built, limits: Mapping[str, float]) -> dict[str, float]:
    """A network's parameters and bytes, where there is a limit."""
    found = {"parameters": float(one.parameters or 0), "bytes": float(one.bytes or 0)}
    return {name: size for name, size in found.items() if name in limits}


def _refusal(
    settings: SearchSettings,
    names: str,
    beyond: Mapping[str, Mapping[str, float]],
    uncounted: bool = False,
) -> str:
    """The error where no candidate is left; ``beyond`` has the sizes of candidates beyond a budget, and
    ``uncounted`` is whether others were left out because their parameters are not counted."""
    if uncounted and not beyond:
        return (
            f"max_parameters: expected none with {names} alone, whose parameters are not counted; got "
            f"{settings.max_parameters}: set max_bytes or max_latency, or name other families"
        )
    if not beyond:
        return (
            f"minutes: expected time for several fits of {names}; got {settings.minutes:g}: give more, or "
            "name other families"
        )
    limits = settings.limits
    least = {name: min((sizes[name], key) for key, sizes in beyond.items()) for name in limits}
    short = [name for name in limits if least[name][0] > limits[name]]
    named = short or list(limits)  # each is met by some candidate, but by none together with the others
    expected = "at least" if short else "one candidate within all of them; the least of each are"
    nearest, sizes = min(
        beyond.items(), key=lambda one: max(one[1][name] / limit for name, limit in limits.items())
    )
    raised = [name for name in limits if sizes[name] > limits[name]]
    return (
        f"{_listed(LABELS[name] for name in named)}: expected {expected} "
        f"{_listed(f'{in_words(name, least[name][0])} ({least[name][1]})' for name in named)}; got "
        f"{_listed(in_words(name, limits[name]) for name in named)}. Of {names}, the nearest candidate is "
        f"{nearest}, with {_listed(in_words(name, sizes[name]) for name in limits)}: raise "
        f"{_listed(f'{LABELS[name]} beyond {in_words(name, sizes[name])}' for name in raised)}, or name "
        "other families"
    )


def _listed(parts: Iterable[str]) -> str:
    return " and ".join(parts)
