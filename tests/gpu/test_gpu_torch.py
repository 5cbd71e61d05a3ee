"""Torch's demands on an op, checked on a GPU: schema, fake kernel, autograd, compilation, autocast. The cases
are those of test_ops.py."""

from itertools import product

import gpu_helpers
import pytest
import torch
from closed_forms import closed_forms, make_logits, worst
from gpu_helpers import leaf, moved
from op_helpers import LABELS, arguments
from test_divergences import make_targets
from torch.autograd import gradcheck, gradgradcheck

from ensdistill.functional import distillation_loss
from ensdistill.loss import ops
from ensdistill.loss.linear import linear_distillation_loss

gpu_helpers.need_gpu()

CHANGES = [
    {},
    {"k": 1, "reduction": "sum", "divergence": "jsd"},
    {"labels": LABELS, "reduction": "none", "divergence": "reverse_kl"},
    {"kind": "codes"},
    {"kind": "codes", "labels": LABELS, "dtype": torch.bfloat16},
    {"kind": "topk", "divergence": "tvd"},
    {"kind": "probs", "labels": LABELS},
    {"kind": "log_probs", "with_statistics": True},
    {"maps": True, "labels": LABELS},
    {"dtype": torch.float64},
    {"with_gradient": False},
]


def on_gpu(**changes):
    """The op's arguments there; a student that wants a gradient is a leaf."""
    return tuple(
        leaf(x) if isinstance(x, torch.Tensor) and x.requires_grad else moved(x) for x in arguments(**changes)
    )


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_opcheck(changes):
    results = torch.library.opcheck(ops.distill_loss, on_gpu(**changes))
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("changes", [{}, {"kind": "codes"}, {"kind": "topk"}, {"maps": True}], ids=str)
def test_fake_kernel_has_the_real_shapes_and_dtypes(changes, dtype, reduction):
    for with_gradient, with_statistics in product((False, True), repeat=2):
        flags = {"with_gradient": with_gradient, "with_statistics": with_statistics}
        inputs = [
            x.detach() if isinstance(x, torch.Tensor) else x
            for x in on_gpu(dtype=dtype, reduction=reduction, **changes, **flags)
        ]
        real = ops.distill_loss(*inputs)
        meta = ops.distill_loss(*[x.to("meta") if isinstance(x, torch.Tensor) else x for x in inputs])
        assert [(x.shape, x.dtype, x.stride()) for x in real] == [
            (x.shape, x.dtype, x.stride()) for x in meta
        ]
        assert all(x.device == gpu_helpers.DEVICE for x in real)


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_gradients_of_first_and_second_order(check, divergence):
    student, targets = (
        leaf(make_logits(3, 5, seed=0, dtype=torch.float64)),
        moved(make_logits(2, 3, 5, seed=1, dtype=torch.float64)),
    )
    labels = moved(torch.tensor([1, -100, 4]))
    for reduction in ("mean", "none"):
        assert check(
            lambda s, r=reduction: distillation_loss(
                s, targets, labels, alpha=0.6, divergence=divergence, reduction=r
            ),
            student,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_upstream_factors(reduction, dtype):
    """Of 1, of others, and of a loss scale that float16 doesn't hold."""
    student, targets = make_logits(16, 31, seed=0, dtype=dtype), make_logits(3, 16, 31, seed=1)
    truth = closed_forms(student, targets, reduction=reduction).gradient
    for factor in (1.0, -3.0, 2.0**17 if reduction == "mean" else 0.5):
        s = leaf(student)
        (distillation_loss(s, moved(targets), reduction=reduction) * factor).backward()
        limits = torch.finfo(dtype)
        expected = truth * factor
        # rounded as the gradient and as its multiple; the smallest are multiples of the smallest that there
        # is
        excess = (
            (s.grad.cpu().double() - expected).abs()
            - 2 * limits.eps * expected.abs()
            - 2 * abs(factor) * limits.tiny
        )
        assert (excess <= 2e-6 * abs(factor)).all()


def test_torch_func():
    student, targets = (
        moved(make_logits(5, 10, seed=0, dtype=torch.float64)),
        moved(make_logits(3, 5, 10, seed=1)),
    )

    def loss(student):
        return distillation_loss(student, targets, moved(LABELS), alpha=0.4, temperature=2.0)

    s = leaf(student)
    loss(s).backward()
    assert torch.equal(torch.func.grad(loss)(student), s.grad)
    several = torch.stack([student, student * 2])
    each = torch.stack([torch.func.grad(loss)(x) for x in several])
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(loss))(several), each, rtol=1e-12, atol=1e-15
    )  # float64
    with pytest.raises(NotImplementedError, match="student_logits: carries a forward-mode tangent"):
        torch.func.jvp(loss, (student,), (torch.ones_like(student),))


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda function, **options: torch.compile(function, fullgraph=True, **options)
    torch._dynamo.reset()


