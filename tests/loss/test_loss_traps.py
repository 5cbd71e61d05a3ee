"""Where distillation losses go wrong, each by name; for every divergence where it matters to every one."""

from itertools import product

import pytest
import torch
from closed_forms import (
    DIVERGENCES,
    assert_close,
    closed_forms,
    make_codes,
    make_counts,
    make_logits,
    make_top_k,
    run,
    worst,
)

from ensdistill.common.combiners import COMBINERS
from ensdistill.functional import distillation_loss
from ensdistill.loss.targets import EnsembleLogits, LogProbs, Probs, TopK

INF = torch.inf


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "tvd"])
def test_zero_times_minus_infinity_at_zero_teacher_mass(divergence, impl, instruction_set):
    """0 * (log 0 - log q) is 0, whichever way the zero came: a masked logit, a log-probability of -inf, a
    probability of 0."""
    for c in (10, 31, 300):
        z, student = make_logits(2, 9, c, seed=0), make_logits(9, c, seed=1)
        z[..., 4:9] = -INF
        log_p = torch.log_softmax(z, -1)
        student[:, 6:8] = -INF  # log q is then -inf as well
        for targets, combiner in product((z, LogProbs(log_p), Probs(log_p.exp())), COMBINERS):
            arguments = {"divergence": divergence, "combiner": combiner}
            found = run(student, targets, impl=impl, **arguments)
            assert found[0].isfinite()
            assert found[1].isfinite().all()
            assert_close(found, student, targets, **arguments)


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_reverse_kl_to_a_class_without_teacher_mass_is_infinite(impl):
    z, student = make_logits(3, 70, seed=0), make_logits(3, 70, seed=1)
    z[1, 5] = -INF
    assert distillation_loss(
        student, z, divergence="reverse_kl", impl=impl, reduction="none"
    ).isinf().tolist() == [False, True, False]


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_logits_are_as_if_they_were_not_there(divergence, impl, instruction_set):
    """Both sides rule a class out: loss and other gradients are those without it, its own gradient is 0."""
    for c in (31, 300):
        z, student = make_logits(2, 9, c, seed=0), make_logits(9, c, seed=1)
        z[..., 4:9], student[:, 4:9] = -INF, -INF
        kept = [i for i in range(c) if not 4 <= i < 9]
        loss, gradient = run(student, z, divergence=divergence, impl=impl)
        expected = run(student[:, kept], z[..., kept], divergence=divergence, impl=impl)
        assert loss.item() == pytest.approx(expected[0].item(), rel=2e-6)  # the sums are in another order
        assert (gradient[:, 4:9] == 0).all()
        torch.testing.assert_close(gradient[:, kept], expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 3])
def test_first_blocks_all_masked(k, divergence, instruction_set):
    """A wide row is walked in blocks; one without a finite logit must not make exp(-inf + inf)."""
    student, targets = make_logits(2, 9000, seed=0), make_logits(k, 2, 9000, seed=1)
    student[:, :5000], targets[..., :5000] = -INF, -INF
    if divergence != "reverse_kl":  # which is infinite where only the teacher has no mass
        targets[0, 0, :7000] = -INF
        targets[0, 1, 7000:] = -INF  # and a last block
        targets[0, 1, 5000] = 40.0
    arguments = {"temperature": 2.0, "divergence": divergence}
    assert_close(run(student, targets, **arguments), student, targets, **arguments)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_vocabulary_padding_by_minus_infinity_and_not_by_zero(divergence, instruction_set):
    for c in (10, 1000):
        student, targets = make_logits(5, c, seed=0), make_logits(3, 5, c, seed=1)
        arguments = {"labels": torch.arange(5), "alpha": 0.5, "divergence": divergence}
        loss, gradient = run(student, targets, **arguments)
        padded = [torch.nn.functional.pad(x, (0, 23), value=-INF) for x in (student, targets)]
        found = run(*padded, **arguments)
        assert found[0].item() == pytest.approx(loss.item(), rel=2e-6)  # the sums are in another order
        torch.testing.assert_close(found[1][:, :c], gradient, rtol=1e-5, atol=1e-7)
        assert (found[1][:, c:] == 0).all()
        zeros = [torch.nn.functional.pad(x, (0, 23), value=0.0) for x in (student, targets)]
        plain = run(student, targets, divergence=divergence)[0]
        assert abs(run(*zeros, divergence=divergence)[0] - plain) > 1e-4 * plain  # which padding by 0 changes


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_temperature_squared_is_there(divergence):
    """For large T all smooth divergences are a multiple of half the squared distance of centred logits over
    C, independent of T, and so is the gradient one of the distance.
    """
    factor = {"forward_kl": 1.0, "reverse_kl": 1.0, "jsd": 0.3 * 0.7}[divergence]
    student, targets = make_logits(15, 31, seed=0, dtype=torch.float64), make_logits(1, 15, 31, seed=1)
    distance = (student - student.mean(-1, keepdim=True)) - (targets[0] - targets[0].mean(-1, keepdim=True))
    limit, slope = factor * (distance**2).sum(-1).mean() / 31 / 2, factor * distance / 31 / 15
    for t in (1e2, 1e3):
        loss, gradient = run(student, targets, temperature=t, divergence=divergence, beta=0.3)
        assert loss.item() == pytest.approx(limit.item(), rel=20 / t)  # first order in 1/T
        assert (gradient - slope).norm() <= 20 / t * slope.norm()


