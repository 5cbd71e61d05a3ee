"""The page on starting from data: its commands are known, and its printed facts are those of the data."""

import re
import shlex
import shutil
from pathlib import Path

from job_helpers import run

from ensdistill.cli.usage import COMMANDS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text):
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("ensdistill ")]


def test_the_commands_are_known():
    hurry = README.partition("## In a hurry")[2].partition("## ")[0]
    assert len(commands(hurry)) == 3
    for _, command, *_ in commands(PAGE) + commands(hurry):
        assert command in COMMANDS or command.startswith("runs/")


def test_the_facts_are_those_of_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    shutil.copy(ROOT / "examples" / "penguins.csv", tmp_path)
    (init,) = [words for words in commands(PAGE) if words[1] == "init"]
    status, out, err = run(*init[1:])
    assert (status, out) == (0, "penguins.yaml  Run it: ensdistill run penguins.yaml\n")
    shown = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL).group(1).splitlines()
    assert [line.rstrip() for line in err.splitlines()] == shown[:-1]  # init has no run's folder
