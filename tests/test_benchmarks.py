"""The benchmark itself: it refuses wrong outputs, counts right, and writes what it says it writes."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import contenders, kernels, machine
from benchmarks.cases import TEMPERATURE, Case, errors, make_case, make_inputs, tolerance
from benchmarks.floor import floor
from benchmarks.measure import extra_bytes, interleave
from ensdistill import ops, reference
from ensdistill.targets import EnsembleLogits

KINDS = [("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "uint8")]


@pytest.fixture
def without_compile(monkeypatch):
    """Eager code in torch.compile's place: a compilation takes seconds, and only one test is about it."""
    original = contenders.contenders
    eager = {
        "plain": contenders._plain_eager,
        "reference": contenders.partial(contenders.distillation_loss, temperature=TEMPERATURE, impl="reference"),
    }
    found = [replace(c, loss=eager[c.form]) if c.kind == "compile" else c for c in original(12)]
    monkeypatch.setattr(kernels, "contenders", lambda classes: found)
    return found


@pytest.mark.parametrize(("student_dtype", "target_dtype"), KINDS)
@pytest.mark.parametrize("members", [1, 3])
def test_truth_is_the_specification(student_dtype, target_dtype, members):
    student, targets = make_inputs(Case(20, 37, members, student_dtype, target_dtype))
    exact = student.detach().double().requires_grad_()
    logits = (
        targets.to_logits()
        if target_dtype != "uint8"
        else targets.offset[..., None].double() + targets.scale[..., None].double() * targets.codes
    )
    loss, _ = reference.distill_loss(exact, logits.double(), temperature=TEMPERATURE)
    gradient = torch.autograd.grad(loss, exact)[0]
    found, truth = errors(student, targets, {("a", "a"): (loss.detach(), gradient), ("b", "b"): (loss.detach() + 1, 1.01 * gradient)})
    assert truth == pytest.approx(loss.item(), rel=1e-12)
    assert found["a", "a"].gradient < 1e-12
    assert found["b", "b"].loss == pytest.approx(1)
    assert 1e-3 < found["b", "b"].gradient <= 1.01e-2


@pytest.mark.parametrize(
    "damage",
    [
        lambda loss, gradient: (loss * 1.001, gradient),
        lambda loss, gradient: (loss, gradient * TEMPERATURE),
        lambda loss, gradient: (loss, gradient.index_fill(1, torch.tensor([11]), 0.0)),
        lambda loss, gradient: (loss, gradient.where(torch.arange(12) != 3, torch.nan)),
        lambda loss, gradient: (loss * torch.nan, gradient),
    ],
    ids=["loss", "factor", "column", "nan", "nan loss"],
)
@pytest.mark.parametrize(("student_dtype", "target_dtype"), KINDS)
def test_wrong_output_is_refused(without_compile, monkeypatch, student_dtype, target_dtype, damage):
    case = Case(8, 12, 2, student_dtype, target_dtype)
    original = kernels._both
    fused = without_compile[0].loss
    run = lambda: kernels._check(case, *make_inputs(case), without_compile)  # noqa: E731
    assert run().errors.keys() == {(c.kind, c.form) for c in without_compile}
    monkeypatch.setattr(kernels, "_both", lambda loss, s, t: damage(*original(loss, s, t)) if loss is fused else original(loss, s, t))
    with pytest.raises(kernels.WrongOutput, match=r"C=12 K=2 .*: fused \(\w+\) is wrong by .* allows"):
        run()


def test_wrong_loss_without_a_gradient_is_refused(without_compile, monkeypatch):
    original = kernels._forward
    monkeypatch.setattr(kernels, "_forward", lambda loss, s, t: original(loss, s, t) + 1e-3)
    with ThreadPoolExecutor(1) as pool, pytest.raises(kernels.WrongOutput, match="without a gradient gives the loss"):
        kernels.run_case(Case(8, 12, 1, "float32", "float32"), 2, 0.0, pool)


def test_tolerance_is_near_the_rounding():
    student, targets = make_inputs(Case(8, 1000, 2, "float32", "float32"))
    out = kernels._both(contenders._plain_eager, student, targets)
    found, truth = errors(student, targets, {("eager", "plain"): out})
    allowed = tolerance(found["eager", "plain"], student, truth)
    assert allowed.gradient < 4e-6
    assert allowed.loss < 4e-6 * max(1, truth)


def test_bytes():
    assert Case(100, 10, 1, "float32", "float32").bytes_moved(gradient=True) == 12 * 1000
    assert Case(100, 10, 4, "bfloat16", "bfloat16").bytes_moved(gradient=True) == 12 * 1000
    assert Case(100, 10, 4, "float32", "uint8").bytes_moved(gradient=True) == 12 * 1000 + 8 * 4 * 100
    assert Case(100, 10, 4, "float32", "float32").bytes_moved(gradient=False) == 20 * 1000
    case = make_case(1000, 8, "bfloat16", "bfloat16", 64 << 20)
    assert 0.98 < case.bytes_moved(gradient=True) / (64 << 20) <= 1
    assert make_case(10**6, 8, "float32", "float32", 1).rows == 4


