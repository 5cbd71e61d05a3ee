"""The multi-label kernels, executed on the CPU (cuda_shim_helpers.py): the loss's own tests once more, with the CUDA op in place of
the CPU's; then the faults that only kernels for a GPU can have."""

import inspect
import shutil
from collections.abc import Iterator
from itertools import product
from typing import Any
from zlib import crc32

import pytest
import test_multilabel
import torch
from closed_forms import make_codes, make_logits
from cuda_shim_helpers import A10, DEVICES, H100, Builder, Shim, kernels_in, run_within_bounds
from multilabel_forms import assert_close, make_labels, make_targets, run

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(scope="session")
def shim(shim_builder: Builder) -> Shim:
    return Shim(shim_builder.library())


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest, shim: Shim) -> Iterator[str]:
    """The fixture of those tests: there an instruction set of the CPU, here a device."""
    device = list(DEVICES)[crc32(request.node.name.encode()) % len(DEVICES)]
    shim.use(DEVICES[device])
    with shim.instead_of_the_cpu():
        yield device


NOT_HERE = {"test_same_bits_with_any_number_of_threads"}  # see test_results_do_not_depend_on_the_order
LONG = {"test_kinds_and_widths"}
for _name, _test in inspect.getmembers(test_multilabel, inspect.isfunction):
    if "instruction_set" in inspect.signature(_test).parameters and _name not in NOT_HERE:
        if _name in LONG:
            _test = pytest.mark.slow(_test)
        globals()[_name] = _test


def weighted(n: int, c: int) -> dict[str, Any]:
    return {
        "alpha": 0.4,
        "temperature": 2.0,
        "mask": torch.arange(n * c).reshape(n, c) % 3 != 0,
        "class_weights": torch.linspace(0, 2, c),
        "sample_weights": torch.linspace(0, 2, n),
    }


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_start_anywhere(dtype: torch.dtype, shim: Shim) -> None:
    """128-bit accesses need 16-byte boundaries, and rows needn't: an access that isn't aligned would be reported."""
    shim.use(H100)
    n = 3
    for c, shift, codes in product((64, 77), (0, 1), (False, True)):
        student = make_logits(n * (c + 8) + shift, seed=shift, dtype=dtype)[shift:].view(n, c + 8)[:, :c]
        if codes:
            targets: Any = make_codes(2, n, c + shift, seed=1)
            targets = type(targets)(targets.codes[..., shift:], targets.scale, targets.offset)
        else:
            targets = make_logits(2, n, c + shift, seed=1, dtype=dtype)[..., shift:]
        arguments, labels = weighted(n, c), make_labels(n, c, seed=0)
        with shim.instead_of_the_cpu():
            assert_close(run(student, targets, labels, **arguments), student, targets, labels, **arguments)


def test_rows_of_a_thread_of_a_warp_and_of_a_block(shim: Shim) -> None:
    """By the row's width; and one that has no end on a vector."""
    shim.use(A10)
    for c, kind in product((5, 100, 8200), ("logits", "topk-tail")):
        targets, more = make_targets(kind, 2, 3, c, seed=1)
        student = make_logits(3, c, seed=0)
        with shim.instead_of_the_cpu():
            assert_close(
                run(student, targets, temperature=2.0, **more), student, targets, temperature=2.0, **more
            )


def test_results_do_not_depend_on_the_order(shim: Shim) -> None:
    """Of blocks and threads, which a GPU runs as it likes."""
    shim.use(H100)
    labels, arguments = make_labels(40, 70, seed=0), weighted(40, 70)
    results = []
    with shim.instead_of_the_cpu():
        for kind in ("logits", "topk-tail"):
            targets, more = make_targets(kind, 2, 40, 70, seed=1)
            for seed in (0, 1):
                shim.seed(seed)
                results.append(run(make_logits(40, 70, seed=0), targets, labels, **arguments | more))
    for left, right in (results[:2], results[2:]):
        assert torch.equal(left[0], right[0])
        assert torch.equal(left[1], right[1])


def test_values_that_are_not_looked_at_make_their_row_nan(shim: Shim) -> None:
    """As on a GPU, where reading them would wait for it: out of range, or twice."""
    shim.use(H100)
    student, op = torch.zeros(3, 40), torch.ops.ensdistill_shim.multilabel_loss.default
    ids = torch.tensor([[0, 1], [2, 2], [5, 40]])
    listed, tail = torch.full((3, 2), -1.0), torch.zeros(3)
    rest = (None,) * 6
    settings = ("topk", 1.0, 1.0, "prob", "tail", 0.0, "none", 1.0, True)
    loss, gradient = op(student, listed, None, None, ids, tail, *rest, *settings)
    assert loss.isnan().tolist() == [False, True, True]
    assert gradient.isnan().any(-1).tolist() == [False, True, True]
    weights = torch.tensor([1.0, -1.0]).double()
    settings = ("logits", 1.0, 1.0, "prob", "tail", 0.0, "mean", 1.0, True)
    loss, gradient = op(student, torch.zeros(2, 3, 40), *(None,) * 4, weights, *(None,) * 5, *settings)
    assert loss.isnan()
    assert gradient.isnan().all()


WITHIN_BOUNDS = """
import sys
import torch
from itertools import product
from cuda_shim_helpers import DEVICES, Shim
from multilabel_forms import assert_close, make_labels, make_logits, make_targets, run
from pathlib import Path

shim = Shim(Path(sys.argv[1]))
for device, c, kind, dtype in product(DEVICES, (2, 33, 1001), ("logits", "codes", "topk-tail"), (torch.float32, torch.bfloat16)):
    shim.use(DEVICES[device])
    with shim.instead_of_the_cpu():
        student, labels = make_logits(3, c, seed=0, dtype=dtype), make_labels(3, c, seed=0)
        targets, more = make_targets(kind, 2, 3, c, seed=1)
        arguments = dict(alpha=0.5, temperature=2.0, mask=torch.rand(3, c) > 0.3) | more
        assert_close(run(student, targets, labels, **arguments), student, targets, labels, **arguments)
"""


@pytest.mark.slow
def test_memory_is_read_and_written_within_bounds(shim_builder: Builder) -> None:
    """The address sanitizer ends a process that does otherwise."""
    run_within_bounds(shim_builder, WITHIN_BOUNDS)


def test_every_kernel_has_run(shim: Shim, request: pytest.FixtureRequest) -> None:
    """Of the multi-label ones that the library holds."""
    if request.config.option.keyword or any("::" in x for x in request.config.args):
        pytest.skip("only some of this file's tests run")
    shim.launches()
    kernels = {x for x in kernels_in(shim.library) if "multilabel" in x and "lambda" not in x}
    assert len(kernels) == 3
    assert kernels - shim.kernels_run == set()
