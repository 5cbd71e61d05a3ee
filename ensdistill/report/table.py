"""The report on a terminal: the verdict first, then the numbers it rests on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ensdistill.report.cells import (
    gain_cell,
    gains_over,
    headings,
    kept_cell,
    metric_cell,
    metric_cells,
    milliseconds,
    parameters,
    size,
    times,
    with_means,
)
from ensdistill.report.footnotes import exported_name, footnotes, student_kinds
from ensdistill.report.frontier import lines
from ensdistill.report.measures import MEASURES
from ensdistill.report.outputs import EACH_KINDS, SHOWN_OUTPUTS, most_changed, output_rows
from ensdistill.report.results import SHARED_KINDS
from ensdistill.report.sections import Section, furthest, furthest_about, sections
from ensdistill.report.verdict import METRIC_LABELS, OUTCOMES, headline, kind_labels

SHOWN_ROWS = 10  # of a section's table; the page has all
SCHEMA_VERSION = 4  # of report.json (see docs/report-json.md)
_LOOKS = {
    "best_member_will_do": "mixed",
    "one_teacher_will_do": "mixed",
    "ensemble_has_no_gain": "did_not_help",
}
_STYLES = {"helped": "bold green", "did_not_help": "bold red", "mixed": "bold yellow"}


def as_text(report: dict[str, Any]) -> Group:
    """Return the report for a `rich.console.Console` to print: headline, models, retained gain, each class,
    label or number, where student and ensemble differ, members, costs and the forecast.

    Parameters
    ----------
    report : dict
        The result of `judge`, or a report.json read back.

    Returns
    -------
    rich.console.Group
        Readable from 80 columns up, with or without colours.

    Raises
    ------
    ValueError
        The report was written by another version, whose verdict was decided by another rule.
    """
    check_version(report)
    parts: list[RenderableType] = []
    for name, student in by_outcome(report):
        title = headline(name, student)
        # Text throughout: a name with square brackets is a name, not rich's markup.
        parts += [
            Text.assemble(
                (title, _STYLES.get(look(student), "bold")), student["verdict"].removeprefix(title)
            ),
            "",
        ]
    retained = (_retained(report, "direct"), _retained(report, "strongest alternative"))
    shown = {
        kind: [part for section in found for part in _section(section)]
        for kind, found in sections(report).items()
    }
    tables: list[RenderableType] = [
        _models(report),
        *retained,
        strongest_named(report),
        *_outputs(report),
        *shown["agreement"],
        *_furthest(report),
        *shown["uncertainty"],
        *shown["spread"],
        *shown["generations"],
        _members(report),
        *shown["contributions"],
        _serving(report),
        *shown["making"],
        *shown["forecast"],
    ]
    if report["without_copies"] is not None:
        tables.insert(1, _without_copies(report))
    for name, seeds in report.get("searches", {}).items():
        tables.append(Text(f"\nThe search for {name}", "bold"))
        tables += [Text("\n".join(lines(one)), no_wrap=True) for one in seeds]
    return Group(*parts, *tables, *(Text(line, "dim") for line in footnotes(report)))


def check_version(report: dict[str, Any]) -> None:
    """Raise ValueError for a report of another schema."""
    if report.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"report: expected schema_version {SCHEMA_VERSION}; got {report.get('schema_version')!r}: "
            "another version of ensdistill wrote "
            "it, and decided its verdict by another rule. `ensdistill report CONFIG` judges the run again"
        )


def look(student: dict[str, Any]) -> str:
    """The outcome whose colour a student's headline has: help that needed no ensemble is no good news without
    reserve."""
    return _LOOKS.get(student["outcome"], str(student["outcome"]))


def by_outcome(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The students' names and entries, bad news first, otherwise in their own order."""
    return sorted(report["students"].items(), key=lambda item: OUTCOMES.index(item[1]["outcome"]))


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1),
    )
    for i, column in enumerate(columns):
        # A long name is folded, a metric's ("  accuracy") never is. The last column is folded where the
        # others leave it no room, because it would be cut within a number.
        table.add_column(
            column,
            justify="right" if i else "left",
            no_wrap=0 < i < len(columns) - 1,
            overflow="fold",
            min_width=None if i else 10,
        )
    return table


def _add(table: Table, cells: Iterable[str], style: str = "") -> None:
    table.add_row(*(Text(cell) for cell in cells), style=style)


def _section(section: Section) -> list[RenderableType]:
    """The title and sentences of a section, and its table where it has rows."""
    parts: list[RenderableType] = [Text(f"\n{section.title}", "bold"), Text(section.about, "dim")]
    if not section.rows:
        return parts
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for i, column in enumerate(section.columns):
        # Names are folded where the numbers leave them no room.
        number = i >= section.named
        side: Literal["left", "right"] = "right" if number else "left"
        table.add_column(Text(column), justify=side, overflow="fold", no_wrap=number)
    for row in section.rows[:SHOWN_ROWS]:
        _add(table, row)
    if len(section.rows) > SHOWN_ROWS:
        _add(table, [f"{len(section.rows) - SHOWN_ROWS} more"], "dim")
    return [*parts, table]


