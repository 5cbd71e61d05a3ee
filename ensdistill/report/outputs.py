"""The rows of a table with the metric of each class, label or number by itself."""

from __future__ import annotations

from typing import Any

from ensdistill.report.measures import Each

EACH_KINDS = ("ensemble", "direct", "student")  # whose metric of each label or number is shown
SHOWN_OUTPUTS = 20  # labels or numbers in a terminal's table


def most_changed(outputs: list[dict[str, Any]], each: Each, limit: int) -> list[dict[str, Any]]:
    """All labels or numbers in their own order; where there are more than ``limit``, those of which the
    student differs most from direct, from loss to gain."""
    if len(outputs) <= limit:
        return outputs
    changes = [(each.change(one) or 0.0, one) for one in outputs]
    largest = sorted(changes, key=lambda item: -abs(item[0]))[:limit]
    return [one for _, one in sorted(largest, key=lambda item: item[0])]


def output_rows(outputs: list[dict[str, Any]], each: Each, change: bool = False) -> list[list[str]]:
    """The cells of classes, labels or numbers: the name, the further column, the metric of `EACH_KINDS`; and
    the ``change``, by how much the student is better than direct."""
    return [
        [
            one["name"],
            f"{one[each.about]:.4g}",
            *(each.text(one[each.metric.name][kind]) for kind in EACH_KINDS),
            *([_change(each, one)] * change),
        ]
        for one in outputs
    ]


def _change(each: Each, one: dict[str, Any]) -> str:
    change = each.change(one)
    if change is None:
        return "-"
    return f"{100 * change:+.2f}" if each.metric.percent else f"{change:+.3g}"


def most_apart(matrix: list[list[int]]) -> int:
    """The largest count of a table of two models' classes for which they differ, at least 1."""
    return max(1, *(count for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j))
