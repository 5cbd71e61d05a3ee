"""The encoders' CUDA kernels, executed on the CPU (cuda_shim_helpers.py): their own tests once more, and
the faults that only kernels for a GPU can have.
"""

import inspect
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import pytest
import test_encoders
import test_encoders_errors
import torch
from closed_forms import make_codes, make_logits
from cuda_shim_helpers import A10, H100, Builder, Shim, kernels_in, poisoned_memory, run_within_bounds

from benchmarks import sanitize
from ensdistill.loss import encoders
from ensdistill.loss.encoders import quantize_logits, sample_counts, top_k_targets

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")

# Here rows beyond a few hundred classes, and lists of more than a few dozen, don't fit a block's shared
# memory; three blocks share one piece of device memory, so they take one row after the other.
TINY = {**A10, "shared_limit": 16 * 1024, "multiprocessors": 1}
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@contextmanager
def on_the_shim() -> Iterator[None]:
    """ensdistill's encoders call the CUDA ops."""

    def implementation(impl: str, values: Any, name: str, fused: Any, reference: Any) -> Any:
        if real(impl, values, name, fused, reference) is not fused:
            return reference
        op = getattr(torch.ops.ensdistill_shim, str(fused).rpartition(".")[2])

        def call(*arguments: Any) -> Any:
            with poisoned_memory():
                return op(*arguments)

        return call

    real = encoders._implementation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "_implementation", implementation)
        yield


@pytest.fixture(scope="module")
def shim(shim_builder: Builder) -> Shim:
    return Shim(shim_builder.library())


@pytest.fixture(scope="module", params=[H100, TINY], ids=["H100", "tiny"], autouse=True)
def device(request: pytest.FixtureRequest, shim: Shim) -> Iterator[dict[str, int]]:
    shim.use(request.param)
    with on_the_shim():
        yield request.param
    shim.use(H100)
    shim.launches()


# The encoders' own tests
# ----------------------------------------------------------------------------------------------

NOT_HERE = {
    "test_opcheck",  # these three look at torch.ops.ensdistill
    "test_fake_kernels_have_the_real_shapes_and_dtypes",
    "test_compiled_in_one_graph",
    "test_the_native_checks",
    "test_a_device_without_kernels_is_named",
    "test_philox_gives_the_published_answers",  # of the specification
    "test_counts_follow_the_mixture",  # 400 000 draws: see test_many_draws_of_each_class
    "test_rows_draw_independently_of_each_other",  # 4 000 rows, and the draws are the CPU's
}


def without_reference(test: Callable[..., None]) -> Callable[..., None]:
    """The test, of the fused ops only."""
    copy = FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__)
    copy.__dict__.update(test.__dict__)
    marks = getattr(test, "pytestmark", [])
    copy.__dict__["pytestmark"] = [
        pytest.mark.parametrize("impl", ["fused"]).mark
        if mark.name == "parametrize" and mark.args[0] == "impl"
        else mark
        for mark in marks
    ]
    return copy


for _module in (test_encoders, test_encoders_errors):
    for _name, _test in inspect.getmembers(_module, inspect.isfunction):
        if _name.startswith("test_") and _name not in NOT_HERE:
            globals()[f"{_name}_{_module.__name__.removeprefix('test_')}"] = (
                _test if hasattr(_test, "hypothesis") else without_reference(_test)
            )


# Beside the CPU's
# -----------------------------------------------------------------------------------------------------


@pytest.fixture
def both() -> Callable[..., tuple[Any, Any]]:
    """Calls an encoder twice: the results of the CPU's kernels, and of these."""

    def call(encoder: Callable[..., Any], *arguments: Any, **keywords: Any) -> tuple[Any, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoders, "_implementation", lambda impl, values, name, fused, reference: fused)
            expected = encoder(*arguments, **keywords)
        return expected, encoder(*arguments, **keywords)

    return call


