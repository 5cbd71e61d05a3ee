"""The kernel that scales a gradient in its own memory, on a GPU: the tests of test_cuda_shim_scale.py, and
those of properties that only a GPU has."""

import inspect

import gpu_helpers
import pytest
import test_cuda_shim_scale
import torch
from gpu_helpers import with_memory

from benchmarks import sanitize

gpu_helpers.need_gpu()


def scale(gradient: torch.Tensor, factor: float | torch.Tensor) -> None:
    """There, together with all that lies around it; the result comes back with that."""
    there = with_memory(gradient)
    torch.ops.ensdistill.scale_gradient(there, torch.as_tensor(factor).to(gpu_helpers.DEVICE))
    gradient.untyped_storage().copy_(there.untyped_storage())


@pytest.fixture(autouse=True)
def scaled_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_cuda_shim_scale, "scale", scale)


for _name, _test in inspect.getmembers(test_cuda_shim_scale, inspect.isfunction):
    if (
        _name.startswith("test_")
        and "sanitizer" not in _name
        and not {"shim", "shim_builder"} & set(inspect.signature(_test).parameters)
    ):
        globals()[_name] = _test


def test_the_cases_of_the_sanitizer() -> None:
    """Raises where a result is wrong."""
    for scaling in sanitize.SCALINGS:
        sanitize.scale(*scaling, gpu_helpers.DEVICE)


def test_a_factor_elsewhere_is_refused() -> None:
    with pytest.raises(RuntimeError, match="factor: expected one float32 number on the gradient's device"):
        torch.ops.ensdistill.scale_gradient(torch.ones(10, device=gpu_helpers.DEVICE), torch.tensor(2.0))


@pytest.mark.parametrize("start", [0, 1])  # by vectors, and one by one
def test_past_two_to_the_32(start: int) -> None:
    size = 2**32 + 13
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of a GPU's memory")
    memory = torch.ones(size + 2, dtype=torch.bfloat16, device=gpu_helpers.DEVICE)
    torch.ops.ensdistill.scale_gradient(
        memory[start : start + size], torch.tensor(3.0, device=gpu_helpers.DEVICE)
    )
    around = memory[:start].tolist() + memory[start + size :].tolist()
    assert around == [1.0] * 2
    for part in memory[start : start + size].split(2**28):
        assert bool((part == 3).all())


def test_work_goes_to_the_current_stream_and_into_a_graph() -> None:
    gradient, factor = (
        torch.ones(1031, device=gpu_helpers.DEVICE),
        torch.tensor(2.0, device=gpu_helpers.DEVICE),
    )
    graph = torch.cuda.CUDAGraph()
    torch.ops.ensdistill.scale_gradient(gradient, factor)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        torch.ops.ensdistill.scale_gradient(gradient, factor)
    assert gradient.tolist() == [2.0] * 1031
    for value, expected in ((1.0, 2.0), (-3.0, -6.0)):  # the factor is looked at when it runs
        factor.fill_(value)
        graph.replay()
        assert gradient.tolist() == [expected] * 1031
