"""Errors for tensors on a GPU whose kernels are missing; and the CUDA path of the Python code, on tensors
without data."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ensdistill.functional import distillation_loss
from ensdistill.loss import _native
from ensdistill.loss.encoders import quantize_logits, sample_counts, top_k_targets
from ensdistill.loss.linear import linear_distillation_loss
from ensdistill.loss.targets import Counts, LogProbs, QuantizedLogits, TopK


@pytest.fixture
def fake():
    """Tensors on any device, also one that this machine and this torch don't have."""
    with FakeTensorMode():
        yield


@pytest.fixture
def gpu(monkeypatch, fake):
    """A machine whose only GPU is of this compute capability, with kernels for these architectures."""
    _native._why_not_this_gpu.cache_clear()

    def use(capability=(9, 0), architectures=("8.0", "9.0", "10.0+PTX")):
        monkeypatch.setattr(_native, "_cuda", SimpleNamespace(architectures=list(architectures)))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")

    yield use
    _native._why_not_this_gpu.cache_clear()


def inputs(device="cuda"):
    return torch.zeros(5, 10, device=device), torch.zeros(3, 5, 10, device=device)


def test_kernels_that_were_not_built(fake, monkeypatch):
    """The error names the argument, the cause, and every way out; and not the dispatcher's tables."""
    monkeypatch.setattr(_native, "_cuda", None)
    student, targets = inputs()
    calls = {
        "student_logits": lambda: distillation_loss(student, targets),
        "hidden": lambda: linear_distillation_loss(
            student, torch.zeros(7, 10, device="cuda"), torch.zeros(5, 7, device="cuda")
        ),
    }
    calls |= {
        "logits": lambda: quantize_logits(targets),
        "targets": lambda: top_k_targets(targets, 2),
        "targets ": lambda: sample_counts(targets, 2, seed=0),
    }
    for name, call in calls.items():
        with pytest.raises(
            NotImplementedError,
            match=f"^{name.strip()}: on device cuda:0, but this ensdistill was built without its",
        ) as caught:
            call()
        for advice in (
            torch.__version__,
            "nvcc",
            "CUDA_HOME",
            "setup.py build_ext --inplace",
            "--no-build-isolation",
            "impl='reference'",
        ):
            assert advice in str(caught.value)


def test_devices_without_kernels(fake):
    for device in ("mps", "xpu"):
        student, targets = inputs(device)
        for name, call in (
            ("student_logits", lambda s=student, t=targets: distillation_loss(s, t)),
            ("logits", lambda t=targets: quantize_logits(t)),
            ("targets", lambda t=targets: top_k_targets(t, 2)),
            ("targets", lambda t=targets: sample_counts(t, 2, seed=0)),
        ):
            with pytest.raises(
                NotImplementedError,
                match=f"^{name}: on device {device}.*, and there are kernels for cpu and cuda",
            ):
                call()


def test_a_gpu_that_is_too_old(gpu):
    gpu((7, 5))
    with pytest.raises(
        NotImplementedError,
        match=r"a Some GPU of compute capability 7\.5, and the kernels need 8\.0 or later; move the",
    ):
        distillation_loss(*inputs())


def test_the_encoders_ask_the_gpu_too(gpu):
    _, targets = inputs()
    for capability, architectures, message in (
        ((7, 5), ("8.0",), r"compute capability 7\.5, and the kernels need 8\.0 or later"),
        ((8, 6), ("9.0",), r"compute capability 8\.6, and the CUDA kernels are compiled for 9\.0"),
    ):
        _native._why_not_this_gpu.cache_clear()
        gpu(capability, architectures)
        for name, encode in (
            ("logits", lambda: quantize_logits(targets)),
            ("targets", lambda: top_k_targets(targets, 2)),
            ("targets", lambda: sample_counts(targets, 2, seed=0)),
        ):
            with pytest.raises(
                NotImplementedError, match=f"^{name}: on device cuda:0, a Some GPU of {message}"
            ):
                encode()


def test_a_gpu_that_nothing_was_compiled_for(gpu):
    gpu((8, 6), ("9.0",))
    with pytest.raises(
        NotImplementedError,
        match=r"capability 8\.6, and the CUDA kernels are compiled for 9\.0 .*_ARCH_LIST=8\.6",
    ):
        distillation_loss(*inputs())


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 0), ["8.0"], True),
        ((8, 9), ["8.0"], True),  # machine code of the same generation
        ((8, 0), ["8.6"], False),
        ((9, 0), ["8.0"], False),
        ((9, 0), ["8.0+PTX"], True),
        ((12, 0), ["8.0", "9.0", "10.0+PTX"], True),
        ((12, 0), ["8.0", "9.0", "10.0"], False),
        ((9, 0), ["9.0a"], True),
        ((9, 3), ["9.0a+PTX"], False),  # such PTX is of that chip alone
        ((7, 5), ["8.0", "8.6+PTX"], False),
    ],
)
def test_which_build_runs_on_which_device(capability, architectures, runs):
    assert _native.runs_on(capability, architectures) == runs


