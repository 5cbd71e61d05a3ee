"""The cells of the report's tables: numbers as text."""

from __future__ import annotations

from typing import Any

from ensdistill.common.tasks import Task
from ensdistill.report.measures import MEASURES, METRICS
from ensdistill.report.verdict import kept_share


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


def share_cell(metric: str, share: dict[str, Any]) -> str:
    """A member's Shapley value, with its standard error in brackets where it was sampled."""
    scale, digits = (100, 2) if METRICS[metric].percent else (1, 3)
    error = f" ({scale * share['error']:.{digits}f})" if share["error"] else ""
    return f"{scale * share['mean']:+.{digits}f}{error}"


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
