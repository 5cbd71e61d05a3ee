"""The scripts that make the examples' data."""

import os
import sys

import pandas as pd
import pytest

from ensdistill.data import ImageFolder, Texts
from examples import make_fashion, make_income, make_packages

DUMP = """Package: one
Description: a text
 that goes on
 .
 in a second paragraph
Section: non-free/net

Package: two
Section: doc

Package: three
Description: about doors
Section: doc

Package: four
Description: about nets
Section: net

"""


def test_digits_take_the_place_of_images_that_are_not_there(tmp_path, capsys):
    out = tmp_path / "digits"
    make_fashion.main(["--fashion", str(tmp_path), "--out", str(out), "--train", "60", "--test", "30"])
    assert "dataset-fashion-mnist" in capsys.readouterr().out
    split = ImageFolder(out / "train", test_path=out / "test", mode="L").split(0)
    assert (len(split.labelled), len(split.test), split.classes) == (60, 30, tuple("0123456789"))
    with pytest.raises(SystemExit, match="is there already"):
        make_fashion.main(["--fashion", str(tmp_path), "--out", str(out)])


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """A folder with an ``apt-cache`` that prints what it is given."""

    def install(output, code=0):
        program = tmp_path / "apt-cache"
        program.write_text(f"#!{sys.executable}\nprint({output!r}, end='')\nraise SystemExit({code})\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/nowhere")

    return install


def test_packages_are_read_with_their_whole_description(tmp_path, apt):
    apt(DUMP)
    out = tmp_path / "made" / "packages.csv"
    make_packages.main(["--out", str(out)])
    table = pd.read_csv(out)
    assert table.package.tolist() == ["four", "one", "three"]
    assert table.description[1] == "a text\nthat goes on\n\nin a second paragraph"
    assert Texts(out, "description", "section").whole.classes == ("doc", "net")
    make_packages.main(["--out", str(out), "--sections", "1", "--rows", "1"])
    assert pd.read_csv(out).section.tolist() == ["net"]


def test_tags_of_packages_are_several_labels(tmp_path, apt):
    dump = DUMP.replace("Section: net\n", "Tag: role::program, works-with::{db, file}\nSection: net\n")
    dump = dump.replace("about doors\n", "about doors\nTag: role::program,\n rare::one\n")
    apt(dump)
    out = tmp_path / "tags.csv"
    make_packages.main(["--tags", "3", "--out", str(out)])
    whole = Texts(out, "description", "tags", separator=",").whole
    assert whole.rows.labels.shape == (2, 3)
    assert len(whole.classes) == 3
    assert "role::program" in whole.classes
    assert len(pd.read_csv(out)) == 2


def test_a_system_without_packages_is_named(apt, monkeypatch):
    apt("", 0)
    with pytest.raises(SystemExit, match="lists no packages; run apt-get update"):
        make_packages.main([])
    apt("", 1)
    with pytest.raises(SystemExit, match="apt-cache failed"):
        make_packages.main([])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit, match="there is no apt-cache here"):
        make_packages.main([])


def test_income_needs_its_file(tmp_path):
    with pytest.raises(SystemExit, match=r"none\.rda: apt-get install r-cran-kernlab"):
        make_income.main(["--file", str(tmp_path / "none.rda")])
