"""The operator itself: schema, fake kernel, gradients of first and second order, native checks."""

from itertools import product

import pytest
import torch
from closed_forms import closed_forms, make_codes, make_logits
from op_helpers import LABELS, arguments
from torch.autograd import gradcheck, gradgradcheck

from ensdistill.functional import distillation_loss
from ensdistill.loss import ops


@pytest.mark.parametrize(
    "changes",
    [
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
    ],
    ids=str,
)
def test_opcheck(changes):
    """Schema, autograd registration, fake kernel, and the traced op with dynamic shapes against the op
    itself."""
    results = torch.library.opcheck(ops.distill_loss, arguments(**changes))
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
            for x in arguments(dtype=dtype, reduction=reduction, **changes, **flags)
        ]
        real = ops.distill_loss(*inputs)
        meta = ops.distill_loss(*[x.to("meta") if isinstance(x, torch.Tensor) else x for x in inputs])
        assert [(x.shape, x.dtype, x.stride()) for x in real] == [
            (x.shape, x.dtype, x.stride()) for x in meta
        ]
        assert all(x.device.type == "meta" for x in meta)


CASES = [
    {},
    {"recompute": True, "temperature": 3.0},
    {"temperature": 2.0, "reduction": "sum"},
    {"temperature": 0.7, "alpha": 0.4, "label_smoothing": 0.1},
    {"alpha": 0.0, "reduction": "none"},
    {"alpha": 0.5, "reduction": "none", "combiner": "log_prob", "temperature": 3.0},
]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_gradients_of_first_and_second_order(check, case, k):
    student, targets = (
        make_logits(3, 5, seed=0, dtype=torch.float64),
        make_logits(k, 3, 5, seed=1, dtype=torch.float64),
    )
    labels = torch.tensor([1, -100, 4]) if case.get("alpha", 1) < 1 else None
    weights = torch.tensor([0.5, 0.2, 1.0][:k])
    assert check(
        lambda s: distillation_loss(s, targets, labels, weights=weights, **case), student.requires_grad_()
    )


def test_second_order_of_codes():
    codes = make_codes(2, 3, 5, seed=1, masked=True)
    student = make_logits(3, 5, seed=0, dtype=torch.float64).requires_grad_()
    for check in (gradcheck, gradgradcheck):
        assert check(lambda s: distillation_loss(s, codes, temperature=2.0), student)
    first = torch.autograd.grad(distillation_loss(student, codes, temperature=2.0), student)[0]
    differentiable = torch.autograd.grad(
        distillation_loss(student, codes, temperature=2.0), student, create_graph=True
    )[0]
    torch.testing.assert_close(
        differentiable, first, rtol=1e-12, atol=1e-15
    )  # the specification's, in float64


