"""Properties that only a GPU has: streams, several devices, CUDA graphs, work that the host must not wait for,
its own memory and alignment."""

from itertools import product
from typing import Any

import gpu_helpers
import pytest
import torch
from closed_forms import assert_close, closed_forms, make_codes, make_counts, make_logits, make_top_k, worst
from gpu_helpers import leaf, moved

from benchmarks import sanitize
from ensdistill.functional import distillation_loss
from ensdistill.loss.explain import kernel_plan
from ensdistill.loss.linear import linear_distillation_loss
from ensdistill.loss.targets import QuantizedLogits

gpu_helpers.need_gpu()

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SLEEP = 50_000_000  # clock ticks, some hundredths of a second: longer than all that a test does on the CPU


def case(
    kind: str, n: int = 64, c: int = 300, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, Any, Any, dict[str, Any]]:
    """Student, targets and labels on the CPU; settings with a bit of everything."""
    targets: Any = {
        "logits": lambda: make_logits(3, n, c, seed=seed + 1),
        "codes": lambda: make_codes(3, n, c, seed=seed + 1),
        "topk": lambda: make_top_k(n, c, 7, seed=seed + 1),
        "counts": lambda: make_counts(n, c, 9, seed=seed + 1),
    }[kind]()
    labels = torch.arange(n) % c
    labels[1::5] = -100
    return (
        make_logits(n, c, seed=seed, dtype=dtype),
        targets,
        labels,
        {"alpha": 0.6, "z_loss": 0.01, "label_smoothing": 0.1},
    )


def both(student, targets, labels, **arguments):
    loss = distillation_loss(student, targets, labels, **arguments)
    return loss.detach(), torch.autograd.grad(loss.sum(), student)[0]


# Every layout, on the device that it was made for
# --------------------------------------------------------------------


@pytest.mark.parametrize("launch", sanitize.LAUNCHES, ids=lambda x: f"{x.layout}-{x.classes}")
def test_every_layout(launch):
    if torch.cuda.get_device_capability()[0] >= 9:
        assert launch.plan().layout == launch.layout
    sanitize.run(launch, gpu_helpers.DEVICE)


def test_registers_are_within_the_plan():
    """All threads of a block fit a multiprocessor's 65536, or it wouldn't be launched; and as many as
    csrc/cuda/plan.h counts on."""
    for launch in sanitize.LAUNCHES:
        plan = launch.plan()
        assert plan.registers is not None
        assert plan.registers * plan.threads <= 65536
        if plan.layout != "doubles" and launch.targets != torch.float16:
            assert plan.registers <= 128
    assert (kernel_plan(1000, 1000).registers or 1000) <= 96


# Streams and devices
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logits", "codes", "topk"])
def test_work_goes_to_the_current_stream(kind):
    """The inputs hold NaN until late on a side stream: a kernel on another stream would read them."""
    student, targets, labels, arguments = case(kind)
    expected = both(leaf(student), moved(targets), moved(labels), **arguments)
    source = moved(student)
    late = torch.full_like(source, torch.nan).requires_grad_()
    targets, labels = moved(targets), moved(labels)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP)
        late.detach().copy_(source)
        found = both(late, targets, labels, **arguments)
        assert not side.query()  # the host has not waited for it
    side.synchronize()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("kind", ["logits", "codes", "topk"])
def test_another_device_than_the_current_one(kind):
    student, targets, labels, arguments = case(kind)
    expected = both(leaf(student), moved(targets), moved(labels), **arguments)
    second = torch.device("cuda", 1)

    def over(x):
        if isinstance(x, torch.Tensor):
            return x.to(second)
        return type(x)(
            **{
                name: over(value) if isinstance(value, torch.Tensor) else value
                for name, value in vars(x).items()
            }
        )

    found = both(over(student).requires_grad_(), over(targets), over(labels), **arguments)
    assert found[0].device == found[1].device == second
    assert torch.cuda.current_device() == 0
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert torch.equal(found[0].cpu(), expected[0].cpu())
        assert torch.equal(found[1].cpu(), expected[1].cpu())
    with pytest.raises(ValueError, match=r"^labels: on device cuda:0, but the student is on cuda:1"):
        distillation_loss(over(student), over(targets), moved(labels))


