"""The page on data: its Python runs, and its settings are read."""

import re
from pathlib import Path

import yaml

from ensdistill.cli.classes import parse
from ensdistill.job.config import Config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_runs():
    (code,) = blocks("python")
    names = {}
    exec(compile(code, "docs/data.md", "exec"), names)
    assert names["logits"].shape == (300, 2)
    assert (names["logits"].argmax(1) == names["labels"]).mean() > 0.4


def test_a_csv_needs_few_lines(monkeypatch):
    monkeypatch.chdir(ROOT)
    (text,) = blocks("yaml")
    assert len(text.strip().splitlines()) <= 12
    config = parse(Config, yaml.safe_load(text))
    split = config.split(0)
    assert split.classes == ("Adelie", "Chinstrap", "Gentoo")
    assert len(split.labelled) + len(split.test) == 344