def _furthest(report: dict[str, Any]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for name, student in report["students"].items():
        parts += [Text(f"\nFurthest from the ensemble: {name}", "bold"), Text(furthest_about(report), "dim")]
        parts += [Text(f"  {line}") for line in furthest(report, student)]
    return parts


def _models(report: dict[str, Any]) -> Table:
    labels, names = kind_labels(report["task"]), headings(report["task"])
    table = _table("Models", "", *names)
    for kind in SHARED_KINDS:
        _add(table, [labels[kind], *metric_cells(report["models"][kind], report["task"])])
    for name, student in report["students"].items():
        table.add_section()
        _add(table, [f"{name}: {student['description']}", *len(names) * [""]], "italic")
        for kind in student_kinds(student):
            _add(
                table,
                [f"  {labels[kind]}", *metric_cells(student["models"][kind], report["task"])],
                "bold" if kind == "student" else "",
            )
    return table


def _without_copies(report: dict[str, Any]) -> Table:
    labels, names = kind_labels(report["task"]), headings(report["task"])
    title = f"\nWithout the {report['copies']['test']} test rows that equal rows trained on"
    table = _table(title, "", *names)
    for name, student in report["without_copies"].items():
        table.add_section()
        _add(table, [name, *len(names) * [""]], "italic")
        for kind, model in student["models"].items():
            _add(
                table,
                [f"  {labels[kind]}", *metric_cells(with_means(model), report["task"])],
                "bold" if kind == "student" else "",
            )
    return table


def _retained(report: dict[str, Any], over: str) -> Table:
    short = "direct" if over == "direct" else "strongest"
    table = _table(f"\nRetained gain over {over}", "", f"ensemble - {short}", f"student - {short}", "kept")
    for name, student in report["students"].items():
        table.add_section()
        _add(table, [f"{name}", "", "", ""], "italic")
        for metric, (ensemble, gain, retained) in gains_over(student, over).items():
            _add(
                table,
                [
                    f"  {METRIC_LABELS[metric]}",
                    gain_cell(metric, ensemble),
                    gain_cell(metric, gain),
                    kept_cell(retained),
                ],
            )
    return table


def strongest_named(report: dict[str, Any]) -> Text:
    """Which alternative is the strongest, for each student and metric."""
    labels = kind_labels(report["task"])
    lines = []
    for name, student in report["students"].items():
        by_metric = [
            f"{METRIC_LABELS[m]} {labels[s['alternative']]}" for m, s in student["strongest"]["all"].items()
        ]
        lines.append(f"Strongest for {name}: {'; '.join(by_metric)}.")
    return Text("\n".join(lines), "dim")


def _outputs(report: dict[str, Any]) -> list[Table]:
    """For each student a table of the metric of each class, label or number."""
    measures = MEASURES[report["task"]]
    each = measures.each
    tables = []
    for name, student in report["students"].items():
        count = len(student["outputs"])
        which = f" of each of the {count} {measures.outputs}" if count > 1 else ""
        title = f"\n{each.metric.heading}{which}: {name}"
        table = _table(title, "", each.about, *EACH_KINDS)
        shown = most_changed(student["outputs"], each, SHOWN_OUTPUTS)
        for cells in output_rows(shown, each):
            _add(table, cells)
        if len(shown) < len(student["outputs"]):
            _add(table, ["The most changed; all are in report.json", *4 * [""]], "dim")
        tables.append(table)
    return tables


def _members(report: dict[str, Any]) -> Table:
    shown = MEASURES[report["task"]].metrics[:4]  # what eighty columns hold
    tempered = any("temperature" in member for member in report["members"])
    weighting = ("weight", "temperature") if tempered else ("weight",)
    table = _table("\nMembers", "", *weighting, *(metric.heading for metric in shown))
    for member in report["members"]:
        means = [f"{member[name]['mean']:.2f}" for name in weighting]
        _add(table, [member["name"], *means, *(metric_cell(member, metric.name) for metric in shown)])
    return table


def _serving(report: dict[str, Any]) -> Table:
    table = _table(
        "\nCost to serve (latency in ms, p50 / p95)", "", "parameters", "bytes", "batch 1", "batch 256"
    )

    def row(label: str, model: dict[str, Any]) -> None:
        latency = (
            f"{milliseconds(t['p50'])} / {milliseconds(t['p95'])}" for t in model["latency_ms"].values()
        )
        count = parameters(model["parameters"]) if "parameters" in model else ""
        _add(table, [label, count, size(model["bytes"]), *latency])

    row("ensemble", report["models"]["ensemble"])
    row("best member", report["models"]["best_member"])
    for name, student in report["students"].items():
        row(name, student["models"]["student"])
        serving = student["serving"]
        latency = (f"{times(t['p50'])} / {times(t['p95'])}" for t in serving["latency_ms"].values())
        _add(table, ["  less by", times(serving["parameters"]), times(serving["bytes"]), *latency], "dim")
    for one in report.get("exports", ()):
        row(exported_name(one), one)
    return table
