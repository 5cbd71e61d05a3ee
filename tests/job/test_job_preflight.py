"""``ensdistill preflight`` on a finished job, by its files alone."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from ensdistill.cli.main import main
from ensdistill.cli.settings import load_config
from ensdistill.job import preflight
from ensdistill.job.run_folder import RunFolder
from ensdistill.report.metrics import nll
from ensdistill.teachers.fitting.calibration import probabilities


def test_the_finished_stages_are_judged_and_nothing_is_trained(copy, capsys):
    assert main(["preflight", str(copy.parent.parent / "job.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["changed"]
    made = found["preflight"]
    assert set(made["over_direct"]) == {"small", "wide"}
    assert made["spreads"]["pool"]["rows"] == 100
    assert made["spreads"]["mixup"]["rows"] == 60
    # The lead over direct, from the files of the two stages.
    seed = copy / "seed-0"
    labels = load_file(seed / "teachers" / "held_out.safetensors")["labels"]
    direct = load_file(seed / "direct" / "small" / "held_out.safetensors")["logits"]
    record = json.loads((seed / "direct" / "small" / "stage.json").read_text())
    best = min(value for name, value in record["held_out_nll"].items() if "smoothing" not in name)
    assert nll(probabilities(direct), labels) <= best + 1e-6  # calibrated since
    lead = made["over_direct"]["small"]["nll"]
    member = made["over_best_member"]["nll"]
    assert lead["low"] <= lead["mean"] <= lead["high"]
    assert np.isfinite(member["mean"])
    assert set(made["expected"]) == {"small", "wide"}


def test_the_tables_name_the_best_member_and_the_students(copy, capsys):
    assert main(["preflight", str(copy.parent.parent / "job.yaml")]) == 0
    text = capsys.readouterr().out
    for word in ("the best member, ", "small, trained directly", "labelled, held out", "disagreement"):
        assert word in text


def test_help_is_there(capsys):
    assert main(["preflight", "--help"]) == 0
    assert "what there is to keep" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words", [[], ["nowhere.yaml"]])
def test_wrong_words_end_with_2(words, capsys):
    assert main(["preflight", *words]) == 2


def test_a_students_size_is_that_over_the_median_member_with_weight(finished_job):
    run = RunFolder(load_config(["--config", str(finished_job.parent.parent / "job.yaml")]))
    held_out = preflight._held_out(run, 0)
    first, second = held_out.ensemble.members
    assert first.parameters != second.parameters
    student = 64 * 8 + 8 + 8 * 10 + 10
    for weights, median in ([0.0, 1.0], second.parameters), ([1.0, 0.0], first.parameters):
        held_out.ensemble.weights = np.array(weights)
        assert preflight._sizes(run, 0, [held_out])["small"] == pytest.approx(student / median)