def test_tensors_on_different_devices():
    student, targets, labels, _ = case("logits")
    codes = make_codes(3, 64, 300, seed=1)
    for name, given in {
        "targets": (targets, None),
        "labels": (moved(targets), labels),
        r"targets\.scale": (QuantizedLogits(moved(codes.codes), codes.scale, moved(codes.offset)), None),
    }.items():
        with pytest.raises(
            ValueError, match=rf"^{name}: on device cpu, but the student is on cuda:0; move one of them$"
        ):
            distillation_loss(moved(student), *given)
    with pytest.raises(ValueError, match=r"^targets: on device cuda:0, but the student is on cpu"):
        distillation_loss(student, moved(targets))


# CUDA graphs
# ----------------------------------------------------------------------------------------------------------


def captured(call):
    """A replay of ``call``, and its result."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    ("kind", "c"),
    [("logits", 10), ("logits", 300), ("logits", 40_000), ("codes", 300), ("topk", 300), ("counts", 300)],
)
def test_graph_capture_of_loss_and_gradient(kind, c, reduction):
    """And its replay on other numbers, which the graph can't know."""
    student, targets, labels, arguments = case(kind, c=c)
    arguments["reduction"] = reduction
    s, t, labels_there = leaf(student), moved(targets), moved(labels)
    graph, (loss, gradient) = captured(lambda: both(s, t, labels_there, **arguments))
    for seed in (5, 6):
        other, other_targets, _, _ = case(kind, c=c, seed=seed)
        with torch.no_grad():
            s.copy_(other)
            for name, value in (
                {"": other_targets} if isinstance(t, torch.Tensor) else vars(other_targets)
            ).items():
                if isinstance(value, torch.Tensor):
                    (getattr(t, name) if name else t).copy_(value)
        loss.fill_(torch.nan)
        gradient.fill_(torch.nan)
        graph.replay()
        expected = both(leaf(s), t, labels_there, **arguments)
        assert torch.equal(loss, expected[0])
        assert torch.equal(gradient, expected[1])