# Backward
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kept_graph_gives_the_same_gradient_again(dtype):
    """A returned gradient is the caller's: adding to it or clearing it must not reach the graph's own copy."""
    student, targets = make_logits(5, 10, seed=0, dtype=dtype).requires_grad_(), make_logits(3, 5, 10, seed=1)
    loss = distillation_loss(student, targets)
    loss.backward(retain_graph=True)
    once = student.grad.clone()
    for times in (2, 3):
        loss.backward(retain_graph=True)
        assert torch.equal(
            student.grad, (once * times).to(dtype) if times == 2 else (once * 2).to(dtype) + once
        )
    student.grad.zero_()
    (out,) = torch.autograd.grad(loss, student, retain_graph=True)
    out.zero_()
    loss.backward()
    assert torch.equal(student.grad, once)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_upstream_factors_scale_the_gradient(dtype):
    student, targets = make_logits(15, 31, seed=0, dtype=dtype), make_logits(3, 15, 31, seed=1)
    base, scaled, negative = (student.clone().requires_grad_() for _ in range(3))
    distillation_loss(base, targets).backward()
    (distillation_loss(scaled, targets) * 3).backward()
    (-distillation_loss(negative, targets)).backward()
    # rounded twice, as the gradient and as its multiple; the smallest are multiples of tiny * eps, and a half
    # of that is multiplied too
    limits = torch.finfo(dtype)
    torch.testing.assert_close(
        scaled.grad, 3 * base.grad, rtol=2 * limits.eps, atol=2 * limits.tiny * limits.eps
    )
    assert torch.equal(negative.grad, -base.grad)
    assert scaled.grad.dtype == dtype


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_float16_gradients_survive_the_mean(reduction, labels):
    """A loss scaled as torch.amp.GradScaler does it keeps the numbers that the mean's gradient alone would
    round to 0: most of them, over 4096 rows."""
    n, scale = 4096, 2.0**16
    student, targets = make_logits(n, 300, seed=0, dtype=torch.float16), make_logits(1, n, 300, seed=1)
    rows = torch.arange(n) % 300 if labels else None
    if labels:
        rows[: n // 3] = -100
    for recompute in (False, True):
        leaf = student.clone().requires_grad_()
        (distillation_loss(leaf, targets, rows, reduction=reduction, recompute=recompute) * scale).backward()
        truth = closed_forms(student, targets, rows, reduction=reduction).gradient
        # float16 rounds by 2^-11 at most, twice
        assert (leaf.grad.double() / scale - truth).norm() <= 2 * 2.0**-11 * truth.norm()
        assert ((leaf.grad == 0) & (truth != 0)).double().mean() <= 0.02  # 0.6 without


def test_gradients_accumulate():
    """In a leaf over batches, and from two losses that share the logits."""
    weight, inputs = make_logits(10, 4, seed=0).requires_grad_(), make_logits(6, 4, seed=1)
    targets = make_logits(3, 6, 10, seed=2)
    distillation_loss(inputs @ weight.T, targets, reduction="sum").backward()
    expected, weight.grad = weight.grad, None
    for rows in (slice(0, 2), slice(2, 6)):
        distillation_loss(inputs[rows] @ weight.T, targets[:, rows], reduction="sum").backward()
    torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-6)  # a float32 sum in two parts
    student = make_logits(6, 10, seed=3).requires_grad_()
    (
        distillation_loss(student, targets) + distillation_loss(student, targets[:1], temperature=4.0)
    ).backward()
    truth = (
        closed_forms(student, targets).gradient + closed_forms(student, targets[:1], temperature=4.0).gradient
    )
    torch.testing.assert_close(student.grad.double(), truth, rtol=1e-5, atol=1e-7)


def test_without_gradients_nothing_is_made_for_them():
    student, targets = make_logits(5, 10, seed=0), make_logits(3, 5, 10, seed=1)
    expected = distillation_loss(student.clone().requires_grad_(), targets)
    assert expected.requires_grad
    with torch.no_grad():
        assert not distillation_loss(student.clone().requires_grad_(), targets).requires_grad
    with torch.inference_mode():
        assert distillation_loss(student, targets) == expected
    loss = distillation_loss(student, targets.requires_grad_())
    assert not loss.requires_grad  # nothing flows to the targets
    assert loss == expected
    assert ops.distill_loss(*arguments(with_gradient=False))[1].shape == (0, 10)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recompute_gives_the_same_bits_and_keeps_nothing(dtype, reduction):
    student, targets = make_logits(50, 300, seed=0, dtype=dtype), make_logits(3, 50, 300, seed=1)
    results, kept = [], []
    for recompute in (False, True):
        leaf, sizes = student.clone().requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.shape) or x, lambda x: x
        ):
            loss = distillation_loss(leaf, targets, reduction=reduction, recompute=recompute)
        (loss * 3).sum().backward()
        results.append((loss.detach(), leaf.grad))
        kept.append(sizes.count(student.shape))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert kept == [1, 1]  # the gradient; with recompute the student's logits instead
    leaf = student.clone().requires_grad_()
    loss = distillation_loss(leaf, targets, reduction=reduction, recompute=True).sum()
    loss.backward(retain_graph=True)
    once = leaf.grad.clone()
    loss.backward()
    assert torch.equal(leaf.grad, 2 * once)


def test_a_scaled_loss_needs_no_second_gradient():
    """An upstream factor other than 1 scales the gradient where it lies: fresh memory would cost as much as
    the loss itself."""
    student, targets = make_logits(64, 1000, seed=0).requires_grad_(), make_logits(2, 64, 1000, seed=1)
    pointers = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: pointers.append(x.data_ptr()) or x, lambda x: x):
        loss = distillation_loss(student, targets)
    (loss / 4).backward()
    assert student.grad.data_ptr() in pointers


