"""The family's own tests, on a GPU: the same cases, the same truth in float64."""

import inspect
from types import ModuleType

import closed_forms
import gpu_helpers
import linear_helpers
import multilabel_forms
import pytest
import test_divergences
import test_functional
import test_functional_laws
import test_layouts
import test_linear
import test_linear_transforms
import test_loss_shares
import test_loss_traps
import test_multilabel
import test_multilabel_laws
import test_topk
import torch

gpu_helpers.need_gpu()

MODULES: tuple[ModuleType, ...] = (
    test_divergences,
    test_topk,
    test_layouts,
    test_loss_traps,
    test_loss_shares,
    test_functional,
    test_functional_laws,
    test_linear,
    test_linear_transforms,
    test_multilabel,
    test_multilabel_laws,
)
FUNCTIONS = ("distillation_loss", "linear_distillation_loss", "multilabel_distillation_loss")

NOT_HERE = {
    "test_rows_that_do_not_count_cost_nothing",  # by the clock
    "test_the_closed_forms_are_themselves_right",
    "test_autocast",  # the CPU's: see test_gpu_torch.py
    "test_logits_never_exist_as_a_whole",  # counts tensors in the op's own code, and the copies as well
    "test_torch_func",
    "test_batched_upstream_factors",
    "test_layouts_compile_in_one_graph",
    "test_dense_layouts_are_not_copied",  # about views, which are the same everywhere
    "test_channels_last_memory_is_not_copied",
    "test_only_tensors_that_cannot_be_viewed_are_copied",
    # Thousands of evaluations each; a few are in test_gpu_torch.py.
    "test_gradients_of_first_and_second_order",
    "test_gradcheck",
    "test_bad_input_is_named",  # names devices; see test_no_gpu.py
    "test_counts_in_expectation_are_the_distribution",
}


@pytest.fixture(autouse=True)
def losses_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (*MODULES, closed_forms, linear_helpers, multilabel_forms):
        for name in FUNCTIONS:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, gpu_helpers.on_gpu(getattr(module, name)))


@pytest.fixture
def instruction_set() -> str:
    """The fixture of those tests: there an instruction set of the CPU, here the GPU."""
    return str(gpu_helpers.DEVICE)


for _module in MODULES:
    for _name, _test in inspect.getmembers(_module, inspect.isfunction):
        if (
            _name.startswith("test_")
            and _test.__module__ == _module.__name__
            and _name not in NOT_HERE
            and "compile" not in _name
        ):
            globals()[f"{_name}_{_module.__name__.removeprefix('test_')}"] = _test


def test_they_really_run_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or all the above would be the CPU's tests once more."""
    devices = []
    real = gpu_helpers.ops.distill_loss
    monkeypatch.setattr(gpu_helpers.ops, "distill_loss", lambda *a: devices.append(a[0].device) or real(*a))
    closed_forms.run(torch.zeros(3, 10), torch.zeros(3, 10))
    assert devices == [gpu_helpers.DEVICE]