@pytest.mark.parametrize(("student_dtype", "target_dtype"), KINDS)
@pytest.mark.parametrize("members", [1, 4, 8, 11])
@pytest.mark.parametrize("threads", [1, 3])
def test_floor_reads_and_writes_everything(student_dtype, target_dtype, members, threads):
    # Larger than the loop's block, and not a multiple of it.
    student, targets = make_inputs(Case(44, 1003, members, student_dtype, target_dtype))
    out = torch.zeros_like(student, requires_grad=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with ThreadPoolExecutor(threads) as pool:
            floor(student, targets, out, pool)()
            floor(student, targets, None, pool)()
    finally:
        torch.set_num_threads(before)
    words = student.detach().view(-1).view(torch.int32).clone()
    for member in targets.codes if target_dtype == "uint8" else targets.logits:
        member = member.reshape(-1).view(torch.int32)
        words[: len(member)] += member
    assert torch.equal(out.view(-1).view(torch.int32), words)


def test_floor_refuses_what_it_would_read_wrongly():
    student = torch.zeros(4, 6, dtype=torch.bfloat16)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match=r"no larger than the student's; got torch.float32 and torch.bfloat16"):
            floor(student, EnsembleLogits(torch.zeros(1, 4, 6)), None, pool)
        with pytest.raises(ValueError, match=r"contiguous tensor of whole 4-byte words; got shape \[3, 4\]"):
            floor(student[:3, :4], EnsembleLogits(student[None, :3, :4]), None, pool)
        with pytest.raises(ValueError, match=r"whole 4-byte words; got shape \[1, 3\]"):
            floor(student[:1, :3], EnsembleLogits(student[None, :1, :3]), None, pool)


def test_interleaving():
    log = []
    times = interleave({"fast": lambda: log.append("f"), "slow": lambda: (log.append("s"), time.sleep(0.004))}, 7)
    assert log.count("f") == log.count("s") == 7
    assert all({log[i], log[i + 1]} == {"f", "s"} for i in range(0, 14, 2)), "each goes once a round"
    assert 4 <= times["slow"].first_quartile <= times["slow"].median <= times["slow"].third_quartile
    assert times["fast"].median < 1
    assert interleave({"fast": lambda: None}, 2, seconds=0.2)["fast"].rounds > 5
    with pytest.raises(ValueError, match="rounds: expected at least 2; got 1"):
        interleave({}, 1)


def test_extra_bytes():
    size = 64 << 20
    found = extra_bytes(lambda: torch.ones(size // 4).sum())
    if found is None:
        pytest.skip("this system doesn't tell a process's peak memory")
    assert found == pytest.approx(size, rel=0.1)
    assert extra_bytes(lambda: None) < 4 << 20


def test_command(tmp_path, capsys):
    """The real thing, torch.compile included, on one small shape."""
    active = ops.instruction_set()
    out = tmp_path / "result.json"
    assert command.main(["kernels", "--classes", "10", "--members", "2", "--dtypes", "float32", "--data-mib", "1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert ops.instruction_set() == active
    assert result["schema_version"] == 1
    assert result["checked"] is True
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["source"].keys() == {"commit", "csrc_tree", "dirty", "csrc_dirty", "library_is_older"}
    kinds = ["fused", *(["fused-avx2"] if active == "avx512" else []), "eager", "compile", "floor"]
    assert [(r["mode"], r["implementation"]) for r in result["rows"]] == [(m, k) for m in kernels.MODES for k in kinds]
    floors = {r["mode"]: r["ms"] for r in result["rows"] if r["implementation"] == "floor"}
    for row in result["rows"]:
        assert (row["classes"], row["members"], row["rows"]) == (10, 2, (1 << 20) // 160 // 4 * 4)
        assert row["checked"] is True
        assert row["rounds"] >= 7
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["ms"] / 1e6)
        assert row["ratio_to_floor"] == pytest.approx(row["ms"] / floors[row["mode"]])
        assert (row["error"] is None) == (row["implementation"] == "floor")
        assert ("speedup" in row) == row["implementation"].startswith("fused")
    screen = capsys.readouterr()
    assert "x floor" in screen.out
    assert "fused, at its worst" in screen.out
    assert "[1/1] C=10 K=2 float32" in screen.err
    assert "left" in screen.err


def test_wrong_output_ends_the_command(without_compile, monkeypatch, capsys, tmp_path):
    without_compile[0] = replace(without_compile[0], loss=lambda s, t: 2 * contenders._plain_eager(s, t))
    arguments = [
        "kernels",
        "--classes",
        "10",
        "--members",
        "1",
        "--dtypes",
        "float32",
        "--data-mib",
        "1",
        "--out",
        str(tmp_path / "r.json"),
    ]
    assert command.main(arguments) == 1
    assert "wrong output: C=10 K=1 float32: fused" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["kernels", "--classes", "0"], "expected a number of at least 1; got 0"),
        (["kernels", "--dtypes", "int4"], "invalid choice: 'int4'"),
    ],
)
def test_wrong_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert words in capsys.readouterr().err


def test_out_must_be_json(capsys):
    assert command.main(["kernels", "--out", "x.csv"]) == 2
    assert "ends in .json; got x.csv" in capsys.readouterr().err


def test_a_part_has_a_name_of_its_own():
    def variant(*arguments):
        return command._variant(command.parser().parse_args(["kernels", *arguments]))

    assert [variant(), variant("--quick"), variant("--quick", "--classes", "10")] == ["", "-quick", "-part"]


def test_machine():
    assert machine.last_level_cache() >= 1 << 20
    assert machine._bytes("1024K") == machine._bytes("1M") == 1 << 20
    assert machine.describe_machine()["device"]
