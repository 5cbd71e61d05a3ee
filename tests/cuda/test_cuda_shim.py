"""The CUDA kernels, executed: csrc/cuda compiled for the host (cuda_shim_helpers.py), against the closed
forms in float64.

The family's own tests run here once more, with the CUDA op in place of the CPU's, on devices with much and
with little shared memory; then the faults that only kernels for a GPU can have. A build takes half a minute and
is kept; the tests take about as long.
"""

import inspect
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, product
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import test_divergences
import test_functional
import test_layouts
import test_loss_shares
import test_loss_traps
import test_topk
import torch
from closed_forms import (
    DIVERGENCES,
    assert_close,
    closed_forms,
    make_codes,
    make_logits,
    make_top_k,
    run,
    worst,
)
from cuda_shim_helpers import DEVICES, H100, Builder, Shim, kernels_in, run_within_bounds
from test_divergences import legal, make_targets

from ensdistill.functional import distillation_loss
from ensdistill.loss.linear import linear_distillation_loss
from ensdistill.loss.targets import TopK

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(scope="session")
def shim(shim_builder: Builder) -> Shim:
    return Shim(shim_builder.library())


@pytest.fixture
def on_h100(shim: Shim) -> Iterator[Shim]:
    shim.use(H100)
    with shim.instead_of_the_cpu():
        yield shim


# The family's tests
# ---------------------------------------------------------------------------------------------------


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest, shim: Shim) -> Iterator[str]:
    """The fixture of those tests: there an instruction set of the CPU, here a device, for half of the cases
    the one, for half the other."""
    device = list(DEVICES)[crc32(request.node.name.encode()) % len(DEVICES)]
    shim.use(DEVICES[device])
    with shim.instead_of_the_cpu():
        yield device


ABOUT_THE_CPU = {
    "test_rows_that_do_not_count_cost_nothing",  # by the clock
    "test_same_bits_every_time_and_with_any_number_of_threads",  # see test_results_do_not_depend_on_the_order
}
for _module in (
    test_divergences,
    test_topk,
    test_layouts,
    test_loss_traps,
    test_loss_shares,
    test_functional,
):
    for _name, _test in inspect.getmembers(_module, inspect.isfunction):
        if "instruction_set" in inspect.signature(_test).parameters and _name not in ABOUT_THE_CPU:
            globals()[f"{_name}_{_module.__name__.removeprefix('test_')}"] = _test


# Each part of the family, in the smallest case
# ------------------------------------------------------------------------------------

SMALLEST: dict[str, dict[str, Any]] = {
    "kind log_probs": {"kind": "log_probs"},
    "kind probs": {"kind": "probs"},
    "kind topk": {"kind": "topk-zero"},
    "divergence reverse_kl": {"divergence": "reverse_kl"},
    "divergence jsd": {"divergence": "jsd"},
    "divergence tvd": {"divergence": "tvd"},
    "classes first": {},
    "class_weights": {"class_weights": torch.linspace(0, 2, 33), "alpha": 0.5},
    "sample_weights": {"sample_weights": torch.linspace(0, 2, 5)},
    "z_loss": {"z_loss": 0.01},
    "with_statistics": {},
    "divisor": {"reduction": "batchmean"},
}


@pytest.mark.parametrize("feature", SMALLEST)
def test_each_part_alone(feature: str, shim: Shim) -> None:
    shim.use(H100)
    arguments = dict(SMALLEST[feature])
    targets, more = make_targets(arguments.pop("kind", "logits"), 2, 5, 33, seed=1)
    student, labels = make_logits(5, 33, seed=0), torch.arange(5) if "alpha" in arguments else None
    arguments |= more

    with shim.instead_of_the_cpu():
        if feature == "classes first":
            maps = student.t().contiguous()[None], targets.transpose(1, 2).contiguous()[:, None]
            loss, gradient = run(*maps, class_dim=1)
            assert_close((loss, gradient[0].t()), student, targets)
        elif feature == "with_statistics":
            _, rows = distillation_loss(student, targets, statistics=True)
            truth = closed_forms(student, targets).statistics
            assert worst(rows.student_entropy, truth[:, 0]) <= 1e-5
            assert worst(rows.mixture_entropy, truth[:, 1]) <= 1e-5
            assert torch.equal(rows.agreement.double(), truth[:, 2])
            assert worst(rows.disagreement, truth[:, 3]) <= 1e-5
        else:
            assert_close(run(student, targets, labels, **arguments), student, targets, labels, **arguments)


# Every plan
# -----------------------------------------------------------------------------------------------------------

