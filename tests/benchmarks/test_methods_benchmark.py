"""The comparison of methods: its intervals, its winner, and its quick form on one set."""

import json

import numpy as np
import pytest

from benchmarks.methods import measure, table
from benchmarks.methods.command import main
from ensdistill.student.methods import METHODS


def row(method, seed, nll, name="s"):
    own = {"accuracy": 0.9, "ood_auroc": 0.6, "disagreement_rank": 0.5}
    return {"set": name, "seed": seed, "method": method, "scaled_nll": nll, **own}


ROWS = [
    *(row("ensemble", s, 0.2) for s in range(3)),
    *(row("labels", s, 0.6) for s in range(3)),
    *(row("kd", s, 0.30 + 0.01 * s) for s in range(3)),
    *(row("dkd", s, 0.25 + 0.02 * s) for s in range(3)),
]


def test_differences_are_paired_by_seeds_and_have_student_s_interval():
    mean, half = table.over_kd(ROWS, "s", "dkd", "scaled_nll")
    assert mean == pytest.approx(-0.04)
    assert half == pytest.approx(4.303 * 0.01 / np.sqrt(3), rel=1e-3)
    assert np.isnan(table.over_kd(ROWS[:-2], "s", "dkd", "scaled_nll")[1])


def test_the_winner_keeps_the_largest_share_of_the_gain():
    best, shares = table.winner(ROWS)
    assert best == "dkd"
    assert shares == {"kd": pytest.approx(0.29 / 0.4), "dkd": pytest.approx(0.33 / 0.4)}
    lines = table.markdown(ROWS).splitlines()
    assert lines[2].startswith("| ensemble | 90.0")
    assert lines[3] == "| dkd | 90.0, -0.040 ± 0.025 | 82 % | 0.60 | 0.50 |"


def test_every_method_is_compared():
    used = {name for one in measure.METHODS.values() for name in ([one] if isinstance(one, str) else one)}
    assert used == set(METHODS)


def test_a_result_of_other_settings_is_not_continued(tmp_path, capsys):
    (tmp_path / "r.json").write_text(json.dumps({"settings": {"form": "long"}, "rows": []}))
    assert main(["--quick", "--out", str(tmp_path / "r.json")], tmp_path) == 2
    assert "--out: " in capsys.readouterr().err
    assert main(["--methods", "magic"], tmp_path) == 2
    assert "--methods: expected some of kd, kd, T=2, " in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_form_compares_methods_and_goes_on(tmp_path, capsys):
    out = tmp_path / "r.json"
    words = ["--quick", "--sets", "digits", "--seeds", "0", "--out", str(out), "--methods", "kd", "labels"]
    assert main(words, tmp_path) == 0
    before = json.loads(out.read_text())["rows"]
    assert [one["method"] for one in before] == ["ensemble", "kd", "labels"]
    assert main([*words, "hydra", "endd"], tmp_path) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows[:3] == before
    assert [one["method"] for one in rows[3:]] == ["hydra", "endd"]
    assert all(0 < one["nll"] < 5 and 0 <= one["ood_auroc"] <= 1 for one in rows)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-12)
    assert rows[0]["disagreement_rank"] == 1
    assert out.with_suffix(".png").is_file()
    assert "The largest mean share is kept by" in capsys.readouterr().out
