"""The report on a terminal: the verdict first, then the numbers it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensdistill.report.results import SCALED, SHARED_KINDS, STUDENT_KINDS
from ensdistill.report.verdict import KIND_LABELS, METRIC_LABELS, OUTCOMES, headline, only_as_one_member

_STYLES = {"helped": "bold green", "did_not_help": "bold red", "mixed": "bold yellow"}


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the headline, every model, the retained gain, the members and the cost to serve.

    Parameters
    ----------
    report : dict
        What `judge` returned, or a report.json read back.
    console : rich.console.Console, optional
        Standard output by default; made to be read from 80 columns up, with or without colours.
    """
    console = console or Console()
    for name, student in by_outcome(report):
        title = headline(name, student)
        # Text throughout: a name with square brackets is a name, not rich's markup.
        console.print(Text.assemble((title, _STYLES.get(look(student), "bold")), student["verdict"].removeprefix(title)))
        console.print()
    tables = (_models(report), _retained(report), _members(report), _serving(report))
    for table in tables:
        console.print(table)
    for line in footnotes(report):
        console.print(Text(line, "dim"))


def look(student: dict[str, Any]) -> str:
    """The outcome whose colour a student's headline has: help that needed no ensemble is no good news without reserve."""
    return "mixed" if only_as_one_member(student) else str(student["outcome"])


