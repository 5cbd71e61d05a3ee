"""Top-k targets and counts: how each mode treats the classes that aren't listed."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from closed_forms import (
    DIVERGENCES,
    UNIT,
    assert_close,
    closed_forms,
    make_counts,
    make_logits,
    make_top_k,
    run,
    worst,
)

from ensdistill.functional import distillation_loss
from ensdistill.loss.targets import Counts, Probs, TopK

INF = torch.inf
MODES = ("tail", "renormalize", "zero")


def legal(divergence, mode):
    return divergence != "reverse_kl" or mode == "tail"


@pytest.mark.parametrize(("divergence", "mode"), [x for x in product(DIVERGENCES, MODES) if legal(*x)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_and_gradients(dtype, divergence, mode, instruction_set):
    for (c, k), padding in product(((2, 1), (10, 3), (33, 16), (1000, 64), (5003, 7)), (0, 1)):
        if k == 1 and padding:
            continue
        student, targets = (
            make_logits(6, c, seed=c, dtype=dtype),
            make_top_k(6, c, k, seed=k, temperature=2.0, padding=padding),
        )
        labels = torch.arange(6) % c
        labels[2] = -100
        arguments = {"temperature": 2.0, "divergence": divergence, "tail": mode, "alpha": 0.7, "beta": 0.2}
        assert_close(run(student, targets, labels, **arguments), student, targets, labels, **arguments)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_all_classes_listed_is_the_dense_distribution(divergence, instruction_set):
    """In every mode: nothing is left for the tail."""
    log_p, student = torch.log_softmax(make_logits(7, 12, seed=1), -1), make_logits(7, 12, seed=0)
    ids = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(i)) for i in range(7)])
    target = TopK(ids, log_p.gather(-1, ids), torch.full((7,), -INF))
    expected = run(student, Probs(log_p.exp()), divergence=divergence)
    for mode in MODES:
        if legal(divergence, mode):
            loss, gradient = run(student, target, divergence=divergence, tail=mode)
            assert worst(loss, expected[0]) <= 2e-6
            assert worst(gradient, expected[1]) <= 1e-6


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_bucket_is_less_than_the_whole(divergence):
    """Merging classes can't add distance (data processing), and the bucket is exact: with k = C - 1 it is one
    class."""
    log_p, student = (
        torch.log_softmax(make_logits(9, 20, seed=1, dtype=torch.float64), -1),
        make_logits(9, 20, seed=0, dtype=torch.float64),
    )
    order = log_p.sort(-1, descending=True)
    whole = distillation_loss(student, Probs(log_p.exp()), divergence=divergence, reduction="none")
    last = torch.zeros(9, dtype=torch.float64)
    for k in (1, 5, 12, 19):
        target = TopK(order.indices[:, :k], order.values[:, :k], order.values[:, k:].logsumexp(-1))
        loss = distillation_loss(student, target, divergence=divergence, reduction="none")
        assert (loss <= whole + 1e-12).all()
        assert (loss >= last - 1e-12).all()
        last = loss
    assert worst(last, whole) <= 1e-12


def test_zero_mode_is_the_sum_over_the_listed_and_renormalize_divides_by_it():
    student, target = (
        make_logits(5, 30, seed=0, dtype=torch.float64),
        make_top_k(5, 30, 4, seed=1, dtype=torch.float64),
    )
    log_q = torch.log_softmax(student, -1).gather(-1, target.ids.long())
    p = target.log_probs.exp()
    zero = (p * (target.log_probs - log_q)).sum(-1)
    assert worst(distillation_loss(student, target, tail="zero", reduction="none"), zero) <= 1e-13
    share = p / p.sum(-1, keepdim=True)
    expected = (share * (share.log() - log_q)).sum(-1)
    assert worst(distillation_loss(student, target, tail="renormalize", reduction="none"), expected) <= 1e-13
    assert worst(zero, expected) > 1e-2


@pytest.mark.parametrize("mode", MODES)
def test_padding_is_skipped(mode, instruction_set):
    """For any ids of the padding: repeated, of classes that are listed, anywhere among the entries."""
    student, target = make_logits(8, 40, seed=0), make_top_k(8, 40, 5, seed=1)
    expected = run(student, target, tail=mode)
    ids = torch.cat(
        [target.ids[:, :2], target.ids[:, 2:3], torch.zeros(8, 3, dtype=torch.int32), target.ids[:, 2:]], -1
    )
    log_probs = torch.cat([target.log_probs[:, :2], torch.full((8, 4), -INF), target.log_probs[:, 2:]], -1)
    loss, gradient = run(student, replace(target, ids=ids, log_probs=log_probs), tail=mode)
    assert worst(loss, expected[0]) <= 1e-6
    assert worst(gradient, expected[1]) <= 1e-7


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_entries_does_not_matter(mode, instruction_set):
    student, target = make_logits(8, 400, seed=0), make_top_k(8, 400, 50, seed=1)
    expected = run(student, target, tail=mode)
    loss, gradient = run(
        student, replace(target, ids=target.ids.flip(-1), log_probs=target.log_probs.flip(-1)), tail=mode
    )
    assert worst(loss, expected[0]) <= 2e-6
    assert worst(gradient, expected[1]) <= 1e-7


def test_dtypes_of_ids_and_log_probabilities():
    student, target = make_logits(8, 40, seed=0), make_top_k(8, 40, 5, seed=1)
    expected = distillation_loss(student, target)
    assert distillation_loss(student, replace(target, ids=target.ids.long())) == expected
    for dtype in (torch.bfloat16, torch.float16):
        rounded = replace(target, log_probs=target.log_probs.to(dtype))
        same = replace(target, log_probs=target.log_probs.to(dtype).float())
        assert distillation_loss(student, rounded) == distillation_loss(student, same)
    exact = replace(target, log_probs=target.log_probs.double(), tail_log_mass=target.tail_log_mass.double())
    assert distillation_loss(student, exact).dtype == torch.float64
    assert distillation_loss(student, exact).item() == pytest.approx(expected.item(), rel=1e-5)


def test_views_of_a_store_are_legal():
    """Every second column of a record, rows in reverse: [N, k] without unit stride."""
    student, target = make_logits(8, 40, seed=0), make_top_k(8, 40, 5, seed=1)
    spread = [x.repeat_interleave(2, -1)[:, ::2] for x in (target.ids, target.log_probs)]
    assert distillation_loss(
        student, TopK(*spread, target.tail_log_mass.repeat_interleave(2)[::2])
    ) == distillation_loss(student, target)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_of_a_huge_vocabulary(mode, instruction_set):
    student, target = make_logits(2, 262144, seed=0), make_top_k(2, 262144, 128, seed=1)
    assert_close(run(student, target, tail=mode), student, target, tail=mode)


# Counts
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.uint8])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "tvd"])
def test_counts_are_their_shares(divergence, dtype, instruction_set):
    student, counts = make_logits(8, 60, seed=0), make_counts(8, 60, 25, seed=1)
    dense = torch.zeros(8, 60).scatter_add(-1, counts.ids, counts.counts.float()) / 25
    expected = closed_forms(student, Probs(dense), divergence=divergence)
    loss, gradient = run(student, replace(counts, counts=counts.counts.to(dtype)), divergence=divergence)
    assert worst(loss, expected.loss) <= 12 * UNIT[torch.float32] * 20
    assert ((gradient.double() - expected.gradient).abs() <= 2e-6 * expected.mass + expected.slack).all()


def test_counts_in_expectation_are_the_distribution():
    """The gradient of the forward KL is linear in p, so sampled counts give it without bias."""
    student, z = (
        make_logits(1, 12, seed=0, dtype=torch.float64),
        make_logits(1, 12, seed=1, dtype=torch.float64, spread=1.0),
    )
    p = torch.softmax(z, -1)
    draws = torch.multinomial(
        p.expand(4000, 12), 8, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    counts = torch.zeros(4000, 12).scatter_add(-1, draws, torch.ones(4000, 8))
    _, gradient = run(
        student.expand(4000, 12), Counts(torch.arange(12).expand(4000, 12), counts), reduction="mean"
    )
    _, expected = run(student, z)
    # a share's standard deviation is at most sqrt(p / 8), of the mean of 4000 sqrt(p / 32000); 5 of them
    assert ((gradient.sum(0) - expected[0]).abs() <= 5 * (p[0] / 32000).sqrt()).all()
