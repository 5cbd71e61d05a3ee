"""Parts of the report that page and terminal show alike: a title, sentences and a table each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ensdistill.report.cells import (
    gain_cell,
    headings,
    kept_cell,
    metric_cells,
    milliseconds,
    share_cell,
    size,
)
from ensdistill.report.measures import MEASURES
from ensdistill.report.row_scores import ROW_SCORES
from ensdistill.report.uncertainty import CERTAIN, KINDS
from ensdistill.report.verdict import METRIC_LABELS


@dataclass(frozen=True)
class Section:
    """A table with its title.

    Parameters
    ----------
    title : str
    about : str
        Sentences above the table.
    columns : tuple of str
        The first is that of the rows' names.
    rows : sequence of tuple of str
    named : int
        How many of the columns hold names; the others hold numbers.
    """

    title: str
    about: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    named: int = 1


def agreement(report: dict[str, Any]) -> Iterator[Section]:
    """For each student the decisions that it shares with the ensemble."""
    for name, student in report["students"].items():
        make = {"classification": _of_classes, "multilabel": _of_labels, "regression": _of_numbers}
        yield make[report["task"]](f"Ensemble and student: {name}", student["agreement"])


def _of_classes(title: str, found: dict[str, Any]) -> Section:
    rows = [
        (p["ensemble"], p["student"], *(f"{p[key]}" for key in ("rows", "ensemble_right", "student_right")))
        for p in found["pairs"]
    ]
    about = (
        f"The two name the same class for {_percent(found['mean'])} of the test rows. Both are right on "
        f"{found['both_right']} rows, the ensemble alone on {found['ensemble_alone_right']}, the student "
        f"alone on {found['student_alone_right']}, neither on {found['both_wrong']}."
        + (" Below, the pairs of classes that they name for one row, the most frequent first." * bool(rows))
    )
    heads = ("ensemble", "student", "rows", "ensemble right", "student right")
    return Section(title, about, heads, rows, named=2)


def _of_labels(title: str, found: dict[str, Any]) -> Section:
    about = (
        f"The two decide {_percent(found['mean'])} of the labels alike. Below, the test rows for which both "
        "predict a label, and those for which one of them does."
    )
    rows = [
        (one["name"], *(f"{one[key]}" for key in ("both", "ensemble_alone", "student_alone")))
        for one in found["labels"]
    ]
    return Section(title, about, ("", "both", "ensemble alone", "student alone"), rows)


def _of_numbers(title: str, found: dict[str, Any]) -> Section:
    about = (
        f"The student's means differ from the ensemble's by {found['mean']:.3f} standard deviations of the "
        "labels (root mean square). Below, in the data's units."
    )
    rows = [
        (one["name"], *(f"{one[key]:.4g}" for key in ("difference", "offset", "deviation")))
        for one in found["numbers"]
    ]
    return Section(title, about, ("", "difference", "student - ensemble", "sd of labels"), rows)


def uncertainty(report: dict[str, Any]) -> Iterator[Section]:
    """For each student the uncertainty that it kept; none where models have no uncertainty."""
    scores = ROW_SCORES[report["task"]]
    for name, student in report["students"].items():
        found = student["uncertainty"]
        if found is None:
            continue
        there = [kind for kind in KINDS if kind in found]
        spread = all("rank_with_spread" in found[kind] for kind in there)
        rows = [
            (
                kind,
                f"{found[kind]['mean']:.3f}",
                f"{found[kind]['rank_with_ensemble']:.2f}",
                *([f"{found[kind]['rank_with_spread']:.2f}"] if spread else ()),
                scores.text(found[kind]["error"]),
                scores.text(found[kind]["error_certain"]),
            )
            for kind in there
        ]
        certain = f"{100 * CERTAIN:.0f} %"
        about = (
            f"The uncertainty of a row is the {scores.uncertainty_of}. Ranks: Spearman's correlation with "
            "the ensemble's uncertainty"
            + (", and with the members' disagreement" * spread)
            + f". {certain}: the "
            f"{scores.error_of} of the {certain} of test rows that the model is most certain of."
        )
        heads = ("", "mean", "rank, ensemble", *["rank, members"] * spread)
        error = scores.error_of
        yield Section(f"Uncertainty kept: {name}", about, (*heads, error, f"{error}, {certain}"), rows)


def spread(report: dict[str, Any]) -> Iterator[Section]:
    """For each student how much of the members' disagreement it kept; none where it was not computed."""
    for name, student in report["students"].items():
        found = student.get("spread")
        if not found:
            continue
        there = [kind for kind in KINDS if kind in found]
        ranked = "rank_with_members" in found["student"]
        rows = [
            (
                kind,
                "members" if found[kind]["keeps_members"] else "entropy",
                f"{found[kind]['ood_auroc']['mean']:.3f}",
                f"{found[kind]['ood_auroc_total']['mean']:.3f}",
                *([f"{found[kind]['rank_with_members']['mean']:.2f}"] if ranked else ()),
                f"{found[kind]['nll']:.4f}",
            )
            for kind in there
        ]
        about = (
            "Whether a model tells rows that it does not know from rows that are hard. AUROC: how well the "
            "column's uncertainty (the members' disagreement or the entropy) tells test rows from rows out "
            "of distribution; a half is chance. "
            + "Rank: Spearman's correlation with the members' disagreement (mutual information) on the test "
            "rows. " * ranked + f"The rows out of distribution: {found['rows']}."
        )
        heads = ("", "by", "OOD AUROC", "OOD AUROC, entropy", *["rank, members"] * ranked, "NLL")
        yield Section(f"Members' disagreement kept: {name}", about, heads, rows, named=2)


