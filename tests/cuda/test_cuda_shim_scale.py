"""The kernel that scales a gradient in its own memory, executed on the CPU (cuda_shim_helpers.py): for every
type, wherever the memory begins and however its dimensions are ordered, and its refusals.
"""

import math
import shutil
from collections.abc import Iterator

import pytest
import torch
from closed_forms import make_logits
from cuda_shim_helpers import H100, Builder, Shim, kernels_in, run_within_bounds

from benchmarks import sanitize

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
# Vectors of 16 bytes hold 2, 4 or 8 numbers, a block's threads 256 of them.
SIZES = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 123, 1031, 256 * 8 + 5, 3 * 256 * 8)


@pytest.fixture(scope="module")
def shim(shim_builder: Builder) -> Shim:
    return Shim(shim_builder.library())


@pytest.fixture(autouse=True)
def device(shim: Shim) -> Iterator[None]:
    shim.use(H100)
    yield
    shim.launches()


def scale(gradient: torch.Tensor, factor: float | torch.Tensor) -> None:
    factor = factor if isinstance(factor, torch.Tensor) else torch.tensor(factor)
    torch.ops.ensdistill_shim.scale_gradient(gradient, factor)


def assert_scaled(found: torch.Tensor, before: torch.Tensor, factor: float) -> None:
    """Multiplied in float32 and rounded once more: half a unit, and a 256th of it where both roundings
    meet."""
    exact = before.double() * torch.tensor(factor).double()
    limits = torch.finfo(found.dtype)
    beyond = exact.abs() > limits.max
    assert torch.equal(found.double()[beyond], exact[beyond].sign() * math.inf)
    excess = (found.double() - exact).abs() - (0.5 + 2**-8) * limits.eps * exact.abs()
    assert bool((excess[~beyond] <= limits.smallest_normal * limits.eps).all())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("factor", [0.37, -3.0, 2.0**-20, 2.0**17, 0.0])
def test_every_type_and_size(factor: float, dtype: torch.dtype) -> None:
    """2^17 is a loss scale that float16 doesn't hold; 2^-20 makes its subnormal numbers."""
    for size in SIZES:
        before = make_logits(size, seed=size, dtype=dtype)
        gradient = before.clone()
        scale(gradient, factor)
        assert_scaled(gradient, before, factor)


