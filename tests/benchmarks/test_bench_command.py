"""``ensdistill bench``: its result file, also when it is interrupted, and the README's table that is made
of it."""

import json
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from setuptools import find_packages

from benchmarks import __main__ as front
from benchmarks.kernels import page
from ensdistill.bench import machine, race, result, suite
from ensdistill.bench import run as running
from ensdistill.bench.cases import Case, make_case
from ensdistill.bench.check import NAIVE, WrongOutput
from ensdistill.bench.contenders import contenders
from ensdistill.bench.measure import Cpu
from ensdistill.bench.table import is_family
from ensdistill.cli import bench as command
from ensdistill.cli import main as cli
from ensdistill.loss import ops

ROOT = Path(__file__).parents[2]
TINY = ["--classes", "10", "--members", "1", "--targets", "float32", "--data-mib", "1"]
CASES = [make_case(1 << 18, c, 1, "float32") for c in (10, 100)] + [
    make_case(1 << 18, 100, 1, "topk"),
    make_case(1 << 18, 100, 1, "uint8"),
    Case(16, 300, 1, "float32", "float32", hidden=8),
]


@pytest.fixture(scope="module", autouse=True)
def small_caches():
    """Outrun by one set of inputs; a real one would need hundreds of such small ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "last_level_cache", lambda: 1 << 10)
        yield


def without_compile(case, device, peers, original=contenders):
    """A compilation takes seconds."""
    return [c for c in original(case, device, peers) if c.kind not in ("compile", "specification")]


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(race, "contenders", without_compile)


@pytest.fixture(scope="module")
def resumed(small_caches, tmp_path_factory):
    """A run that is interrupted in its third case, and resumed."""
    out, original = tmp_path_factory.mktemp("bench") / "r.json", running.run_case
    found = SimpleNamespace(file=out, cases=[])

    def interrupted(case, *rest):
        found.cases.append(case.label)
        if len(found.cases) == 3:
            raise KeyboardInterrupt
        return original(case, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "contenders", without_compile)
        patch.setattr(running, "run_case", interrupted)
        with pytest.raises(KeyboardInterrupt):
            running.run(CASES, Cpu(), out, rounds=2, seconds=0.0)
        found.before = result.check_result(json.loads(out.read_text()))
        found.after = running.run(CASES, Cpu(), out, rounds=2, seconds=0.0, resume=True)
    return found


@pytest.fixture(scope="module")
def result_file(resumed):
    return resumed.file


@pytest.fixture
def measured(result_file):
    return json.loads(result_file.read_text())


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    """The real thing, torch.compile included, on one small shape."""
    out = tmp_path / "result.json"
    active = ops.instruction_set()
    assert cli.main(["bench", *TINY, "--out", str(out)]) == 0
    assert ops.instruction_set() == active
    found = result.check_result(json.loads(out.read_text()))
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert found["complete"]
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["finished"] == ["C=10 K=1 float32"]
    assert found["left_out"] == []
    kinds = [
        "fused",
        *(["fused-avx2"] if active == "avx512" else []),
        "eager",
        "compile",
        "specification",
        "floor",
    ]
    assert [(r["mode"], r["implementation"]) for r in found["rows"]] == [
        (m, k) for m in race.MODES for k in kinds
    ]
    floors = {r["mode"]: r["ms"] for r in found["rows"] if r["implementation"] == "floor"}
    for row in found["rows"]:
        assert (row["classes"], row["members"], row["rows"]) == (10, 1, (1 << 20) // 120 // 4 * 4)
        assert row["rounds"] >= 5
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["ms"] / 1e6)
        assert row["ratio_to_floor"] == pytest.approx(row["ms"] / floors[row["mode"]])
        assert (row["error"] is None) == (row["implementation"] == "floor")
        assert row["speedup"].keys() == (
            {"eager", "compile", "specification"} if row["implementation"].startswith("fused") else set()
        )
    screen = capsys.readouterr()
    assert "x floor" in screen.out
    assert "fused, at its worst" in screen.out
    assert "Liger" not in screen.out  # the peers of a checkout
    assert "[1/1] C=10 K=1 float32" in screen.err
    assert "left" in screen.err


def test_each_shape_is_written_when_it_is_measured(resumed, eager):
    before, after = resumed.before, resumed.after
    assert not before["complete"]
    assert before["finished"] == [case.label for case in CASES[:2]] == resumed.cases[:2]
    assert resumed.cases[3:] == [case.label for case in CASES[2:]]  # finished cases aren't measured again
    assert after["complete"]
    assert after["rows"][: len(before["rows"])] == before["rows"]
    assert after == result.check_result(json.loads(resumed.file.read_text()))
    with pytest.raises(
        ValueError, match=r"can't be resumed: its settings.rounds is 2, now it is 3; run without --resume"
    ):
        running.run(CASES, Cpu(), resumed.file, rounds=3, seconds=0.0, resume=True)


def test_ctrl_c_names_the_command_that_goes_on(tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", stopped)
    assert command.main([*TINY, "--out", str(tmp_path / "r.json")]) == 130
    assert "the same command with --resume goes on from there" in capsys.readouterr().err


def test_a_wrong_output_ends_the_command(tmp_path, monkeypatch, capsys):
    def wrong(case, device, peers):
        plain, first = (
            next(c for c in contenders(case, device) if test(c))
            for test in (lambda c: c.name == NAIVE, lambda c: c.ours)
        )
        return [replace(first, loss=lambda inputs: 2 * plain.loss(inputs)), plain]

    monkeypatch.setattr(race, "contenders", wrong)
    assert command.main([*TINY, "--out", str(tmp_path / "r.json")]) == 1
    assert "wrong output: C=10 K=1 float32: fused" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_loss_without_a_gradient_ends_the_run(eager, monkeypatch):
    monkeypatch.setattr("ensdistill.bench.check.forward", lambda loss, inputs: loss(inputs).detach() + 1e-3)
    with pytest.raises(WrongOutput, match="without a gradient gives the loss"):
        race.run_case(CASES[0], Cpu(), 2, 0.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(schema_version=1), "expected schema_version 2; got 1"),
        (lambda r: r.pop("rows"), r"result.rows: missing"),
        (lambda r: r["machine"].pop("copy_gb_per_s"), r"result.machine.copy_gb_per_s: missing"),
        (lambda r: r["rows"][1].update(ms="1"), r"rows\[1\].ms: expected int or float; got '1'"),
        (lambda r: r["rows"][0].update(members=True), r"rows\[0\].members: expected int; got True"),
        (lambda r: r["rows"].append(None), r"rows\[\d+\]: expected an object; got None"),
    ],
)
def test_the_schema(measured, change, words):
    assert result.check_result(measured) is measured
    change(measured)
    with pytest.raises(ValueError, match=words):
        result.check_result(measured)


def test_the_pages_are_rewritten_between_their_marks(result_file, measured, tmp_path, capsys):
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    shutil.copy(result_file, tmp_path / "benchmarks/results/r.json")
    whole, short = tmp_path / "docs/benchmarks.md", tmp_path / "README.md"
    for file in (whole, short):
        file.write_text("# before\n<!-- kernels -->\nold\n<!-- /kernels -->\nafter\n")
    assert front.main(["page", str(tmp_path / "benchmarks/results/r.json")], tmp_path) == 0
    fused = [r for r in measured["rows"] if r["implementation"] == "fused" and r["mode"] == race.MODES[0]]
    for file in (whole, short):
        text = file.read_text()
        assert (
            re.sub(r"(?s)-->\n.*\n<!--", "-->\nold\n<!--", text)
            == "# before\n<!-- kernels -->\nold\n<!-- /kernels -->\nafter\n"
        )
        table = [line for line in text.splitlines() if line.startswith("| 10 ")]
        assert table[0].split("|")[1:4] == [f" {fused[0]['classes']} ", " 1 ", f" {fused[0]['ms']:.2f} "]
    text = whole.read_text()
    assert "| uint8 | 1 | " in text
    assert "| topk | 100 | 1 | " in text
    assert "| float32 linear D=8, N=16, C=300 | `linear_distillation_loss` | " in text
    assert "uint8" not in short.read_text()
    assert front.main(["page"], tmp_path) == 0  # the result that it names
    assert whole.read_text() == text
    short.write_text("no marks")
    assert front.main(["page"], tmp_path) == 1
    assert "<!-- kernels -->" in capsys.readouterr().err


def test_the_committed_pages_are_generated():
    results = list((ROOT / "benchmarks/results").glob("*.json"))
    if not results:
        pytest.skip("no result is committed")
    short, whole = ((ROOT / name).read_text(encoding="utf-8") for name in page.PAGES)
    name = page.named(short)
    found = result.check_result(json.loads((ROOT / name).read_text()))
    assert page.BLOCK.search(short)[0] == page.summary(found, name), "run: python -m benchmarks page"
    assert page.BLOCK.search(whole)[0] == page.markdown(found, name), "run: python -m benchmarks page"


def test_a_result_has_one_row_a_line(result_file, measured):
    rows = [line.strip().rstrip(",") for line in result_file.read_text().splitlines() if '"ms"' in line]
    assert [json.loads(row) for row in rows] == measured["rows"]


def test_rows_of_the_family_are_recognised(measured):
    assert {r["case"] for r in measured["rows"] if is_family(r)} == {CASES[2].label, CASES[4].label}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--classes", "0"], "expected a number of at least 1; got 0"),
        (["--targets", "int4"], "invalid choice: 'int4'"),
        (["--members"], "expected at least one argument"),
        (["--members", "1", "5000"], "expected at most 32 members; got 5000"),
    ],
)
def test_wrong_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert words in capsys.readouterr().err


def test_the_help_names_the_runs():
    text = command.parser("bench").format_help()
    assert "bfloat16 with K = 1, 4 only and float16 with K = 1 only" in text
    assert all(str(c) in text for c in (*suite.CLASSES, *suite.TARGETS))
    assert 'impl="reference" is eager code' in text


def test_arguments_that_cannot_be_followed(capsys, monkeypatch):
    assert command.main(["--out", "x.csv"]) == 2
    assert "ends in .json; got x.csv" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--device", "cuda"]) == 2
    assert "cuda needs a GPU and ensdistill's CUDA kernels" in capsys.readouterr().err
    assert front.main(["kernel"]) == 2
    assert "usage: python -m benchmarks COMMAND" in capsys.readouterr().err
    assert front.main(["--help"]) == 0


def test_a_part_has_a_name_of_its_own():
    def variant(*arguments):
        return command._variant(command.parser("bench").parse_args(arguments))

    assert [variant(), variant("--quick"), variant("--quick", "--classes", "10")] == ["", "-quick", "-part"]


def test_the_cases_that_the_commands_run():
    def labels(*arguments):
        return [case.label for case in command._cases(command.parser("bench").parse_args(arguments), Cpu())]

    assert len(labels("--quick")) == 9
    assert set(labels("--quick")) < set(labels())
    assert labels("--classes", "10", "20", "--targets", "uint8", "--members", "3") == [
        "C=10 K=3 float32/uint8",
        "C=20 K=3 float32/uint8",
    ]


def test_the_wheel_has_all_of_it():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent.relative_to(ROOT) for p in ROOT.glob("ensdistill/**/*.py")}
    found = find_packages(str(ROOT), include=setuptools["packages"]["find"]["include"])
    assert {folder.as_posix().replace("/", ".") for folder in folders} == set(found)
    assert setuptools["package-data"]["ensdistill.bench"] == ["*.cpp"]
    assert machine.describe_source(torch.device("cpu"))["version"]


def test_a_checkout_adds_its_peers(tmp_path, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(command, "run", lambda *_, peers, **__: given.extend(peers) or {"rows": []})
    monkeypatch.setattr("ensdistill.bench.table.as_text", lambda _: "")
    monkeypatch.setattr("ensdistill.bench.plot.draw", lambda *_: None)
    assert front.main(["kernels", *TINY], tmp_path) == 0
    assert [type(peer).__name__ for peer in given] == ["Liger", "Quack"]
    assert "needs a GPU" in given[0].why_not(torch.device("cpu"))
