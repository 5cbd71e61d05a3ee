"""The commands word the output of a run by its task."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ensdistill.cli import export, overview


@pytest.mark.parametrize(
    ("task", "answers"),
    [
        (None, "label and probabilities of new rows"),
        ("multilabel", "labels and probabilities of new rows"),
        ("regression", "numbers of new rows"),
    ],
)
def test_the_overview_names_what_predict_writes(task, answers):
    settings = {"data": {"init_args": {"task": task}}}
    report = {"task": task or "classification"}
    found = SimpleNamespace(
        folder=Path("run"), settings=settings, students=[], finished={}, report=report, seeds=1
    )
    assert dict(overview._commands(found))["ensdistill predict run NEW.csv -o out.csv"] == answers


@pytest.mark.parametrize(("figure", "shown"), [("rmse", False), ("nll", True)])
def test_a_regression_is_exported_without_a_temperature(capsys, figure, shown):
    latency = {"batch_1": {"p50": 1.0}, "batch_256": {"p50": 1.0}}
    one = SimpleNamespace(
        name="onnx", bytes=1, figures={figure: 0.5}, largest_difference=0.0, latency_ms=latency
    )
    export._show(SimpleNamespace(variants=[one], rows=9, runtime="onnxruntime", temperature=1.0, files=[]))
    assert ("temperature" in capsys.readouterr().out) == shown
