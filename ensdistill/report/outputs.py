"""The rows of a table with the metric of each label or number by itself."""

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


def output_rows(outputs: list[dict[str, Any]], each: Each) -> list[list[str]]:
    """The cells of labels or numbers: the name, the further column, and the metric of `EACH_KINDS`."""
    return [
        [
            one["name"],
            f"{one[each.about]:.5g}",
            *(each.text(one[each.metric.name][kind]) for kind in EACH_KINDS),
        ]
        for one in outputs
    ]