def test_graph_capture_of_the_last_layer():
    hidden, weight, targets = (
        leaf(make_logits(40, 16, seed=0)),
        leaf(make_logits(300, 16, seed=1)),
        moved(make_logits(2, 40, 300, seed=2)),
    )

    def call():
        loss = linear_distillation_loss(hidden, weight, targets, chunk_rows=16)
        return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))

    graph, found = captured(call)
    with torch.no_grad():
        hidden.copy_(moved(make_logits(40, 16, seed=3)))
    graph.replay()
    for x, y in zip(found, call(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)  # cuBLAS may take another way in a capture


# No waiting, the same bits, little memory
# -----------------------------------------------------------------------


@pytest.fixture
def no_waiting():
    """Waiting for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["logits", "codes", "topk", "counts"])
def test_no_call_waits_for_the_device(kind, dtype, no_waiting):
    student, targets, labels, arguments = case(kind, dtype=dtype)
    s, t, labels_there = leaf(student), moved(targets), moved(labels)
    if kind == "logits":
        arguments["weights"] = moved(torch.tensor([1.0, 0.0, 2.0]))
    arguments |= {
        "sample_weights": moved(torch.linspace(0, 2, 64)),
        "class_weights": moved(torch.linspace(0, 2, 300)),
    }
    both(s, t, labels_there, **arguments)
    no_waiting()
    for reduction, recompute in product(("mean", "sum", "batchmean", "none"), (False, True)):
        loss, rows = distillation_loss(
            s, t, labels_there, reduction=reduction, recompute=recompute, statistics=True, **arguments
        )
        (loss * 3).sum().backward()
        assert rows.agreement.device == gpu_helpers.DEVICE


def test_the_last_layer_does_not_wait_for_the_device(no_waiting):
    """Waiting raises, once no_waiting is called."""
    hidden, weight, targets = (
        leaf(make_logits(40, 16, seed=0)),
        leaf(make_logits(300, 16, seed=1)),
        moved(make_logits(2, 40, 300, seed=2)),
    )
    labels = moved(torch.arange(40))
    linear_distillation_loss(hidden, weight, targets, labels, alpha=0.5).backward()
    no_waiting()
    for reduction in ("mean", "sum", "none"):
        loss = linear_distillation_loss(
            hidden, weight, targets, labels, alpha=0.5, chunk_rows=16, softcap=5.0, reduction=reduction
        )
        loss.sum().backward()
        assert hidden.grad.device == weight.grad.device == gpu_helpers.DEVICE


def test_values_that_cannot_be_checked_make_nan():
    student, targets, labels, arguments = case("logits")
    labels[3] = 300
    loss, gradient = both(leaf(student), moved(targets), moved(labels), reduction="none", **arguments)
    assert loss.isnan().nonzero().flatten().tolist() == [3]
    assert gradient.isnan().all(-1).nonzero().flatten().tolist() == [3]
    negative = moved(torch.tensor([1.0, -1.0, 1.0]))
    assert distillation_loss(moved(student), moved(targets), weights=negative, reduction="none").isnan().all()


@pytest.mark.parametrize(("n", "c"), [(70_000, 10), (3000, 507), (600, 5003), (64, 50_257), (16, 262_144)])
def test_same_bits_every_time(n, c):
    """Beside other work on another stream, which shifts the order of the blocks."""
    student, targets, labels, arguments = case("logits", n, c)
    s, t, labels = leaf(student), moved(targets), moved(labels)
    expected = both(s, t, labels, **arguments)
    noise, side = torch.randn(2048, 2048, device=gpu_helpers.DEVICE), torch.cuda.Stream()
    for i in range(10):
        with torch.cuda.stream(side):
            for _ in range(i):
                noise @ noise
        found = both(s, t, labels, **arguments)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("kind", ["logits", "codes", "topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_the_gradient_and_a_little_for_each_row(dtype, kind):
    n, c = 4096, 4000
    student, targets, labels, arguments = case(kind, n, c, dtype)
    s, t, labels = leaf(student), moved(targets), moved(labels)
    both(s, t, labels, **arguments)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = both(s, t, labels, **arguments)
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    del result
    listed = 7 * 16 if kind == "topk" else 0  # ids as int64, and log-probabilities beside the originals
    assert student.nbytes <= extra <= student.nbytes + n * (64 + listed) + (64 << 10)


# Memory as it comes
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("c", [10, 123, 1003, 2501, 5003])
def test_rows_start_anywhere(c, dtype):
    """128-bit accesses need 16-byte boundaries; a GPU doesn't mend others, it stops."""
    for shift, codes in product(range(4), (False, True)):
        memory = make_logits(5 * (c + 3) + shift, seed=c + shift, dtype=dtype)
        student = memory[shift:].view(5, c + 3)[:, :c]
        if codes:
            targets: Any = make_codes(2, 5, c + shift, seed=1)
            targets = QuantizedLogits(targets.codes[..., shift:], targets.scale, targets.offset)
        else:
            targets = make_logits(2, 5, c + 5, seed=1, dtype=FLOATS[shift % 3])[..., shift : c + shift]
        there = moved(student)
        assert (there.storage_offset(), there.stride()) == (student.storage_offset(), student.stride())
        loss, gradient = both(there.requires_grad_(), moved(targets), None)
        assert_close((loss.cpu(), gradient.cpu()), student, targets)


def free_memory() -> int:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


@pytest.mark.parametrize("layout", ["classes last", "maps"])
def test_past_two_to_the_32(layout):
    """Student and gradient of 8.6 GB; the last rows, and all of the gradient by its sums: each row's is 0."""
    if free_memory() < 26 * 2**30:
        pytest.skip(f"needs 26 GiB of a GPU's memory; {free_memory() / 2**30:.1f} are free")
    shape = (65_540, 65_537) if layout == "classes last" else (1030, 4096, 1030)
    generator = torch.Generator(gpu_helpers.DEVICE).manual_seed(0)
    student = (
        torch.empty(shape, dtype=torch.bfloat16, device=gpu_helpers.DEVICE)
        .normal_(generator=generator)
        .requires_grad_()
    )
    teacher = torch.randn(shape[1:], generator=generator, device=gpu_helpers.DEVICE, dtype=torch.bfloat16)
    assert student.numel() > 2**32
    loss = distillation_loss(student, teacher.expand(1, *shape), class_dim=1, reduction="none")
    (gradient,) = torch.autograd.grad(loss, student, torch.ones_like(loss))
    last = student.detach()[-3:] if len(shape) == 2 else student.detach()[-1, :, -3:].t()
    said = teacher.expand(3, -1) if len(shape) == 2 else teacher[:, -3:].t()
    truth = closed_forms(last.cpu(), said.cpu()[None], reduction="none")
    found = gradient[-3:] if len(shape) == 2 else gradient[-1, :, -3:].t()
    assert worst(loss.flatten()[-3:].cpu(), truth.loss) <= 1e-4
    assert worst(found.cpu(), truth.gradient) <= 2**-8 * truth.gradient.abs().max()
    assert loss.min() > 0.1  # of two independent normal rows it is near 1
    for part in gradient.split(1024 if len(shape) == 2 else 64):
        assert (
            part.sum(1, dtype=torch.float32).abs().max() <= 2**-8
        )  # bfloat16's roundings of terms whose sizes sum to 2
