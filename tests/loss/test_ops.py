"""What torch asks of an op: schema, fake kernel, autograd of any order, compilation, dispatch."""

from itertools import product

import pytest
import torch
from closed_forms import closed_forms, make_codes, make_logits, make_top_k
from torch.autograd import gradcheck, gradgradcheck

from ensdistill.functional import distillation_loss
from ensdistill.loss import ops
from ensdistill.loss.settings import LossSettings
from ensdistill.loss.signature import OpTensors, op_call, op_settings

LABELS = torch.tensor([3, -100, 0, 9, 1])


def arguments(
    k=3,
    dtype=torch.float32,
    kind="logits",
    divergence="forward_kl",
    labels=None,
    reduction="mean",
    maps=False,
    **flags,
):
    """The op's; ``kind`` may be codes, and ``maps`` is [O, I, C] with the classes first in memory."""
    with_gradient, with_statistics = flags.get("with_gradient", True), flags.get("with_statistics", False)
    shape = (5, 10) if not maps else (1, 10, 5)
    student, values = make_logits(*shape, seed=0, dtype=dtype), make_logits(k, *shape, seed=1)
    student, values = (student.mT, values.mT) if maps else (student, values)
    scale = offset = ids = tail = None
    if kind == "codes":
        codes = make_codes(k, 5, 10, seed=1, masked=True)
        kind, values, scale, offset = "logits", codes.codes, codes.scale, codes.offset
    elif kind == "topk":
        top = make_top_k(5, 10, 4, seed=1)
        values, ids, tail = top.log_probs, top.ids.long(), top.tail_log_mass
    elif kind == "probs":
        values = values.softmax(-1)
    weights = torch.arange(k, dtype=torch.float64) if k > 1 and kind != "topk" else None
    per_class = None if labels is None else torch.linspace(0, 2, 10, dtype=torch.float64)
    rows = None if labels is None else torch.linspace(0, 3, 5, dtype=torch.float64)
    loss = LossSettings(
        divergence=divergence,
        beta=0.3,
        temperature=2.0,
        alpha=1.0 if labels is None else 0.4,
        label_smoothing=0.1,
        z_loss=0.01,
    )
    settings = op_settings(
        loss, kind=kind, combiner="prob", tail_mode="tail", reduction=reduction, divisor=3.0
    )
    tensors = OpTensors(scale, offset, ids, tail, weights, labels, per_class, rows)
    flags = {"with_gradient": with_gradient, "with_statistics": with_statistics}
    return tuple(op_call(student.requires_grad_(with_gradient), values, tensors, settings, **flags))


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
    """What was handed out is the caller's: adding to it or clearing it must not reach what the graph
    keeps."""
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
    """A loss scaled as torch.amp.GradScaler does it keeps what the mean's gradient alone would round to 0:
    most of it, over 4096 rows."""
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


# Transforms
# ----------------------------------------------------------------------------------------------------------


def test_forward_mode_is_refused_not_zero():
    student, targets = make_logits(5, 10, seed=0), make_logits(3, 5, 10, seed=1)
    with pytest.raises(
        NotImplementedError, match=r"student_logits: carries a forward-mode tangent.* use impl='reference'"
    ):
        torch.func.jvp(lambda s: distillation_loss(s, targets), (student,), (torch.ones_like(student),))
    for hessian in (torch.func.hessian, lambda f: torch.func.jacfwd(torch.func.grad(f))):
        with pytest.raises(
            NotImplementedError,
            match=r"distillation_loss: has no forward-mode derivative \(.*hessian\); take torch.func.jacrev",
        ):
            hessian(lambda s: distillation_loss(s, targets))(student)
    direction = make_logits(5, 10, seed=2)
    _, slope = torch.func.jvp(
        lambda s: distillation_loss(s, targets, impl="reference"), (student,), (direction,)
    )
    expected = (closed_forms(student, targets).gradient * direction).sum()
    assert slope.item() == pytest.approx(expected.item(), rel=1e-5)


ROWS = {"alpha": 0.4, "temperature": 2.0, "divergence": "jsd", "z_loss": 0.01}


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
def test_vmap_is_a_loop(reduction):
    students, targets = make_logits(4, 5, 10, seed=0, dtype=torch.float64), make_logits(4, 3, 5, 10, seed=1)
    labels = torch.stack([LABELS, LABELS.flip(0), torch.full((5,), -100), LABELS])

    def loss(student, targets, labels):
        return distillation_loss(student, targets, labels, reduction=reduction, **ROWS)

    def check(function, *batch, dims):
        found = torch.func.vmap(function, in_dims=dims)(*batch)
        slices = [
            [x if d is None else x.select(d, i) for x, d in zip(batch, dims, strict=True)] for i in range(4)
        ]
        torch.testing.assert_close(
            found, torch.stack([function(*part) for part in slices]), rtol=1e-13, atol=1e-15
        )  # sums in float64

    for dims in ((0, 0, 0), (0, None, None), (None, 0, 0), (None, None, 0)):
        batch = [x if d == 0 else x[0] for x, d in zip((students, targets, labels), dims, strict=True)]
        check(loss, *batch, dims=dims)
        if dims[0] == 0:
            check(torch.func.grad(lambda *a: loss(*a).sum()), *batch, dims=dims)
    check(loss, students.permute(1, 2, 0), targets, labels, dims=(2, 0, 0))


