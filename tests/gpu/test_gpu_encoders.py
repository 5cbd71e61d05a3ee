"""The encoders on a GPU: their own tests, those of test_cuda_shim_encoders.py beside the CPU, and those of
properties that only a GPU has."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gpu_helpers
import pytest
import test_cuda_shim_encoders
import test_encoders
import test_encoders_errors
import torch
from closed_forms import make_codes, make_logits
from gpu_helpers import back, moved, on_gpu
from test_cuda_shim_encoders import raw_of, without_reference

from benchmarks import sanitize
from ensdistill.loss.encoders import sample_counts, top_k_targets
from ensdistill.loss.targets import QuantizedLogits

gpu_helpers.need_gpu()

FUNCTIONS = ("quantize_logits", "top_k_targets", "sample_counts")
NOT_HERE = {
    "test_opcheck",  # these three are below
    "test_fake_kernels_have_the_real_shapes_and_dtypes",
    "test_compiled_in_one_graph",
    "test_philox_gives_the_published_answers",  # of the specification
    # Values on a GPU aren't looked at: see
    # test_rows_without_a_distribution_are_nan_and_leave_the_others_alone.
    "test_a_bad_number_is_named",
    "test_a_row_without_a_class_is_named",
    "test_a_logit_too_large_to_be_stored_is_named",
    "test_bad_codes_are_named",
    "test_bad_arguments",
    "test_a_device_without_kernels_is_named",  # see test_no_gpu.py
}
BESIDE_THE_CPU = (
    "test_codes_are_the_cpus_bit_by_bit",
    "test_the_same_classes_as_on_the_cpu",
    "test_members_codes_and_many_places",
    "test_classes_far_below_all_doubles",
    "test_the_cpus_draws",
    "test_many_draws_of_each_class",
    "test_rows_without_a_distribution_are_nan_and_leave_the_others_alone",
    "test_invalid_weights_make_every_row_nan",
)


def fused_on_gpu(encoder: Callable[..., Any]) -> Callable[..., Any]:
    """The specification stays on the CPU."""
    there = on_gpu(encoder)

    def call(*arguments: Any, **keywords: Any) -> Any:
        return (encoder if keywords.get("impl") == "reference" else there)(*arguments, **keywords)

    return call


def raw(logits: torch.Tensor, weights: Any = None) -> list[torch.Tensor]:
    return [x.cpu() for x in raw_of(torch.ops.ensdistill, moved(logits), moved(weights))]


@pytest.fixture(autouse=True)
def encoders_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (test_encoders, test_encoders_errors):
        for name in FUNCTIONS:
            monkeypatch.setattr(module, name, fused_on_gpu(getattr(module, name)))
    for name in ("LOGITS", "CODES"):
        monkeypatch.setattr(test_encoders_errors, name, moved(getattr(test_encoders_errors, name)))
    monkeypatch.setattr(test_cuda_shim_encoders, "raw", raw)


@pytest.fixture
def both() -> Callable[..., tuple[Any, Any]]:
    """Calls an encoder twice: the results of the CPU's kernels, and of the GPU's."""

    def call(encoder: Callable[..., Any], *arguments: Any, **keywords: Any) -> tuple[Any, Any]:
        return encoder(*arguments, **keywords), on_gpu(encoder)(*arguments, **keywords)

    return call


for _module in (test_encoders, test_encoders_errors):
    for _name, _test in inspect.getmembers(_module, inspect.isfunction):
        if _name.startswith("test_") and _name not in NOT_HERE:
            globals()[f"{_name}_{_module.__name__.removeprefix('test_')}"] = (
                _test if hasattr(_test, "hypothesis") else without_reference(_test)
            )
for _name in BESIDE_THE_CPU:
    globals()[_name] = getattr(test_cuda_shim_encoders, _name)


def test_they_really_run_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or all the above would be the CPU's tests once more."""
    devices = []
    real = test_cuda_shim_encoders.encoders._implementation
    monkeypatch.setattr(
        test_cuda_shim_encoders.encoders,
        "_implementation",
        lambda impl, values, *a: devices.append(values.device) or real(impl, values, *a),
    )
    test_encoders.encoders(make_logits(2, 3, 9, seed=0))
    assert devices == [gpu_helpers.DEVICE] * 3


