"""The pages in a browser: scripts, sorting, narrow screens, print, and the rules of axe-core."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from report_cases import run_results
from report_task_cases import label_results, number_results

from ensdistill.report import StudentResults, judge, write_report
from ensdistill.report.compare import compared, write_comparison

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("ENSDISTILL_AXE", ROOT / "build" / "axe.min.js"))
LOOKS = pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (800, "dark"), (1280, "light")])
PAGES = pytest.mark.parametrize("name", ["classes", "labels", "numbers", "compared"])
BAD_NAME = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each task, and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    results = run_results({}, {"student": 0.92}, seeds=(0, 1))
    odd = results.students[1]
    students = [results.students[0], StudentResults("cnn", BAD_NAME, odd.models, odd.curves)]
    made = {
        "classes": run_results({}, seeds=(0, 1), students=students),
        "labels": label_results(),
        "numbers": number_results(),
    }
    for name, one in made.items():
        write_report(one, folder / name)
    report = json.loads((folder / "classes" / "report.json").read_text())
    other = judge(run_results({}, seeds=(0,)), resamples=2000)
    write_comparison(compared([("first", report), ("second", other)]), ["A note."], folder / "compared.html")
    files = {name: folder / name / "report.html" for name in made}
    return files | {"compared": folder / "compared.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@PAGES
@LOOKS
def test_pages_fit_their_window_without_an_error(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    browser.errors.clear()
    browser.open(pages[name], width, scheme)
    assert browser.value("document.documentElement.scrollWidth") <= width
    # Nothing but the boxes that scroll is wider than the window.
    wide = (
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('.unseen')"
    )
    wide += " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    assert browser.value(wide) == []
    assert browser.errors == []
    assert browser.value("window.broken") is None


@PAGES
@LOOKS
def test_axe_finds_nothing(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    if not AXE.is_file():
        pytest.skip(f"{AXE} is missing: `make build/axe.min.js` fetches it")
    browser.open(pages[name], width, scheme)
    browser.call("Runtime.evaluate", expression=AXE.read_text(encoding="utf-8"))
    found = browser.value("axe.run({resultTypes: ['violations']}).then(r => r.violations)")
    shown = [(v["id"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"]) for v in found]
    assert shown == []


def test_a_head_sorts_its_column_by_mouse_and_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["classes"])
    table = "document.querySelector('table.sortable')"
    column = (
        f"[...{table}.tBodies].flatMap(b => [...b.rows]).filter(r => r.cells.length > 1 && r.offsetParent)"
    )
    values = f"{column}.map(r => parseFloat(r.cells[1].textContent))"
    names = f"{column}.map(r => r.cells[0].innerText.trim())"
    before, first = browser.value(values), browser.value(names)
    assert before != sorted(before, reverse=True)
    button = f"{table}.tHead.querySelector('button')"
    browser.value(f"{button}.click()")
    assert browser.value(values) == sorted(before, reverse=True)
    assert browser.value(f"{table}.querySelector('[aria-sort]').ariaSort") == "descending"
    # Away from its group, a row's name has the student's.
    assert "mlp: student (distilled)" in browser.value(names)
    browser.value(f"{button}.focus()")
    browser.press("Enter")
    assert browser.value(values) == sorted(before)
    assert browser.value(f"{table}.caption.textContent") == "sorted by accuracy %, ascending"
    browser.press("Enter")
    assert browser.value(values) == before
    assert browser.value(names) == first
    assert browser.value(f"{table}.querySelector('[aria-sort]')") is None


def test_numbers_with_units_signs_and_gaps_sort_by_value(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["classes"])
    rows = ["-", "1.2k", "−3", "0.5 [0, 9]", "2M", "40"]
    cells = "".join(f"<tr><th>{text}</th><td>{text}</td></tr>" for text in rows)
    browser.value(
        "(() => { const body = document.querySelector('section[aria-labelledby=costs] table.sortable tbody');"
        f"body.innerHTML = {json.dumps(cells)}; }})()"
    )
    texts = "[...document.querySelector('section[aria-labelledby=costs] table.sortable tbody').rows]"
    keyed = f"{texts}.map(r => value(r, 1).number)"
    assert browser.value(f"JSON.stringify({keyed})") == "[null,1200,-3,0.5,2000000,40]"


@PAGES
def test_paper_has_all_rows_and_no_controls(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], 794, "dark", "print")
    assert browser.value("document.documentElement.scrollWidth") <= 794
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.value("dispatchEvent(new Event('beforeprint'))")
    assert browser.value("[...document.querySelectorAll('details')].every(part => part.open)")
    clipped = (
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    )
    assert browser.value(clipped) == 0
