"""linear_distillation_loss: the numbers of the unfused way, without its memory."""

from itertools import product

import pytest
import torch
from closed_forms import DIVERGENCES, closed_forms, make_top_k
from linear_helpers import KINDS, LABELS, both, make_layer, make_target, unfused
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from ensdistill.functional import distillation_loss
from ensdistill.loss import linear
from ensdistill.loss.linear import linear_distillation_loss


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_divergence_and_reduction(kind, reduction):
    target, layer = make_target(kind), make_layer()
    factor = torch.linspace(-2, 3, 11, dtype=torch.float64) if reduction == "none" else -1.7
    for divergence, recompute, chunk_rows in product(DIVERGENCES, (False, True), (1, 4, 11, 100)):
        if divergence == "reverse_kl" and kind == "counts":
            continue
        arguments = {
            "divergence": divergence,
            "reduction": reduction,
            "alpha": 0.6,
            "z_loss": 0.01,
            "softcap": 5.0,
            "label_smoothing": 0.1,
        }
        arguments |= {"sample_weights": torch.linspace(0, 2, 11), "class_weights": torch.linspace(0.5, 2, 20)}
        for found, expected in both(
            layer, target, LABELS, factor=factor, chunk_rows=chunk_rows, recompute=recompute, **arguments
        ):
            torch.testing.assert_close(
                found, expected, rtol=1e-11, atol=1e-13
            )  # float64, sums in another order


@pytest.mark.parametrize(("bias", "softcap"), list(product((False, True), (None, 3.0))))
def test_bias_and_soft_cap(bias, softcap):
    hidden, weight, b = make_layer()
    for found, expected in both(
        (hidden, weight, b if bias else None), make_target("logits"), softcap=softcap, temperature=2.0
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_against_the_closed_forms():
    hidden, weight, bias = make_layer(dtype=torch.float32)
    target = make_target("logits")
    loss = linear_distillation_loss(
        hidden, weight, target, LABELS, bias=bias, alpha=0.3, divergence="jsd", chunk_rows=4
    )
    loss.backward()
    h, w, b = (x.detach().double() for x in (hidden, weight, bias))
    truth = closed_forms(h @ w.T + b, target, LABELS, alpha=0.3, divergence="jsd")
    assert loss.item() == pytest.approx(truth.loss.item(), rel=1e-6)
    for found, expected in (
        (hidden.grad, truth.gradient @ w),
        (weight.grad, truth.gradient.T @ h),
        (bias.grad, truth.gradient.sum(0)),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)  # float32


def test_gradcheck():
    layer = make_layer(n=5, d=3, c=4)
    for reduction, recompute in (("mean", False), ("mean", True), ("none", False)):
        assert gradcheck(
            lambda h, w, b, r=reduction, again=recompute: linear_distillation_loss(
                h,
                w,
                make_target("logits", 5, 4),
                bias=b,
                softcap=4.0,
                chunk_rows=2,
                reduction=r,
                recompute=again,
            ),
            layer,
        )


def test_leading_dimensions():
    hidden, weight, _ = make_layer(n=12)
    flat = make_target("logits", 12)
    labels = torch.arange(12) % 7
    expected = linear_distillation_loss(hidden, weight, flat, labels, alpha=0.5, reduction="none")
    found = linear_distillation_loss(
        hidden.view(2, 6, 6), weight, flat.view(3, 2, 6, 20), labels.view(2, 6), alpha=0.5, reduction="none"
    )
    assert torch.equal(found, expected.view(2, 6))
    single = linear_distillation_loss(hidden[0], weight, flat[:, 0])
    assert single.item() == pytest.approx(
        linear_distillation_loss(hidden[:1], weight, flat[:, :1]).item(), rel=1e-12
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(reduction):
    hidden, weight, _ = make_layer(n=0)
    loss = linear_distillation_loss(hidden, weight, torch.zeros(2, 0, 20), reduction=reduction)
    loss.sum().backward()
    assert loss.sum() == 0
    assert hidden.grad.shape == (0, 6)
    assert (weight.grad == 0).all()


def test_statistics_are_those_of_the_logits():
    hidden, weight, bias = make_layer()
    for kind in KINDS:
        loss, rows = linear_distillation_loss(
            hidden, weight, make_target(kind), bias=bias, chunk_rows=4, statistics=True
        )
        expected_loss, expected = distillation_loss(
            hidden @ weight.T + bias, make_target(kind), statistics=True
        )
        torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
        for name in ("student_entropy", "mixture_entropy", "agreement", "disagreement"):
            torch.testing.assert_close(
                getattr(rows, name), getattr(expected, name), rtol=1e-10, atol=1e-10, equal_nan=True
            )
            assert not getattr(rows, name).requires_grad


def test_only_the_gradients_that_are_required():
    hidden, weight, bias = make_layer()
    target = make_target("logits")
    for wanted in product((False, True), repeat=3):
        leaves = [
            x.detach().clone().requires_grad_(w) for x, w in zip((hidden, weight, bias), wanted, strict=True)
        ]
        loss = linear_distillation_loss(leaves[0], leaves[1], target, bias=leaves[2])
        assert loss.requires_grad == any(wanted)
        if any(wanted):
            loss.backward()
        assert [x.grad is not None for x in leaves] == list(wanted)
    with torch.no_grad():
        assert not linear_distillation_loss(hidden, weight, target).requires_grad


def test_a_kept_graph_gives_the_same_gradients_again():
    hidden, weight, _ = make_layer()
    loss = linear_distillation_loss(hidden, weight, make_target("logits")) * 3
    loss.backward(retain_graph=True)
    once = weight.grad.clone()
    weight.grad.zero_()
    loss.backward()
    assert torch.equal(weight.grad, once)


def test_same_bits_every_time():
    hidden, weight, bias = make_layer(n=50, c=200, dtype=torch.float32)
    results = []
    for _ in range(3):
        leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias)]
        loss = linear_distillation_loss(
            leaves[0], leaves[1], make_target("logits", 50, 200), bias=leaves[2], chunk_rows=16
        )
        loss.backward()
        results.append([loss.detach(), *(x.grad for x in leaves)])
    assert all(torch.equal(x, y) for again in results[1:] for x, y in zip(again, results[0], strict=True))


