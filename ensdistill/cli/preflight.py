"""A run's preflight as text: the ensemble's lead, the members' spread, and advice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ensdistill.student.preflight import Lead, Leads, Preflight


def document(found: Preflight) -> dict[str, Any]:
    """The preflight as JSON."""
    return asdict(found)


def as_text(found: Preflight) -> Group:
    """Tables of the leads and of the spreads, and the advice."""
    leads = _table("the ensemble's lead on held-out labelled rows", "over", "accuracy, points", "NLL")
    leads.add_row(f"the best member, {found.best_member}", *_lead_cells(found.over_best_member))
    for name, one in found.over_direct.items():
        leads.add_row(f"{name}, trained directly", *_lead_cells(one))
    spreads = _table("how much the members differ", "rows", "number", "entropy", "epistemic", "disagreement")
    for name, spread in found.spreads.items():
        figures = (f"{spread.entropy:.3f}", f"{spread.epistemic:.4f}", f"{spread.disagreement:.1%}")
        spreads.add_row(name, f"{spread.rows:,}", *figures)
    lines = [*expectations(found), *found.advice]
    return Group(leads, spreads, *(Text(line) for line in lines))


def expectations(found: Preflight) -> Iterator[str]:
    """A sentence on the shares that students are expected to keep; none where there is no gain."""
    leads = found.over_direct or {name: found.over_best_member for name in found.expected}
    kept = {name: one for name, one in found.expected.items() if name not in leads or leads[name].certain}
    if kept:
        shares = ", ".join(f"{name} {one}" for name, one in kept.items())
        yield f"Expected to be kept of the gain in NLL: {shares} ({found.source})"


def summary(found: Preflight) -> Iterator[str]:
    """A line on the lead over the best member, the shares expected to be kept, and the advice."""
    accuracy, nll = _lead_cells(found.over_best_member)
    over = f"ensemble over its best member, {found.best_member}"
    yield f"preflight: {over}: accuracy {accuracy} points, NLL {nll} nats, positive where it is better"
    yield from expectations(found)
    yield from found.advice


def _lead_cells(leads: Leads) -> tuple[str, str]:
    return _cell(leads.accuracy, 100, 2), _cell(leads.nll, 1, 3)


def _cell(lead: Lead, factor: float, digits: int) -> str:
    mean, low, high = (f"{factor * value:+.{digits}f}" for value in (lead.mean, lead.low, lead.high))
    return f"{mean} [{low}, {high}]"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table
