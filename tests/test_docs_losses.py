"""The page on losses for other tasks: its Python runs as it stands."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("source", BLOCKS, ids=lambda x: x.splitlines()[1][-40:])
def test_a_block_runs(source):
    """The blocks check their own claims with ``assert``."""
    assert "assert" in source
    exec(compile(source, "docs/losses.md", "exec"), {"__name__": "__main__"})


def test_there_is_a_block_for_each_loss():
    assert len(BLOCKS) == 2