MISPLACED = {
    "targets": lambda s, t: (s, t.cpu(), None, {}),
    "labels": lambda s, t: (s, t, torch.zeros(5, dtype=torch.int64), {}),
    r"targets\.scale": lambda s, t: (
        s,
        QuantizedLogits(t.byte(), torch.ones(3, 5), torch.ones(3, 5, device="cuda")),
        None,
        {},
    ),
    r"targets\.ids": lambda s, t: (
        s,
        Counts(torch.zeros(5, 2).long(), torch.ones(5, 2, device="cuda")),
        None,
        {},
    ),
    r"targets\.counts": lambda s, t: (
        s,
        Counts(torch.zeros(5, 2, device="cuda").long(), torch.ones(5, 2)),
        None,
        {},
    ),
    r"targets\.tail_log_mass": lambda s, t: (
        s,
        TopK(torch.zeros(5, 1, device="cuda").long(), torch.zeros(5, 1, device="cuda"), torch.zeros(5)),
        None,
        {},
    ),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_tensors_on_different_devices(name, gpu):
    gpu()
    student, targets, labels, arguments = MISPLACED[name](*inputs())
    with pytest.raises(
        ValueError, match=f"^{name}: on device cpu, but the student is on cuda:0; move one of them$"
    ):
        distillation_loss(student, targets, labels, **arguments)


def test_weight_on_another_device(gpu):
    gpu()
    student, _ = inputs()
    with pytest.raises(ValueError, match=r"^weight: on device cpu, but the student is on cuda:0"):
        linear_distillation_loss(student, torch.zeros(7, 10), torch.zeros(5, 7, device="cuda"))


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_forward_does_not_wait_for_values(dtype, reduction, gpu):
    """A tensor without data has none, so the whole forward is done without them: checks, reductions, the later
    division of float16.

    (Not the backward: torch's autograd takes the stream of a GPU that isn't there, and aborts.)
    """
    gpu()
    student, logits = (
        torch.zeros(5, 10, device="cuda", dtype=dtype),
        torch.zeros(3, 5, 10, device="cuda", dtype=dtype),
    )
    labels, row = torch.zeros(5, device="cuda").long(), torch.zeros(5, device="cuda")
    codes = QuantizedLogits(logits.byte(), torch.ones(3, 5, device="cuda"), torch.ones(3, 5, device="cuda"))
    top = TopK(torch.zeros(5, 2, device="cuda", dtype=torch.int32), torch.zeros(5, 2, device="cuda"), row)
    counts = Counts(labels.unsqueeze(-1), torch.ones(5, 1, device="cuda"))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    for targets in (logits, codes, LogProbs(logits), top, counts):
        arguments = {
            "alpha": 0.5,
            "sample_weights": row,
            "class_weights": torch.ones(10, device="cuda"),
            "reduction": reduction,
        }
        if targets is logits:
            arguments["weights"] = torch.ones(3, device="cuda")
        loss, rows = distillation_loss(student, targets, labels, statistics=True, **arguments)
        assert (loss.device, loss.dtype, loss.shape) == (
            torch.device("cuda:0"),
            real,
            (5,) if reduction == "none" else (),
        )
        assert (rows.agreement.device, rows.agreement.shape) == (loss.device, (5,))
    weight = torch.zeros(10, 10, device="cuda", dtype=dtype)
    loss = linear_distillation_loss(
        student, weight, logits, labels, alpha=0.5, softcap=3.0, reduction=reduction
    )
    assert (loss.device.type, loss.dtype) == ("cuda", real)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_encoders_wait_for_no_values(dtype, gpu):
    gpu()
    logits = torch.zeros(3, 5, 10, device="cuda", dtype=dtype)
    for encode, shape in (
        (lambda: quantize_logits(logits)[0].codes, (3, 5, 10)),
        (lambda: top_k_targets(logits, 2)[0].ids, (5, 2)),
        (lambda: sample_counts(logits, 4, seed=0)[0].ids, (5, 4)),
    ):
        found = encode()
        assert (found.device, found.shape) == (torch.device("cuda:0"), shape)


def test_a_list_of_weights_is_the_one_thing_that_is_copied(gpu):
    gpu()
    student, targets = inputs()
    assert distillation_loss(student, targets, weights=[1.0, 2.0, 3.0]).device == student.device