def test_temperature_squared_is_there_for_tvd():
    student, targets = make_logits(15, 31, seed=0), make_logits(15, 31, seed=1)
    plain = distillation_loss(student / 3, targets / 3, divergence="tvd")
    assert distillation_loss(student, targets, divergence="tvd", temperature=3.0).item() == pytest.approx(
        9 * plain.item(), rel=1e-5
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_mean_is_over_rows_not_over_elements(divergence):
    student, targets = make_logits(15, 31, seed=0), make_logits(3, 15, 31, seed=1)
    rows = distillation_loss(student, targets, divergence=divergence, reduction="none")
    for reduction, divisor in (("mean", 15), ("batchmean", 15), ("sum", 1)):
        found = distillation_loss(student, targets, divergence=divergence, reduction=reduction)
        assert found.item() == pytest.approx(rows.double().sum().item() / divisor, rel=1e-6)
    tokens = [x.reshape(*x.shape[:-2], 3, 5, 31) for x in (student, targets)]
    assert distillation_loss(*tokens, divergence=divergence).item() == pytest.approx(
        rows.double().mean().item(), rel=1e-6
    )
    assert distillation_loss(*tokens, divergence=divergence, reduction="batchmean").item() == pytest.approx(
        rows.double().sum().item() / 3, rel=1e-6
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_kl_is_not_a_cross_entropy(divergence):
    """Which would be log 7 here, and not 0."""
    for targets in (
        torch.zeros(1, 4, 7),
        LogProbs(torch.full((4, 7), 1 / 7).log()),
        Probs(torch.full((4, 7), 1 / 7)),
    ):
        assert abs(distillation_loss(torch.zeros(4, 7), targets, divergence=divergence)) <= 1e-6


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_zero_at_the_optimum(impl, divergence, instruction_set):
    for c, temperature in product((10, 300, 20000), (1.0, 2.5)):
        z = make_logits(5, c, seed=c)
        log_p = torch.log_softmax(z / temperature, -1)
        top = log_p.topk(min(c // 2, 50))
        outside = log_p.double().scatter(-1, top.indices, -INF).logsumexp(-1).float()
        for targets in (
            z,
            LogProbs(log_p, temperature=temperature),
            TopK(top.indices, top.values, outside, temperature),
        ):
            loss, gradient = run(z, targets, temperature=temperature, divergence=divergence, impl=impl)
            assert (
                abs(loss.item()) <= 2e-5 * temperature**2
            )  # TVD adds |p - q| of every class, a rounding each
            if divergence == "forward_kl" and impl == "fused" and targets is z:
                assert (
                    loss.item() == 0
                )  # one member's log-probabilities come from its logits by the same steps as the student's
            if divergence != "tvd":
                assert abs(loss.item()) <= 2e-6 * temperature**2
                assert gradient.abs().max() <= 1e-6


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_reduction_none_gives_each_row_its_own_gradient(divergence, recompute):
    student, targets, labels = make_logits(15, 31, seed=0), make_logits(3, 15, 31, seed=1), torch.arange(15)
    labels[6] = -100
    factors = torch.linspace(-2, 3, 15)
    arguments = {"alpha": 0.5, "divergence": divergence, "reduction": "none"}
    student.requires_grad_()
    distillation_loss(student, targets, labels, recompute=recompute, **arguments).backward(factors)
    truth = closed_forms(student, targets, labels, **arguments)
    assert worst(student.grad, truth.gradient * factors[:, None]) <= 2e-6


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_logits_of_other_graphs_are_not_overwritten(divergence, instruction_set):
    for c, kind in product((10, 507), ("logits", "codes", "topk", "counts")):
        if divergence == "reverse_kl" and kind == "counts":
            continue
        student, labels = make_logits(15, c, seed=0), torch.arange(15) % c
        target = {
            "logits": EnsembleLogits(
                make_logits(3, 15, c, seed=1), torch.ones(3, dtype=torch.float64)
            ),  # in the kernel's own dtype
            "codes": make_codes(3, 15, c, seed=1),
            "topk": make_top_k(15, c, 4, seed=1),
            "counts": make_counts(15, c, 9, seed=1),
        }[kind]
        tensors = [student, labels, *(x for x in vars(target).values() if isinstance(x, torch.Tensor))]
        before = [x.clone() for x in tensors]
        leaf = student.requires_grad_()
        loss = distillation_loss(leaf * 1, target, labels, divergence=divergence, alpha=0.5)
        (loss * 2 + leaf.sum()).backward()
        assert all(torch.equal(x.detach(), y) for x, y in zip(tensors, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_sum_exp_is_not_kept_in_low_precision(dtype, instruction_set):
    """In bfloat16 a log-sum-exp of 20 is off by up to 0.06, and the loss with it. float32 inside is exact to
    1e-6 of it."""
    student, targets = (make_logits(64, 1000, seed=i, dtype=dtype) + 15 for i in (0, 1))
    for divergence in DIVERGENCES:
        rows = distillation_loss(student, targets, divergence=divergence, reduction="none").double()
        truth = closed_forms(student, targets, divergence=divergence, reduction="none").loss
        assert ((rows - truth).abs() <= 1e-5 * truth).all()
    p, log_p, log_q = (
        torch.softmax(targets.double(), -1),
        torch.log_softmax(targets.double(), -1),
        torch.log_softmax(student.double(), -1),
    )
    naive = (p * (log_p.to(dtype).double() - log_q.to(dtype).double())).sum(-1)
    exact = (p * (log_p - log_q)).sum(-1)
    assert (
        (naive - exact).abs() > 1e-5 * exact
    ).float().mean() > 0.9  # which the limit above would have noticed


def test_tail_mass_is_the_given_one_and_not_one_minus_the_sum():
    """A true tail of 1e-3 beside bfloat16 log-probabilities: 1 - sum of them is off by as much as the tail,
    and negative at times."""
    c, k = 500, 20
    z = make_logits(200, c, seed=0, dtype=torch.float64)
    z.scatter_add_(-1, z.topk(k).indices, torch.full((200, k), 9.0, dtype=torch.float64))
    log_p, student = torch.log_softmax(z, -1), make_logits(200, c, seed=1)
    top = log_p.topk(k)
    stored, tail = top.values.to(torch.bfloat16), log_p.scatter(-1, top.indices, -INF).logsumexp(-1)
    guessed = 1 - stored.double().exp().sum(-1)
    assert (guessed < 0).any()  # so the case is the one meant
    target = TopK(top.indices, stored, tail.float())
    for divergence in DIVERGENCES:
        assert_close(run(student, target, divergence=divergence), student, target, divergence=divergence)
    loss = distillation_loss(student, target, divergence="forward_kl", reduction="none").double()
    exact = closed_forms(student, TopK(top.indices, top.values, tail), reduction="none").loss
    # bfloat16's rounding of each listed log-probability, |log p| 2^-9, times its own p and log-ratio; nothing
    # from the tail
    assert worst(loss, exact) <= 0.1


@pytest.mark.parametrize("temperature", [1e-4, 1e4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_extremes_of_temperature(divergence, temperature, instruction_set):
    for c in (10, 300):
        student, targets = make_logits(9, c, seed=0), make_logits(3, 9, c, seed=1)
        arguments = {"temperature": temperature, "divergence": divergence}
        loss, gradient = run(student, targets, **arguments)
        # The specification in float64, since the closed forms take logarithms of probabilities that are 0 at
        # 1e-4.
        expected, expected_gradient = run(student.double(), targets.double(), impl="reference", **arguments)
        # The gradient is at most T times probabilities, in whose exponents logits of up to 15 lie, divided by
        # T and rounded to float32.
        size = min(temperature, 1.0)
        assert worst(loss, expected) <= 1e-5 * size + 1e-6 * expected
        rounded = size * 2.0**-23 * 15 * max(1 / temperature, 1)
        assert worst(gradient, expected_gradient) <= rounded + 2.0**-23 * expected_gradient.abs().max()
