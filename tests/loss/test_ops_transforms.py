"""The loss under torch.func: forward mode, vmap, grad and jacrev, batched factors."""

import pytest
import torch
from closed_forms import closed_forms, make_codes, make_logits, make_top_k
from op_helpers import LABELS

from ensdistill.functional import distillation_loss


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
