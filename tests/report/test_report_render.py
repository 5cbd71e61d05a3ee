"""The views of a report: the terminal table, the page and the figures."""

import base64
import hashlib
import io
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import HELPED, model, run_results
from rich.console import Console

from ensdistill.report import RunResults, StudentResults, as_text, judge, write_report
from ensdistill.report.cells import milliseconds, size, times
from ensdistill.report.table import look
from ensdistill.report.verdict import KIND_LABELS

DID_NOT = {"student": 0.92}
FIGURES = ("classes", "frontier", "learning_curves", "metrics", "reliability", "uncertainty")


def printed(report: dict[str, Any], width: int, encoding: str = "utf-8") -> str:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    Console(file=stream, width=width).print(as_text(report))
    stream.flush()
    return buffer.getvalue().decode(encoding)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return judge(run_results({}, DID_NOT))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResults]:
    results = run_results({}, DID_NOT)
    folder = tmp_path_factory.mktemp("report")
    write_report(results, folder)
    return folder, results


def test_the_first_line_states_that_distillation_did_not_help(report: dict[str, Any]) -> None:
    assert printed(report, 100).startswith("Distillation did not help cnn. ")


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_table_keeps_numbers_whole_and_pipes_plain(report: dict[str, Any], width: int, encoding: str) -> None:
    text = printed(report, width, encoding).replace("|", " ")  # the column lines of the ASCII box
    assert "\x1b" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    rows = [line.split() for line in text.splitlines()]
    accuracy = 100 * report["models"]["ensemble"]["accuracy"]["mean"]
    assert ["ensemble", f"{accuracy:.2f}"] in [row[:2] for row in rows]
    kept = report["retained_gain"]["accuracy"]
    cell = f"{100 * kept['mean']:.0f} % [{100 * kept['ci95'][0]:.0f}, {100 * kept['ci95'][1]:.0f}]"
    assert any(
        line.strip().startswith("accuracy +") and line.rstrip().endswith(cell)
        for line in map(squeeze, text.splitlines())
    )
    assert any(row[:2] == ["extra-trees", "0.03"] for row in rows)
    for label in KIND_LABELS.values():
        assert any(re.match(rf" *{re.escape(label)} +\d", line) for line in text.splitlines()), (
            label
        )  # on one line


def test_a_retained_gain_that_finds_no_room_is_folded(report: dict[str, Any]) -> None:
    wide = json.loads(json.dumps(report))
    interval = {"mean": -0.005, "ci95": [-0.009, -0.002]}
    kept = {"mean": -1.49, "ci95": [-991.0, 0.164], "meaningful": True}
    wide["students"]["mlp"]["strongest"]["all"]["brier"].update(student=interval, retained_gain=kept)
    part = printed(wide, 80).partition("over strongest alternative")[2]
    assert "-149 % [<-999, 16]" in squeeze(part.replace("\n", " "))


def squeeze(line: str) -> str:
    return re.sub(r" +", " ", line)


def test_a_name_with_brackets_is_a_name() -> None:
    results = run_results()
    student = results.students[0]
    odd = StudentResults("[red]mlp[/x]", "<b>", student.models, {})
    assert "Distillation helped [red]mlp[/x] in accuracy and NLL." in printed(
        judge(run_results(students=[odd])), 100
    )


def test_no_gain_prints_no_percentage() -> None:
    text = printed(judge(run_results({"ensemble": 0.925})), 100)
    rows = [
        line
        for line in text.splitlines()
        if squeeze(line).strip().startswith(("accuracy ", "NLL ", "Brier "))
    ]
    retained = [line for line in rows if "[" in line and "than" not in line]
    assert len(retained) == 6  # over direct and over the strongest
    assert all(line.rstrip().endswith("means nothing") for line in retained)


def test_floored_rows_are_not_silent() -> None:
    results = run_results()
    arrays = [p.copy() for p in results.ensemble.probabilities]
    wrong = int(np.nonzero(arrays[0].argmax(axis=1) != results.labels[0])[0][0])
    arrays[0][wrong] = np.eye(10)[arrays[0][wrong].argmax()]
    report = judge(run_results(ensemble=model("ensemble", 0.9, results.labels, probabilities=arrays)))
    assert "counted as 2.2e-16 (36 nats) in NLL: ensemble (1)." in " ".join(printed(report, 100).split())
    assert "counted as" not in printed(judge(results), 100)


def test_files(page: tuple[Path, RunResults]) -> None:
    folder, results = page
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    figures = [f"figures/{stem}.png" for stem in FIGURES]
    assert names == [*figures, "report.html", "report.json"]
    assert json.loads((folder / "report.json").read_text()) == judge(results)
    for figure in figures:
        data = (folder / figure).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 10_000


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.headlines: list[str] = []
        self.svgs = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.svgs += tag == "svg"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "link", "br", "hr", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h1":
            self.headlines.append(data)


def test_page_stands_alone(page: tuple[Path, RunResults]) -> None:
    text = (page[0] / "report.html").read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.svgs > 15  # one for each panel, and for each entry of a legend
    assert parsed.headlines == ["Distillation did not help cnn"]
    assert ">Distillation helped mlp in accuracy and NLL</h2>" in text
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in parsed.addresses)
    assert not re.search(r"url\((?!#)|@import|<link", text)
    # The only script is the page's own: the policy has its digest, and allows no other.
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    )
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    for value in ("Xeon", "2.13.0", "extra-trees", "svc in every seed"):
        assert value in text


