"""Several runs side by side, from their report.json files: one table, and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ensdistill.common import files
from ensdistill.common.tasks import Task
from ensdistill.report import html
from ensdistill.report.captions import shown_figures
from ensdistill.report.cells import gain_cell, kept_cell, metric_cell, milliseconds, parameters, size
from ensdistill.report.cost_figure import Mark, beside, draw
from ensdistill.report.drawing import Drawn, in_parts, lay_out, styled
from ensdistill.report.measures import MEASURES, Metric
from ensdistill.report.sections import Section
from ensdistill.report.table import check_version, look
from ensdistill.report.verdict import KIND_LABELS, headline

KINDS = ("ensemble", "best_member", "direct", "student")
STUDENT = KIND_LABELS["student"]  # the row that stands out
FRONTIER = (
    "Each student, joined to its direct model of the same cost, and each run's ensemble: on the test rows of "
    "the run, timed on its machine."
)
LABEL_WIDTH, COLUMN_WIDTH = 24, 18  # of the table in a terminal


@dataclass(frozen=True)
class Column:
    """One student of one run: its headline and the colour of that, cells by (section, row), in the order
    in which they are shown, and the report's entries of its models by kind."""

    title: str
    run: str
    headline: str
    look: str
    cells: dict[tuple[str, str], str]
    task: Task
    models: dict[str, Any]


def compared(runs: Sequence[tuple[str, dict[str, Any]]]) -> list[Column]:
    """A column for each student of each (name, report).

    Raises
    ------
    ValueError
        A report was written by another version, or the runs have different tasks.
    """
    columns = []
    first = runs[0]
    for run, report in runs:
        try:
            check_version(report)
        except ValueError as error:
            raise ValueError(f"{run}: {error}") from error
        if report["task"] != first[1]["task"]:
            raise ValueError(
                f"{run}: expected a run of the same task as {first[0]}, {first[1]['task']}; got "
                f"{report['task']}. Their metrics have nothing in common: compare runs of one task"
            )
        columns += [_column(run, report, name, student) for name, student in report["students"].items()]
    return columns


def _column(run: str, report: dict[str, Any], name: str, student: dict[str, Any]) -> Column:
    data, models = report["dataset"], student["models"]
    cells = {
        ("data", "kind"): str(data["name"]),
        ("data", "rows with labels"): str(data["labelled"]),
        ("data", "without (pool)"): str(data["pool"]),
        ("data", "for testing"): str(data["test"]),
        ("data", MEASURES[report["task"]].outputs): str(data["classes"]),
        ("data", "seeds"): str(len(report["seeds"])),
        ("ensemble", "members"): str(len(report["members"])),
    }
    gains, kept = student["gains"]["student"], student["retained_gain"]
    strongest = student["strongest"]["all"]
    for section, metric in ((m.heading, m.name) for m in MEASURES[report["task"]].compared):
        for kind in KINDS:
            cells[section, KIND_LABELS[kind]] = metric_cell(models[kind], metric)
        gain = gain_cell(metric, gains[metric]) if metric in gains else "-"
        over = kept_cell(strongest[metric]["retained_gain"]) if metric in strongest else "-"
        cells[section, "student - direct"] = gain
        cells[section, "kept over direct"] = kept_cell(kept[metric]) if metric in kept else "-"
        cells[section, "kept over strongest"] = over
    for label, kind in (("ensemble", "ensemble"), ("student", "student")):
        model = models[kind]
        cells["cost to serve", f"{label}, parameters"] = parameters(model["parameters"])
        cells["cost to serve", f"{label}, bytes"] = size(model["bytes"])
        for batch in ("batch_1", "batch_256"):
            time = milliseconds(model["latency_ms"][batch]["p50"])
            cells["cost to serve", f"{label}, ms {batch.replace('_', ' ')}"] = time
    title = f"{run}: {name}"
    return Column(title, run, headline(name, student), look(student), cells, report["task"], models)


def overview(columns: Sequence[Column]) -> Section:
    """A row for each student: the deciding metrics, the shares kept, and what it costs to serve."""
    deciding = MEASURES[columns[0].task].deciding
    wanted = [
        *((m.heading, key, heading) for m in deciding
          for key, heading in ((STUDENT, m.heading), ("kept over direct", f"{m.label} gain kept"))),
        ("cost to serve", "student, bytes", "bytes"),
        ("cost to serve", "student, ms batch 1", "batch 1, ms"),
    ]  # fmt: skip
    rows = [(one.title, *(one.cells[section, key] for section, key, _ in wanted)) for one in columns]
    about = "A head of a column sorts by it. Kept: the student's share of the ensemble's gain over direct."
    return Section("Students", about, ("", *(heading for _, _, heading in wanted)), rows)


