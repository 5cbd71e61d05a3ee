"""The judgement of one student in plain sentences, limits included.

The headline is decided in two metrics of the task (accuracy and NLL; mAP and BCE; RMSE and NLL), each against
the strongest alternative there (see `judge` for how it is found), and "helped" stands only where the student
leads it by more than the interval. The other metrics mostly repeat one of the two, so they are shown, but do
not decide. A metric that a model lacks, as the NLL of a forecast without a variance, decides nothing.
"""

from __future__ import annotations

from typing import Any

from ensdistill.common.tasks import Task
from ensdistill.report.measures import MEASURES, METRICS

# The worse news first: the report's order.
OUTCOMES = (
    "did_not_help",
    "ensemble_has_no_gain",
    "mixed",
    "one_teacher_will_do",
    "cannot_tell",
    "best_member_will_do",
    "helped",
)
KIND_LABELS = {
    "ensemble": "ensemble",
    "best_member": "best member",
    "direct": "direct",
    "direct_label_smoothing": "direct, label smoothing",
    "direct_temperature_scaled": "direct, temperature scaled",
    "direct_label_smoothing_temperature_scaled": "direct, smoothing, scaled",
    "distilled_from_best_member": "distilled from best member",
    "distilled_from_best_member_temperature_scaled": "distilled from best, scaled",
    "student": "student (distilled)",
    "student_temperature_scaled": "student, temperature scaled",
}
METRIC_LABELS = {name: metric.label for name, metric in METRICS.items()}


def kind_labels(task: Task) -> dict[str, str]:
    """The labels of all kinds of models. A regression's scaled models have another variance."""
    scaling = MEASURES[task].scaling
    return {kind: label.replace("temperature", scaling) for kind, label in KIND_LABELS.items()}


def deciding(block: dict[str, Any]) -> list[str]:
    """The metrics that the headline goes by, of a student's entry of the report."""
    return [metric for metric in block["strongest"]["direct"] if METRICS[metric].decides]


def outcome(block: dict[str, Any]) -> str:
    """One of `OUTCOMES` for a student's entry of the report.

    ensemble_has_no_gain
        The ensemble does not lead the strongest direct model of that size beyond its interval in any
        of the deciding metrics.
    helped
        The student leads the strongest of all alternatives beyond its interval in one of them, and is
        behind beyond it in none.
    best_member_will_do
        So against everything of its size, but not against the best member, which costs more to serve.
    one_teacher_will_do
        So against direct training, but not against the same model distilled from the best member alone.
    mixed
        Against direct training better beyond the interval in one of the two, worse in the other.
    did_not_help
        Worse beyond the interval than something of its size, or not even better on average than direct
        training in either.
    cannot_tell
        Better on average than direct training somewhere, but never beyond the interval.
    """
    direct = block["strongest"]["direct"]
    if not any(direct[metric]["ensemble"]["beyond_interval"] for metric in deciding(block)):
        return "ensemble_has_no_gain"
    for family, name in (
        ("all", "helped"),
        ("same_size", "best_member_will_do"),
        ("direct", "one_teacher_will_do"),
    ):
        found = directions(block, family)
        if 1 in found.values() and -1 not in found.values():
            return name
    found = directions(block, "direct")
    if {1, -1} <= set(found.values()):
        return "mixed"
    behind = -1 in directions(block, "same_size").values()
    return (
        "did_not_help"
        if behind or all(direct[metric]["student"]["mean"] <= 0 for metric in deciding(block))
        else "cannot_tell"
    )


def directions(block: dict[str, Any], family: str) -> dict[str, int]:
    """For each deciding metric: 1 where the student is better beyond its interval than the strongest
    alternative of the family and of each smaller one, -1 where it is worse than one of these, else 0."""
    strongest = block["strongest"]
    families = list(strongest)[: list(strongest).index(family) + 1]
    return {
        metric: min(_direction(strongest[f][metric]["student"]) for f in families)
        for metric in deciding(block)
    }


def headline(name: str, block: dict[str, Any]) -> str:
    """The shortest true summary of a student's entry of the report, which the verdict starts with."""
    result = block["outcome"]
    name = "the student" if name == "student" else name  # as a job calls its only student by default
    if result == "helped":
        better = directions(block, "all")
        where = [METRIC_LABELS[metric] for metric in better if better[metric] > 0]
        other = [METRIC_LABELS[metric] for metric in better if better[metric] == 0]
        return f"Distillation helped {name} in {' and '.join(where)}" + (
            f", not measurably in {other[0]}" if other else ""
        )
    if result == "best_member_will_do":
        word = "better" if -1 in directions(block, "all").values() else "not measurably worse"
        ratio = block["models"]["best_member"]["bytes"] / max(1, block["models"]["student"]["bytes"])
        return (
            f"For its size {name} is best distilled, but the best member alone, {ratio:.2g}x as many bytes, "
            f"is {word}"
        )
    if result == "one_teacher_will_do":
        if -1 in directions(block, "same_size").values():
            return f"The ensemble taught {name} worse than its best member alone does"
        return f"The ensemble taught {name} not measurably better than its best member alone does"
    return {
        "mixed": f"Distillation helped {name} in one metric and hurt it in another",
        "did_not_help": f"Distillation did not help {name}",
        "cannot_tell": f"Whether distillation helped {name} can't be told from these seeds and rows",
        "ensemble_has_no_gain": (
            f"Don't distil {name}: trained directly it is not measurably worse than the ensemble"
        ),
    }[result]


