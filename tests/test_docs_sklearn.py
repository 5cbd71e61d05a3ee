"""The page for users of scikit-learn: its Python runs."""

import inspect
import re
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from ensdistill.sklearn import DistilledClassifier
from ensdistill.student import automatic
from ensdistill.student.search.latency import Latency

PAGE = (Path(__file__).parents[1] / "docs" / "sklearn.md").read_text(encoding="utf-8")

SHORT = {"least": 300, "most": 300}  # steps


@pytest.mark.filterwarnings("ignore:save. student, synthetic can't")
def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codes = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    search = "ensdistill.student.search"
    with (
        mock.patch(f"{search}.ordinary.ordinary_steps", return_value=96),
        mock.patch(f"{search}.ladders.latency_of", return_value=Latency(2e-5, "none")),
        mock.patch.object(automatic, "TARGETS", replace(automatic.TARGETS, **SHORT)),
        mock.patch.object(automatic, "LABELS", replace(automatic.LABELS, **SHORT)),
    ):
        for code in codes:
            # A search by minutes would take these.
            exec(compile(code.replace("minutes=3", "trials=1"), "docs/sklearn.md", "exec"), names)
    assert names["model"].score(names["test"], names["y_test"]) > 0.85
    assert names["found"].student_.member.bytes <= 100_000
    assert (names["again"].predict(names["test"]) == names["model"].predict(names["test"])).all()


def test_every_parameter_is_on_the_page():
    for name in inspect.signature(DistilledClassifier).parameters:
        assert f"`{name}`" in PAGE