@pytest.mark.parametrize("dtype", FLOATS)
def test_memory_begins_anywhere_and_its_surroundings_stay(dtype: torch.dtype) -> None:
    for start in range(9):
        for size in (5, 16, 131):
            memory = make_logits(start + size + 9, seed=start, dtype=dtype)
            before = memory.clone()
            scale(memory[start : start + size], -1.5)
            assert torch.equal(memory[:start], before[:start])
            assert torch.equal(memory[start + size :], before[start + size :])
            assert_scaled(memory[start : start + size], before[start : start + size], -1.5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_by_one_nothing_is_written(dtype: torch.dtype) -> None:
    """Signalling NaNs, which a multiplication would have made quiet ones."""
    infinite = torch.full((37,), math.inf, dtype=dtype).view(BITS[dtype])
    bits = infinite + torch.arange(37, dtype=BITS[dtype])
    gradient = bits.clone().view(dtype)
    scale(gradient, 1.0)
    assert torch.equal(gradient.view(BITS[dtype]), bits)
    scale(gradient, 1.0 + 2.0**-23)
    assert bool(gradient[1:].isnan().all())
    assert not torch.equal(gradient.view(BITS[dtype])[1:], bits[1:])


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_factor_that_is_no_number_shows(factor: float) -> None:
    for dtype in FLOATS:
        gradient = torch.tensor([0.0, 1.0, -2.0] * 7, dtype=dtype)
        scale(gradient, factor)
        expected = torch.tensor([math.nan, factor, -factor] * 7, dtype=dtype)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dimensions_in_any_order_that_fill_their_memory(dtype: torch.dtype) -> None:
    """Maps with their channels first, batches last, dimensions of one; each number is scaled once."""
    for view in (
        lambda x: x.view(5, 7, 9),
        lambda x: x.view(5, 9, 7).transpose(1, 2),
        lambda x: x.view(9, 7, 5).permute(2, 1, 0),
        lambda x: x.view(7, 9, 5).permute(2, 0, 1),
        lambda x: x.view(315, 1).t(),
        lambda x: x.as_strided((1, 315, 1), (10_000, 1, 77)),
    ):
        memory = make_logits(315, seed=0, dtype=dtype)
        before = memory.clone()
        scale(view(memory), 0.3)
        assert_scaled(memory, before, 0.3)
    number = torch.tensor(3.0, dtype=dtype)
    scale(number, 2.0)
    assert number.item() == 6


@pytest.mark.parametrize("shape", [(0,), (0, 10), (3, 0, 7)])
def test_nothing_is_scaled_by_no_kernel(shape: tuple[int, ...], shim: Shim) -> None:
    shim.launches()
    scale(torch.empty(shape), 2.0)
    assert shim.launches() == []


def test_a_factor_with_dimensions_of_one() -> None:
    gradient = torch.ones(10)
    scale(gradient, torch.tensor([[2.0]]))
    assert gradient.tolist() == [2.0] * 10


@pytest.mark.parametrize(
    "factor",
    [
        torch.ones(2),
        torch.ones(0),
        torch.ones(1, dtype=torch.float64),
        torch.ones(1, dtype=torch.bfloat16),
        torch.ones(1).int(),
    ],
    ids=str,
)
def test_other_factors_are_refused(factor: torch.Tensor) -> None:
    gradient = torch.full((10,), 3.0)
    with pytest.raises(RuntimeError, match="factor: expected one float32 number on the gradient's device"):
        scale(gradient, factor)
    assert gradient.tolist() == [3.0] * 10


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.complex64, torch.bool])
def test_other_gradients_are_refused(dtype: torch.dtype) -> None:
    gradient = torch.ones(40, dtype=dtype)
    with pytest.raises(RuntimeError, match="gradient: expected float64, float32, bfloat16 or float16"):
        scale(gradient, 2.0)
    assert bool((gradient == 1).all())


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :5],
        lambda x: x[::2],
        lambda x: x[0].expand(3, 9),
        lambda x: x.as_strided((3, 3), (2, 2)),  # as far as nine numbers reach, and five of them
        lambda x: x.as_strided((4, 4), (1, 1)),
    ],
)
def test_memory_with_gaps_or_shared_by_several_is_refused(view) -> None:
    memory = torch.ones(9, 9)
    with pytest.raises(RuntimeError, match="gradient: expected dense memory"):
        scale(view(memory), 2.0)
    assert bool((memory == 1).all())


def test_results_do_not_depend_on_the_order(shim: Shim) -> None:
    for dtype in FLOATS:
        found = []
        for seed in range(3):
            shim.seed(seed)
            gradient = make_logits(5003, seed=0, dtype=dtype)
            scale(gradient, 0.7)
            found.append(gradient)
        assert all(torch.equal(x, found[0]) for x in found[1:])


def test_the_cases_of_the_sanitizer_are_fine() -> None:
    """Raises where a result is wrong."""
    for scaling in sanitize.SCALINGS:
        sanitize.scale(*scaling, torch.device("cpu"), op=torch.ops.ensdistill_shim.scale_gradient)


WITHIN_BOUNDS = """
import sys
import torch
from pathlib import Path
from cuda_shim_helpers import H100, Shim

Shim(Path(sys.argv[1])).use(H100)
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    for size in (1, 7, 8, 9, 123, 5003):
        for start in range(3):
            torch.ops.ensdistill_shim.scale_gradient(torch.ones(start + size, dtype=dtype)[start:], torch.tensor(0.5))
"""


@pytest.mark.slow
def test_memory_is_read_and_written_within_bounds(shim_builder: Builder) -> None:
    """The address sanitizer ends a process that does otherwise."""
    run_within_bounds(shim_builder, WITHIN_BOUNDS)


def test_every_type_has_a_kernel_that_ran(shim: Shim) -> None:
    shim.launches()
    for dtype in FLOATS:
        scale(torch.ones(10, dtype=dtype), 2.0)
    assert {x.kernel for x in shim.launches()} == {
        x for x in kernels_in(shim.library) if "scale_in_place" in x
    }
