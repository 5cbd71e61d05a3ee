"""A run's preflight as text: the ensemble's lead, the members' spread, and advice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ensdistill.report.frontier import goals_of
from ensdistill.report.measures import METRICS, Metric
from ensdistill.student.preflight import Lead, Leads, Preflight

CLASSES = ("entropy", "epistemic", "disagreement")  # of members that name classes or labels


def document(found: Preflight) -> dict[str, Any]:
    """The preflight as JSON."""
    return asdict(found)


def as_text(found: Preflight) -> Group:
    """Tables of the leads and of the spreads, and the advice."""
    metrics = [f"{m.label}, points" if m.percent else m.label for m in _metrics(found)]
    leads = _table("the ensemble's lead on held-out labelled rows", "over", *metrics)
    leads.add_row(f"the best member, {found.best_member}", *_lead_cells(found.over_best_member))
    for name, one in found.over_direct.items():
        leads.add_row(f"{name}, trained directly", *_lead_cells(one))
    numbers = found.task == "regression"
    heads = ("variance, sd²", "epistemic, sd²", "distance, sd") if numbers else CLASSES
    spreads = _table("how much the members differ", "rows", "number", *heads)
    for name, spread in found.spreads.items():
        last = f"{spread.disagreement:.3f}" if numbers else f"{spread.disagreement:.1%}"
        spreads.add_row(name, f"{spread.rows:,}", f"{spread.entropy:.3f}", f"{spread.epistemic:.4f}", last)
    lines = [*expectations(found), *found.advice]
    return Group(leads, spreads, *(Text(line) for line in lines))


def expectations(found: Preflight) -> Iterator[str]:
    """A sentence on the shares that students are expected to keep; none where there is no gain."""
    if found.features and not found.expected:
        yield f"Expected to be kept of the gain: {found.source}"
        return
    leads = found.over_direct or {name: found.over_best_member for name in found.expected}
    kept = {name: one for name, one in found.expected.items() if name not in leads or leads[name].certain}
    if kept:
        shares = ", ".join(f"{name} {one}" for name, one in kept.items())
        metric = goals_of(found.task)[0].label
        yield f"Expected to be kept of the gain in {metric}: {shares} ({found.source})"


def summary(found: Preflight) -> Iterator[str]:
    """A line on the lead over the best member, the shares expected to be kept, and the advice."""
    cells = _lead_cells(found.over_best_member)
    units = ["points" if m.percent else m.unit for m in _metrics(found)]
    parts = zip(_metrics(found), cells, units, strict=True)
    leads = ", ".join(f"{metric.label} {cell} {unit}" for metric, cell, unit in parts)
    over = f"ensemble over its best member, {found.best_member}"
    yield f"preflight: {over}: {leads}, positive where it is better"
    yield from expectations(found)
    yield from found.advice


def _metrics(found: Preflight) -> list[Metric]:
    return [METRICS[name] for name in found.over_best_member]


def _lead_cells(leads: Leads) -> list[str]:
    percents = {name: METRICS[name].percent for name in leads}
    return [_cell(one, 100, 2) if percents[name] else _cell(one, 1, 3) for name, one in leads.items()]


def _cell(lead: Lead, factor: float, digits: int) -> str:
    mean, low, high = (f"{factor * value:+.{digits}f}" for value in (lead.mean, lead.low, lead.high))
    return f"{mean} [{low}, {high}]"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table