def verdict(name: str, block: dict[str, Any], seeds: int, task: Task = "classification") -> str:
    """For the student ``name``: against the strongest alternatives, and against direct training. Intervals
    are 95 %, of ``seeds`` seeds."""
    metrics, labels = deciding(block), kind_labels(task)
    gains, family = (
        block["gains"],
        "all" if block["outcome"] in ("helped", "best_member_will_do") else "same_size",
    )
    strongest, of_size = block["strongest"][family], "" if family == "all" else " of its size"
    text = f"{headline(name, block)}."
    if block["outcome"] == "ensemble_has_no_gain":
        direct = block["strongest"]["direct"]
        leads = [
            f"{METRIC_LABELS[m]} {_change(m, direct[m]['ensemble'])} than {_label(direct[m], labels)}"
            for m in metrics
        ]
        text += f" The ensemble has {_list(leads)}."
        if set(directions(block, "all").values()) in ({1}, {0, 1}):
            text += (
                " The student is better all the same: the rows it was taught on helped it, not the "
                "ensemble's lead."
            )
    over = [
        f"{METRIC_LABELS[m]} {_change(m, strongest[m]['student'])} than {_label(strongest[m], labels)}"
        f"{_kept(m, strongest[m]['retained_gain'], strongest[m]['ensemble'])}"
        for m in metrics
    ]
    plain = [
        f"{METRIC_LABELS[m]} "
        f"{_change(m, gains['student'][m])}{_kept(m, block['retained_gain'][m], gains['ensemble'][m])}"
        for m in metrics
        if m in block["retained_gain"]
    ]
    alone = " This is one seed: the intervals leave out how much seeds differ." if seeds == 1 else ""
    return (
        f"{text} Against the strongest alternatives{of_size}, {_list(over)}. Against plain direct training, "
        f"{_list(plain)}.{alone}"
    )


def _label(strongest: dict[str, Any], labels: dict[str, str]) -> str:
    """The label within a sentence: "direct with smoothing and temperature scaling"."""
    name, *parts = labels[strongest["alternative"]].split(", ")
    scaling = labels["direct_temperature_scaled"].split(", ")[1].replace("scaled", "scaling")
    parts = [scaling if part.endswith("scaled") else part for part in parts]
    return name + (f" with {' and '.join(parts)}" if parts else "")


def _direction(gain: dict[str, Any]) -> int:
    """1 or -1 for better or worse beyond the interval, 0 for neither."""
    return int(gain["ci95"][0] > 0) - int(gain["ci95"][1] < 0)


def _kept(metric: str, retained: dict[str, Any], ensemble: dict[str, Any]) -> str:
    if not retained["meaningful"]:
        return f" (the ensemble {_change(metric, ensemble)}, so a retained gain means nothing here)"
    if retained["mean"] <= 0:
        return " (none of the ensemble's gain)"
    return f" ({kept_share(retained)} of the ensemble's gain)"


def _change(metric: str, gain: dict[str, Any]) -> str:
    """``3.8 points better [3.0, 4.6]``: the interval counts in the direction that the word names."""
    sign = 1 if gain["mean"] >= 0 else -1
    scale, digits, unit = (100, 1, " points") if METRICS[metric].percent else (1, 3, "")
    low, high = sorted(sign * scale * end + 0.0 for end in gain["ci95"])  # 0.0 in place of -0.0
    return (
        f"{abs(scale * gain['mean']):.{digits}f}{unit} {'better' if sign > 0 else 'worse'} "
        f"[{low:.{digits}f}, {high:.{digits}f}]"
    )


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def kept_share(retained: dict[str, Any]) -> str:
    """The retained gain in percent with its interval; a limit beyond 999 % is given as such.

    The interval of a ratio is all but unbounded where the ensemble's gain is barely above 0.

    Examples
    --------
    >>> kept_share({"mean": 0.6, "ci95": [-377.96, 1.04]})
    '60 % [<-999, 104]'
    """
    low, high = (
        f"{'<-999' if x < 0 else '>999'}" if abs(x) > 9.99 else f"{100 * x:.0f}" for x in retained["ci95"]
    )
    return f"{100 * retained['mean']:.0f} % [{low}, {high}]"