def test_vmap_over_weights_and_kinds_of_targets():
    student, targets = make_logits(5, 10, seed=0), make_logits(3, 5, 10, seed=1)
    weights, per_class = make_logits(4, 3, seed=2).abs(), make_logits(4, 10, seed=3).abs()
    found = torch.func.vmap(
        lambda w, c: distillation_loss(student, targets, LABELS, alpha=0.5, weights=w, class_weights=c)
    )(weights, per_class)
    loop = [
        distillation_loss(student, targets, LABELS, alpha=0.5, weights=w, class_weights=c)
        for w, c in zip(weights, per_class, strict=True)
    ]
    assert torch.equal(found, torch.stack(loop))
    students, top, codes = (
        make_logits(4, 5, 10, seed=4),
        make_top_k(5, 10, 4, seed=1),
        make_codes(2, 5, 10, seed=1),
    )
    for target in (top, codes):
        found = torch.func.vmap(lambda s, target=target: distillation_loss(s, target))(students)
        torch.testing.assert_close(
            found, torch.stack([distillation_loss(s, target) for s in students]), rtol=1e-6, atol=0
        )
    maps = make_logits(4, 2, 10, 3, 3, seed=5)
    found = torch.func.vmap(lambda m: distillation_loss(m, maps[0], class_dim=1, reduction="none"))(maps)
    loop = torch.stack([distillation_loss(m, maps[0], class_dim=1, reduction="none") for m in maps])
    torch.testing.assert_close(found, loop, rtol=1e-5, atol=1e-6)  # float32, read in another order


