"""The notebooks of the site: executed from top to bottom, and they still run."""

import json
import os
import re

import matplotlib
import pytest
from docs_blocks import ROOT

BOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(book):
    return [
        one for one in json.loads(book.read_text(encoding="utf-8"))["cells"] if one["cell_type"] == "code"
    ]


def test_there_are_three():
    assert [book.stem for book in BOOKS] == ["cache", "csv", "kept"]


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_a_notebook_was_executed_in_order_on_no_particular_machine(book):
    assert [cell["execution_count"] for cell in cells(book)] == list(range(1, len(cells(book)) + 1))
    outputs = [output for cell in cells(book) for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not re.search(r"/tmp/|/home/|/work/|/root/", json.dumps(outputs))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:save. synthetic can't", "ignore::ensdistill.cache.CacheLossWarning")
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_a_notebook_runs(book, tmp_path, monkeypatch):
    folder = tmp_path / "docs" / "notebooks"
    folder.mkdir(parents=True)
    os.symlink(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(folder)
    matplotlib.use("agg")
    names = {"__name__": "notebook"}
    for number, cell in enumerate(cells(book), 1):
        exec(compile("".join(cell["source"]), f"{book.name}[{number}]", "exec"), names)
    if book.stem == "kept":  # synthetic rows, or a pool, bring a student nearer to the ensemble
        for size in names["sizes"]:
            assert names["found"][size, "both"] < names["found"][size, "300 labelled rows"]
