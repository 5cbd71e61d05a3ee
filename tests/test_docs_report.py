"""The page on the report: its Python runs as it stands, and its tables are those of the code."""

import re
from pathlib import Path

import pytest

from ensdistill.report.measures import MEASURES
from ensdistill.report.verdict import OUTCOMES

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "report.md").read_text(encoding="utf-8")
SCHEMA = (DOCS / "report-json.md").read_text(encoding="utf-8")


def test_the_block_runs() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert "assert" in source
    exec(compile(source, "docs/report.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("task", MEASURES)
def test_the_metrics_of_each_task_are_listed(task: str) -> None:
    measures = MEASURES[task]
    first, second = (
        line for page in (PAGE, SCHEMA) for line in page.splitlines() if line.startswith(f"| `{task}` |")
    )
    for metric in measures.deciding:
        assert metric.label in first.split("|")[2]
    names = re.findall(r"`(\w+)`", second)[1:]
    each = [] if measures.each is None else [measures.each.about, measures.each.metric.name]
    shown = [metric.name for metric in measures.metrics if not metric.compared]
    assert sorted(names) == sorted([m.name for m in measures.compared] + shown + [measures.floored[0]] + each)


def test_all_outcomes_are_listed() -> None:
    (line,) = (line for line in SCHEMA.splitlines() if line.startswith("- `outcome` is"))
    assert re.findall(r"`(\w+)`", line)[1:] == list(OUTCOMES)
