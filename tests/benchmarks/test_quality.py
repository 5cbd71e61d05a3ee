"""The quality benchmark: its judgement on models whose gains are known, its data sets, and a small run."""

import json

import numpy as np
import pytest

from benchmarks.quality import judgement, picture
from benchmarks.quality.command import main, table
from benchmarks.quality.peers import PEERS
from benchmarks.quality.sets import SETS, Drawn, content
from benchmarks.teachers.data import Missing
from ensdistill.report.results import KINDS

ROWS, SEEDS = 400, 3


def probabilities(right: float, labels: np.ndarray, classes: int = 4) -> np.ndarray:
    """Probability ``right`` for each label, and the rest in equal parts."""
    made = np.full((len(labels), classes), (1 - right) / (classes - 1))
    made[np.arange(len(labels)), labels] = right
    return made


@pytest.fixture
def models():
    random = np.random.default_rng(0)
    labels = [random.integers(4, size=ROWS) for _ in range(SEEDS)]
    right = dict.fromkeys(KINDS, 0.4) | {"ensemble": 0.8, judgement.STUDENT: 0.7, "other": 0.75}
    return {kind: [probabilities(p, y) for y in labels] for kind, p in right.items()}, labels


def test_the_share_kept_is_of_the_gain_over_the_strongest_direct_model(models):
    found, labels = models
    found["direct_label_smoothing"] = [probabilities(0.5, y) for y in labels]
    judged = judgement.judge_student(found, labels, ["other"])["nll"]
    assert judged["strongest_direct"] == "direct_label_smoothing"
    assert judged["lead"] == pytest.approx(np.log(0.8 / 0.5))
    assert judged["kept"] == pytest.approx(np.log(0.7 / 0.5) / np.log(0.8 / 0.5))
    assert judged["kept_interval"] == pytest.approx([judged["kept"]] * 2)
    assert judged["counts"]


def test_the_best_alternative_may_be_another_tool(models):
    found, labels = models
    judged = judgement.judge_student(found, labels, ["other"])["nll"]
    assert judged["best_alternative"] == "other"
    assert judged["over"] == pytest.approx(np.log(0.7 / 0.75))
    assert judged["worse"]
    assert judged["worse_beyond_interval"]
    alone = judgement.judge_student(found, labels)["nll"]
    assert alone["best_alternative"] in judgement.DIRECT
    assert not alone["worse"]


def test_a_lead_within_its_error_does_not_count(models):
    found, labels = models
    random = np.random.default_rng(1)
    noisy = [probabilities(0.4, random.permutation(y)) for y in labels]
    judged = judgement.judge_student(found | {"ensemble": noisy}, labels)["accuracy"]
    assert judged["lead"] < 0
    assert not judged["counts"]
    assert judged["kept"] is None


def test_goals_are_means_over_the_cases_that_count():
    def case(kept: float, counts: bool) -> dict:
        metric = {"kept": kept, "counts": counts}
        return {"regime": "all", "size": "tenth", "accuracy": metric, "nll": metric}

    found = judgement.goals([case(0.9, True), case(0.7, True), case(5.0, False)], "all", "tenth")
    assert found["nll"] == {"counting": 2, "mean": pytest.approx(0.8), "least": 0.7}


def test_table_and_picture(models, tmp_path):
    found, labels = models
    judged = judgement.judge_student(found, labels, ["other"])
    one = {"set": "digits", "regime": "all", "size": "member", **judged}
    result = {"students": [one], "settings": {"seeds": SEEDS}}
    assert table(result).row_count == 1
    picture.draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["digits", "letter", "income", "spam", "diamonds"])
def test_splits_have_the_regimes_rows_and_differ_by_seed(name):
    try:
        samples, labels, classes = content(name)
    except Missing as error:
        pytest.skip(str(error))
    assert len(samples) == len(labels)
    assert labels.max() == len(classes) - 1
    for size in SETS[name].regimes.values():
        one, other = (Drawn(name, size.labelled, size.pool, size.test, first).split(0) for first in (0, 1000))
        assert abs(len(one.labelled) - size.labelled) <= 0.1 * size.labelled
        assert abs(len(one.pool) - size.pool) <= 0.1 * size.pool
        assert not np.array_equal(np.sort(one.test.uids), np.sort(other.test.uids))


@pytest.mark.slow
def test_a_small_run_goes_on_and_ends_with_a_result(tmp_path):
    arguments = ["--quick", "--develop", "--sets", "digits", "--seeds", "2", "--work", str(tmp_path / "runs")]
    out = tmp_path / "result.json"
    assert main([*arguments, "--out", str(out)], tmp_path) == 0
    first = json.loads(out.read_text())
    assert [one["size"] for one in first["students"]] == ["member", "tenth"]
    means = first["students"][0]["nll"]["means"]
    assert {name for name, peer in PEERS.items() if "image" in peer.kinds} <= set(means)
    assert main([*arguments, "--out", str(out)], tmp_path) == 0  # everything is there
    again = json.loads(out.read_text())
    assert [one["nll"] for one in again["students"]] == [one["nll"] for one in first["students"]]