def test_torch_func_differentiates():
    """grad, jacrev and their compositions, first order by the kernel, second by the specification."""
    student, targets = make_logits(5, 10, seed=0, dtype=torch.float64), make_logits(3, 5, 10, seed=1)

    def loss(student, impl="fused"):
        return distillation_loss(student, targets, LABELS, impl=impl, **ROWS)

    leaf = student.clone().requires_grad_()
    loss(leaf).backward()
    assert torch.equal(torch.func.grad(loss)(student), leaf.grad)
    assert torch.equal(torch.func.grad_and_value(loss)(student)[1], loss(student))
    hessian = torch.func.jacrev(torch.func.jacrev(loss))(student)
    expected = torch.func.hessian(lambda s: loss(s, "reference"))(student)
    torch.testing.assert_close(hessian, expected, rtol=1e-10, atol=1e-13)  # float64, in two orders
    rows = torch.func.jacrev(lambda s: distillation_loss(s, targets, reduction="none"))(student)
    assert rows.shape == (5, 5, 10)
    assert (rows[0, 1:] == 0).all()
    for recompute in (False, True):
        found = torch.func.grad(
            lambda s, recompute=recompute: distillation_loss(s, targets, recompute=recompute)
        )(student)
        torch.testing.assert_close(found, closed_forms(student, targets).gradient, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("recompute", [False, True])
def test_batched_upstream_factors(recompute):
    """Many backward passes in one, as torch.autograd.functional.jacobian(vectorize=True) makes them."""
    student, targets = make_logits(5, 10, seed=0, dtype=torch.float64), make_logits(3, 5, 10, seed=1)

    def losses(student):
        return distillation_loss(student, targets, reduction="none", recompute=recompute)

    leaf = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(
        losses(leaf), leaf, torch.eye(5, dtype=torch.float64), is_grads_batched=True
    )
    assert torch.equal(found, torch.func.jacrev(losses)(student))
    (found,) = torch.autograd.grad(
        losses(leaf).mean(), leaf, torch.linspace(0, 1, 3, dtype=torch.float64), is_grads_batched=True
    )
    torch.testing.assert_close(found[2], closed_forms(student, targets).gradient, rtol=1e-10, atol=1e-15)
    (found,) = torch.autograd.grad(
        distillation_loss(leaf, targets, recompute=recompute),
        leaf,
        torch.linspace(0, 1, 3, dtype=torch.float64),
        is_grads_batched=True,
    )
    torch.testing.assert_close(found[2], closed_forms(student, targets).gradient, rtol=1e-10, atol=1e-15)


def test_create_graph_gives_the_kernels_own_gradient():
    student, targets = (
        make_logits(5, 10, seed=0, dtype=torch.bfloat16).requires_grad_(),
        make_logits(3, 5, 10, seed=1),
    )
    once = torch.autograd.grad(distillation_loss(student, targets), student)[0]
    (differentiable,) = torch.autograd.grad(distillation_loss(student, targets), student, create_graph=True)
    assert differentiable.requires_grad
    assert torch.equal(differentiable, once)


@pytest.fixture
def compiled():
    """torch.compile with nothing left uncompiled, and no memory of other tests."""
    torch._dynamo.reset()
    yield lambda function, **options: torch.compile(function, fullgraph=True, **options)
    torch._dynamo.reset()


def check_compiled(function, *, rows=5, dtype=torch.float32):
    """``function`` is the compiled one; the uncompiled op must give the same numbers, up to one more
    rounding."""
    student, targets = make_logits(rows, 10, seed=rows, dtype=dtype), make_logits(3, rows, 10, seed=1)
    results = []
    for f in (function, function._torchdynamo_orig_callable):
        leaf = student.clone().requires_grad_()
        loss = f(leaf, targets)
        (loss * 2).backward()
        results.append((loss.detach(), leaf.grad))
    (loss, gradient), (expected, expected_gradient) = results
    torch.testing.assert_close(
        loss, expected, rtol=2 * torch.finfo(loss.dtype).eps, atol=0
    )  # divided inside or after
    # times 2 inside or after; and q - p is rounded as the larger of them
    atol = torch.finfo(loss.dtype).eps * expected_gradient.abs().max().item()
    torch.testing.assert_close(gradient, expected_gradient, rtol=2 * torch.finfo(dtype).eps, atol=atol)


@pytest.mark.parametrize(
    "weights", [None, torch.tensor([0.0, 1.0, 3.0]), [0.2, 0.3, 0.5]], ids=["none", "tensor", "list"]
)
@pytest.mark.parametrize("labels", [None, LABELS], ids=["", "labels"])
def test_compiles_in_one_graph(compiled, labels, weights):
    alpha = 1.0 if labels is None else 0.5

    def loss(student, targets):
        return distillation_loss(student, targets, labels, weights=weights, temperature=2.0, alpha=alpha)

    check_compiled(compiled(loss, backend="aot_eager"))


def test_compiles_with_the_default_backend(compiled):
    codes = make_codes(3, 5, 10, seed=0, masked=True)

    def loss(student, targets):
        return distillation_loss(student * 1.5, targets, LABELS, alpha=0.5) + distillation_loss(
            student, codes, temperature=2.0
        )

    check_compiled(compiled(loss), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
def test_compiles_for_any_number_of_rows(compiled, reduction, dtype):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def loss(student, targets):
        return distillation_loss(student, targets, temperature=2.0, reduction=reduction)

    function = compiled(loss, backend=backend, dynamic=True)
    check_compiled(function, rows=5, dtype=dtype)
    first = len(graphs)
    for rows in (7, 16, 33):
        check_compiled(function, rows=rows, dtype=dtype)
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
        lambda labels, weights: distillation_loss(student, targets, labels, weights=weights, alpha=0.5),
        backend="aot_eager",
    )
    good = torch.ones(3)
    assert function(LABELS, good).isfinite()
    with pytest.raises(RuntimeError, match=r"labels: expected 0\.\.9 or ignore_index -100, got 10 in row 2"):
        function(torch.tensor([0, 1, 10, 0, 0]), good)
    with pytest.raises(
        RuntimeError, match="weights: expected finite values of at least 0, got -1 for member 1"
    ):
        function(LABELS, torch.tensor([1.0, -1.0, 1.0]))


def test_impl_compile_is_the_reference(compiled):
    student, targets = make_logits(5, 10, seed=0).requires_grad_(), make_logits(3, 5, 10, seed=1)
    loss = distillation_loss(
        student, targets, LABELS, alpha=0.5, temperature=2.0, weights=[1.0, 0.0, 2.0], impl="compile"
    )
    loss.backward()
    truth = closed_forms(
        student, targets, LABELS, alpha=0.5, temperature=2.0, weights=torch.tensor([1.0, 0.0, 2.0])
    )
    assert loss.item() == pytest.approx(truth.loss.item(), rel=1e-5)
    torch.testing.assert_close(student.grad.double(), truth.gradient, rtol=1e-5, atol=1e-7)


# The backstop of whoever calls the op directly
# -----------------------------------------------------------------------


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