def by_outcome(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The students' names and entries, bad news first, otherwise in their own order."""
    return sorted(report["students"].items(), key=lambda item: OUTCOMES.index(item[1]["outcome"]))


def footnotes(report: dict[str, Any]) -> list[str]:
    """How to read the numbers, and whatever about them would otherwise go unsaid."""
    data, level, several = report["dataset"], report["bootstrap"], len(report["seeds"]) > 1
    seeds = ", ".join(map(str, report["seeds"]))
    lines = [
        f"{data['name']}: {data['labelled']} labelled rows, {data['pool']} in the pool, {data['transfer']} in the transfer set, "
        f"{data['test']} for testing; {data['classes']} classes; {'seeds' if several else 'seed'} {seeds}.",
        f"Metrics are {'means over seeds' if several else 'of one seed'} on the test rows. "
        f"Brackets are {100 * level['level']:.0f} % intervals of {level['resamples']} paired bootstrap resamples of "
        f"{'seeds and test rows' if several else 'the test rows; how much seeds differ is not in them'}. "
        "Gains: positive is better, accuracy in points. "
        "Kept = (student - direct) / (ensemble - direct); it means nothing where the ensemble's gain is not beyond its own interval. "
        "Brier sums over classes; ECE has 15 equal bins of the top label's confidence, aECE (adaptive) 15 bins of about as many rows each.",
        "Temperature scaling: direct on held-out folds of the labelled rows; the distilled, for whom no label is held out, to the "
        "ensemble's mixture on the pool. Never on the test rows.",
    ]
    worse = [_scaled(name, student["models"], kind) for name, student in report["students"].items() for kind in SCALED]
    lines += [f"Temperature scaling made NLL worse: {'; '.join(filter(None, worse))}."] if any(worse) else []
    floored = [f"{name} ({model['nll_floored_rows']})" for name, model in named_models(report) if model["nll_floored_rows"]]
    if floored:
        lines.append(f"Rows whose label got a probability of zero, counted as 2.2e-16 (36 nats) in NLL: {', '.join(floored)}.")
    notes = [f"{name}: {model['note']}." for name, model in named_models(report) if model["note"]]
    return lines + notes


def _scaled(name: str, models: dict[str, Any], kind: str) -> str:
    before, after = (models[k]["nll"]["mean"] for k in (kind, SCALED[kind]))
    return f"{name}, {KIND_LABELS[kind]} ({before:.3f} to {after:.3f})" if f"{after:.3f}" > f"{before:.3f}" else ""


def named_models(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every model once, under a name that says which it is."""
    for kind in SHARED_KINDS:
        yield KIND_LABELS[kind], report["models"][kind]
    for name, student in report["students"].items():
        for kind in STUDENT_KINDS:
            yield f"{name}, {KIND_LABELS[kind]}", student["models"][kind]
    for member in report["members"]:
        yield f"member {member['name']}", member


def metric_cells(model: dict[str, Any]) -> list[str]:
    """Accuracy in percent, NLL, Brier, ECE and adaptive ECE in percent, as every table of the report shows them."""
    return [
        f"{100 * model['accuracy']['mean']:.2f}",
        f"{model['nll']['mean']:.3f}",
        f"{model['brier']['mean']:.3f}",
        f"{100 * model['ece']['mean']:.2f}",
        f"{100 * model['adaptive_ece']['mean']:.2f}",
    ]


def gain_cell(metric: str, gain: dict[str, Any]) -> str:
    """A gain with its interval: points of accuracy, plain for the rest, positive is better."""
    scale, digits = (100, 2) if metric == "accuracy" else (1, 3)
    low, high = gain["ci95"]
    return f"{scale * gain['mean']:+.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def kept_cell(retained: dict[str, Any]) -> str:
    """The retained gain in percent with its interval, or that it means nothing (see `footnotes`)."""
    if not retained["meaningful"]:
        return "means nothing"
    low, high = retained["ci95"]
    return f"{100 * retained['mean']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def size(count: float) -> str:
    """A count in three digits and a suffix: 4.81k, 1.20M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{_three_digits(count / limit)}{suffix}"
    return f"{count:.0f}"


def milliseconds(value: float) -> str:
    """Three digits, at most three of them decimals."""
    return f"{value:.3f}" if value < 1 else _three_digits(value)


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def times(ratio: float | None) -> str:
    """Ensemble over student."""
    return "-" if ratio is None else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1)
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    return table


def _add(table: Table, cells: Iterable[str], style: str = "") -> None:
    table.add_row(*(Text(cell) for cell in cells), style=style)


def _models(report: dict[str, Any]) -> Table:
    table = _table("Models", "", "accuracy %", "NLL", "Brier", "ECE %", "aECE %")
    for kind in SHARED_KINDS:
        _add(table, [KIND_LABELS[kind], *metric_cells(report["models"][kind])])
    for name, student in report["students"].items():
        table.add_section()
        _add(table, [f"{name}: {student['description']}", *5 * [""]], "italic")
        for kind in STUDENT_KINDS:
            _add(table, [f"  {KIND_LABELS[kind]}", *metric_cells(student["models"][kind])], "bold" if kind == "student" else "")
    return table


def _retained(report: dict[str, Any]) -> Table:
    table = _table("\nRetained gain", "", "ensemble - direct", "student - direct", "kept")
    for name, student in report["students"].items():
        table.add_section()
        _add(table, [f"{name}", "", "", ""], "italic")
        for metric, retained in student["retained_gain"].items():
            gains = (gain_cell(metric, student["gains"][who][metric]) for who in ("ensemble", "student"))
            _add(table, [f"  {METRIC_LABELS[metric]}", *gains, kept_cell(retained)])
    return table


def _members(report: dict[str, Any]) -> Table:
    table = _table("\nMembers", "", "weight", "temperature", "accuracy %", "NLL", "Brier", "ECE %")
    for member in report["members"]:
        weighting = [f"{member['weight']['mean']:.2f}", f"{member['temperature']['mean']:.2f}"]
        _add(table, [member["name"], *weighting, *metric_cells(member)[:4]])  # what eighty columns hold
    return table


def _serving(report: dict[str, Any]) -> Table:
    table = _table("\nCost to serve (latency in ms, p50 / p95)", "", "parameters", "bytes", "batch 1", "batch 256")

    def row(label: str, model: dict[str, Any]) -> None:
        latency = (f"{milliseconds(t['p50'])} / {milliseconds(t['p95'])}" for t in model["latency_ms"].values())
        _add(table, [label, size(model["parameters"]), size(model["bytes"]), *latency])

    row("ensemble", report["models"]["ensemble"])
    row("best member", report["models"]["best_member"])
    for name, student in report["students"].items():
        row(name, student["models"]["student"])
        serving = student["serving"]
        latency = (f"{times(t['p50'])} / {times(t['p95'])}" for t in serving["latency_ms"].values())
        _add(table, ["  less by", times(serving["parameters"]), times(serving["bytes"]), *latency], "dim")
    return table
