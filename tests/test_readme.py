"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[int, str]]:
    """(line of its first statement, source) of each block; none where the file is missing, which the first
    test reports."""
    text = README.read_text(encoding="utf-8") if README.is_file() else ""
    return [(text.count("\n", 0, found.start()) + 2, found[1]) for found in BLOCK.finditer(text)]


def test_there_is_a_block_for_each_kind_of_user():
    assert len(blocks()) == 5


@pytest.mark.parametrize(
    ("line", "source"), [pytest.param(*block, id=f"line-{block[0]}") for block in blocks()]
)
def test_a_block_runs_in_an_empty_folder_and_there_again(line, source, tmp_path, monkeypatch):
    """The blocks check their own claims with ``assert``."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        # The empty lines make a traceback name the README's own line.
        exec(compile("\n" * (line - 1) + source, str(README), "exec"), {"__name__": "__main__"})
        if not any(tmp_path.iterdir()):
            break  # nothing is left that a second run could find
