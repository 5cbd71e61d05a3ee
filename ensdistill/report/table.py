"""The report on a terminal: the verdict first, then the numbers it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ensdistill.common.tasks import Task
from ensdistill.report.frontier import lines
from ensdistill.report.measures import MEASURES, METRICS, Measures
from ensdistill.report.outputs import EACH_KINDS, SHOWN_OUTPUTS, most_changed, output_rows
from ensdistill.report.results import SCALED, SHARED_KINDS, STUDENT_KINDS
from ensdistill.report.verdict import METRIC_LABELS, OUTCOMES, deciding, headline, kept_share, kind_labels

SCHEMA_VERSION = 3  # of report.json (see docs/report.md)
_LOOKS = {
    "best_member_will_do": "mixed",
    "one_teacher_will_do": "mixed",
    "ensemble_has_no_gain": "did_not_help",
}
_STYLES = {"helped": "bold green", "did_not_help": "bold red", "mixed": "bold yellow"}


NETWORKS = (
    "Direct: augmentation, weight decay, dropout and number of steps by NLL on held-out folds of the "
    "labelled rows."
)
SCALING = (
    "Temperature scaling: direct on the same folds; the distilled, for whom no label is held "
    "out, to the ensemble's mixture on the pool. Never on the test rows."
)
_PARTS = {"labelled": "labelled", "pool": "of the pool", "synthetic": "synthetic"}


def as_text(report: dict[str, Any]) -> Group:
    """Return the report for a `rich.console.Console` to print: headline, models, retained gain, members and
    the cost to serve.

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
    tables: list[RenderableType] = [
        _models(report),
        *retained,
        strongest_named(report),
        *_outputs(report),
        _members(report),
        _serving(report),
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


def _asked(data: dict[str, Any]) -> str:
    """How many rows the teachers predicted, where these are several versions of the transfer set."""
    asked, rows = data.get("asked", 0), data["transfer"]
    return f" (the teachers predicted {asked} rows, in {asked // rows} versions)" if asked > rows else ""


def by_outcome(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The students' names and entries, bad news first, otherwise in their own order."""
    return sorted(report["students"].items(), key=lambda item: OUTCOMES.index(item[1]["outcome"]))


def footnotes(report: dict[str, Any]) -> list[str]:
    """How to read the numbers, and whatever about them would otherwise go unsaid."""
    data, level, several = report["dataset"], report["bootstrap"], len(report["seeds"]) > 1
    measures, blocks = MEASURES[report["task"]], report["students"].values()
    decided = [m.name for m in measures.deciding if any(m.name in deciding(block) for block in blocks)]
    seeds = ", ".join(map(str, report["seeds"]))
    lines = [
        f"{data['name']}: {data['labelled']} labelled rows, {data['pool']} in the pool, {data['transfer']} "
        f"in the transfer set{_asked(data)}, "
        f"{data['test']} for testing; {data['classes']} {measures.outputs}; "
        f"{'seeds' if several else 'seed'} {seeds}.",
        f"Metrics are {'means over seeds' if several else 'of one seed'} on the test rows. "
        f"Brackets are {100 * level['level']:.0f} % intervals of {level['resamples']} paired bootstrap "
        "resamples of "
        f"{'seeds and test rows' if several else 'the test rows; how much seeds differ is not in them'}. "
        f"Gains: positive is better, {measures.gains}. "
        "Kept = (student - direct) / (ensemble - direct), or over the strongest alternative in place of "
        "direct; it means nothing where "
        "the ensemble's gain is not beyond its own interval. The strongest alternative has the best mean on "
        "the test rows among the "
        "direct models, the models distilled from the best member, and the best member. The headline goes "
        f"by it, {' and '.join(f'in {METRIC_LABELS[name]}' for name in decided)}. "
        f"{measures.about}",
        report.get("baselines") or _baselines(measures),
    ]
    worse = [
        _scaled(name, student["models"], kind, report["task"])
        for name, student in report["students"].items()
        for kind in SCALED
    ]
    if any(worse):
        scaling, metric = measures.scaling.capitalize(), METRIC_LABELS[measures.likelihood]
        lines.append(f"{scaling} scaling made {metric} worse: {'; '.join(filter(None, worse))}.")
    count, _, sentence = measures.floored
    floored = [f"{name} ({model[count]})" for name, model in named_models(report) if model[count]]
    lines += [f"{sentence}: {', '.join(floored)}."] if floored else []
    lines += ["The test rows are weighted, by the data's own weights."] if report["weighted"] else []
    lines += _auto(report) + _copies(report)
    lines += [_exported(one, measures) for one in report.get("exports", ())]
    notes = [f"{name}: {model['note']}." for name, model in named_models(report) if model["note"]]
    return lines + notes


def _baselines(measures: Measures) -> str:
    """How the networks' *direct* and the scaled models are made."""
    text = f"{NETWORKS} {SCALING}".replace("NLL", METRIC_LABELS[measures.watched])
    return text.replace("Temperature", measures.scaling.capitalize())


def _auto(report: dict[str, Any]) -> list[str]:
    """The members of ``teachers: auto``, in sentences: their scores out of fold, and those left out."""
    if "auto" not in report:
        return []
    auto, members = report["auto"], report["members"]
    scores = ", ".join(
        f"{one['name']} {one['held_out_nll']['mean']:.4f} (weight {one['weight']['mean']:.2f})"
        for one in members
        if "held_out_nll" in one
    )
    found = f" {out_of_fold(report['task'])}: {scores}." if scores else ""  # regressors have an RMSE
    lines = [
        f"teachers: auto chose {len(members)} members for {auto['minutes']:g} minutes of one core (estimated "
        f"{auto['seconds']:.0f} s).{found}"
    ]
    reasons = "; ".join(f"{name} ({why})" for name, why in auto["left_out"].items())
    return [*lines, f"Not trained: {reasons}."] if reasons else lines


def out_of_fold(task: Task) -> str:
    """The heading of members' scores on rows that they were not trained on."""
    return f"{METRIC_LABELS[MEASURES[task].likelihood]} out of fold"


def _exported(export: dict[str, Any], measures: Measures) -> str:
    """The figures of an exported file, in a sentence."""
    figures = [
        f"{metric.label} {metric.text(export[metric.name])}{' %' if metric.percent else ''}"
        for metric in measures.deciding
        if metric.name in export
    ]
    return (
        f"{exported_name(export)}: {', '.join(figures)} on the "
        f"test rows, at most {export['largest_difference']:.1g} from the student's "
        f"{measures.predictions}; latency by {export['runtime']}."
    )


def _copies(report: dict[str, Any]) -> list[str]:
    """The equal inputs that were found in several parts, in sentences."""
    counts, lines = report["copies"], []
    over = " (over all seeds)" if len(report["seeds"]) > 1 else ""
    if counts["test"]:
        parts = ", ".join(f"{counts[part]} {name}" for part, name in _PARTS.items() if counts[part])
        fewer = (
            ""
            if report["without_copies"] is not None
            else "; some seed has no other test rows, so there are no figures without them"
        )
        lines.append(f"{counts['test']} test rows{over} equal rows that are trained on: {parts}{fewer}.")
    if counts["labelled_in_pool"]:
        lines.append(f"{counts['labelled_in_pool']} labelled rows{over} equal rows of the pool.")
    if counts["other_label"]:
        lines.append(f"{counts['other_label']} labelled and test rows{over} equal one with another label.")
    if counts["left_out"]:
        lines.append(
            f"{counts['left_out']} rows{over} were left out, because they equal test rows or, ordered by "
            "time, come later than those trained on."
        )
    return lines


def _scaled(name: str, models: dict[str, Any], kind: str, task: Task) -> str:
    metric = MEASURES[task].likelihood
    both = [models.get(k, {}).get(metric) for k in (kind, SCALED[kind])]
    if None in both:
        return ""
    before, after = (one["mean"] for one in both)
    return (
        f"{name}, {kind_labels(task)[kind]} ({before:.3f} to {after:.3f})"
        if f"{after:.3f}" > f"{before:.3f}"
        else ""
    )


def named_models(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every model once, under a name that says which it is."""
    labels = kind_labels(report["task"])
    for kind in SHARED_KINDS:
        yield labels[kind], report["models"][kind]
    for name, student in report["students"].items():
        for kind in student_kinds(student):
            yield f"{name}, {labels[kind]}", student["models"][kind]
    for member in report["members"]:
        yield f"member {member['name']}", member


def student_kinds(student: dict[str, Any]) -> list[str]:
    """The kinds of a student's own models, in their order."""
    return [kind for kind in STUDENT_KINDS if kind in student["models"]]


def with_means(model: dict[str, float]) -> dict[str, dict[str, float]]:
    """A model of ``without_copies``, which holds means alone, in the form of the other models."""
    return {metric: {"mean": value} for metric, value in model.items()}


def headings(task: Task) -> list[str]:
    """The columns of `metric_cells`."""
    return [metric.heading for metric in MEASURES[task].metrics]


def metric_cells(model: dict[str, Any], task: Task = "classification") -> list[str]:
    """All metrics of a model, as every table of the report shows them; a dash for one that it lacks."""
    return [metric_cell(model, metric.name) for metric in MEASURES[task].metrics]


def metric_cell(model: dict[str, Any], metric: str) -> str:
    """The mean of a metric over the seeds; a dash where the model lacks it."""
    return METRICS[metric].text(model[metric]["mean"]) if metric in model else "-"


def gain_cell(metric: str, gain: dict[str, Any]) -> str:
    """A gain with its interval: points of a share, plain for the rest, positive is better."""
    scale, digits = (100, 2) if METRICS[metric].percent else (1, 3)
    low, high = gain["ci95"]
    return f"{scale * gain['mean']:+.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def kept_cell(retained: dict[str, Any]) -> str:
    """The retained gain in percent with its interval, or that it means nothing (see `footnotes`)."""
    if not retained["meaningful"]:
        return "means nothing"
    return kept_share(retained)


def size(count: float) -> str:
    """A count in three digits and a suffix: 4.81k, 1.20M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{_three_digits(count / limit)}{suffix}"
    return f"{count:.0f}"


def parameters(count: int) -> str:
    """A number of parameters; a dash for a model whose library does not count them."""
    return size(count) if count else "-"


def milliseconds(value: float | None) -> str:
    """Three digits, at most three of them decimals; a dash where it was not measured."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1 else _three_digits(value)


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def times(ratio: float | None) -> str:
    """Ensemble over student."""
    return "-" if ratio is None else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
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


def gains_over(
    student: dict[str, Any], over: str
) -> dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """By metric the ensemble's gain, the student's gain and the retained gain, over direct or over the
    strongest alternative."""
    if over == "direct":
        gains = student["gains"]
        return {
            m: (gains["ensemble"][m], gains["student"][m], retained)
            for m, retained in student["retained_gain"].items()
        }
    return {
        m: (s["ensemble"], s["student"], s["retained_gain"]) for m, s in student["strongest"]["all"].items()
    }


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
    """For each student a table of the metric of each label or number; none of classes."""
    measures = MEASURES[report["task"]]
    each = measures.each
    if each is None:
        return []
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


def exported_name(export: dict[str, Any]) -> str:
    """The name of an exported file's row: its student, format, and seed where that is not 0."""
    seed = f", seed {export['seed']}" if export["seed"] else ""
    return f"{export['student']}: {export['name']}{seed}"
