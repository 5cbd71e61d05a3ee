"""What torch asks of an op: schema, fake kernel, autograd of any order, compilation, dispatch."""

import pytest
import torch
from closed_forms import closed_forms, make_codes, make_logits
from torch.autograd import gradcheck, gradgradcheck

from ensdistill import ops
from ensdistill.functional import distillation_loss

LABELS = torch.tensor([3, -100, 0, 9, 1])


def arguments(k=3, dtype=torch.float32, codes=False, labels=None, reduction="mean", with_gradient=True):
    student = make_logits(5, 10, seed=0, dtype=dtype).requires_grad_(with_gradient)
    targets = make_codes(k, 5, 10, seed=1, masked=True) if codes else None
    values = (targets.codes, targets.scale, targets.offset) if codes else (make_logits(k, 5, 10, seed=1), None, None)
    weights = None if k == 1 else torch.arange(k, dtype=torch.float64)
    alpha = 1.0 if labels is None else 0.4
    return (student, *values, weights, labels, 2.0, alpha, "prob", -100, 0.1, reduction, with_gradient)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"k": 1, "reduction": "sum"},
        {"labels": LABELS, "reduction": "none"},
        {"codes": True},
        {"codes": True, "labels": LABELS, "dtype": torch.bfloat16},
        {"dtype": torch.float64},
        {"with_gradient": False},
    ],
    ids=str,
)
def test_opcheck(changes):
    """Schema, autograd registration, fake kernel, and the traced op with dynamic shapes against the op itself."""
    results = torch.library.opcheck(ops.distill_loss, arguments(**changes))
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("codes", [False, True])
def test_fake_kernel_has_the_real_shapes_and_dtypes(codes, dtype, reduction):
    for with_gradient in (False, True):
        inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments(dtype=dtype, codes=codes, reduction=reduction)]
        inputs[-1] = with_gradient
        real = ops.distill_loss(*inputs)
        meta = ops.distill_loss(*[x.to("meta") if isinstance(x, torch.Tensor) else x for x in inputs])
        assert [(x.shape, x.dtype, x.stride()) for x in real] == [(x.shape, x.dtype, x.stride()) for x in meta]
        assert all(x.device.type == "meta" for x in meta)


CASES = [
    {},
    {"temperature": 2.0, "reduction": "sum"},
    {"temperature": 0.7, "alpha": 0.4, "label_smoothing": 0.1},
    {"alpha": 0.0, "reduction": "none"},
    {"alpha": 0.5, "reduction": "none", "combiner": "log_prob", "temperature": 3.0},
]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_gradients_of_first_and_second_order(check, case, k):
    student, targets = make_logits(3, 5, seed=0, dtype=torch.float64), make_logits(k, 3, 5, seed=1, dtype=torch.float64)
    labels = torch.tensor([1, -100, 4]) if case.get("alpha", 1) < 1 else None
    weights = torch.tensor([0.5, 0.2, 1.0][:k])
    assert check(lambda s: distillation_loss(s, targets, labels, weights=weights, **case), student.requires_grad_())


def test_second_order_of_codes():
    codes = make_codes(2, 3, 5, seed=1, masked=True)
    student = make_logits(3, 5, seed=0, dtype=torch.float64).requires_grad_()
    for check in (gradcheck, gradgradcheck):
        assert check(lambda s: distillation_loss(s, codes, temperature=2.0), student)
    first = torch.autograd.grad(distillation_loss(student, codes, temperature=2.0), student)[0]
    differentiable = torch.autograd.grad(distillation_loss(student, codes, temperature=2.0), student, create_graph=True)[0]
    torch.testing.assert_close(differentiable, first, rtol=1e-12, atol=1e-15)  # the specification's, in float64


# Backward ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kept_graph_gives_the_same_gradient_again(dtype):
    """What was handed out is the caller's: adding to it or clearing it must not reach what the graph keeps."""
    student, targets = make_logits(5, 10, seed=0, dtype=dtype).requires_grad_(), make_logits(3, 5, 10, seed=1)
    loss = distillation_loss(student, targets)
    loss.backward(retain_graph=True)
    once = student.grad.clone()
    for times in (2, 3):
        loss.backward(retain_graph=True)
        assert torch.equal(student.grad, (once * times).to(dtype) if times == 2 else (once * 2).to(dtype) + once)
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
    # rounded twice: once as the gradient, once as its multiple
    torch.testing.assert_close(scaled.grad, 3 * base.grad, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert torch.equal(negative.grad, -base.grad)
    assert scaled.grad.dtype == dtype


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
    (distillation_loss(student, targets) + distillation_loss(student, targets[:1], temperature=4.0)).backward()
    truth = closed_forms(student, targets).gradient + closed_forms(student, targets[:1], temperature=4.0).gradient
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


def test_backward_without_a_gradient_is_refused():
    inputs = list(arguments(with_gradient=False))
    inputs[0] = inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match="called with with_gradient=False, so there is no gradient to go back through"):
        ops.distill_loss(*inputs)[0].backward()


