"""The page for users of scikit-learn: its Python runs."""

import inspect
import re
from pathlib import Path

import pytest

from ensdistill.sklearn import DistilledClassifier

PAGE = (Path(__file__).parents[1] / "docs" / "sklearn.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:save. student, synthetic can't")
def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(compile(code, "docs/sklearn.md", "exec"), names)
    assert names["model"].score(names["test"], names["y_test"]) > 0.85
    assert (names["again"].predict(names["test"]) == names["model"].predict(names["test"])).all()


def test_every_parameter_is_on_the_page():
    for name in inspect.signature(DistilledClassifier).parameters:
        assert f"`{name}`" in PAGE