def frontier(columns: Sequence[Column]) -> Drawn:
    """Quality against cost of each student, with its direct model, and of each run's ensemble."""
    marks: list[Mark] = []
    known: set[str] = set()
    for i, one in enumerate(columns):
        if one.run not in known:
            marks.append(
                Mark("ensemble", one.models["ensemble"], one.run, {"xytext": (0, 8), "ha": "center"})
            )
        known.add(one.run)
        marks.append(Mark("direct", one.models["direct"]))
        marks.append(Mark("student", one.models["student"], one.title, beside(i)))
    with styled():
        return in_parts(lay_out(draw(marks, columns[0].task)), "frontier")


def differences(runs: Sequence[tuple[str, dict[str, Any], list[dict[str, str]] | None]]) -> list[str]:
    """Sentences on why the figures of runs are not comparable.

    Parameters
    ----------
    runs : sequence of (name, report, rows)
        ``rows`` are digests of each seed's parts by name (``labelled``, ``pool``, ``test``); None where they
        are unknown.
    """
    (first, report, rows), *others = runs
    noun = MEASURES[report["task"]].outputs
    found = []
    for name, other, own in others:
        both = f"{first} and {name}"
        sizes = [
            key
            for key in ("test", "classes", "labelled", "pool")
            if report["dataset"][key] != other["dataset"][key]
        ]
        if rows is not None and own is not None:
            seeds = list(zip(rows, own, strict=False))
            unlike = [
                part for part in ("test", "labelled", "pool") if any(a[part] != b[part] for a, b in seeds)
            ]
        else:
            unlike = [part for part in ("test", "labelled", "pool") if part in sizes]
        if "test" in unlike or "classes" in sizes:
            found.append(f"{both} have other test rows or {noun}: their figures are not comparable.")
        elif unlike:
            words = {"labelled": "labelled rows", "pool": "pools"}
            found.append(
                f"{both} have other {' and '.join(words[part] for part in unlike)}, and the same test rows."
            )
        elif rows is None or own is None:
            found.append(f"{both}: a report by an older version does not show which its test rows are.")
        if len(report["seeds"]) != len(other["seeds"]):
            found.append(
                f"{both} have {len(report['seeds'])} and {len(other['seeds'])} seeds: their means are over "
                "different sets of test rows."
            )
    return found


def comparison_table(columns: Sequence[Column], width: int = 80) -> Group:
    """The columns for a `rich.console.Console` to print, in as many tables as ``width`` needs."""
    each = max(1, (width - LABEL_WIDTH) // (COLUMN_WIDTH + 2))
    parts: list[RenderableType] = []
    for start in range(0, len(columns), each):
        parts += [""] * bool(start) + [_table(columns[start : start + each])]
    return Group(*parts)


def figures_table(report: dict[str, Any]) -> Table:
    """The deciding metrics of the ensemble, and of each student beside direct training, with the share
    kept."""
    deciding = MEASURES[report["task"]].deciding
    head = ["", *(cell for metric in deciding for cell in (metric.heading, "kept")), "bytes"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", no_wrap=bool(i))
    ensemble = report["models"]["ensemble"]
    table.add_row("ensemble", *_figures(ensemble, deciding), size(ensemble["bytes"]))
    for name, student in report["students"].items():
        direct, own = (student["models"][kind] for kind in ("direct", "student"))
        retained = student["retained_gain"]
        kept = [kept_cell(retained[m.name]) if m.name in retained else "-" for m in deciding]
        table.add_row(Text(name, "italic"))
        table.add_row("  direct", *_figures(direct, deciding), size(direct["bytes"]))
        table.add_row("  student", *_figures(own, deciding, kept), size(own["bytes"]), style="bold")
    return table


def _figures(model: dict[str, Any], deciding: Sequence[Metric], kept: Sequence[str] = ("", "")) -> list[str]:
    pairs = zip(deciding, kept, strict=True)
    return [cell for metric, share in pairs for cell in (metric_cell(model, metric.name), share)]


def _table(columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(Text(column.title), justify="right", overflow="fold")
    section = ""
    for key in columns[0].cells:
        if key[0] != section:
            section = key[0]
            table.add_section()
            table.add_row(Text(section, "italic"))
        style = "bold" if key[1] == STUDENT else ""
        table.add_row(Text(f"  {key[1]}"), *(Text(column.cells[key]) for column in columns), style=style)
    return table


def write_comparison(columns: Sequence[Column], notes: Sequence[str], file: Path) -> None:
    """Write the page, atomically.

    Raises
    ------
    ModuleNotFoundError
        matplotlib or Jinja2 isn't installed.
    """
    sections: dict[str, list[str]] = {}
    for section, row in columns[0].cells:
        sections.setdefault(section, []).append(row)
    (shown,) = shown_figures(columns[0].task, {"frontier": frontier(columns)})["frontier"]
    page = html.template("compare.html.j2").render(
        columns=columns,
        sections=sections,
        notes=notes,
        student=STUDENT,
        overview=overview(columns),
        figure_of=replace(shown, caption=FRONTIER),
        **html.script(),
    )
    files.write_bytes(file, page.encode())