# Low precision and autocast
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_as_good_as_the_unfused_way(dtype):
    """And better in the weight's gradient, which is summed over chunks in float32."""
    hidden, weight, bias = make_layer(n=200, d=16, c=50, dtype=dtype)
    target = make_target("logits", 200, 50)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    unfused(*exact, target.double()).backward()

    def error(x, y):
        return (x.double() - y).norm() / y.norm()

    for (found, naive), truth in zip(
        list(both((hidden, weight, bias), target, chunk_rows=32))[1:], exact, strict=True
    ):
        assert found.dtype == dtype
        # The unfused way's own error, and once more the rounding of a product and of the result.
        assert error(found, truth.grad) <= error(naive, truth.grad) + 2 * torch.finfo(dtype).eps


def test_the_weights_gradient_is_summed_in_float32():
    """In bfloat16 a sum stops to grow once its terms are under 2^-9 of it, which 1024 chunks of one row would
    meet."""
    hidden, weight, _ = make_layer(n=1024, d=4, c=5, dtype=torch.bfloat16)
    hidden = (hidden.detach() + 4).requires_grad_()  # so that terms don't cancel
    loss = linear_distillation_loss(hidden, weight, torch.zeros(1, 1024, 5), chunk_rows=1)
    loss.backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    unfused(*exact, None, torch.zeros(1, 1024, 5).double()).backward()
    # each logit, product and gradient rounded once, at random; and the result
    assert (weight.grad.double() - exact[1].grad).norm() <= 2 * torch.finfo(torch.bfloat16).eps * exact[
        1
    ].grad.norm()


def test_float16_gradients_do_not_vanish_in_the_mean():
    """The mean's factor is applied in float32, with the upstream one: a scaled loss keeps numbers that float16
    alone would round to 0."""
    hidden, weight, _ = make_layer(n=4096, d=4, c=1000, dtype=torch.float16)
    scale = 2.0**16
    loss = linear_distillation_loss(hidden, weight, torch.zeros(1, 4096, 1000), chunk_rows=1024)
    (loss * scale).backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    unfused(*exact, None, torch.zeros(1, 4096, 1000).double()).backward()
    for found, truth in zip((hidden, weight), exact, strict=True):
        assert (
            (found.grad.double() / scale - truth.grad).norm() / truth.grad.norm()
        ) <= 0.01  # float16's own 1e-3 and its logits'


def test_autocast():
    inputs, weight, bias = make_layer(dtype=torch.float32)
    layer, target = torch.nn.Linear(6, 20), make_target("logits")
    layer.load_state_dict({"weight": weight, "bias": bias})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_distillation_loss(inputs, layer.weight, target, bias=layer.bias, chunk_rows=4)
        expected = distillation_loss(layer(inputs), target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    found, layer.weight.grad = layer.weight.grad, None
    expected.backward()
    assert found.dtype == torch.float32
    assert (found - layer.weight.grad).norm() <= 2 * torch.finfo(
        torch.bfloat16
    ).eps * found.norm()  # bfloat16 products, in chunks
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = linear_distillation_loss(inputs, layer.weight, target, bias=layer.bias, reduction="none")
    again.mean().backward()  # outside of autocast, in the dtype of the forward


# Memory
# ------------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The largest tensor that any operator makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize(("reduction", "recompute"), [("mean", False), ("mean", True), ("none", False)])
def test_logits_never_exist_as_a_whole(reduction, recompute, monkeypatch):
    n, c, d, rows = 512, 1000, 8, 64
    hidden, weight, bias = make_layer(n=n, d=d, c=c, dtype=torch.float32)
    top = make_top_k(n, c, 4, seed=5)
    monkeypatch.setattr(linear, "CHUNK_BYTES", rows * c * 4)
    monkeypatch.setattr(
        linear, "_linear", linear._linear._init_fn
    )  # the loop itself: dispatch modes don't see inside an op
    with Largest() as largest:
        linear_distillation_loss(
            hidden, weight, top, bias=bias, softcap=5.0, reduction=reduction, recompute=recompute
        ).sum().backward()
    assert (
        rows * c <= largest.elements <= max(rows * c, n * d, c * d)
    )  # without the chunks it would be 512 000
