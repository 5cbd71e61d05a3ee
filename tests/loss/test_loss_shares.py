"""Rows, labels and targets without a share in the loss change nothing, not even if they are NaN."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from closed_forms import (
    DIVERGENCES,
    assert_close,
    make_codes,
    make_counts,
    make_logits,
    make_top_k,
    run,
    worst,
)

from ensdistill.functional import distillation_loss
from ensdistill.loss.linear import linear_distillation_loss
from ensdistill.loss.targets import LogProbs, Probs

INF = torch.inf


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rows_of_weight_0_are_left_out(divergence, impl, instruction_set):
    """Of the divergence, the cross entropy and the z-loss alike, and for any values of the row."""
    for c in (10, 300):
        student, targets, labels = (
            make_logits(17, c, seed=0),
            make_logits(2, 17, c, seed=1),
            torch.arange(17) % 7,
        )
        kept = torch.ones(17, dtype=torch.bool)
        kept[[4, 9, 16]] = False
        for alpha in (0.4, 1.0):
            arguments = {
                "alpha": alpha,
                "divergence": divergence,
                "z_loss": 0.01,
                "impl": impl,
                "reduction": "sum",
            }
            expected = run(student[kept], targets[:, kept], labels[kept], **arguments)
            student[~kept], targets[:, ~kept] = torch.nan, INF
            loss, gradient = run(student, targets, labels, sample_weights=kept.double(), **arguments)
            assert loss.item() == pytest.approx(expected[0].item(), rel=1e-6)
            assert (gradient[~kept] == 0).all()
            torch.testing.assert_close(gradient[kept], expected[1], rtol=1e-5, atol=1e-7)
            student, targets = make_logits(17, c, seed=0), make_logits(2, 17, c, seed=1)


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_ignore_index_concerns_the_labels_alone(divergence, impl, instruction_set):
    """A row without a label has no cross entropy, even where class 0, which its label could be taken for, is
    masked."""
    for c in (10, 300):
        student, targets, labels = (
            make_logits(17, c, seed=0),
            make_logits(2, 17, c, seed=1),
            torch.arange(17) % 7,
        )
        student[4, 0], targets[:, 4, 0] = -INF, -INF
        ignored = 5 if c == 10 else -100
        labels[[4, 9, 16]] = ignored
        for smoothing, recompute in product((0.0, 0.1), (False, True)):
            if smoothing:
                student[4, 0], targets[:, 4, 0] = -3.0, -2.0
            arguments = {
                "alpha": 0.4,
                "divergence": divergence,
                "ignore_index": ignored,
                "label_smoothing": smoothing,
                "impl": impl,
            }
            found = run(student, targets, labels, z_loss=0.01, recompute=recompute, **arguments)
            assert_close(
                found,
                student,
                targets,
                labels,
                z_loss=0.01,
                **{k: v for k, v in arguments.items() if k != "impl"},
            )
            rows = run(student, targets, labels, reduction="none", **arguments)
            alone = run(student, targets, divergence=divergence, reduction="none", impl=impl)
            torch.testing.assert_close(
                rows[0][labels == ignored], 0.4 * alone[0][labels == ignored], rtol=1e-6, atol=1e-7
            )
            torch.testing.assert_close(
                rows[1][labels == ignored], 0.4 * alone[1][labels == ignored], rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("count", [1, 5, 63, 64])
def test_compiled_loss_with_many_ignored_rows(count):
    """The compiled graph must not assume how many rows are labelled, nor divide by 0."""
    torch._dynamo.reset()
    compiled = torch.compile(distillation_loss, fullgraph=True, backend="aot_eager")
    targets = make_logits(2, 64, 10, seed=1)
    for ignored in (0, count, 64):
        labels = torch.arange(64) % 10
        labels[:ignored] = -100
        results = []
        for function in (compiled, distillation_loss):
            leaf = make_logits(64, 10, seed=0).requires_grad_()
            loss = function(leaf, targets, labels, alpha=0.5)
            loss.backward()
            results.append((loss.detach(), leaf.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        if ignored == 64:
            assert results[0][0] == 0.5 * distillation_loss(make_logits(64, 10, seed=0), targets)


def test_linear_loss_with_all_rows_ignored_is_the_divergence():
    hidden, weight = make_logits(9, 4, seed=0).requires_grad_(), make_logits(10, 4, seed=1).requires_grad_()
    layer, targets = (hidden, weight), make_logits(2, 9, 10, seed=2)
    loss = linear_distillation_loss(*layer, targets, torch.full((9,), -100), alpha=0.5, chunk_rows=4)
    alone = linear_distillation_loss(*layer, targets, chunk_rows=4)
    torch.testing.assert_close(loss, 0.5 * alone)
    for found, expected in zip(
        torch.autograd.grad(loss, layer), torch.autograd.grad(alone, layer), strict=True
    ):
        torch.testing.assert_close(found, 0.5 * expected)


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("kind", ["nan", "masked", "codes", "probs", "log_probs", "topk", "counts"])
def test_targets_without_a_share_do_not_matter(kind, impl, instruction_set):
    """With alpha = 0 the divergence isn't computed: 0 times an infinite one would be NaN."""
    for c, dtype in product((10, 300), (torch.float32, torch.float16)):
        student, labels = make_logits(9, c, seed=0, dtype=dtype), torch.arange(9)
        labels[4] = -100
        student[0, 5] = -INF
        target = {
            "nan": lambda n: torch.full((2, 9, n), torch.nan),
            "masked": lambda n: torch.full((2, 9, n), -INF),
            "codes": lambda n: replace(make_codes(2, 9, n, seed=1), scale=torch.full((2, 9), INF)),
            "probs": lambda n: Probs(torch.full((9, n), -1.0)),
            "log_probs": lambda n: LogProbs(torch.full((9, n), 9.0)),
            "topk": lambda n: replace(make_top_k(9, n, 4, seed=1), log_probs=torch.full((9, 4), INF)),
            "counts": lambda n: replace(make_counts(9, n, 9, seed=1), counts=torch.zeros(9, 9)),
        }[kind](c)
        for reduction in ("mean", "sum", "batchmean", "none"):
            arguments = {
                "alpha": 0.0,
                "label_smoothing": 0.0,
                "z_loss": 0.01,
                "temperature": 1.0,
                "reduction": reduction,
            }
            loss, gradient = run(student, target, labels, impl=impl, **arguments)
            expected, expected_gradient = run(student, torch.zeros(1, 9, c), labels, impl=impl, **arguments)
            assert loss.isfinite().all()
            assert torch.equal(loss, expected)
            assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd"])
