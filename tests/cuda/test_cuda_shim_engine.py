"""The stand-in that runs CUDA kernels on the CPU, tried on toy kernels (shim/toys.cpp): right ones give the
numbers of a GPU, wrong ones are caught.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_shim_helpers import Builder

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")


@pytest.fixture(scope="module")
def checked(shim_builder: Builder) -> Path:
    return shim_builder.toys()


@pytest.fixture(scope="module")
def bounded(shim_builder: Builder) -> Path:
    return shim_builder.toys(bounded=True)


def play(toys: Path, name: str, seed: int = 0, stdin: bytes = b"") -> tuple[int, bytes]:
    """Exit status, 3 for a report, and the output."""
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [toys, name, str(seed)], input=stdin, capture_output=True, env=environment, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def numbers(toys: Path, name: str, seed: int = 0) -> list[float]:
    status, text = play(toys, name, seed)
    assert status == 0, text
    return [float(x) for x in text.split()]


def test_lanes_exchange_values_as_in_the_programming_guide(checked: Path) -> None:
    lanes = range(32)
    expected = [
        *(i ^ 3 for i in lanes),
        *(i // 8 * 8 + 5 for i in lanes),
        *(i - 2 if i % 16 >= 2 else i for i in lanes),
        *(i + 2 if i % 16 < 14 else i for i in lanes),
        *(i ^ (1 if i < 16 else 2) for i in lanes),
        *(11 for _ in lanes),  # of 32 numbers every third
        *(max(i ^ 21 for i in lanes) for _ in lanes),
        *(1 for _ in lanes),
    ]
    assert numbers(checked, "lanes") == expected


@pytest.mark.parametrize("build", ["checked", "bounded"])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_and_clusters_work_together(build: str, seed: int, request: pytest.FixtureRequest) -> None:
    toys = request.getfixturevalue(build)
    assert numbers(toys, "sum_of_blocks", seed) == [1023 * 1024 / 2]
    clusters = [
        sum(100 * (b // 4 * 4 + j) + t for j in range(4)) + 1000 * (b % 4)
        for b in range(8)
        for t in range(32)
    ]
    assert numbers(toys, "across_blocks", seed) == clusters
    assert numbers(toys, "copied", seed) == list(range(64))


def test_copies_arrive_at_the_wait_and_not_before(checked: Path) -> None:
    found = numbers(checked, "copied_too_early")
    assert found[0::8] == list(range(0, 64, 8))
    assert all(x != x for i, x in enumerate(found) if i % 8 >= 4)


@pytest.mark.parametrize("build", ["checked", "bounded"])
def test_shared_memory_is_poisoned_for_each_block(build: str, request: pytest.FixtureRequest) -> None:
    assert all(x != x for x in numbers(request.getfixturevalue(build), "never_written"))


def test_a_missing_barrier_shows_in_some_order(checked: Path) -> None:
    found = {str(numbers(checked, "races", seed)) for seed in range(12)}
    assert found == {"[63.0]", "[nan]"}


# The parts of a report beside the kernel.
REPORTS = {
    "exits_before_the_barrier": (
        "waits at __syncthreads (TOYS), and block (0, 0, 0), thread (40, 0, 0) has exited"
    ),
    "two_barriers": (
        "divergent barrier: it waits at __syncthreads (TOYS), and others wait at __syncthreads (TOYS)"
    ),
    "lane_stays_away": (
        "waits at __shfl_xor_sync with mask 0xffffffff (TOYS), and block (0, 0, 0), thread (3, 0, 0) has "
        "exited"
    ),
    "lane_left_out": "which mask 0x0000ffff leaves out",
    "from_a_lane_left_out": "__shfl_sync (TOYS) from lane 20, which mask 0x0000ffff leaves out",
    "barrier_and_shuffle": (
        "waits at __syncthreads (TOYS), and block (0, 0, 0), thread (16, 0, 0) waits at __shfl_xor_sync"
    ),
    "different_masks": (
        "waits at __shfl_xor_sync with mask 0xffffffff (TOYS), and block (0, 0, 0), thread (16, 0, 0) has "
        "exited"
    ),
    "warp_not_full": "its warp has fewer lanes",
    "one_block_leaves": (
        "waits at the cluster's barrier (TOYS), and block (1, 0, 0), thread (0, 0, 0) has exited"
    ),
    "looks_into_a_block_that_left": "shared memory of block 1 of the cluster, which has exited already",
    "misaligned_load": "misaligned access: a load of 16 bytes",
    "misaligned_store": "misaligned access: 'struct float4'",
    "misaligned_copy": "misaligned access: an asynchronous copy's source of 16 bytes",
    "index_too_large": "out of bounds: an index of an array (TOYS)",
    "row_offset_in_int": "a signed product overflows (TOYS)",
    "writes_behind_shared": "out of bounds: somebody in the block wrote beside its dynamic shared memory",
    "writes_before_shared": "out of bounds: somebody in the block wrote beside its dynamic shared memory",
    "copies_behind_shared": "out of bounds: an asynchronous copy to what isn't shared memory",
}
# Launches that a device refuses.
REFUSALS = {
    "too_many_threads": "invalid configuration argument",
    "shared_not_asked_for": "invalid argument",
    "half_a_cluster": "invalid configuration argument",
}


@pytest.mark.parametrize("name", REPORTS)
def test_the_fault_of_a_kernel_is_reported(name: str, checked: Path) -> None:
    status, text = play(checked, name)
    kernel = {"warp_not_full": "lanes"}.get(name, name)
    assert status == 3, text
    assert text.startswith(f"kernel ensdistill::cuda::{kernel}(".encode()), text
    places = [word.strip("(),") for word in text.decode().split() if "toys.cpp:" in word]
    report = text.decode()
    for place in places:
        report = report.replace(place, "TOYS")
    assert REPORTS[name] in report


@pytest.mark.parametrize("name", REFUSALS)
def test_launches_that_a_device_refuses_are_refused(name: str, checked: Path) -> None:
    assert play(checked, name) == (3, REFUSALS[name].encode() + b"\n")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("reads_behind_shared", "READ of size 1"),
        ("writes_behind_shared", "WRITE of size 1"),
        ("writes_before_shared", "WRITE of size 4"),
        ("reads_behind_global", "READ of size 4"),
        ("writes_behind_global", "WRITE of size 4"),
    ],
)
def test_the_address_sanitizer_finds_accesses_past_the_end(name: str, what: str, bounded: Path) -> None:
    status, text = play(bounded, name)
    assert status not in (0, 3)
    assert f"{what}".encode() in text
    assert f"in ensdistill::cuda::{name}(".encode() in text


def test_number_formats(checked: Path) -> None:
    """To the nearest, ties to even: every half and bfloat16, the points between two, and beside them; NaN,
    infinities, subnormals."""
    every = np.arange(65536, dtype=np.uint16)
    halves, brains = (
        every.view(np.float16).astype(np.float64),
        torch.from_numpy(every.view(np.int16)).view(torch.bfloat16).double().numpy(),
    )
    points = [
        np.random.default_rng(0).standard_normal(4096)
        * 10.0 ** np.random.default_rng(1).integers(-45, 40, 4096)
    ]
    for x in (halves, brains):
        ordered = np.unique(x[np.isfinite(x)])
        with np.errstate(over="ignore"):
            middle = (ordered[1:] + ordered[:-1]) / 2
        points += [x, middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)]
    x = np.concatenate([*points, [65519.999, 65520.0, 3.3961775e38, 3.4e38, 1e300, -1e300, 5e-324]])
    status, raw = play(checked, "formats", stdin=x.tobytes())
    assert status == 0
    found = np.frombuffer(raw, np.uint16).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):
        single = x.astype(np.float32)
        half, half_of_single = x.astype(np.float16), single.astype(np.float16)
    brain_of_single = torch.from_numpy(single).bfloat16().view(torch.int16).numpy().view(np.uint16)
    known = ~np.isnan(x)
    assert (found[known, 0] == half.view(np.uint16)[known]).all()
    assert (found[known, 2] == half_of_single.view(np.uint16)[known]).all()
    assert (found[known, 3] == brain_of_single[known]).all()
    # A double is rounded once: where its float is not the middle of two bfloat16, both ways agree.
    tie = (single.view(np.uint32) & 0xFFFF) == 0x8000
    assert (found[known & ~tie, 1] == brain_of_single[known & ~tie]).all()
    assert (found[~known] == 0x7FFF).all()

    status, raw = play(checked, "widened")
    assert status == 0
    wide = np.frombuffer(raw, np.float32).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(wide[:, 0], halves.astype(np.float32))
    np.testing.assert_array_equal(wide[:, 1], brains.astype(np.float32))
