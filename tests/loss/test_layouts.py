"""Leading dimensions and class dimensions: the same numbers as [N, C], read in place, with gradients laid out
like the student."""

from itertools import permutations, product

import pytest
import torch
from closed_forms import DIVERGENCES, assert_close, make_codes, make_counts, make_logits, make_top_k, run

from ensdistill.functional import distillation_loss
from ensdistill.loss.layout import collapse
from ensdistill.loss.targets import EnsembleLogits, LogProbs, QuantizedLogits

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def as_rows(x, class_dim, leading=0):
    """Any layout as [N, C], or behind ``leading`` dimensions, by copies."""
    x = x.movedim(class_dim + leading, -1)
    return x.reshape(*x.shape[:leading], -1, x.shape[-1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("c", [2, 10, 33, 200])
def test_feature_maps(c, dtype, instruction_set):
    """[N, C, H, W], values and gradients of every pixel, and labels where they belong."""
    student, targets = make_logits(3, c, 5, 7, seed=0, dtype=dtype), make_logits(2, 3, c, 5, 7, seed=1)
    labels = torch.arange(105).reshape(3, 5, 7) % c
    labels[1, 2] = -100
    rows, row_targets = as_rows(student, 1), as_rows(targets, 1, leading=1)
    for divergence, reduction in product(DIVERGENCES, ("mean", "none")):
        arguments = {"divergence": divergence, "alpha": 0.5, "reduction": reduction}
        loss, gradient = run(student, targets, labels, class_dim=1, **arguments)
        assert gradient.stride() == student.stride()
        if reduction == "none":
            assert loss.shape == (3, 5, 7)
        assert_close(
            (loss.flatten() if loss.dim() else loss, as_rows(gradient, 1)),
            rows,
            row_targets,
            labels.flatten(),
            **arguments,
        )


@pytest.mark.parametrize("class_dim", [0, 1, 2, 3, -1, -2])
def test_every_class_dim(class_dim):
    dims = [3, 4, 5]
    dims.insert(class_dim % 4, 10)
    student, targets = make_logits(*dims, seed=0), make_logits(2, *dims, seed=1)
    loss, gradient = run(student, targets, class_dim=class_dim, reduction="none")
    assert loss.shape == (3, 4, 5)
    rows = as_rows(student, class_dim % 4)
    assert_close(
        (loss.flatten(), as_rows(gradient, class_dim % 4)),
        rows,
        as_rows(targets, class_dim % 4, leading=1),
        reduction="none",
    )


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3), (2, 3, 4, 2), (0,), (2, 0, 3)])
def test_any_leading_dimensions(lead):
    student, targets = make_logits(*lead, 10, seed=0), make_logits(3, *lead, 10, seed=1)
    labels = torch.randint(0, 10, lead, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(lead, generator=torch.Generator().manual_seed(1))
    arguments = {"alpha": 0.5, "sample_weights": weights, "reduction": "none"}
    loss, gradient = run(student, targets, labels, **arguments)
    assert loss.shape == lead
    assert gradient.shape == student.shape
    flat = (student.reshape(-1, 10), targets.reshape(3, -1, 10), labels.flatten())
    expected = run(*flat, **{**arguments, "sample_weights": weights.flatten()})
    assert torch.equal(loss.flatten(), expected[0])
    assert torch.equal(gradient.reshape(-1, 10), expected[1])
    _, rows = distillation_loss(student, targets, labels, statistics=True, **arguments)
    assert rows.student_entropy.shape == lead
    batchmean = distillation_loss(student, targets, labels, **{**arguments, "reduction": "batchmean"})
    torch.testing.assert_close(
        batchmean, loss.sum() / max(lead[0] if lead else 1, 1), rtol=1e-5, atol=1e-7
    )  # float32


def test_one_member_may_leave_k_out():
    student = make_logits(2, 3, 10, seed=0)
    single = make_logits(2, 3, 10, seed=1)
    expected = distillation_loss(student, single[None])
    assert distillation_loss(student, single) == expected
    log_p = single.log_softmax(-1)
    assert distillation_loss(student, LogProbs(log_p)) == distillation_loss(student, LogProbs(log_p[None]))
    with pytest.raises(ValueError, match="with K >= 1"):
        distillation_loss(student, EnsembleLogits(single))  # here K is part of the type


def test_sparse_and_quantized_targets_of_tokens_and_pixels():
    tokens = make_logits(2, 6, 30, seed=0)
    maps = tokens.movedim(-1, 1).contiguous()  # [2, 30, 6]
    top, counts, codes = (
        make_top_k(12, 30, 5, seed=1),
        make_counts(12, 30, 8, seed=1),
        make_codes(3, 12, 30, seed=1),
    )
    for target, shaped in (
        (top, type(top)(top.ids.view(2, 6, 5), top.log_probs.view(2, 6, 5), top.tail_log_mass.view(2, 6))),
        (counts, type(counts)(counts.ids.view(2, 6, 8), counts.counts.view(2, 6, 8))),
        (
            codes,
            QuantizedLogits(
                codes.codes.reshape(3, 2, 6, 30), codes.scale.reshape(3, 2, 6), codes.offset.reshape(3, 2, 6)
            ),
        ),
    ):
        expected = run(tokens.view(12, 30), target, reduction="none")
        loss, gradient = run(tokens, shaped, reduction="none")
        assert torch.equal(loss.flatten(), expected[0])
        assert torch.equal(gradient.view(12, 30), expected[1])
        if isinstance(target, QuantizedLogits):
            shaped = QuantizedLogits(shaped.codes.movedim(-1, 2), shaped.scale, shaped.offset)
        loss, gradient = run(maps, shaped, class_dim=1, reduction="none")
        torch.testing.assert_close(
            loss.flatten(), expected[0], rtol=1e-5, atol=1e-6
        )  # float32, sums in another order
        torch.testing.assert_close(gradient.movedim(1, -1).reshape(12, 30), expected[1], rtol=1e-5, atol=1e-6)


# Views
# ------------------------------------------------------------------------------------------------------------


def shares(view, original):
    return view.untyped_storage().data_ptr() == original.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("shape", "class_dim", "expected"),
    [
        ((6, 10), 1, (6, 10)),
        ((2, 3, 10), 2, (6, 10)),
        ((2, 10, 4, 5), 1, (2, 20, 10)),
        ((10, 4, 5), 0, (1, 20, 10)),
        ((2, 4, 10, 5), 2, (8, 5, 10)),
        ((2, 10, 1, 1), 1, (2, 10)),
        ((2, 10, 0, 5), 1, (0, 10)),
        ((10,), 0, (1, 10)),
    ],
)
def test_dense_layouts_are_not_copied(shape, class_dim, expected):
    student, targets = torch.randn(shape), torch.randn(3, *shape)
    rows, values = collapse(student, targets, class_dim)
    assert rows.shape == expected
    assert values.shape == (3, *expected)
    assert shares(rows, student)
    assert shares(values, targets)
    torch.testing.assert_close(rows.reshape(-1, 10), as_rows(student, class_dim), rtol=0, atol=0)