def edges(c: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows that are constant, masked but for one class, of two values, very wide, subnormally narrow, and
    ordinary ones."""
    logits = make_logits(2, 7, c, seed=c, dtype=dtype)
    logits[0, 0] = 1.5
    logits[0, 1, 1:] = -math.inf
    logits[0, 2] = torch.arange(c, dtype=dtype) % 2
    large, small = (1e3, 1e-5) if dtype == torch.float16 else (1e4, 1e-38)
    logits[0, 3] *= large
    logits[0, 4] *= small
    logits[1, ::2, ::3] = -math.inf
    logits[1, :, 0] = 0
    return logits


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("c", [1, 2, 31, 33, 100, 1000, 1025, 5003])
def test_codes_are_the_cpus_bit_by_bit(c: int, dtype: torch.dtype, both: Any) -> None:
    logits = edges(c, dtype)
    wide = torch.full((2, 7, c + 3), math.nan, dtype=dtype)
    wide[..., 1 : c + 1] = logits
    for values in (logits, wide[..., 1 : c + 1], logits.swapaxes(0, 1).contiguous().swapaxes(0, 1)):
        (expected, expected_kl), (found, kl) = both(quantize_logits, values)
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.scale.view(torch.int32), expected.scale.view(torch.int32))
        assert torch.equal(found.offset.view(torch.int32), expected.offset.view(torch.int32))
        torch.testing.assert_close(kl, expected_kl, **test_encoders.CLOSE)


def assert_same_top_k(both: Any, targets: Any, k: int, **arguments: Any) -> None:
    (expected, expected_kl), (found, kl) = both(top_k_targets, targets, k, **arguments)
    assert torch.equal(found.ids, expected.ids)
    # A double's last digits decide to which of two neighbours a float is rounded.
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=2**-23, atol=1e-13)
    torch.testing.assert_close(found.tail_log_mass, expected.tail_log_mass, rtol=2**-23, atol=1e-13)
    torch.testing.assert_close(kl, expected_kl, **test_encoders.CLOSE)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("c", [100, 1025, 5003])
def test_the_same_classes_as_on_the_cpu(c: int, dtype: torch.dtype, both: Any) -> None:
    """Of one teacher also where many tie: bfloat16 has few values, and the order of equal ones is the
    ids'."""
    logits = edges(c, dtype)
    for k in (1, 7, 64, 100, c // 2):
        assert_same_top_k(both, logits[:1], k)
        assert_same_top_k(both, logits[:1].mul(4).round().div(4), k)
    if dtype == torch.float32:
        assert_same_top_k(both, logits, 33, weights=[0.25, 0.75])
        assert_same_top_k(both, logits, 33, combiner="logit", temperature=0.1)


def test_members_codes_and_many_places(both: Any) -> None:
    codes = make_codes(32, 3, 700, seed=2, masked=True)
    assert_same_top_k(both, codes, 50, temperature=2.0)
    assert_same_top_k(both, make_logits(1, 2, 20000, seed=3, dtype=torch.float64), 4096)
    assert_same_top_k(
        both, make_logits(2, 1, 9000, seed=3, dtype=torch.float64), 9000
    )  # all of them, in order


def test_classes_far_below_all_doubles(both: Any) -> None:
    logits = torch.linspace(0, -3000, 400, dtype=torch.float64).repeat(2, 2, 1)
    logits[1] *= 1.1
    for k in (1, 5, 200, 399):
        assert_same_top_k(both, logits, k)


def assert_same_counts(both: Any, targets: Any, draws: int, seed: int = 3, **arguments: Any) -> None:
    (expected, expected_kl), (found, kl) = both(sample_counts, targets, draws, seed=seed, **arguments)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.counts, expected.counts)
    torch.testing.assert_close(kl, expected_kl, **test_encoders.CLOSE)


@pytest.mark.parametrize("c", [2, 33, 1000, 5003])
def test_the_cpus_draws(c: int, both: Any) -> None:
    logits = edges(c, torch.float32)
    for draws in (1, 2, 63, 1000):
        assert_same_counts(both, logits, draws, row_ids=torch.tensor([7, -1, 2**62 + 1, -(2**63), 0, 5, 6]))
        assert_same_counts(both, logits[:1], draws, combiner="logit", temperature=3.0)
    assert_same_counts(both, make_codes(5, 4, c, seed=1, masked=True), 100)


def test_many_draws_of_each_class(both: Any) -> None:
    """Also of one class nearly always, and never of a class without mass."""
    logits = make_logits(2, 2, 30, seed=4, spread=1.0)
    logits[:, 0, 7] = 20.0
    logits[:, :, 8::5] = -math.inf
    assert_same_counts(both, logits, 20_000)
    _, (found, _) = both(sample_counts, logits, 20_000, seed=5)
    assert not bool(((found.ids % 5 == 3) & (found.ids > 7) & (found.counts > 0)).any())


@pytest.mark.parametrize("encoding", sanitize.ENCODINGS, ids=str)
def test_the_cases_of_the_sanitizer_are_fine(encoding: sanitize.Encoding) -> None:
    """Raises where a result is wrong."""
    sanitize.encode(encoding, torch.device("cpu"))


# Faults that only a GPU's kernels can have
# -------------------------------------------------------------------------------


def test_rows_without_a_distribution_are_nan_and_leave_the_others_alone() -> None:
    logits = make_logits(2, 6, 300, seed=0)
    expected = [x.clone() for x in raw(logits)]
    logits[1, 1, 5], logits[0, 3], logits[0, 5, 299] = math.nan, -math.inf, math.inf
    found, good = raw(logits), torch.tensor([0, 2, 4])
    for x, want in zip(found[:7], expected, strict=False):
        assert torch.equal(x[good], want[good])
    bad = torch.tensor([1, 3, 5])
    assert found[0][bad].tolist() == [[0, 1, 2, 3]] * 3
    assert all(bool(x[bad].isnan().all()) for x in (*found[1:4], found[6]))
    assert bool((found[4][bad] == 0).all())
    assert bool((found[5][bad] == 0).all())
    scale, offset, kl = found[8:]
    for x in (scale, offset, kl):
        assert x.isnan().nonzero().tolist() == [[0, 3], [0, 5], [1, 1]]
    assert bool((found[7][x.isnan()] == 0).all())


def raw(logits: torch.Tensor, weights: Any = None) -> list[torch.Tensor]:
    with poisoned_memory():
        return raw_of(torch.ops.ensdistill_shim, logits, weights)


def raw_of(ops: Any, logits: torch.Tensor, weights: Any = None) -> list[torch.Tensor]:
    """All tensors of all three ops, for any logits."""
    top = ops.encode_top_k(logits, None, None, weights, 1.0, "prob", 4)
    return [
        *top,
        *ops.encode_counts(logits, None, None, weights, 1.0, "prob", 7, 3, None),
        *ops.encode_uint8(logits),
    ]


def test_invalid_weights_make_every_row_nan() -> None:
    """Their values are not checked, because that would wait for the device."""
    logits = make_logits(3, 2, 40, seed=0)
    for weights in ([1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, math.nan, 1.0], [math.inf, 1.0, 1.0]):
        found = raw(logits, torch.tensor(weights, dtype=torch.float64))
        assert bool(found[3].isnan().all())
        assert bool(found[6].isnan().all())


def test_results_do_not_depend_on_the_order(shim: Shim) -> None:
    logits = make_logits(3, 5, 1031, seed=0).mul(4).round().div(4)
    found = []
    for seed in range(4):
        shim.seed(seed)
        found.append(raw(logits))
    for again in found[1:]:
        for x, y in zip(again, found[0], strict=True):
            assert torch.equal(x, y)


def test_offsets_past_32_bits() -> None:
    apart = 2**31 + 40
    try:
        memory = torch.empty(2 * apart + 100, dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("no address space for 8.6 GB")
    rows = memory.as_strided((1, 3, 100), (0, apart, 1))
    rows.copy_(make_logits(1, 3, 100, seed=0))
    for x, y in zip(raw(rows), raw(rows.clone()), strict=True):
        assert torch.equal(x, y)


# The build
# ------------------------------------------------------------------------------------------------------------

WITHIN_BOUNDS = """
import sys
from itertools import product
from pathlib import Path
import torch
from closed_forms import make_codes, make_logits
from cuda_shim_helpers import Shim

shim, ops = Shim(Path(sys.argv[1])), torch.ops.ensdistill_shim
shim.use(eval(sys.argv[2]))
for c, dtype in product((1, 2, 33, 1000, 3001), (torch.bfloat16, torch.float64)):
    logits, codes = make_logits(2, 3, c, seed=0, dtype=dtype), make_codes(3, 3, c, seed=1)
    ops.encode_uint8(logits)
    for values in ((logits, None, None), (codes.codes, codes.scale, codes.offset)):
        for k in {1, (c + 1) // 2, c}:
            ops.encode_top_k(*values, None, 2.0, "prob", k)
            ops.encode_counts(*values, None, 2.0, "logit", 3 * k, 1, torch.arange(3))
"""


@pytest.mark.slow
def test_memory_is_read_and_written_within_bounds(device: dict[str, int], shim_builder: Builder) -> None:
    """The address sanitizer ends a process that does otherwise."""
    run_within_bounds(shim_builder, WITHIN_BOUNDS, repr(device))


def test_every_encoder_has_a_kernel_that_ran(shim: Shim) -> None:
    shim.launches()
    raw(make_logits(2, 3, 40, seed=0))
    assert {x.kernel for x in shim.launches()} == {x for x in kernels_in(shim.library) if "encode_" in x}
