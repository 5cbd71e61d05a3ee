"""The loss under torch.compile: one graph, the uncompiled numbers, any number of rows."""

import pytest
import torch
from closed_forms import closed_forms, make_codes, make_logits
from op_helpers import LABELS

from ensdistill.functional import distillation_loss


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
