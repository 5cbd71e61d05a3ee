"""The teachers' benchmark: contenders do the same work, ratios and tables show the measurements, and an
error about missing data names the way to get them."""

import functools
import os
import subprocess

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.teachers import measure, quality
from benchmarks.teachers.command import _show
from benchmarks.teachers.contenders import CONTENDERS, Case, _silent
from benchmarks.teachers.data import digits
from benchmarks.teachers.picture import draw
from ensdistill.bench import machine
from ensdistill.models import MLP


def case(epochs=10, members=2):
    return Case(
        digits(), functools.partial(MLP, inputs=64, hidden=[32], outputs=10), "MLP", members, epochs, 64
    )


@pytest.mark.slow
def test_contenders_reach_the_same_accuracy():
    chosen = [
        "ensdistill",
        "ensdistill, stacked",
        "ensdistill, one by one",
        "ensdistill, side by side",
        "plain loop",
    ]
    notes = []
    found = measure.training(case(), 1, chosen, notes.append)
    assert set(found["contenders"]) == set(chosen)
    assert found["same_accuracy"]
    assert min(r["accuracy"] for r in found["contenders"].values()) > 0.9
    ratios = measure.targets(found)
    seconds = {name: r["seconds"] for name, r in found["contenders"].items()}
    assert ratios["plain loop"] == seconds["plain loop"] / seconds["ensdistill"]
    own = min(
        seconds["ensdistill, stacked"], seconds["ensdistill, one by one"], seconds["ensdistill, side by side"]
    )
    assert ratios["the fastest of its own ways"] == own / seconds["ensdistill"]
    assert "torchensemble" not in ratios


def test_a_peer_that_fails_is_left_out_with_the_reason(monkeypatch):
    def broken(case, seed):
        raise ImportError("No module named 'peer'")

    monkeypatch.setitem(CONTENDERS, "torchensemble", broken)
    found = measure.training(case(1), 1, ["torchensemble", "plain loop"], lambda line: None)
    assert found["left_out"] == {"torchensemble": "ImportError: No module named 'peer'"}
    assert set(found["contenders"]) == {"plain loop"}


def test_work_that_is_not_the_same_is_marked(monkeypatch):
    task = digits()
    monkeypatch.setitem(
        CONTENDERS, "torchensemble", lambda case, seed: np.eye(10)[(task.test_labels + 1) % 10]
    )
    assert not measure.training(case(5), 1, ["torchensemble", "plain loop"], lambda line: None)[
        "same_accuracy"
    ]


def test_quality_gives_paired_intervals(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=900)
    x = (2 * np.eye(3)[y] + rng.normal(size=(900, 3))).astype(np.float32)
    found = quality.compare("made up", x, y, seeds=1, rows=None, quick=True, note=lambda line: None)
    uniform = found["of"]["uniform"]
    assert uniform["accuracy_minus_uniform"] == [0, 0, 0]
    assert 0.7 < uniform["accuracy"] < 1
    for entry in found["of"].values():
        mean, low, high = entry["nll_minus_uniform"]
        assert low <= mean <= high
        assert mean == pytest.approx(entry["nll"] - uniform["nll"])
    timed = measure.training(case(1), 1, ["ensdistill", "plain loop"], lambda line: None)
    result = {
        "machine": machine.describe_machine(torch.device("cpu")),
        "training": [timed],
        "quality": [found],
    }
    _show(result, Console())
    shown = capsys.readouterr().out
    assert f"│ plain loop │ {timed['contenders']['plain loop']['seconds']:.2f}" in shown
    assert f"[{100 * found['of']['selected by NLL']['accuracy_minus_uniform'][1]:+.2f}, " in shown
    draw(result, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_the_error_of_missing_data_names_the_way_to_get_them(tmp_path, capsys):
    assert main(["teachers", "--parts", "training", "--fashion", str(tmp_path)], tmp_path) == 1
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err
    assert main(["teachers", "--parts", "quality", "--letter", str(tmp_path / "none.rda")], tmp_path) == 1
    assert "apt-get install r-cran-mlbench" in capsys.readouterr().err


def test_the_output_of_a_peer_and_its_processes_is_not_shown(capfd):
    print("before")
    with _silent():
        print("by itself")
        os.write(1, b"by what it calls")
        subprocess.run(["echo", "by a process"], check=True)
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
