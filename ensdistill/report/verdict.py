"""What the numbers of one student say, in two plain sentences that admit what they can't show."""

from __future__ import annotations

from typing import Any

from ensdistill.report.results import ALTERNATIVES

OUTCOMES = ("did_not_help", "ensemble_has_no_gain", "mixed", "cannot_tell", "helped")  # the worse news first: the report's order
KIND_LABELS = {
    "ensemble": "ensemble",
    "best_member": "best member",
    "direct": "direct",
    "direct_label_smoothing": "direct, label smoothing",
    "direct_temperature_scaled": "direct, temperature scaled",
    "distilled_from_best_member": "distilled from best member",
    "distilled_from_best_member_temperature_scaled": "distilled from best, scaled",
    "student": "student (distilled)",
    "student_temperature_scaled": "student, temperature scaled",
}
METRIC_LABELS = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier"}


def outcome(block: dict[str, Any]) -> str:
    """One of `OUTCOMES` for a student's entry of the report.

    ensemble_has_no_gain
        The ensemble is not better than direct beyond its interval in accuracy, NLL or Brier.
    helped
        The student is better than direct beyond its interval in at least one of them and worse beyond it in none.
    mixed
        Better beyond its interval in one, worse in another.
    did_not_help
        Better in none, and worse beyond its interval in at least one or not even better on average in any.
    cannot_tell
        Better on average somewhere, but never beyond its interval.
    """
    gains = block["gains"]["student"].values()
    better = any(gain["beyond_interval"] for gain in gains)
    worse = any(gain["ci95"][1] < 0 for gain in gains)
    if not any(gain["beyond_interval"] for gain in block["gains"]["ensemble"].values()):
        return "ensemble_has_no_gain"
    if better:
        return "mixed" if worse else "helped"
    return "did_not_help" if worse or all(gain["mean"] <= 0 for gain in gains) else "cannot_tell"


def only_as_one_member(block: dict[str, Any]) -> str:
    """Where distillation helped: how the ensemble's student falls short of the best single member's; empty where it is measurably better.

    Such a student needed no ensemble, which takes the shine off the good news.
    """
    gains = block["gains"]["student_over"]["distilled_from_best_member"].values()
    if block["outcome"] != "helped" or any(gain["beyond_interval"] for gain in gains):
        return ""
    return "less" if any(gain["ci95"][1] < 0 for gain in gains) else "measurably no more"


def headline(name: str, block: dict[str, Any]) -> str:
    """The shortest true summary of a student's entry of the report, which the verdict starts with."""
    short = only_as_one_member(block)
    return {
        "helped": f"Distillation helped {name}" + (f", but {short} than distilling the best member alone" if short else ""),
        "mixed": f"Distillation helped {name} in one metric and hurt it in another",
        "did_not_help": f"Distillation did not help {name}",
        "cannot_tell": f"Whether distillation helped {name} can't be told from these seeds and rows",
        "ensemble_has_no_gain": f"The ensemble is not measurably better than direct {name}, so a retained gain means nothing here",
    }[block["outcome"]]


def verdict(name: str, block: dict[str, Any], seeds: int) -> str:
    """For the student ``name``: against direct training, and against the best alternatives. Intervals are 95 %, of ``seeds`` seeds."""
    gains = block["gains"]["student"]
    told = ["accuracy", "nll"]
    # Brier mostly repeats one of the two; it is named where it alone carries the outcome.
    if _direction(gains["brier"]) not in (0, *(_direction(gains[metric]) for metric in told)):
        told.append("brier")
    clauses = [f"{METRIC_LABELS[metric]} {_change(metric, gains[metric])}{_kept(block, metric)}" for metric in told]
    text = f"{headline(name, block)}: against direct training, {_list(clauses)}."
    alone = " This is one seed: the intervals leave out how much seeds differ." if seeds == 1 else ""
    return f"{text} {_against_alternatives(block['gains']['student_over'])}{alone}"


def _direction(gain: dict[str, Any]) -> int:
    """1 or -1 for better or worse beyond the interval, 0 for neither."""
    return int(gain["ci95"][0] > 0) - int(gain["ci95"][1] < 0)


def _kept(block: dict[str, Any], metric: str) -> str:
    retained, ensemble = block["retained_gain"][metric], _change(metric, block["gains"]["ensemble"][metric])
    if block["outcome"] == "ensemble_has_no_gain":
        return f" (the ensemble {ensemble})"
    if not retained["meaningful"]:
        return f" (the ensemble {ensemble}, so a retained gain means nothing here)"
    if retained["mean"] <= 0:
        return " (none of the ensemble's gain)"
    low, high = retained["ci95"]
    return f" ({100 * retained['mean']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of the ensemble's gain)"


def _against_alternatives(over: dict[str, Any]) -> str:
    """The student against the strongest alternative in accuracy and in NLL."""
    leads, clauses = {}, {}
    for metric in ("accuracy", "nll"):
        gain, leads[metric] = min(((over[kind][metric], kind) for kind in ALTERNATIVES), key=lambda item: item[0]["mean"])
        clauses[metric] = f"{METRIC_LABELS[metric]} {_change(metric, gain)}{'' if _direction(gain) else ', which may be chance'}"
    if len(set(leads.values())) == 1:
        return f"Against the best alternative ({KIND_LABELS[leads['nll']]}), {'; '.join(clauses.values())}."
    return f"Against the best alternatives, {'; '.join(f'{clause} ({KIND_LABELS[leads[metric]]})' for metric, clause in clauses.items())}."


def _change(metric: str, gain: dict[str, Any]) -> str:
    """``3.8 points better [3.0, 4.6]``: the interval counts in the direction that the word names."""
    sign = 1 if gain["mean"] >= 0 else -1
    scale, digits, unit = (100, 1, " points") if metric == "accuracy" else (1, 3, "")
    low, high = sorted(sign * scale * end for end in gain["ci95"])
    return f"{abs(scale * gain['mean']):.{digits}f}{unit} {'better' if sign > 0 else 'worse'} [{low:.{digits}f}, {high:.{digits}f}]"


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