# One row in a few lanes, in a warp, in a block, in a block with all of its shared memory, in more than that;
# odd ones among them.
WIDTHS = {2: 37, 10: 37, 33: 9, 100: 9, 1000: 5, 1025: 3, 5003: 3, 14001: 2}
KINDS = ("logits", "codes", "log_probs", "probs", "topk-tail", "topk-renormalize", "topk-zero")


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_plan(dtype: torch.dtype, shim: Shim) -> None:
    """Every width with every kind of targets; in turn, the devices, divergences and settings."""
    settings = cycle(
        product((1.0, 0.5, 2.0), (1.0, 0.4, 0.0), (0.0, 0.1), ("prob", "logit"), ("mean", "none", "sum"))
    )
    for seed, ((c, n), k, kind) in enumerate(product(WIDTHS.items(), (1, 2, 5), KINDS)):
        if k > 1 and kind.startswith("topk"):
            continue
        shim.use(list(DEVICES.values())[seed % 2])
        temperature, alpha, smoothing, combiner, reduction = next(settings)
        legal_here = [x for x in DIVERGENCES if legal(kind, x)]
        targets, arguments = make_targets(
            kind, k, n, c, seed=seed + 1, dtype=FLOATS[seed // 2 % 3], temperature=temperature
        )
        student, labels = make_logits(n, c, seed=seed, dtype=dtype), None
        if alpha < 1:
            labels = torch.arange(n) % c
            labels[n // 2] = -100
            arguments["label_smoothing"] = smoothing
        arguments |= {"temperature": temperature, "alpha": alpha, "reduction": reduction}
        if not kind.startswith("topk"):
            arguments["combiner"] = combiner
        arguments["divergence"] = legal_here[seed % len(legal_here)]
        if kind in ("logits", "codes") and k > 1:
            arguments["weights"] = torch.linspace(0, 1, k)
        with shim.instead_of_the_cpu():
            found = run(student, targets, labels, **arguments)
        assert_close(found, student, targets, labels, **arguments)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", [*FLOATS, "codes", "topk-tail"], ids=str)
def test_every_pair_of_types(kind: Any, dtype: torch.dtype, shim: Shim) -> None:
    """Each has kernels of its own: for rows in a thread (next to each other or across), in a warp, a block,
    and for those that fit none."""
    shim.use(DEVICES["A10"])
    name, target_type = (kind, torch.float32) if isinstance(kind, str) else ("logits", kind)
    for (c, n), divergence in product({10: 40, 100: 7, 3001: 2, 60001: 1}.items(), ("forward_kl", "jsd")):
        student, (targets, arguments) = (
            make_logits(n, c, seed=0, dtype=dtype),
            make_targets(name, 1, n, c, seed=1, dtype=target_type),
        )
        if name == "codes":  # a cache's records aren't contiguous
            targets = replace(targets, codes=targets.codes.contiguous())
        arguments["divergence"] = divergence
        with shim.instead_of_the_cpu():
            assert_close(run(student, targets, **arguments), student, targets, **arguments)
            if c > 100:
                continue
            _, rows = distillation_loss(student, targets, statistics=True, **arguments)
            truth = closed_forms(student, targets, **arguments).statistics
            assert worst(rows.student_entropy, truth[:, 0]) <= 1e-5
            assert worst(rows.mixture_entropy, truth[:, 1]) <= 1e-5
            if name == "topk-tail":
                continue
            maps = student.t().contiguous()[None]
            if name == "codes":
                across: Any = replace(targets, codes=targets.codes.transpose(1, 2).contiguous()[:, None])
                across = replace(across, scale=targets.scale[:, None], offset=targets.offset[:, None])
            else:
                across = targets.transpose(1, 2).contiguous()[:, None]
            loss, gradient = run(maps, across, class_dim=1, **arguments)
            assert_close((loss, gradient[0].t()), student, targets, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, "codes"], ids=str)
def test_members_come_in_turn(kind: Any, dtype: torch.dtype, on_h100: Shim) -> None:
    """Where they are too many to be on chip together: kernels of their own, in a warp and in a block."""
    name, target_type = (kind, torch.float32) if isinstance(kind, str) else ("logits", kind)
    for c, divergence in product((100, 1500), ("forward_kl", "jsd")):
        student = make_logits(2, c, seed=0, dtype=dtype)
        targets, arguments = make_targets(name, 12, 2, c, seed=1, dtype=target_type)
        arguments |= {"divergence": divergence, "weights": torch.linspace(0, 1, 12)}
        assert_close(run(student, targets, **arguments), student, targets, **arguments)


# Faults that only a GPU's kernels can have
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("c", [10, 123, 1003, 1016, 2501])
def test_rows_start_anywhere(c: int, dtype: torch.dtype, on_h100: Shim) -> None:
    """128-bit accesses need 16-byte boundaries, and rows needn't: an access that isn't aligned would be
    reported."""
    for shift, codes in product(range(4), (False, True)):
        memory = make_logits(5 * (c + 3) + shift, seed=c + shift, dtype=dtype)
        student = memory[shift:].view(5, c + 3)[:, :c]
        if codes:
            targets: Any = make_codes(2, 5, c + shift, seed=1)
            targets = type(targets)(targets.codes[..., shift:], targets.scale, targets.offset)
        else:
            targets = make_logits(2, 5, c + 5, seed=1, dtype=FLOATS[shift % 3])[..., shift : c + shift]
        assert_close(run(student, targets), student, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("c", [501, 2501])
def test_padded_vocabularies(c: int, dtype: torch.dtype, on_h100: Shim) -> None:
    """Student and targets in aligned rows of which the last columns are padding, on chip and read again; the
    gradient has no padding. Beside them targets, and codes, in rows that follow each other."""
    pitch = -(-c // 16) * 16
    student = make_logits(5, pitch, seed=0, dtype=dtype)[:, :c]
    padded = make_logits(2, 5, pitch, seed=1, dtype=dtype)[..., :c]
    codes = make_codes(3, 5, c, seed=2)
    for targets in (
        padded,
        padded.contiguous(),
        codes,
        type(codes)(codes.codes.contiguous(), codes.scale, codes.offset),
    ):
        assert_close(run(student, targets), student, targets)
    _, rows = distillation_loss(student, padded, statistics=True)
    truth = closed_forms(student, padded).statistics
    assert worst(rows.disagreement, truth[:, 3]) <= 1e-5
    targets = make_top_k(5, c, 7, seed=3)
    assert_close(run(student, targets), student, targets)


def test_results_do_not_depend_on_the_order(on_h100: Shim) -> None:
    """In which blocks and threads happen to run: the same bits, or a barrier is missing, or a sum has no
    fixed order."""
    labels = torch.arange(300) % 7
    labels[3::5] = -100
    for c, n in ((10, 300), (300, 41), (3001, 9), (40000, 2)):
        student, targets = make_logits(n, c, seed=0), make_logits(3, n, c, seed=1)
        found = []
        for seed in range(4):
            on_h100.seed(seed)
            found.append(
                run(student, targets, labels[:n] % c if c < 7 else labels[:n], alpha=0.5, label_smoothing=0.1)
            )
        for loss, gradient in found[1:]:
            assert torch.equal(loss, found[0][0])
            assert torch.equal(gradient, found[0][1])


def test_many_rows_are_summed_by_many_blocks(on_h100: Shim) -> None:
    """Each block's sum first, then theirs, in a fixed order."""
    n = 3 * 4096 + 5
    student, targets = make_logits(n, 3, seed=0), make_logits(1, n, 3, seed=1)
    found = []
    for seed in range(2):
        on_h100.seed(seed)
        on_h100.launches()
        found.append(run(student, targets, reduction="sum"))
        assert [launch.blocks for launch in on_h100.launches() if "sum_of" in launch.kernel] == [4, 1]
    assert_close(found[0], student, targets, reduction="sum")
    assert torch.equal(found[0][0], found[1][0])
    rows, _ = run(student, targets, reduction="none")
    assert found[0][0].item() == pytest.approx(rows.double().sum().item(), rel=1e-7)


@pytest.mark.parametrize("c", [100, 5003])
def test_offsets_past_32_bits(c: int, on_h100: Shim) -> None:
    """Rows far apart, in memory that is reserved and hardly touched."""
    apart = 2**31 + 40
    try:
        memory = torch.from_numpy(np.zeros(2 * apart + c, np.int16)).view(torch.bfloat16)
    except MemoryError:
        pytest.skip("no address space for 8.6 GB")
    student = memory.as_strided((3, c), (apart, 1))
    student.copy_(make_logits(3, c, seed=0, dtype=torch.bfloat16))
    found = run(student, make_logits(2, 3, c, seed=1))
    assert_close(found, student.clone(), make_logits(2, 3, c, seed=1))
    found = run(make_logits(3, c, seed=2), student[None])
    assert_close(found, make_logits(3, c, seed=2), student[None].clone())


# (members, classes): in a thread, in a warp, in a block; and the most that there may be.
@pytest.mark.parametrize(("k", "c"), [(33, 10), (100, 300), (300, 2000), (1024, 10), (1024, 100)])
@pytest.mark.parametrize("device", DEVICES)
def test_more_members_than_anyone_has(k: int, c: int, device: str, shim: Shim) -> None:
    shim.use(DEVICES[device])
    student, targets = make_logits(2, c, seed=0), make_logits(k, 2, c, seed=1)
    with shim.instead_of_the_cpu():
        for combiner in ("prob", "logit"):
            assert_close(run(student, targets, combiner=combiner), student, targets, combiner=combiner)


def test_too_many_members_or_classes_are_named(on_h100: Shim) -> None:
    """As views, which take no memory and are not read."""
    with pytest.raises(RuntimeError, match="targets: expected at most 1024 members on CUDA, got 1025"):
        run(torch.zeros(2, 5), torch.zeros(1, 2, 5).expand(1025, 2, 5))
    settings = (
        "logits",
        "forward_kl",
        0.5,
        1.0,
        1.0,
        "prob",
        "tail",
        -100,
        0.0,
        0.0,
        "mean",
        1.0,
        True,
        False,
    )
    wide = torch.zeros(1).as_strided((1, 2**30 + 1), (1, 0))
    with pytest.raises(
        RuntimeError, match="student: expected at most 1073741824 classes on CUDA, got 1073741825"
    ):
        on_h100.op(wide, wide[None], *(None,) * 8, *settings)


def test_problems_too_large_for_a_blocks_memory_are_named(on_h100: Shim) -> None:
    """Rather than launched: a number for each member and row, where rows neighbour class by class; an index
    of the listed classes."""
    maps, members = torch.zeros(1, 5, 128), torch.zeros(1, 5, 128).expand(1000, 1, 5, 128)
    with pytest.raises(
        RuntimeError,
        match=r"targets: expected fewer members on this device: the plan needs \d+ bytes of shared memory",
    ):
        run(maps, members, class_dim=1)
    ids = torch.arange(20_000).expand(2, -1)
    targets = TopK(ids, torch.full(ids.shape, -math.log(20_000)), torch.full((2,), -40.0))
    with pytest.raises(
        RuntimeError, match="ids: expected fewer entries for each row on this device: the plan needs"
    ):
        run(make_logits(2, 40_000, seed=0), targets)


def test_linear_loss_runs_on_the_kernel(on_h100: Shim) -> None:
    hidden, weight = make_logits(9, 4, seed=0).requires_grad_(), make_logits(130, 4, seed=1).requires_grad_()
    targets = make_logits(2, 9, 130, seed=2)
    on_h100.launches()
    loss = linear_distillation_loss(hidden, weight, targets, chunk_rows=4, reduction="sum")
    loss.backward()
    assert sum("distill_rows" in launch.kernel for launch in on_h100.launches()) >= 3
    truth = closed_forms((hidden @ weight.t()).detach(), targets, reduction="sum")
    assert loss.item() == pytest.approx(truth.loss.item(), rel=1e-5)
    assert hidden.grad is not None
    torch.testing.assert_close(
        hidden.grad.double(), truth.gradient @ weight.detach().double(), rtol=1e-4, atol=1e-4
    )


# The build
# ------------------------------------------------------------------------------------------------------------

WITHIN_BOUNDS = """
import sys
import torch
from itertools import product
from closed_forms import assert_close, make_codes, make_logits, run
from cuda_shim_helpers import DEVICES, Shim
from pathlib import Path

shim = Shim(Path(sys.argv[1]))
labels = torch.tensor([0, -100, 1])
cases = product((2, 10, 33, 1000, 1025, 5003, 14001), (torch.float32, torch.bfloat16, torch.float64))
for number, (c, dtype) in enumerate(cases, start=int(sys.argv[2])):
    shim.use(list(DEVICES.values())[number % len(DEVICES)])
    with shim.instead_of_the_cpu():
        student = make_logits(3, c, seed=0, dtype=dtype)
        for targets in (make_logits(1, 3, c, seed=1), make_logits(3, 3, c, seed=1, dtype=torch.float16), make_codes(2, 3, c, seed=1)):
            arguments = dict(alpha=0.5, label_smoothing=0.1, temperature=2.0)
            assert_close(run(student, targets, labels, **arguments), student, targets, labels, **arguments)
"""


@pytest.mark.slow  # another build of all kernels
@pytest.mark.parametrize("first", [0, 1])
def test_memory_is_read_and_written_within_bounds(first: int, shim_builder: Builder) -> None:
    """The address sanitizer ends a process that does otherwise. The cases are on either device in turn."""
    run_within_bounds(shim_builder, WITHIN_BOUNDS, str(first))


def test_compiles_without_warnings(shim_builder: Builder) -> None:
    shim_builder.library()
    assert shim_builder.warnings() == ""


def test_every_kernel_has_run(shim: Shim, request: pytest.FixtureRequest) -> None:
    """Of the kernels that the library holds: an instantiation that no plan or no test chooses is untested."""
    if request.config.option.keyword or any("::" in x for x in request.config.args):
        pytest.skip("only some of this file's tests run")
    shim.launches()
    # The others are judged in the files of their own tests.
    others = ("encode_", "scale_in_place", "multilabel")
    kernels = {x for x in kernels_in(shim.library) if not any(name in x for name in others)}
    assert kernels - shim.kernels_run == set()