def generations(report: dict[str, Any]) -> Iterator[Section]:
    """The metrics of each generation of a student that has several."""
    for name, student in report["students"].items():
        found = student.get("generations", [])
        if not found:
            continue
        rows = [
            (f"{number}" + ", the student" * (number == len(found)), *metric_cells(one, report["task"]))
            for number, one in enumerate(found, 1)
        ]
        yield Section(
            f"Generations: {name}",
            "The first learned from the ensemble, each further one from the one before it (born-again "
            "networks). The last is the student in all other tables; none was chosen by the test rows.",
            ("", *headings(report["task"])),
            rows,
        )


def contributions(report: dict[str, Any]) -> Iterator[Section]:
    """How much the ensemble gains by each member, and each member's share and cost; none where it was not
    computed."""
    members = [member for member in report["members"] if "contribution" in member]
    if not members:
        return
    names = [m.name for m in MEASURES[report["task"]].deciding if m.name in members[0]["contribution"]]
    rows = [
        (
            member["name"],
            f"{member['weight']['mean']:.2f}",
            *(gain_cell(metric, member["contribution"][metric]) for metric in names),
        )
        for member in members
    ]
    yield Section(
        "What each member adds",
        "The gain of the ensemble over the mixture of its other members, whose weights keep their "
        "proportions; nothing is fitted anew. Positive: the ensemble is better with the member."
        + _not_worth(members, names),
        ("", "weight", *(METRIC_LABELS[name] for name in names)),
        rows,
    )
    shares = [m.name for m in MEASURES[report["task"]].deciding if m.name in members[0].get("shapley", {})]
    if not shares:
        return
    sampled = any(member["shapley"][name]["error"] > 0 for member in members for name in shares)
    rows = [
        (
            member["name"],
            *(share_cell(metric, member["shapley"][metric]) for metric in shares),
            milliseconds(member["latency_ms"]["batch_256"]["p50"]),
            size(member["bytes"]),
        )
        for member in members
    ]
    yield Section(
        "Each member's share, and its cost",
        "The share (Shapley value) is the member's mean gain over the members before it, over all orders in "
        "which they may join. The first joins the shares of the classes, or mean and variance of the "
        "numbers, so that the shares sum to the ensemble's gain over these. "
        + ("In brackets the standard error of a sample of the orders." if sampled else "All orders count."),
        ("", *(METRIC_LABELS[name] for name in shares), "ms, 256 rows", "bytes"),
        rows,
    )