def test_autocast():
    layer, inputs, targets = torch.nn.Linear(4, 10), make_logits(5, 4, seed=0), make_logits(3, 5, 10, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = layer(inputs)
        student.retain_grad()
        loss = distillation_loss(student, targets)
    loss.backward()
    assert (student.dtype, loss.dtype, layer.weight.grad.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert loss.item() == pytest.approx(
        closed_forms(student, targets).loss.item(), rel=1e-5
    )  # float32 inside
    torch.testing.assert_close(
        student.grad.double(), closed_forms(student, targets).gradient, rtol=2**-8, atol=1e-7
    )


# Checks inside the operator, for direct calls
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("student", torch.zeros(5), r"student: expected floating-point \[N, C\]"),
        ("student", torch.zeros(5, 10, dtype=torch.int32), r"student: expected floating-point \[N, C\]"),
        (
            "student",
            torch.zeros(10, 20)[::2, ::2],
            "student: expected unit stride over the classes or over the rows",
        ),
        ("targets", torch.zeros(3, 5, 11), r"targets: expected \[K, ...\] with the student's shape behind K"),
        ("targets", torch.zeros(0, 5, 10), r"targets: expected \[K, ...\]"),
        (
            "targets",
            torch.zeros(3, 10, 20)[:, ::2, ::2],
            "targets: expected unit stride over the classes or over the rows",
        ),
        (
            "targets",
            torch.zeros(3, 5, 10, dtype=torch.int64),
            "targets: expected floating-point numbers or uint8 codes",
        ),
        (
            "targets",
            torch.zeros(3, 5, 10, dtype=torch.uint8),
            "scale and offset: expected with uint8 codes, and only then",
        ),
        ("scale", torch.zeros(3, 5), "scale and offset: expected with uint8 codes, and only then"),
        ("weights", torch.ones(3), r"weights: expected a contiguous \[3\]"),
        ("weights", torch.ones(2, dtype=torch.float64), r"weights: expected a contiguous \[3\]"),
        (
            "weights",
            torch.tensor([1, torch.nan, 1]).double(),
            "weights: expected finite values of at least 0, got nan for member 1",
        ),
        ("weights", torch.zeros(3).double(), "weights: expected a sum above 0"),
        ("labels", torch.zeros(5, dtype=torch.int32), r"labels: expected a contiguous \[5\]"),
        (
            "labels",
            torch.tensor([0, 0, 0, 0, -1]),
            r"labels: expected 0\.\.9 or ignore_index -100, got -1 in row 4",
        ),
        ("class_weights", torch.ones(10), r"class_weights: expected a contiguous \[10\]"),
        ("sample_weights", torch.ones(4).double(), r"sample_weights: expected a contiguous \[5\]"),
        ("temperature", 0.0, "temperature: expected > 0, got 0"),
        ("temperature", float("nan"), "temperature: expected > 0, got nan"),
        ("alpha", 1.5, "alpha: expected 0..1, got 1.5"),
        ("alpha", 0.5, "alpha: below 1 it mixes in hard labels, and labels is None"),
        ("beta", 1.0, "beta: expected above 0 and below 1, got 1"),
        ("kind", "samples", "kind: unknown value 'samples'"),
        ("divergence", "kl", "divergence: unknown value 'kl'"),
        ("combiner", "mean", "combiner: unknown value 'mean'"),
        ("tail_mode", "none", "tail_mode: unknown value 'none'"),
        ("label_smoothing", -0.1, "label_smoothing: expected 0..1, got -0.1"),
        ("reduction", "average", "reduction: unknown value 'average'"),
        ("divisor", 0.0, "divisor: expected > 0, got 0"),
    ],
)
def test_the_native_checks(name, value, message):
    names = [x.name for x in ops.distill_loss._schema.arguments]
    inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments()]
    inputs[names.index(name)] = value
    with pytest.raises(RuntimeError, match=message):
        ops.distill_loss(*inputs)