def test_autocast():
    layer, inputs, targets = torch.nn.Linear(4, 10), make_logits(5, 4, seed=0), make_logits(3, 5, 10, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = layer(inputs)
        student.retain_grad()
        loss = distillation_loss(student, targets)
    loss.backward()
    assert (student.dtype, loss.dtype, layer.weight.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert loss.item() == pytest.approx(closed_forms(student, targets).loss.item(), rel=1e-5)  # float32 inside
    torch.testing.assert_close(student.grad.double(), closed_forms(student, targets).gradient, rtol=2**-8, atol=1e-7)


# Transforms ----------------------------------------------------------------------------------------------------------


def test_forward_mode_is_refused_not_zero():
    student, targets = make_logits(5, 10, seed=0), make_logits(3, 5, 10, seed=1)
    with pytest.raises(NotImplementedError, match=r"student_logits: carries a forward-mode tangent.* use impl='reference'"):
        torch.func.jvp(lambda s: distillation_loss(s, targets), (student,), (torch.ones_like(student),))
    direction = make_logits(5, 10, seed=2)
    _, slope = torch.func.jvp(lambda s: distillation_loss(s, targets, impl="reference"), (student,), (direction,))
    expected = (closed_forms(student, targets).gradient * direction).sum()
    assert slope.item() == pytest.approx(expected.item(), rel=1e-5)


def test_vmap_is_a_loop():
    students, targets = make_logits(4, 5, 10, seed=0), make_logits(4, 3, 5, 10, seed=1)
    losses = torch.func.vmap(distillation_loss)(students, targets)
    assert torch.equal(losses, torch.stack([distillation_loss(s, z) for s, z in zip(students, targets, strict=True)]))


@pytest.fixture
def compiled():
    """torch.compile with nothing left uncompiled, and no memory of other tests."""
    torch._dynamo.reset()
    yield lambda function, **options: torch.compile(function, fullgraph=True, **options)
    torch._dynamo.reset()


def check_compiled(function, *, rows=5, dtype=torch.float32):
    """``function`` is the compiled one; the same arguments through the uncompiled op must give the same bits."""
    student, targets = make_logits(rows, 10, seed=rows, dtype=dtype), make_logits(3, rows, 10, seed=1)
    results = []
    for f in (function, function._torchdynamo_orig_callable):
        leaf = student.clone().requires_grad_()
        loss = f(leaf, targets)
        (loss * 2).backward()
        results.append((loss.detach(), leaf.grad))
    (loss, gradient), (expected, expected_gradient) = results
    assert torch.equal(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=2 * torch.finfo(dtype).eps, atol=0)  # times 2 inside or after


@pytest.mark.parametrize("weights", [None, torch.tensor([0.0, 1.0, 3.0]), [0.2, 0.3, 0.5]], ids=["none", "tensor", "list"])
@pytest.mark.parametrize("labels", [None, LABELS], ids=["", "labels"])
def test_compiles_in_one_graph(compiled, labels, weights):
    alpha = 1.0 if labels is None else 0.5

    def loss(student, targets):
        return distillation_loss(student, targets, labels, weights=weights, temperature=2.0, alpha=alpha)

    check_compiled(compiled(loss, backend="aot_eager"))


def test_compiles_with_the_default_backend(compiled):
    codes = make_codes(3, 5, 10, seed=0, masked=True)

    def loss(student, targets):
        return distillation_loss(student * 1.5, targets, LABELS, alpha=0.5) + distillation_loss(student, codes, temperature=2.0)

    check_compiled(compiled(loss), dtype=torch.float64)


def test_compiles_for_any_number_of_rows(compiled):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def loss(student, targets):
        return distillation_loss(student, targets, temperature=2.0)

    function = compiled(loss, backend=backend, dynamic=True)
    check_compiled(function, rows=5)
    first = len(graphs)
    for rows in (7, 16, 33):
        check_compiled(function, rows=rows)
    assert len(graphs) == first > 0


def test_a_temperature_that_varies_compiles(compiled):
    student, targets = make_logits(5, 10, seed=0), make_logits(3, 5, 10, seed=1)

    def loss(temperature):
        return distillation_loss(student, targets, temperature=temperature)

    function = compiled(loss, backend="aot_eager")
    for temperature in (1.0, 2.0, 3.0):
        assert function(temperature) == loss(temperature)


def test_bad_values_are_caught_in_compiled_code_too(compiled):
    """Python can't look at values while tracing; the kernel does when it runs."""
    student, targets = make_logits(5, 10, seed=0), make_logits(3, 5, 10, seed=1)
    function = compiled(
        lambda labels, weights: distillation_loss(student, targets, labels, weights=weights, alpha=0.5), backend="aot_eager"
    )
    good = torch.ones(3)
    assert function(LABELS, good).isfinite()
    with pytest.raises(RuntimeError, match=r"labels: expected 0\.\.9 or ignore_index -100, got 10 in row 2"):
        function(torch.tensor([0, 1, 10, 0, 0]), good)
    with pytest.raises(RuntimeError, match="weights: expected finite values of at least 0, got -1 for member 1"):
        function(LABELS, torch.tensor([1.0, -1.0, 1.0]))


def test_impl_compile_is_the_reference(compiled):
    student, targets = make_logits(5, 10, seed=0).requires_grad_(), make_logits(3, 5, 10, seed=1)
    loss = distillation_loss(student, targets, LABELS, alpha=0.5, temperature=2.0, weights=[1.0, 0.0, 2.0], impl="compile")
    loss.backward()
    truth = closed_forms(student, targets, LABELS, alpha=0.5, temperature=2.0, weights=torch.tensor([1.0, 0.0, 2.0]))
    assert loss.item() == pytest.approx(truth.loss.item(), rel=1e-5)
    torch.testing.assert_close(student.grad.double(), truth.gradient, rtol=1e-5, atol=1e-7)


# The backstop of whoever calls the op directly -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(5), r"student: expected floating-point \[N, C\]"),
        (0, torch.zeros(5, 10, dtype=torch.int32), r"student: expected floating-point \[N, C\]"),
        (0, torch.zeros(10, 5).T, "student: expected unit stride over classes"),
        (1, torch.zeros(3, 5, 11), r"targets: expected \[K, 5, 10\]"),
        (1, torch.zeros(0, 5, 10), "at least one class and one member"),
        (1, torch.zeros(3, 10, 5).mT, "targets: expected unit stride over classes"),
        (1, torch.zeros(3, 5, 10, dtype=torch.int64), "targets: expected floating-point logits or uint8 codes"),
        (1, torch.zeros(3, 5, 10, dtype=torch.uint8), "scale and offset: expected with uint8 codes, and only then"),
        (2, torch.zeros(3, 5), "scale and offset: expected with uint8 codes, and only then"),
        (4, torch.ones(3), r"weights: expected contiguous float64 \[3\]"),
        (4, torch.ones(2, dtype=torch.float64), r"weights: expected contiguous float64 \[3\]"),
        (4, torch.tensor([1, torch.nan, 1]).double(), "weights: expected finite values of at least 0, got nan for member 1"),
        (4, torch.zeros(3).double(), "weights: expected a sum above 0"),
        (5, torch.zeros(5, dtype=torch.int32), r"labels: expected contiguous int64 \[5\]"),
        (5, torch.tensor([0, 0, 0, 0, -1]), r"labels: expected 0\.\.9 or ignore_index -100, got -1 in row 4"),
        (6, 0.0, "temperature: expected > 0, got 0"),
        (6, float("nan"), "temperature: expected > 0, got nan"),
        (7, 1.5, "alpha: expected 0..1, got 1.5"),
        (7, 0.5, "alpha: below 1 it mixes in hard labels, and labels is None"),
        (8, "mean", "combiner: expected prob, logit or log_prob, got mean"),
        (10, -0.1, "label_smoothing: expected 0..1, got -0.1"),
        (11, "average", "reduction: expected mean, sum or none, got average"),
    ],
)
def test_the_native_checks(position, value, message):
    inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments()]
    inputs[position] = value
    with pytest.raises(RuntimeError, match=message):
        ops.distill_loss(*inputs)
