"""The benchmark of samples, in its quick form: every part runs, and its outputs are checked."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.data import measure


@pytest.mark.slow  # eight processes each
@pytest.mark.parametrize("kind", ["parquet", "png"])
def test_a_quick_run_has_every_part(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "benchmarks.data.command._rows", lambda kind, quick, large: 600 if kind == "png" else 9000
    )
    monkeypatch.setitem(measure.STEPS, "quick", 64)
    out = tmp_path / "result.json"
    assert main(["data", "--quick", "--kinds", kind, "--workers", "1", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    parts = ("cache", "forest", "student", "decode") if kind == "parquet" else ("cache", "student")
    for part in parts:
        assert row[f"{part}_ratio"]["median"] > 0
        for who in ("ours", "plain"):
            assert row[f"{part}_{who}"]["peak_mib"] >= row[f"{part}_{who}"]["before_mib"] > 0