def _not_worth(members: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A sentence on the members without which the ensemble is not measurably worse, and their cost."""
    idle = [
        member
        for member in members
        if not any(member["contribution"][metric]["beyond_interval"] for metric in names)
    ]
    if not idle:
        return " Every member is worth its cost: without it the ensemble is measurably worse."
    times = [member["latency_ms"]["batch_256"]["p50"] for member in members]
    cost = ""
    if all(times):
        own = sum(member["latency_ms"]["batch_256"]["p50"] for member in idle)
        takes = "it takes" if len(idle) == 1 else "together they take"
        cost = f"; {takes} {_percent(own / sum(times), 0)} of the members' time for 256 rows"
    any_one = "any one of " if len(idle) > 1 else ""
    names_of = ", ".join(member["name"] for member in idle)
    return f" Without {any_one}{names_of} the ensemble is not measurably worse{cost}."


def making(report: dict[str, Any]) -> Iterator[Section]:
    """Seconds and bytes of each stage."""
    seconds, stored = report["timings_s"], report["storage_bytes"]
    if not seconds:
        return
    whole = sum(seconds.values())
    rows = [
        (
            stage,
            f"{value:.1f}",
            _percent(value / whole, 0) if whole else "-",
            size(stored[stage]) if stage in stored else "-",
        )
        for stage, value in seconds.items()
    ]
    rows.append(("all", f"{whole:.1f}", "", size(sum(stored.values())) if stored else "-"))
    several = len(report["seeds"]) > 1
    about = f"Seconds of work and bytes on disk{', over all seeds and students' * several}."
    yield Section("Cost to make", about, ("", "seconds", "share", "bytes"), rows)


def forecast(report: dict[str, Any]) -> Iterator[Section]:
    """The preflight's forecast beside the outcome; none where there is no forecast."""
    found = report.get("forecast", {})
    if "expected" not in found:
        return
    rows, likelihood = [], MEASURES[report["task"]].likelihood
    for metric, lead in found["over_best_member"].items():
        if metric not in report["over_best_member"]:  # forecasts without a variance have no NLL
            continue
        before = {"mean": lead["mean"], "ci95": [lead["low"], lead["high"]]}
        came = gain_cell(metric, report["over_best_member"][metric])
        label = f"ensemble over best member, {METRIC_LABELS[metric]}"
        rows.append((label, gain_cell(metric, before), came))
    for name, one in found["expected"].items():
        if name not in report["students"]:
            continue
        shown = f"{100 * one['share']:.0f} % (standard error {100 * one['error']:.0f})"
        retained = report["students"][name]["retained_gain"].get(likelihood)
        outcome = "-" if retained is None else kept_cell(retained)
        rows.append((f"kept in {METRIC_LABELS[likelihood]}, {name}", shown, outcome))
    yield Section(
        "Forecast and outcome",
        "The forecast uses no student and no test row: the ensemble's lead on held-out labelled rows"
        + (", and the share of its gain over direct to be kept" if found["expected"] else "")
        + (f" ({found['source']})" if found["source"] else "")
        + ". The outcome is on the test rows.",
        ("", "forecast", "outcome"),
        rows,
    )


def furthest(report: dict[str, Any], student: dict[str, Any], limit: int = 3) -> Iterator[str]:
    """The test rows on which a student is furthest from the ensemble, in sentences."""
    unit = ROW_SCORES[report["task"]].distance_unit
    for one in student["furthest_rows"][:limit]:
        yield (
            f"{row_name(one, len(report['seeds']) > 1)}: label {one['label']}; ensemble {one['ensemble']}; "
            f"student {one['student']}; apart by {one['distance']:.3g} {unit.removeprefix('KL, ')}. "
            f"{sample_text(one['sample'])}"
        )


def furthest_about(report: dict[str, Any]) -> str:
    """How rows are chosen."""
    unit = ROW_SCORES[report["task"]].distance_unit
    about = f"The test rows on which student and ensemble are furthest apart ({unit})."
    several = " Of each row, the probabilities of the labels that contribute the most to it."
    return about + several * (report["task"] == "multilabel")


def row_name(one: dict[str, Any], several: bool) -> str:
    """The name of a test row: its place, its seed where there are several, and a uid that is no hash."""
    name = f"test row {one['row']}" + (f" of seed {one['seed']}" if several else "")
    return name + (f", uid {one['uid']}" if one["uid"] is not None and abs(one["uid"]) < 10**9 else "")


def sample_text(sample: dict[str, Any] | None, letters: int = 150) -> str:
    """A sample in a few words; empty for a picture."""
    if sample is None or "png" in sample:
        return ""
    text = sample.get("text") or ", ".join(f"{name} {value}" for name, value in sample["fields"])
    return text if len(text) <= letters else f"{text[: letters - 3]}..."


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


SECTIONS = {
    "agreement": agreement,
    "uncertainty": uncertainty,
    "spread": spread,
    "generations": generations,
    "contributions": contributions,
    "making": making,
    "forecast": forecast,
}


def sections(report: dict[str, Any]) -> dict[str, list[Section]]:
    """All sections by the kind of their content."""
    return {kind: list(make(report)) for kind, make in SECTIONS.items()}
