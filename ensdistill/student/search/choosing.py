"""From a search's trials to its frontier and its choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ensdistill.report.frontier import goals_of
from ensdistill.student.search.journal import Record, best_of
from ensdistill.student.search.judging import Kept, gain, kept
from ensdistill.student.search.result import Cost, Point, SearchResult
from ensdistill.student.search.rows import Judged
from ensdistill.student.search.section import section_of
from ensdistill.student.search.space import ROLES

if TYPE_CHECKING:
    from ensdistill.student.search.search import _Search

WIDE = 0.2  # half of an interval beyond which more rows are advised


def chosen_of(search: _Search) -> SearchResult:
    """The result of the trials so far.

    Raises
    ------
    ValueError
        Not one direct student or not one student was judged within the budget.
    """
    records, judged = search.journal.records(), search.lessons.judged
    direct = best_of(records, "direct")
    bests = [one for key in search.ladders.built if (one := best_of(records, "student", key)) is not None]
    if direct is None or not bests:
        missing = "direct student" if direct is None else "student"
        raise ValueError(
            f"families: expected a training of each role that comes to its end; every {missing} diverged, in "
            f"{sum(one.state == 'failed' for one in records)} trials: name other families"
        )
    of = search.judgement
    points = sorted((_point(search, one, direct, records) for one in bests), key=_size)
    points = [replace(one, frontier=_leads(one, points)) for one in points]
    points = [_timed(search, one) if one.frontier else one for one in points]
    settings = search.settings
    allowed = [one for one in points if one.fits and one.share is not None]
    enough = [one for one in allowed if settings.keep is None or _keeps(one, direct, settings.keep)]
    chosen = None
    if enough:
        chosen = min(enough, key=_size) if settings.keep is not None else max(enough, key=_merit)
    nearest = None
    if chosen is None:
        nearest = max(allowed or points, key=_merit)
    own = _timed(search, _point(search, direct, direct, records))
    ratio = {name: Kept(0.0, None, None, one.basis) for name, one in own.kept.items()}
    return SearchResult(
        tuple(points),
        chosen,
        nearest,
        replace(own, kept=ratio),
        of.ensemble.means,
        gain(of.of(direct), of.ensemble),
        settings.keep,
        settings.limits,
        len(judged.rows),
        int(judged.labelled.sum()),
        _cost(search, records),
        _notes(gain(of.of(direct), of.ensemble), chosen, judged),
        judged.task,
    )


def _point(search: _Search, record: Record, direct: Record, records: Sequence[Record]) -> Point:
    of, key = search.judgement, record.candidate
    built = search.ladders.built[key]
    limits = search.settings.limits
    sizes: dict[str, float] = {"parameters": record.parameters, "bytes": record.bytes}
    if "seconds" in limits and (latency := search.ladders.latency(key)) is not None:
        sizes["seconds"] = latency.seconds
    fits = all(sizes[name] <= limit for name, limit in limits.items() if name in sizes)
    same = best_of(records, "direct", key)
    space = search.space(record.role, key)
    section: dict[str, Any] = {}
    if record.role == "student":
        own, given = search.settings.steps is not None, search.lessons.mixtures
        rows = None if own else given[record.values.get("mixture", next(iter(given)))][0]
        section = section_of(built, space, record.values, same, search.space("direct", key), rows)
    return Point(
        key,
        record.parameters,
        record.bytes,
        None,
        "",
        kept(of.of(record), of.of(direct), of.ensemble),
        dict(record.losses),
        dict(record.values),
        section,
        fits=fits,
    )


def _timed(search: _Search, one: Point) -> Point:
    latency = search.ladders.latency(one.candidate)
    return one if latency is None else replace(one, latency=latency.seconds, runtime=latency.runtime)


def _keeps(one: Point, direct: Record, keep: float) -> bool:
    """Whether both shares are at least ``keep``, and no interval lies below it.

    A share by the ensemble's own predictions is of likeness: a student may be like an ensemble that is no
    better than direct. So where rows have labels, its NLL on them must not be above direct's.
    """
    likelihood = next(iter(one.kept))
    if likelihood in direct.losses and one.figures[likelihood] > direct.losses[likelihood]:
        return False
    return all(
        share.share is not None and share.share >= keep and (share.high is None or share.high >= keep)
        for share in one.kept.values()
    )


def _leads(one: Point, points: Sequence[Point]) -> bool:
    """Whether no smaller candidate keeps as much."""
    smaller = [other for other in points if _size(other) < _size(one)]
    return all(_merit(other) < _merit(one) for other in smaller)


def _size(one: Point) -> tuple[int, int, str]:
    return one.bytes, one.parameters, one.candidate


def _merit(one: Point) -> tuple[float, float]:
    share = one.share
    return (float("-inf") if share is None else share), -one.figures["kl"]


def _cost(search: _Search, records: Sequence[Record]) -> Cost:
    def count(role: str, *states: str) -> int:
        return sum(one.role == role and (not states or one.state in states) for one in records)

    rows = {str(cache.path): len(cache.uids) for _, cache in search.lessons.mixtures.values()}
    return Cost(
        {role: sum(one.seconds for one in records if one.role == role) for role in ROLES},
        {role: count(role) for role in ROLES},
        {role: count(role, "ended") for role in ROLES},
        {role: count(role, "failed") for role in ROLES},
        sum(rows.values()) + search.lessons.asked,
    )


def _notes(
    ahead: dict[str, tuple[float, float, float] | None], chosen: Point | None, judged: Judged
) -> tuple[str, ...]:
    notes, labelled = [], int(judged.labelled.sum())
    for metric in goals_of(judged.task):
        found, name = ahead[metric.name], f"{metric.label} (%)" if metric.percent else metric.label
        if found is not None:
            mean, low, high = (metric.scale * value for value in found)
            beyond = "" if low > 0 else ": not beyond its interval, so a direct model may be as good"
            beyond = beyond if mean > 0 else ": there is none, so a direct model is as good"
            notes.append(
                f"The ensemble's gain over direct in {name}: {mean:.3g} [{low:.3g}, {high:.3g}]{beyond}."
            )
    if chosen is not None and labelled:
        widths = [
            (one.high - one.low) / 2
            for one in chosen.kept.values()
            if one.low is not None and one.high is not None
        ]
        if widths and max(widths) > WIDE:
            needed = round(labelled * (max(widths) / WIDE) ** 2, -1)
            notes.append(
                f"The interval of what is kept is ±{100 * max(widths):.0f} points; ±{100 * WIDE:.0f} needs "
                f"about {needed:,.0f} validation rows."
            )
    return tuple(notes)