def test_an_infinite_divergence_without_a_share_is_none(divergence, instruction_set):
    z, student, labels = make_logits(2, 9, 70, seed=0), make_logits(9, 70, seed=1), torch.arange(9)
    z[..., 5] = -INF
    for impl in ("fused", "reference"):
        loss, gradient = run(student, z, labels, alpha=0.0, divergence=divergence, impl=impl, temperature=3.0)
        leaf = student.double().requires_grad_()
        expected = torch.nn.functional.cross_entropy(leaf, labels)
        expected.backward()
        assert worst(loss, expected.detach()) <= 1e-5  # float32, rows of about 8
        assert worst(gradient, leaf.grad) <= 1e-7
    hidden = student.clone().requires_grad_()
    loss = linear_distillation_loss(
        hidden, torch.eye(70), z, labels, alpha=0.0, divergence=divergence, chunk_rows=4
    )
    loss.backward()
    assert worst(loss.detach(), expected.detach()) <= 1e-5
    assert worst(hidden.grad, leaf.grad) <= 1e-7


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_statistics_are_of_the_teachers_also_without_a_share(impl):
    student, targets, labels = make_logits(9, 30, seed=0), make_logits(3, 9, 30, seed=1), torch.arange(9)
    _, expected = distillation_loss(student, targets, labels, alpha=1.0, statistics=True, temperature=2.0)
    leaf = student.clone().requires_grad_()
    loss, found = distillation_loss(
        leaf, targets, labels, alpha=0.0, statistics=True, temperature=2.0, impl=impl
    )
    assert loss.requires_grad
    _, through = linear_distillation_loss(
        student, torch.eye(30), targets, labels, alpha=0.0, statistics=True, temperature=2.0, chunk_rows=4
    )
    for rows in (found, through):
        for name, x in vars(expected).items():
            torch.testing.assert_close(getattr(rows, name), x, rtol=1e-5, atol=1e-5)  # float32, a few nats