def test_page_escapes_names(tmp_path: Path) -> None:
    student = run_results().students[0]
    odd = StudentResults("<script>alert(1)</script>", "a & b", student.models, {})
    write_report(run_results(students=[odd]), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_same_results_same_bytes(page: tuple[Path, RunResults], tmp_path: Path) -> None:
    folder, results = page
    write_report(results, tmp_path)
    for path in folder.rglob("*.*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


@pytest.mark.usefixtures("undrawn")
def test_nothing_but_one_seed_one_student_no_members_no_curves(tmp_path: Path) -> None:
    student = run_results(seeds=(7,)).students[0]
    bare = StudentResults("mlp", "MLP", student.models, {})
    report = write_report(
        run_results(HELPED, seeds=(7,), students=[bare], members=[], environment={}, timings={}), tmp_path
    )
    assert not (tmp_path / "figures" / "learning_curves.png").exists()
    assert "learning curves:" not in (tmp_path / "report.html").read_text()
    text = " ".join(printed(report, 80).split())
    assert "seed 7." in text
    assert "paired bootstrap resamples of the test rows; how much seeds differ is not in them." in text
    assert "This is one seed: the intervals leave out how much seeds differ." in text
    assert "This is one seed" in (tmp_path / "report.html").read_text()


def test_several_seeds_are_in_the_intervals(report: dict[str, Any]) -> None:
    text = " ".join(printed(report, 80).split())
    assert "paired bootstrap resamples of seeds and test rows." in text
    assert "one seed" not in text


@pytest.mark.usefixtures("undrawn")
def test_help_that_needed_no_ensemble_is_not_praised(tmp_path: Path) -> None:
    results = run_results({"distilled_from_best_member": HELPED["student"]})
    report = write_report(results, tmp_path)
    title = "The ensemble taught mlp not measurably better than its best member alone does"
    assert printed(report, 200).startswith(f"{title}. ")
    assert look(report["students"]["mlp"]) == "mixed"
    page = (tmp_path / "report.html").read_text()
    assert Page(page).headlines == [title]
    assert '<section class="verdict mixed">' in page
    assert look(judge(run_results())["students"]["mlp"]) == "helped"


def test_the_best_member_has_its_cost(report: dict[str, Any]) -> None:
    serving = printed(report, 100).split("Cost to serve")[1]
    assert re.search(r"best member +48\.1k +196k +0\.210 / 0\.273", serving)


@pytest.mark.usefixtures("undrawn")
def test_a_booster_has_no_number_of_parameters(tmp_path: Path) -> None:
    results = run_results({}, DID_NOT)
    student = results.students[0]
    models = {kind: replace(model, parameters=0) for kind, model in student.models.items()}
    results = replace(results, students=[replace(student, models=models)])
    report = judge(results)
    (one,) = report["students"].values()
    assert one["serving"]["parameters"] is None
    rows = [line.split() for line in printed(report, 100).replace("|", " ").splitlines()]
    assert [row[1] for row in rows if row[:1] == [student.name] and len(row) > 6] == ["-"]
    write_report(results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert f'<th scope="row">{student.name}</th><td>-</td>' in page.split("Cost to serve</h3>")[1]
    assert "<dt>parameters</dt><dd>-</dd>" in page


@pytest.mark.usefixtures("undrawn")
def test_bytes_stand_in_place_of_a_latency_that_was_not_measured(tmp_path: Path) -> None:
    none = {batch: {"p50": None, "p95": None} for batch in ("batch_1", "batch_256")}
    results = run_results(seeds=(0,))
    student = results.students[0]
    untimed = {kind: replace(one, latency_ms=none) for kind, one in student.models.items()}
    write_report(replace(results, students=[replace(student, models=untimed)]), tmp_path)
    tiles = (tmp_path / "report.html").read_text().partition('<dl class="tiles">')[2].partition("</dl>")[0]
    assert "<dt>bytes</dt><dd>19.6k</dd>" in tiles
    assert "latency" not in tiles


def test_before_and_after_temperature_scaling() -> None:
    text = printed(judge(run_results()), 100)
    for label in ("direct, temperature", "direct, smoothing,", "distilled from best", "student"):
        assert len(re.findall(rf"^  {label}.*scaled ", text, re.MULTILINE)) == 1
    assert "Never on the test rows." in " ".join(text.split())
    assert "made NLL worse" not in text
    report = judge(run_results({"student_temperature_scaled": 0.93}))
    before, after = (
        report["models"][kind]["nll"]["mean"] for kind in ("student", "student_temperature_scaled")
    )
    remark = f"Temperature scaling made NLL worse: mlp, student (distilled) ({before:.3f} to {after:.3f})."
    assert remark in " ".join(printed(report, 100).split())


def test_adaptive_ece_is_in_the_tables(page: tuple[Path, RunResults], report: dict[str, Any]) -> None:
    cell = f"{100 * report['models']['ensemble']['adaptive_ece']['mean']:.2f}"
    assert re.search(rf"^ensemble .* {re.escape(cell)} *$", printed(report, 100), re.MULTILINE)
    # Of models, generations and members.
    assert (page[0] / "report.html").read_text().count('<th scope="col">aECE %</th>') == 3


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named_before_anything_is_written(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ensdistill\[report\]'"):
        write_report(run_results(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_report_does_not_import_its_extras() -> None:
    import subprocess

    code = (
        "import sys, ensdistill.report; print([m for m in ('matplotlib', 'jinja2', 'torch', 'sklearn') if m "
        "in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (size(999), "999"),
        (size(1900), "1.90k"),
        (size(292_450), "292k"),
        (size(1_170_000), "1.17M"),
        (milliseconds(0.0214), "0.021"),
        (milliseconds(19), "19.0"),
        (milliseconds(171.4), "171"),
        (times(1.26), "1.3x"),
        (times(904.7), "905x"),
        (times(None), "-"),
    ],
)
def test_numbers_are_short(shown: str, expected: str) -> None:
    assert shown == expected
