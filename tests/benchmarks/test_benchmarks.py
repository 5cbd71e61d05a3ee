"""The benchmark counts right, times in rotation, and its floor reads and writes everything."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ensdistill.bench import floor, machine, suite
from ensdistill.bench.cases import MULTILABEL, Case, make_case
from ensdistill.bench.check import both
from ensdistill.bench.contenders import contenders
from ensdistill.bench.cuda import Cuda
from ensdistill.bench.inputs import make_inputs
from ensdistill.bench.measure import Cpu, extra_bytes, interleave
from ensdistill.bench.race import run_case
from ensdistill.loss import ops

CPU = torch.device("cpu")
FLOAT = ("float32", "float32")
KINDS = [FLOAT, ("bfloat16", "bfloat16"), ("float32", "uint8")]


def test_bytes():
    assert Case(100, 10, 1, *FLOAT).bytes_moved(gradient=True) == 12 * 1000
    assert Case(100, 10, 4, "bfloat16", "bfloat16").bytes_moved(gradient=True) == 12 * 1000
    assert Case(100, 10, 4, "float32", "uint8").bytes_moved(gradient=True) == 12 * 1000 + 8 * 4 * 100
    assert Case(100, 10, 4, *FLOAT).bytes_moved(gradient=False) == 20 * 1000
    assert Case(100, 10, 1, *FLOAT, labels=True).bytes_moved(gradient=False) == 8 * 1000 + 8 * 100
    assert Case(100, 1000, 1, "float32", "topk").bytes_moved(gradient=True) == 8 * 100_000 + 100 * (
        64 * 8 + 4
    )
    assert Case(100, 10, 1, *FLOAT, statistics=True).bytes_moved(gradient=True) == 12 * 1000 + 16 * 100
    assert Case(100, 1000, 1, *FLOAT, hidden=16).bytes_moved(gradient=True) == 2 * 4 * 16 * 1100 + 4 * 100_000
    case = make_case(64 << 20, 1000, 8, "bfloat16")
    assert 0.98 < case.bytes_moved(gradient=True) / (64 << 20) <= 1
    assert make_case(1, 10**6, 8, "float32").rows == 4
    assert make_case(1, 21, 1, "float32", layout="map").rows == 64 * 64


@pytest.mark.parametrize("gpu", [False, True])
def test_the_suite_has_every_shape_once(gpu):
    cases = suite.full(128 << 20, gpu)
    assert len({case.label for case in cases}) == len(cases)
    plain = {(c.targets, c.classes, c.members) for c in cases if not c.family}
    assert plain >= {(t, c, k) for t in ("float32", "uint8") for c in suite.CLASSES for k in (1, 4, 8)}
    assert plain >= {(t, c, 1) for t in suite.TARGETS for c in suite.CLASSES}
    assert {c.divergence for c in cases} == {"forward_kl", "reverse_kl", "jsd", "tvd", MULTILABEL}
    assert any(c.labels for c in cases)
    assert any(c.hidden and c.classes > 128_000 for c in cases)
    assert {c.classes for c in cases if c.layout == "map"} == {21, 150}
    assert any(c.statistics for c in cases)
    assert any(c.statistics for c in suite.quick(128 << 20, gpu)) == gpu
    # Those of the grid outrun the cache in one call; small batches do by their number.
    assert all(c.bytes_moved(gradient=True) > 64 << 20 for c in cases if not c.small and not c.hidden)


@pytest.mark.parametrize("gpu", [False, True])
def test_the_short_suite_has_some_of_each(gpu):
    cases = suite.quick(128 << 20, gpu)
    assert len({case.label for case in cases}) == len(cases)
    assert {c.classes for c in cases} >= (
        {10, 100, 1000, 8192, 32000, 50257, 128256} if gpu else {10, 1000, 50257}
    )
    assert {c.targets for c in cases} >= {"float32", "uint8", "topk"} | ({"bfloat16"} if gpu else set())
    assert {c.members for c in cases} >= ({1, 4, 8} if gpu else {1, 4})


@pytest.mark.parametrize(("student", "targets"), KINDS)
@pytest.mark.parametrize("members", [1, 4, 8, 11])
@pytest.mark.parametrize("threads", [1, 3])
def test_floor_reads_and_writes_everything(student, targets, members, threads):
    # Larger than the loop's block, and not a multiple of it.
    inputs = make_inputs(Case(44, 1003, members, student, targets), CPU)
    logits, parts = inputs.leaves[0].detach(), floor.members(inputs)
    out = torch.zeros_like(logits)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with ThreadPoolExecutor(threads) as pool:
            floor.stream(logits, parts, out, pool)()
            floor.stream(logits, parts, None, pool)()
    finally:
        torch.set_num_threads(before)
    words = logits.view(-1).view(torch.int32).clone()
    for member in parts:
        member = member.reshape(-1).view(torch.int32)
        words[: len(member)] += member
    assert torch.equal(out.view(-1).view(torch.int32), words)


def test_floor_refuses_calls_that_it_would_read_wrongly():
    student = torch.zeros(4, 6, dtype=torch.bfloat16)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="no more bytes than the student's; got 96 and 48"):
            floor.stream(student, [torch.zeros(4, 6)], None, pool)
        with pytest.raises(ValueError, match=r"contiguous tensor of whole 4-byte words; got shape \[3, 4\]"):
            floor.stream(student[:3, :4], [student], None, pool)
        with pytest.raises(ValueError, match=r"whole 4-byte words; got shape \[1, 3\]"):
            floor.stream(student[:1, :3], [student], None, pool)


def test_without_a_compiler_the_floor_is_left_out(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    floor._loop.cache_clear()
    place = Cpu()
    assert any("streaming floor: left out, it needs a C++ compiler" in note for note in place.notes())
    case = Case(4, 12, 1, *FLOAT)
    assert place.floor(case, make_inputs(case, CPU), gradient=True) is None


def test_floor_of_a_layer_is_its_products():
    inputs = make_inputs(Case(6, 10, 1, *FLOAT, hidden=4), CPU)
    hidden, weight = (x.detach() for x in inputs.leaves)
    logits = hidden @ weight.t()
    for found, expected in zip(
        floor.products(inputs, gradient=True)(), (logits, logits @ weight, logits.t() @ hidden), strict=True
    ):
        torch.testing.assert_close(found, expected)
    assert len(floor.products(inputs, gradient=False)()) == 1


def test_interleaving():
    log = []
    clock = Cpu().clock
    times = interleave(
        {"fast": lambda: log.append("f"), "slow": lambda: (log.append("s"), time.sleep(0.004))}, 7, 0.0, clock
    )
    assert log.count("f") == log.count("s") == 7
    assert all({log[i], log[i + 1]} == {"f", "s"} for i in range(0, 14, 2)), "each goes once a round"
    assert 4 <= times["slow"].first_quartile <= times["slow"].median <= times["slow"].third_quartile
    assert times["fast"].median < 1
    assert interleave({"fast": lambda: None}, 2, 0.2, clock)["fast"].rounds > 5
    with pytest.raises(ValueError, match="rounds: expected at least 2; got 1"):
        interleave({}, 1, 0.0, clock)


def test_extra_bytes():
    size = 64 << 20
    found = extra_bytes(lambda: torch.ones(size // 4).sum())
    if found is None:
        pytest.skip("this system doesn't tell a process's peak memory")
    assert found == pytest.approx(size, rel=0.1)
    assert extra_bytes(lambda: None) < 4 << 20


def test_a_gradient_that_is_kept_for_the_next_call_is_counted():
    case = Case(4096, 2048, 1, *FLOAT)
    inputs, fused = make_inputs(case, CPU), contenders(case, CPU)[0]
    both(fused.loss, inputs)
    found = Cpu().extra_bytes(lambda: both(fused.loss, inputs))
    if found is None:
        pytest.skip("this system doesn't tell a process's peak memory")
    assert found == pytest.approx(4 * 4096 * 2048, rel=0.1)


def test_small_batches_are_many(monkeypatch):
    """So many that the caches are outrun; and the fastest of each kind races."""
    monkeypatch.setattr(
        "ensdistill.bench.race.contenders",
        lambda case, device, peers: [c for c in contenders(case, device) if c.kind != "compile"],
    )
    place = Cpu()
    place.cache_bytes = 10_000
    rows, left_out = run_case(Case(16, 10, 4, *FLOAT, small=True), place, 2, 0.0)
    assert left_out == []
    assert {row["inputs"] for row in rows} == {1 + 20_000 // (16 * 10 * 4 * 6)}
    kinds = ["fused", *(["fused-avx2"] if ops.instruction_set() == "avx512" else []), "eager"]
    assert [(row["mode"], row["implementation"]) for row in rows] == [
        (m, k) for m in ("forward+backward", "forward") for k in kinds
    ]
    assert all(row["ratio_to_floor"] is None for row in rows)


@pytest.mark.parametrize(
    ("milliseconds", "inputs", "graphs"),
    [(0.1, 1, {"ours", "floor"}), (1.0, 1, set()), (1.0, 100, {"ours", "floor"}), (50.0, 100, set())],
)
def test_short_work_on_a_gpu_becomes_a_graph_where_it_can(milliseconds, inputs, graphs, monkeypatch):
    """Work that waits for the device is never captured: a failed capture would spoil those after it."""
    mode = []

    def theirs():
        if mode[-1:] == ["error"]:
            raise RuntimeError("called a synchronizing CUDA operation")
        return "waits for the device"

    def capture(call):
        assert call is not theirs
        return lambda: "graph"

    monkeypatch.setattr("ensdistill.bench.cuda.capture", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)
    place = object.__new__(Cuda)  # there may be no GPU
    monkeypatch.setattr(place, "clock", lambda call: milliseconds, raising=False)
    timed, found = place.launched({"theirs": theirs, "ours": lambda: "call", "floor": lambda: "call"}, inputs)
    assert found == graphs
    assert timed["ours"]() == timed["floor"]() == ("graph" if graphs else "call")
    assert mode[-1:] in ([], ["default"])
    assert timed["theirs"]() == "waits for the device"


def test_machine():
    assert machine.last_level_cache() >= 1 << 20
    assert machine._bytes("1024K") == machine._bytes("1M") == 1 << 20
    assert machine.describe_machine(CPU)["device"]