def test_channels_last_memory_is_not_copied():
    student = torch.randn(2, 10, 4, 5).to(memory_format=torch.channels_last)
    targets = torch.randn(2, 4, 5, 3, 10).permute(3, 0, 4, 1, 2)  # members beside the pixels
    rows, values = collapse(student, targets, 1)
    assert rows.shape == (40, 10)
    assert shares(rows, student)
    assert shares(values, targets)
    leaf = student.clone(memory_format=torch.preserve_format).requires_grad_()
    distillation_loss(leaf, targets, class_dim=1).backward()
    assert leaf.grad.stride() == student.stride()


def test_only_tensors_that_cannot_be_viewed_are_copied():
    student = torch.randn(2, 10, 4, 5)
    rows, values = collapse(student, torch.randn(3, 2, 10, 4, 10)[..., ::2], 1)
    assert shares(rows, student)
    assert values.shape == (3, 2, 20, 10)
    targets = torch.randn(3, 2, 3, 4, 10)
    rows, values = collapse(
        torch.randn(4, 3, 2, 10).permute(2, 1, 0, 3), targets, 3
    )  # three leading dimensions that don't merge
    assert rows.shape == (24, 10)
    assert shares(values, targets)


def test_any_order_of_memory_gives_the_same_numbers():
    student, targets = make_logits(2, 10, 3, 4, seed=0), make_logits(3, 2, 10, 3, 4, seed=1)
    expected = run(student, targets, class_dim=1, reduction="none")
    for order in permutations(range(4)):
        back = sorted(range(4), key=order.__getitem__)
        shuffled = student.permute(order).contiguous().permute(back)
        loss, gradient = run(shuffled, targets, class_dim=1, reduction="none")
        torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=1e-6)  # float32, sums in another order
        torch.testing.assert_close(gradient, expected[1], rtol=1e-5, atol=1e-6)


def test_layouts_compile_in_one_graph():
    torch._dynamo.reset()
    student, targets = make_logits(2, 10, 3, 4, seed=0), make_logits(3, 2, 10, 3, 4, seed=1)
    labels = torch.arange(24).reshape(2, 3, 4) % 10
    compiled = torch.compile(distillation_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    results = []
    for function in (compiled, distillation_loss):
        leaf = student.clone().requires_grad_()
        loss, rows = function(leaf, targets, labels, alpha=0.5, class_dim=1, statistics=True)
        loss.backward()
        results.append((loss.detach(), leaf.grad, rows.student_entropy))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    torch._dynamo.reset()
