"""The site as a whole: its links, its contents, its picture; and its build, where the tools are there."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
import yaml

from benchmarks.quality import frontier
from ensdistill.common.files import read_json

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The ids that the site gives the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (
        re.sub(r"[^\w\s-]", "", re.sub(r"[`*]|\]\([^)]*\)", "", one)).strip().lower() for one in headings
    )
    return {re.sub(r"[\s-]+", "-", one) for one in plain}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith("https://"):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        # mkdocs has no page of a file outside of its folder.
        assert page.name == "README.md" or target.is_relative_to(DOCS), link
        assert not anchor or anchor in anchors(target), link


def listed(entry):
    if isinstance(entry, str):
        return [entry]
    return [one for part in (entry.values() if isinstance(entry, dict) else entry) for one in listed(part)]


def test_the_contents_list_each_page_once():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    there = [p.relative_to(DOCS).as_posix() for p in [*PAGES, *DOCS.rglob("*.ipynb")]]
    assert sorted(listed(settings["nav"])) == sorted(there)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_the_picture_has_the_figures_of_the_results(tmp_path):
    found = frontier.rewrite(ROOT / "benchmarks" / "results", tmp_path / "frontier.svg")
    files = "intel-r-xeon-r-processor-2c-fe334339-digits-pool", "amd-epyc-2c-19099b02-keep"
    sized = {
        one["size"]: one
        for file in files  # the later one has the size that is searched for
        for one in read_json(ROOT / f"benchmarks/results/quality-{file}.json")["students"]
        if (one["set"], one["regime"]) == ("digits", "pool")
    }
    digits = next(panel for panel in found if panel.name == "digits, reported seed")
    assert digits.ensemble == (164472, sized["member"]["nll"]["means"]["ensemble"])
    expected = [
        (sized[size]["cost"]["bytes"], sized[size]["nll"]["means"]["student_temperature_scaled"])
        for size in ("tenth", "member", "keep")
    ]
    assert digits.models["student"] == expected
    shown = {text.count("</svg>") for text in [(tmp_path / "frontier.svg").read_text(encoding="utf-8")]}
    assert shown == {1}


def test_docstrings_are_ready_for_the_site(monkeypatch):
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object, Object=object))
    source = (DOCS / "_tools" / "roles.py").read_text(encoding="utf-8")
    names = {"__name__": "roles"}
    exec(compile(source, "docs/_tools/roles.py", "exec"), names)
    found = names["site_text"](
        "As in :func:`~ensdistill.a.b`::\n\n    code\n\n"
        "Parameters\n----------\nx : one of :mod:`ensdistill.a.targets`\n    Of :class:`~ensdistill.C`.\n\n"
        "Returns\n-------\nfor ``none`` [N]\n    Rows.\n\nExamples\n--------\nof ``x``"
    )
    lines = found.splitlines()
    assert lines[0] == ('As in <autoref optional identifier="ensdistill.a.b"><code>b</code></autoref>:')
    assert lines[6] == "x : one of targets"
    assert lines[7].endswith("<code>C</code></autoref>.")
    assert lines[11] == "for none [N]"
    assert lines[-1] == "of ``x``"


def test_the_site_is_built_without_a_warning(tmp_path):
    missing = [
        name for name in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(name) is None
    ]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: pip install --no-build-isolation -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "site" / "api" / "cache.html").read_text(encoding="utf-8")
    assert "Run the ensemble over" in page  # a docstring
