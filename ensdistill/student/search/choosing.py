"""From a search's trials to its frontier and its choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ensdistill.report.frontier import goals_of
from ensdistill.student.search.finals import moved
from ensdistill.student.search.journal import Record, best_of
from ensdistill.student.search.judging import Kept, gain, kept
from ensdistill.student.search.latency import Latency
from ensdistill.student.search.result import Cost, Point, SearchResult
from ensdistill.student.search.rows import Lessons
from ensdistill.student.search.section import section_of
from ensdistill.student.search.space import ROLES

if TYPE_CHECKING:
    from ensdistill.student.search.search import _Search

WIDE = 0.2  # half of an interval beyond which more rows are advised
FAR = 0.1  # below the wanted share: then a size that was not tried is two sizes larger, otherwise one


def chosen_of(search: _Search) -> SearchResult:
    """The result of the trials so far.

    Raises
    ------
    ValueError
        Not one direct student or not one student was judged within the budget.
    """
    records, judged = search.journal.records(), search.lessons.judged
    direct = best_of([one for one in records if _fits(search, one)], "direct") or best_of(records, "direct")
    bests = [one for key in search.ladders.built if (one := best_of(records, "student", key)) is not None]
    if direct is None or not bests:
        missing = "direct student" if direct is None else "student"
        raise ValueError(
            f"families: expected a training of each role that comes to its end; every {missing} diverged, in "
            f"{sum(one.state == 'failed' for one in records)} trials: name other families"
        )
    of = search.judgement
    points = sorted((_point(search, one, direct) for one in bests), key=_size)
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
    untried = None if nearest is None else _untried(search, nearest, records)
    own = _timed(search, _point(search, direct, direct))
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
        _notes(gain(of.of(direct), of.ensemble), own.kept, chosen, search.lessons),
        judged.task,
        untried,
    )


def _untried(search: _Search, nearest: Point, records: Sequence[Record]) -> Point | None:
    """A larger size of the nearest student's family, of which no larger one had a long training; None where
    one had, or where there is none."""
    keep, share = search.settings.keep, nearest.share
    built = search.ladders.built
    if keep is None or share is None or share >= keep or built[nearest.candidate].model is None:
        return None
    ladder = next(keys for keys in search.ladders.keys.values() if nearest.candidate in keys)
    larger = ladder[ladder.index(nearest.candidate) + 1 :]
    tried = {one.candidate for one in records if one.role == "student" and one.final}
    if not larger or tried.intersection(larger):
        return None
    key = larger[min(1 if keep - share > FAR else 0, len(larger) - 1)]
    best = best_of(records, "student", nearest.candidate)
    assert best is not None
    space = search.space("student", key)
    values = moved(best, search.space("student", nearest.candidate), space)
    section = _section(search, key, values)
    one = built[key]
    assert one.parameters is not None
    assert one.bytes is not None
    return Point(key, one.parameters, one.bytes, None, "", {}, {}, values, section)


def _section(search: _Search, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    own, given = search.settings.steps is not None, search.lessons.mixtures
    rows = None if own else given[values.get("mixture", next(iter(given)))][0]
    return section_of(search.ladders.built[key], search.space("student", key), values, rows)


def _point(search: _Search, record: Record, direct: Record) -> Point:
    of, key = search.judgement, record.candidate
    section: dict[str, Any] = {}
    if record.role == "student":
        section = _section(search, key, record.values)
    return Point(
        key,
        record.parameters,
        record.bytes,
        None if record.latency is None else record.latency["seconds"],
        "" if record.latency is None else record.latency["runtime"],
        kept(of.of(record), of.of(direct), of.ensemble),
        dict(record.losses),
        dict(record.values),
        section,
        fits=_fits(search, record),
    )


def _fits(search: _Search, record: Record) -> bool:
    """Whether a student is within the limits."""
    sizes: dict[str, float] = {"parameters": record.parameters, "bytes": record.bytes}
    if "seconds" in search.settings.limits and (latency := _latency(search, record)) is not None:
        sizes["seconds"] = latency.seconds
    return all(sizes[name] <= limit for name, limit in search.settings.limits.items() if name in sizes)


def _latency(search: _Search, record: Record) -> Latency | None:
    """The one that the trial measured, or that of the candidate's network."""
    if record.latency is not None:
        return Latency(**record.latency)
    return search.ladders.latency(record.candidate)


def _timed(search: _Search, one: Point) -> Point:
    latency = search.ladders.latency(one.candidate)
    return one if latency is None else replace(one, latency=latency.seconds, runtime=latency.runtime)


def _keeps(one: Point, direct: Record, keep: float) -> bool:
    """Whether the shares are at least ``keep``, and no interval lies below it.

    A share by the ensemble's own predictions is of likeness: a student may be like an ensemble that is no
    better than direct. So where rows have labels, its NLL on them must not be above direct's.
    """
    likelihood = next(iter(one.kept))
    if likelihood in direct.losses and one.figures[likelihood] > direct.losses[likelihood]:
        return False
    highs = [share.high for share in one.kept.values()]
    return (one.share or 0.0) >= keep and all(high is None or high >= keep for high in highs)


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
    ahead: Mapping[str, tuple[float, float, float] | None],
    kept: Mapping[str, Kept],
    chosen: Point | None,
    lessons: Lessons,
) -> tuple[str, ...]:
    judged = lessons.judged
    metrics, notes, labelled = goals_of(judged.task), [], int(judged.labelled.sum())
    for metric in metrics:
        found, name = ahead[metric.name], f"{metric.label} (%)" if metric.percent else metric.label
        if found is not None:
            mean, low, high = (metric.scale * value for value in found)
            beyond = "" if low > 0 else ": not beyond its interval, so a direct model may be as good"
            beyond = beyond if mean > 0 else ": there is none, so a direct model is as good"
            beyond = beyond if high >= 0 else ": it is a loss, so a direct model is better"
            notes.append(
                f"The ensemble's gain over direct in {name}: {mean:.3g} [{low:.3g}, {high:.3g}]{beyond}."
            )
    if unclear := [metric.label for metric in metrics if kept[metric.name].basis == "ensemble"]:
        notes.append(
            f"The labels do not show whether the ensemble has a gain over direct in {' and '.join(unclear)}. "
            f"Of the {len(judged.rows):,} rows that judged, {labelled:,} have a label and "
            f"{lessons.synthetic:,} are synthetic. A share with a star is likeness to the ensemble; a job's "
            "report shows on test rows whether there is a gain."
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
