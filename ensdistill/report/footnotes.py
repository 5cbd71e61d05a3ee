"""The sentences below the tables: how to read the numbers, and what else is to be known of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ensdistill.common.tasks import Task
from ensdistill.report.measures import MEASURES, Measures, held_out_key
from ensdistill.report.results import SCALED, SHARED_KINDS, STUDENT_KINDS
from ensdistill.report.verdict import METRIC_LABELS, deciding, kind_labels

NETWORKS = (
    "Direct: augmentation, weight decay, dropout and number of steps by NLL on held-out folds of the "
    "labelled rows."
)
SCALING = (
    "Temperature scaling: direct on the same folds; the distilled, for whom no label is held "
    "out, to the ensemble's mixture on the pool. Never on the test rows."
)
_PARTS = {"labelled": "labelled", "pool": "of the pool", "synthetic": "synthetic"}


def _asked(data: dict[str, Any]) -> str:
    """How many rows the teachers predicted, where these are several versions of the transfer set."""
    asked, rows = data.get("asked", 0), data["transfer"]
    return f" (the teachers predicted {asked} rows, in {asked // rows} versions)" if asked > rows else ""


def footnotes(report: dict[str, Any]) -> list[str]:
    """How to read the numbers, and whatever about them would otherwise go unsaid."""
    data, level, several = report["dataset"], report["bootstrap"], len(report["seeds"]) > 1
    measures, blocks = MEASURES[report["task"]], report["students"].values()
    decided = [m.name for m in measures.deciding if any(m.name in deciding(block) for block in blocks)]
    seeds = ", ".join(map(str, report["seeds"]))
    lines = [
        f"{data['name']}: {data['labelled']} labelled rows, {data['pool']} in the pool, {data['transfer']} "
        f"in the transfer set{_asked(data)}, "
        f"{data['test']} for testing; {measures.counted(data['classes'])}; "
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
    auto, members, key = report["auto"], report["members"], held_out_key(report["task"])
    scores = ", ".join(
        f"{one['name']} {one[key]['mean']:.4f} (weight {one['weight']['mean']:.2f})"
        for one in members
        if key in one
    )
    found = f" {out_of_fold(report['task'])}: {scores}." if scores else ""
    lines = [
        f"teachers: auto chose {len(members)} members for {auto['minutes']:g} minutes of one core (estimated "
        f"{auto['seconds']:.0f} s).{found}"
    ]
    reasons = "; ".join(f"{name} ({why})" for name, why in auto["left_out"].items())
    return [*lines, f"Not trained: {reasons}."] if reasons else lines


def out_of_fold(task: Task) -> str:
    """The heading of members' scores on rows that they were not trained on."""
    return f"{METRIC_LABELS['rmse' if task == 'regression' else MEASURES[task].likelihood]} out of fold"


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
        lines.append(
            f"{counts['other_label']} labelled and test rows{over} equal a row that has another label."
        )
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


def exported_name(export: dict[str, Any]) -> str:
    """The name of an exported file's row: its student, format, and seed where that is not 0."""
    seed = f", seed {export['seed']}" if export["seed"] else ""
    return f"{export['student']}: {export['name']}{seed}"