FOLDED = [
    (kind, dtype, "inductor")
    for kind in ("logits", "codes")
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
]
# To inductor the op is the same call for all targets, and each of its compilations takes seconds.
TRACED = [
    (kind, torch.bfloat16, "aot_eager")
    for kind in ("log_probs", "probs", "topk-tail", "topk-renormalize", "topk-zero", "counts")
]


@pytest.mark.parametrize(("kind", "dtype", "backend"), FOLDED + TRACED)
def test_compiles_in_one_graph(compiled, kind, dtype, backend):
    """With work around it that inductor fuses, for two numbers of rows."""
    temperature = 2.0

    def loss(student, targets, labels):
        return 2 * distillation_loss(
            student * 1.5, targets, labels, alpha=0.5, temperature=temperature, **others
        )

    function = compiled(loss, backend=backend)
    for n in (5, 37):
        student, labels = make_logits(n, 100, seed=n, dtype=dtype), moved(torch.arange(n) % 100)
        targets, others = make_targets(
            kind, 1 if kind.startswith(("topk", "counts")) else 3, n, 100, seed=1, temperature=temperature
        )
        targets = moved(targets)
        results = []
        for f in (function, loss):
            s = leaf(student)
            value = f(s, targets, labels)
            value.backward()
            results.append((value.detach(), s.grad))
        # student * 1.5 isn't rounded where it is fused: half a unit of every logit, and of the gradient
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(results[0][0], results[1][0], rtol=4 * unit, atol=1e-5)
        torch.testing.assert_close(
            results[0][1], results[1][1], rtol=8 * unit, atol=8 * unit * results[1][1].abs().max().item()
        )


def test_compiles_without_graph_breaks_around_a_layer(compiled):
    layer = torch.nn.Linear(16, 100, device=gpu_helpers.DEVICE)
    inputs, targets = moved(make_logits(8, 16, seed=0)), moved(make_logits(2, 8, 100, seed=1))
    function = compiled(
        lambda x: linear_distillation_loss(x, layer.weight, targets, bias=layer.bias, chunk_rows=3)
    )
    function(inputs).backward()
    truth = closed_forms(layer(inputs).detach().cpu(), targets.cpu())
    assert worst(layer.bias.grad.cpu(), truth.gradient.sum(0)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer, inputs, targets = torch.nn.Linear(4, 10), make_logits(8, 4, seed=0), make_logits(3, 8, 10, seed=1)
    layer = layer.to(gpu_helpers.DEVICE)
    with torch.autocast("cuda", dtype=dtype):
        student = layer(moved(inputs))
        student.retain_grad()
        loss = distillation_loss(student, moved(targets))
    loss.backward()
    assert (student.dtype, loss.dtype, layer.weight.grad.dtype) == (dtype, torch.float32, torch.float32)
    truth = closed_forms(student.cpu(), targets)
    assert loss.item() == pytest.approx(truth.loss.item(), rel=1e-5)  # float32 inside
    torch.testing.assert_close(
        student.grad.cpu().double(), truth.gradient, rtol=2 * torch.finfo(dtype).eps, atol=1e-6
    )
    with torch.autocast("cuda", dtype=dtype):
        chunked = linear_distillation_loss(
            moved(inputs), layer.weight, moved(targets), bias=layer.bias, chunk_rows=3
        )
    assert chunked.dtype == torch.float32
    assert chunked.item() == pytest.approx(
        loss.item(), rel=4 * torch.finfo(dtype).eps
    )  # other products round other logits


def test_a_grad_scaler_finds_no_infinity_and_loses_nothing():
    student, targets = make_logits(4096, 300, seed=0, dtype=torch.float16), make_logits(1, 4096, 300, seed=1)
    s, scale = leaf(student), 2.0**16
    scaler = torch.amp.GradScaler("cuda", init_scale=scale)
    scaler.scale(distillation_loss(s, moved(targets))).backward()
    truth = closed_forms(student, targets).gradient
    # float16 rounds by 2^-11 at most, twice
    assert (s.grad.cpu().double() / scale - truth).norm() <= 2 * 2.0**-11 * truth.norm()