# Every place that a block's memory can be in
# --------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", sanitize.ENCODINGS, ids=str)
def test_every_encoder_against_its_specification(encoding: sanitize.Encoding) -> None:
    """Raises where a result is wrong."""
    sanitize.encode(encoding, gpu_helpers.DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("c", [10, 123, 1003])
def test_rows_start_anywhere(c: int, dtype: torch.dtype) -> None:
    for shift in range(4):
        memory = make_logits(2 * 5 * (c + 3) + shift, seed=c + shift, dtype=dtype)
        logits = memory[shift:].view(2, 5, c + 3)[..., :c]
        for found, expected in zip(raw(logits), raw(logits.contiguous()), strict=True):
            assert torch.equal(found, expected)


def test_offsets_past_32_bits() -> None:
    apart = 2**31 + 40
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of a GPU's memory")
    memory = torch.empty(2 * apart + 100, dtype=torch.bfloat16, device=gpu_helpers.DEVICE)
    rows = memory.as_strided((1, 3, 100), (0, apart, 1))
    rows.copy_(make_logits(1, 3, 100, seed=0))
    ops = torch.ops.ensdistill
    for x, y in zip(raw_of(ops, rows), raw_of(ops, rows.clone()), strict=True):
        assert torch.equal(x, y)


def test_codes_past_two_to_the_32() -> None:
    """More of them than 32 bits count: the last rows, and that none was left out."""
    n, c = 65_540, 65_537
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of a GPU's memory")
    row = moved(make_logits(1, 1, c, seed=0, dtype=torch.bfloat16))
    codes, scale, _, kl = torch.ops.ensdistill.encode_uint8(row.expand(1, n, c))
    expected = torch.ops.ensdistill.encode_uint8(row)
    assert codes.numel() > 2**32
    assert torch.equal(codes[0, -3:], expected[0][0].expand(3, c))
    assert torch.equal(scale[0], expected[1][0].expand(n))
    assert torch.equal(kl[0], expected[3][0].expand(n))


# Streams, graphs, waiting
# ---------------------------------------------------------------------------------------------


def everything(logits: torch.Tensor) -> list[torch.Tensor]:
    return raw_of(torch.ops.ensdistill, logits)


def test_work_goes_to_the_current_stream() -> None:
    source = moved(make_logits(2, 64, 300, seed=0))
    expected = everything(source)
    late, side = torch.full_like(source, torch.nan), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # clock ticks: some hundredths of a second
        late.copy_(source)
        found = everything(late)
        assert not side.query()  # the host has not waited for it
    side.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """Waiting for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_no_call_waits_for_the_device(no_waiting: Callable[[], None]) -> None:
    """Torch raises where the host does."""
    logits, codes = moved(make_logits(2, 5, 300, seed=0)), moved(make_codes(2, 5, 300, seed=1))
    weights, row_ids = moved(torch.ones(2)), moved(torch.arange(5))
    test_cuda_shim_encoders.quantize_logits(logits)
    no_waiting()
    test_cuda_shim_encoders.quantize_logits(logits)
    for targets in (logits, codes):
        top_k_targets(targets, 7, weights=weights)
        sample_counts(targets, 7, seed=1, weights=weights, row_ids=row_ids)


@pytest.mark.parametrize("c", [300, 20_011])  # the latter with memory beyond a block's own
def test_graph_capture(c: int) -> None:
    logits = moved(make_logits(2, 5, c, seed=0))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        everything(logits)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = everything(logits)
    logits.copy_(make_logits(2, 5, c, seed=1))
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(found, everything(logits), strict=True))


def test_same_bits_every_time() -> None:
    logits = moved(make_logits(3, 300, 1031, seed=0).mul(4).round().div(4))
    expected = everything(logits)
    for _ in range(5):
        assert all(torch.equal(x, y) for x, y in zip(everything(logits), expected, strict=True))


def test_tensors_on_different_devices() -> None:
    codes = make_codes(2, 5, 9, seed=0)
    mixed = QuantizedLogits(moved(codes.codes), codes.scale, moved(codes.offset))
    with pytest.raises(ValueError, match=r"^targets\.scale: on device cpu, but the logits are on cuda:0"):
        top_k_targets(mixed, 2)
    with pytest.raises(ValueError, match=r"^row_ids: on device cpu, but the logits are on cuda:0"):
        sample_counts(moved(make_logits(2, 5, 9, seed=0)), 2, seed=0, row_ids=torch.arange(5))
    with pytest.raises(RuntimeError, match="scale: expected on the targets' device, cuda:0"):
        torch.ops.ensdistill.encode_top_k(mixed.codes, mixed.scale, mixed.offset, None, 1.0, "prob", 2)


# torch
# ------------------------------------------------------------------------------------------------------------


def test_opcheck_on_the_gpu() -> None:
    ops = torch.ops.ensdistill
    logits, codes = moved(make_logits(3, 5, 10, seed=0)), moved(make_codes(3, 5, 10, seed=1, masked=True))
    weights, row_ids = moved(torch.arange(3, dtype=torch.float64)), moved(torch.arange(5))
    calls: list[tuple[Any, tuple[Any, ...]]] = [(ops.encode_uint8.default, (logits,))]
    for values in ((logits, None, None), (codes.codes, codes.scale, codes.offset)):
        calls += [
            (ops.encode_top_k.default, (*values, weights, 2.0, "prob", 4)),
            (ops.encode_counts.default, (*values, None, 2.0, "logit", 4, 5, row_ids)),
        ]
    for op, arguments in calls:
        assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}


def test_compiled_in_one_graph_on_the_gpu() -> None:
    torch._dynamo.reset()
    logits = moved(make_logits(2, 5, 9, seed=0))

    def encode(logits: torch.Tensor) -> tuple[Any, ...]:
        return top_k_targets(logits, 4), sample_counts(logits, 7, seed=3)

    for found, expected in zip(
        back(torch.compile(encode, fullgraph=True)(logits)), back(encode(logits)), strict=True
    ):
        for name, value in vars(expected[0]).items():
            assert torch.equal(torch.as_tensor(getattr(found[0], name)), torch.as_tensor(value))
        assert torch.equal(found[1], expected[1])
