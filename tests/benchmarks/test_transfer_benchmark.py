"""The comparison of synthetic rows, in its quick form on one set."""

import json

import pytest

from benchmarks.transfer.command import main


@pytest.mark.slow
def test_kinds_of_synthetic_rows_are_compared_on_validation_rows(tmp_path, capsys):
    words = ["--quick", "--sets", "digits", "--kinds", "rows", "k10 p0.3", "--out", str(tmp_path / "r.json")]
    assert main(words, tmp_path) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == ["ensemble", "direct", "rows", "k10 p0.3"]
    assert rows[0]["agreement"] == 1
    assert all(0.3 < row["accuracy"] <= 1 and row["nll"] > 0 for row in rows[:2])
    assert "digits, tenth" in capsys.readouterr().out


def test_an_unknown_kind_is_refused(tmp_path, capsys):
    assert main(["--kinds", "magic"], tmp_path) == 2
    assert "--kinds: expected some of rows, munge, munge+mixup, " in capsys.readouterr().err
